"""Power cuts while a trainer saves checkpoint after checkpoint: ``chaos --checkpoint-cuts 200``.

The real trainer, on a disk of its own, saves after each step; its power is cut at moments drawn from a seed, and the
next attempt goes on from what ``supervisor.resume`` takes. Trainers are forked from this process, as from a warm
parent, so that a cut costs no import. In the end one undisturbed trainer says what every loss should have been.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from disk import Disk, why_not
from world import read_events, wait_until_stopped

from runyard import rundir
from runyard.protocol import ResumeCheckpoint
from runyard.supervisor.resume import Gone, prepare

MOST_STEPS = 10_000
MOST_SAVES_BEFORE_A_CUT, LONGEST_SAVE_S = 5, 0.1
BEGINS_WITHIN_S, REFERENCE_WITHIN_S = 60.0, 1800.0


def checkpoint_cuts(folder: Path, *, cuts: int, seed: int) -> dict[str, Any]:
    """After each cut: no checkpoint is torn, none that was announced is missing, and the newest one is gone on from."""
    reason = why_not()
    if reason:
        return {"cuts": 0, "notRun": reason, "problems": []}
    from runyard.trainer.main import preload

    preload()
    choose = random.Random(seed)  # noqa: S311 - chooses moments, guards nothing
    began_s = time.monotonic()
    saved = inside = 0
    found: list[str] = []
    losses: dict[int, float] = {}
    disk = Disk(folder, size_mib=1024)
    try:
        run = disk.folder / "run"
        attempt, resumed = place(run, 1, save_every_steps=1), None
        for cut in range(1, cuts + 1):
            trainer = _fork(attempt)
            try:
                _await(attempt, "step", 1)
                _await(attempt, "checkpoint", choose.randrange(MOST_SAVES_BEFORE_A_CUT))
                time.sleep(choose.uniform(0.0, LONGEST_SAVE_S))
                os.kill(trainer, signal.SIGSTOP)
                wait_until_stopped([trainer])
                announced, is_saving = _announced(attempt), _is_saving(attempt)
                disk.cut_power()
            finally:
                os.kill(trainer, signal.SIGKILL)
                os.waitpid(trainer, 0)
            disk.come_back()
            after = place(run, cut + 1, save_every_steps=1)
            newest = _go_on_from(after)
            found += [f"cut {cut}: {problem}" for problem in _look(attempt, announced, resumed, newest, losses)]
            saved += announced is not None
            inside += is_saving
            for other in run.glob("attempts/*"):
                if other != after and (newest is None or other not in newest.parents):
                    shutil.rmtree(other)
            attempt, resumed = after, newest
            print(f"\r{cut}/{cuts} cuts, {len(found)} wrong  ", end="", file=sys.stderr, flush=True)
        found += _differences(disk.folder / "calm", losses)
        return {
            "cuts": cuts,
            "withinASave": inside,
            "afterASave": saved,
            "steps": max(losses, default=0),
            "seconds": round(time.monotonic() - began_s),
            "problems": found,
        }
    finally:
        disk.close()


def place(run: Path, number: int, *, save_every_steps: int) -> Path:
    """An attempt's folder as the controller writes it."""
    attempt = run / "attempts" / str(number)
    (attempt / "logs").mkdir(parents=True)
    settings = {
        "hyperparameters": {"epochs": MOST_STEPS, "maxSteps": MOST_STEPS, "batchSize": 8, "microBatchSize": 8},
        "checkpoint": {"every": {"steps": save_every_steps}},
        "validation": {"every": {"steps": MOST_STEPS}, "maxSamples": 4},
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"maxSamples": 96}, "style": {}},
        {"block": "vi-model", "settings": settings, "style": {}},
    ]
    flow = {"name": "Cuts", "schema": "v1", "tolerations": {}, "settings": {}, "blocks": blocks}
    document = {"kind": "Run", "workspaceId": "o", "runId": "r", "spec": {"flow": flow}}
    rundir.write_json(attempt / rundir.RUN, {"run": document, "attempt": number, "threads": 1, "dataDir": str(run)})
    return attempt


def _fork(attempt: Path) -> int:
    """The trainer, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            output = os.open(attempt / rundir.STDOUT, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            from runyard.trainer.main import train_attempt

            code = train_attempt(attempt)
        finally:
            os._exit(code)
    return pid


def _await(attempt: Path, event: str, count: int) -> None:
    deadline_s = time.monotonic() + BEGINS_WITHIN_S
    while len(_events(attempt, event)) < count:
        assert time.monotonic() < deadline_s, (attempt / rundir.STDOUT).read_text()
        time.sleep(0.005)


def _events(attempt: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(attempt / rundir.EVENTS_FILE) if event.get("ev") == name]


def _announced(attempt: Path) -> int | None:
    """The step of the newest checkpoint that the trainer has said is complete."""
    return max((event["step"] for event in _events(attempt, "checkpoint")), default=None)


def _is_saving(attempt: Path) -> bool:
    events = [
        event for event in read_events(attempt / rundir.EVENTS_FILE) if event.get("ev") in ("phase", "checkpoint")
    ]
    return bool(events) and events[-1].get("phase") == "Saving"


def _look(
    attempt: Path, announced: int | None, resumed: Path | None, newest: Path | None, losses: dict[int, float]
) -> list[str]:
    """What is wrong on the disk after a cut; every loss that is on it is noted."""
    found = []
    for path, manifest in rundir.checkpoints(attempt):
        if not rundir.is_proven(path, manifest):
            found.append(f"{path.name} is torn")
    step = 0 if newest is None else (rundir.read_json(newest / rundir.MANIFEST) or {})["step"]
    if announced is not None and step < announced:
        found.append(f"step {announced} was announced as saved, and the newest that is proven is of step {step}")
    if resumed is not None and newest is None:
        found.append(f"{resumed} is gone")
    warnings = [event["message"] for event in _events(attempt, "warning")]
    found += [f"the trainer warned: {message}" for message in warnings if "damaged" in message]
    steps = _events(attempt, "step")
    begun_after = (rundir.read_json(resumed / rundir.MANIFEST) or {}).get("step", 0) if resumed else 0
    if steps and steps[0]["step"] != begun_after + 1:
        found.append(f"went on at step {steps[0]['step']} from a checkpoint of step {begun_after}")
    for event in steps:
        loss = event["values"]["loss"]
        if losses.setdefault(event["step"], loss) != loss:
            found.append(f"step {event['step']} had a loss of {losses[event['step']]} before and now of {loss}")
    if missing := sorted(set(range(1, step + 1)) - set(losses)):
        found.append(f"steps {missing[:5]} lie before the checkpoint and are told nowhere")
    return found


class _NoServer:
    """Nothing is to be had but what lies here."""

    def resumable(self) -> list[ResumeCheckpoint]:
        return []

    def fetch(self, sha256: str, target: Path, /) -> None:
        raise Gone(sha256)


def _go_on_from(attempt: Path) -> Path | None:
    """The checkpoint that a supervisor makes this attempt go on from."""
    prepare(attempt, _NoServer())
    wanted = rundir.read_json(attempt / rundir.RESUME)
    return Path(wanted["folder"]) if wanted is not None else None


def _differences(run: Path, losses: dict[int, float]) -> list[str]:
    """Compare with a trainer that nothing disturbs."""
    attempt = place(run, 1, save_every_steps=MOST_STEPS)
    trainer = _fork(attempt)
    deadline_s = time.monotonic() + REFERENCE_WITHIN_S
    try:
        while len(_events(attempt, "step")) < max(losses) and time.monotonic() < deadline_s:
            time.sleep(0.2)
    finally:
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
    calm = {event["step"]: event["values"]["loss"] for event in _events(attempt, "step")}
    wrong = [step for step in losses if calm.get(step) != losses[step]]
    return [f"{len(wrong)} losses differ from the undisturbed trainer's, first at step {min(wrong)}"] if wrong else []
