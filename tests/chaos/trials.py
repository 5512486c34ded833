"""Trials that repeat one fault: power cuts under the database, kills of the server, lost answers.

Each returns a dictionary of numbers with the list ``problems``, which is empty on success.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sqlite3
import statistics
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import vi
from runyard import processes
from runyard.settings import Settings
from tests.chaos.checks import fetch_metrics, get_evaluations, get_losses, hash_weights
from tests.chaos.disk import Disk, find_missing_requirement
from tests.chaos.instance import FLOW, ChaosInstance, wait_until_final

STEPS_A_KILL = 90
WRITERS = 4


def repeat_create(folder: Path, *, creates: int, threads: int, seed: int) -> dict[str, Any]:
    """Repeat one create from many threads over a link that loses half of all answers."""
    instance = ChaosInstance(folder, seed=seed)
    try:
        instance.start(with_controller=False)
        instance.link.answer_loss_rate = 0.5
        run_id = str(uuid.uuid4())
        with ThreadPoolExecutor(threads) as pool, instance.client(instance.link.endpoint) as lossy:
            answered = sum(pool.map(lambda _: _create(lossy, run_id), range(creates)))
        with instance.client() as client:
            runs = list(client.runs.list().all_items())
            ours = [run for run in runs if run.run_id == run_id]
        found = []
        if len(runs) != 1 or len(ours) != 1:
            found.append(f"{len(runs)} runs instead of one")
        elif ours[0].metadata.generation != 1 or len(ours[0].status.conditions) != 1:
            found.append(f"a repeat has changed the run: {ours[0]}")
        if instance.link.lost_answers == 0:
            found.append("no answer was lost, so nothing was shown")
        lost = instance.link.lost_answers
        return {
            "creates": creates,
            "threads": threads,
            "answered": answered,
            "lostAnswers": lost,
            "problems": found,
        }
    finally:
        instance.close()


def _create(client: vi.Client, run_id: str) -> bool:
    with contextlib.suppress(vi.ViNetworkError, vi.ViTimeoutError):
        return client.runs.create(flow=FLOW, run_id=run_id).run_id == run_id
    return False


def kill_server_repeatedly(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill the server repeatedly while a run trains; compare with an undisturbed run."""
    choose = random.Random(seed)  # noqa: S311 - chooses moments, guards nothing
    flow = copy.deepcopy(FLOW)
    model = flow["blocks"][1]["settings"]
    model["hyperparameters"] |= {"maxSteps": kills * STEPS_A_KILL}
    model["checkpoint"] = model["validation"] = {"every": {"steps": kills * STEPS_A_KILL // 4}}
    # Under load a cold start takes longer than the short lease of other trials; here one attempt
    # must suffice.
    instance = ChaosInstance(folder, seed=seed, environ={"RUNYARD_LEASE_S": str(Settings.lease_s)})
    try:
        instance.start()
        with instance.client() as client:
            calm = client.runs.create(flow=flow).run_id
            assert wait_until_final(client, calm, timeout_s=900) is not None
            run_id = client.runs.create(flow=flow).run_id
            while not any(event.get("ev") == "step" for event in instance.list_events(run_id)):
                time.sleep(0.05)
            killed, trainers = 0, set()
            while killed < kills and (trainer := instance.find_process("trainer")) is not None:
                trainers.add(trainer.pid)
                time.sleep(choose.uniform(0.05, 0.4))
                server = instance.find_process("server")
                if server is not None and processes.send_signal(server, 9):
                    killed += 1
                    _wait_until(lambda: len(instance.answered_after_s) >= killed)  # noqa: B023
            ended = wait_until_final(client, run_id, timeout_s=900)
            before, after = fetch_metrics(client, calm), fetch_metrics(client, run_id)
            found = [] if killed == kills else [f"the run ended after {killed} of {kills} kills"]
            if ended is None or str(ended.condition) != "ConditionKind.SUCCEEDED":
                found.append(f"the run ended as {ended and ended.condition}")
            if len(trainers) != 1 or ended is None or len(ended.status.attempts) != 1:
                found.append(f"there were {len(trainers)} trainers")
            if len(get_losses(after)) != kills * STEPS_A_KILL or [p.step for p in after] != [
                p.step for p in before
            ]:
                found.append(f"{len(after)} points instead of {len(before)}")
            if get_losses(after) != get_losses(before) or get_evaluations(after) != get_evaluations(
                before
            ):
                found.append("the points differ from the undisturbed run's")
            if hash_weights(client, run_id) != hash_weights(client, calm):
                found.append("the weights differ from the undisturbed run's")
        answered = sorted(instance.answered_after_s)
        found += [f"left over at the end: {what}" for what in instance.shut_down()]
        return {
            "kills": killed,
            "points": len(after),
            "answersAgainMedianS": round(statistics.median(answered), 2),
            "answersAgainMaxS": round(answered[-1], 2),
            "problems": found,
        }
    finally:
        instance.close()


def cut_power_while_writing(folder: Path, *, cuts: int, seed: int) -> dict[str, Any]:
    """Cut the power while clients write; everything acknowledged must exist afterwards."""
    reason = find_missing_requirement()
    if reason:
        return {"cuts": 0, "notRun": reason, "problems": []}
    choose = random.Random(seed)  # noqa: S311
    acknowledged: dict[str, str] = {}
    found: list[str] = []
    began_s = time.monotonic()
    disk = Disk(folder)
    instance = ChaosInstance(folder, disk=disk, seed=seed)
    try:
        instance.start(with_controller=False)
        for cut in range(cuts):
            writing = threading.Event()
            writing.set()
            writers = [
                threading.Thread(
                    target=_write_runs, args=(instance, writing, acknowledged, cut, number)
                )
                for number in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            time.sleep(choose.uniform(0.05, 0.5))
            instance.cut_power(on_cut=writing.clear)
            for writer in writers:
                writer.join()
            found += _find_lost(instance, acknowledged, cut)
            print(
                f"\r{cut + 1}/{cuts} cuts, {len(acknowledged)} acknowledged, {len(found)} wrong  ",
                end="",
                file=sys.stderr,
                flush=True,
            )
        return {
            "cuts": cuts,
            "acknowledged": len(acknowledged),
            "seconds": round(time.monotonic() - began_s),
            "problems": found,
        }
    finally:
        instance.close()
        disk.close()


def _write_runs(
    instance: ChaosInstance,
    writing: threading.Event,
    acknowledged: dict[str, str],
    cut: int,
    number: int,
) -> None:
    """Create runs, and record those whose creation was acknowledged."""
    with instance.client() as client, contextlib.suppress(vi.ViError):
        count = 0
        while writing.is_set():
            name = f"{cut}.{number}.{count}"
            run_id = client.runs.create(flow=FLOW, metadata={"name": name}).run_id
            acknowledged[run_id] = name
            count += 1


def _find_lost(instance: ChaosInstance, acknowledged: dict[str, str], cut: int) -> list[str]:
    with instance.client() as client:
        there = {
            run.run_id: run for run in client.runs.list(pagination={"page_size": 1000}).all_items()
        }
    found = [
        f"cut {cut}: run {run_id} ({name}) is lost"
        for run_id, name in acknowledged.items()
        if run_id not in there
    ]
    with contextlib.closing(
        sqlite3.connect(f"file:{instance.server_dir}/server.db?mode=ro", uri=True)
    ) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
    return found if verdict == "ok" else [*found, f"cut {cut}: the database says {verdict}"]


def _wait_until(is_true: Any, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, "the server did not come back"
        time.sleep(0.01)
