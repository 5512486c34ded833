"""Power cuts while a trainer saves checkpoints: ``chaos --checkpoint-cuts 200``.

The real trainer saves after each step on a test disk. The disk's power is cut at moments drawn from
a seed, and the next attempt resumes from the checkpoint that ``supervisor.resume`` selects.
Trainers are forked from this process, as from a warm parent, so that a cut costs no imports.
Finally all losses are compared with those of an undisturbed trainer.
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

from runyard import rundir
from runyard.protocol import ResumeCheckpoint
from runyard.supervisor.resume import BlobGone, prepare_resume
from tests.chaos.disk import Disk, find_missing_requirement
from tests.chaos.instance import read_events, wait_until_stopped

MOST_STEPS = 10_000
MOST_SAVES_BEFORE_A_CUT, LONGEST_SAVE_S = 5, 0.1
BEGINS_WITHIN_S, REFERENCE_WITHIN_S = 60.0, 1800.0


def cut_power_while_saving(folder: Path, *, cuts: int, seed: int) -> dict[str, Any]:
    """Check after each cut that no checkpoint is torn or missing, and that the newest one is
    resumed from.
    """
    reason = find_missing_requirement()
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
        attempt, resumed = write_attempt(run, 1, save_every_steps=1), None
        for cut in range(1, cuts + 1):
            trainer = _fork_trainer(attempt)
            try:
                _wait_for_events(attempt, "step", 1)
                _wait_for_events(attempt, "checkpoint", choose.randrange(MOST_SAVES_BEFORE_A_CUT))
                time.sleep(choose.uniform(0.0, LONGEST_SAVE_S))
                os.kill(trainer, signal.SIGSTOP)
                wait_until_stopped([trainer])
                announced, is_saving = _find_announced_step(attempt), _is_saving(attempt)
                disk.cut_power()
            finally:
                os.kill(trainer, signal.SIGKILL)
                os.waitpid(trainer, 0)
            disk.come_back()
            after = write_attempt(run, cut + 1, save_every_steps=1)
            newest = _select_checkpoint(after)
            found += [
                f"cut {cut}: {problem}"
                for problem in _check_disk(attempt, announced, resumed, newest, losses)
            ]
            saved += announced is not None
            inside += is_saving
            for other in run.glob("attempts/*"):
                if other != after and (newest is None or other not in newest.parents):
                    shutil.rmtree(other)
            attempt, resumed = after, newest
            print(f"\r{cut}/{cuts} cuts, {len(found)} wrong  ", end="", file=sys.stderr, flush=True)
        found += _compare_losses(disk.folder / "calm", losses)
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


def write_attempt(run: Path, number: int, *, save_every_steps: int) -> Path:
    """Write an attempt's folder as the controller does."""
    attempt = run / "attempts" / str(number)
    (attempt / "logs").mkdir(parents=True)
    settings = {
        "hyperparameters": {
            "epochs": MOST_STEPS,
            "maxSteps": MOST_STEPS,
            "batchSize": 8,
            "microBatchSize": 8,
        },
        "checkpoint": {"every": {"steps": save_every_steps}},
        "validation": {"every": {"steps": MOST_STEPS}, "maxSamples": 4},
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"maxSamples": 96}, "style": {}},
        {"block": "vi-model", "settings": settings, "style": {}},
    ]
    flow = {"name": "Cuts", "schema": "v1", "tolerations": {}, "settings": {}, "blocks": blocks}
    document = {"kind": "Run", "workspaceId": "o", "runId": "r", "spec": {"flow": flow}}
    rundir.write_json(
        rundir.AttemptDir(attempt).run,
        {"run": document, "attempt": number, "threads": 1, "dataDir": str(run)},
    )
    return attempt


def _fork_trainer(attempt: Path) -> int:
    """Fork a trainer; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            output = os.open(rundir.AttemptDir(attempt).stdout, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            from runyard.trainer.main import train_attempt

            code = train_attempt(attempt)
        finally:
            os._exit(code)
    return pid


def _wait_for_events(attempt: Path, event: str, count: int) -> None:
    deadline_s = time.monotonic() + BEGINS_WITHIN_S
    while len(_read_events(attempt, event)) < count:
        assert time.monotonic() < deadline_s, rundir.AttemptDir(attempt).stdout.read_text()
        time.sleep(0.005)


def _read_events(attempt: Path, name: str) -> list[dict[str, Any]]:
    return [
        event for event in read_events(rundir.AttemptDir(attempt).events) if event.get("ev") == name
    ]


def _find_announced_step(attempt: Path) -> int | None:
    """Return the step of the newest checkpoint that the trainer has announced."""
    return max((event["step"] for event in _read_events(attempt, "checkpoint")), default=None)


def _is_saving(attempt: Path) -> bool:
    events = [
        event
        for event in read_events(rundir.AttemptDir(attempt).events)
        if event.get("ev") in ("phase", "checkpoint")
    ]
    return bool(events) and events[-1].get("phase") == "Saving"


def _check_disk(
    attempt: Path,
    announced: int | None,
    resumed: Path | None,
    newest: Path | None,
    losses: dict[int, float],
) -> list[str]:
    """Return the problems on the disk after a cut, and record the losses found there."""
    found = []
    for path, manifest in rundir.list_checkpoints(attempt):
        if not rundir.is_proven(path, manifest):
            found.append(f"{path.name} is torn")
    step = 0 if newest is None else (rundir.read_json(newest / rundir.MANIFEST) or {})["step"]
    if announced is not None and step < announced:
        found.append(
            f"step {announced} was announced as saved, and the newest that is proven is of step "
            f"{step}"
        )
    if resumed is not None and newest is None:
        found.append(f"{resumed} is gone")
    warnings = [event["message"] for event in _read_events(attempt, "warning")]
    found += [f"the trainer warned: {message}" for message in warnings if "damaged" in message]
    steps = _read_events(attempt, "step")
    begun_after = (
        (rundir.read_json(resumed / rundir.MANIFEST) or {}).get("step", 0) if resumed else 0
    )
    if steps and steps[0]["step"] != begun_after + 1:
        found.append(f"resumed at step {steps[0]['step']} from a checkpoint of step {begun_after}")
    for event in steps:
        loss = event["values"]["loss"]
        if losses.setdefault(event["step"], loss) != loss:
            found.append(
                f"step {event['step']} had a loss of {losses[event['step']]} before and now of "
                f"{loss}"
            )
    if missing := sorted(set(range(1, step + 1)) - set(losses)):
        found.append(f"steps {missing[:5]} precede the checkpoint but have no event")
    return found


class NoServer:
    """A server without checkpoints."""

    def list_resume_candidates(self) -> list[ResumeCheckpoint]:
        return []

    def fetch_blob(self, sha256: str, target: Path, /) -> None:
        raise BlobGone(sha256)


def _select_checkpoint(attempt: Path) -> Path | None:
    """Return the checkpoint that a supervisor selects for this attempt."""
    prepare_resume(attempt, NoServer())
    selected = rundir.read_json(rundir.AttemptDir(attempt).resume)
    return Path(selected["folder"]) if selected is not None else None


def _compare_losses(run: Path, losses: dict[int, float]) -> list[str]:
    """Compare the losses with those of an undisturbed trainer."""
    attempt = write_attempt(run, 1, save_every_steps=MOST_STEPS)
    trainer = _fork_trainer(attempt)
    deadline_s = time.monotonic() + REFERENCE_WITHIN_S
    try:
        while len(_read_events(attempt, "step")) < max(losses) and time.monotonic() < deadline_s:
            time.sleep(0.2)
    finally:
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
    calm = {event["step"]: event["values"]["loss"] for event in _read_events(attempt, "step")}
    wrong = [step for step in losses if calm.get(step) != losses[step]]
    return (
        [f"{len(wrong)} losses differ from the undisturbed trainer's, first at step {min(wrong)}"]
        if wrong
        else []
    )
