"""Trials that ask one thing many times: power cuts under the database, a server killed again and again, lost answers.

Each answers a dictionary of numbers with the list ``problems``; an empty list means that all held.
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

from checks import evaluations, losses, metrics, weights
from disk import Disk, why_not
from world import RECIPE, World, until_final

import vi
from runyard import processes
from runyard.settings import Settings

STEPS_A_KILL = 90
WRITERS = 4


def replays(folder: Path, *, creates: int, threads: int, seed: int) -> dict[str, Any]:
    """One create, repeated from many threads over a link that loses half of all answers."""
    world = World(folder, seed=seed)
    try:
        world.start(controls=False)
        world.link.lose_share = 0.5
        run_id = str(uuid.uuid4())
        with ThreadPoolExecutor(threads) as pool, world.client(world.link.endpoint) as lossy:
            answered = sum(pool.map(lambda _: _create(lossy, run_id), range(creates)))
        with world.client() as client:
            runs = list(client.runs.list().all_items())
            ours = [run for run in runs if run.run_id == run_id]
        found = []
        if len(runs) != 1 or len(ours) != 1:
            found.append(f"{len(runs)} runs instead of one")
        elif ours[0].metadata.generation != 1 or len(ours[0].status.conditions) != 1:
            found.append(f"a repeat has changed the run: {ours[0]}")
        if world.link.lost_answers == 0:
            found.append("no answer was lost, so nothing was shown")
        lost = world.link.lost_answers
        return {"creates": creates, "threads": threads, "answered": answered, "lostAnswers": lost, "problems": found}
    finally:
        world.close()


def _create(client: vi.Client, run_id: str) -> bool:
    with contextlib.suppress(vi.ViNetworkError, vi.ViTimeoutError):
        return client.runs.create(flow=RECIPE, run_id=run_id).run_id == run_id
    return False


def kill_server(folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """SIGKILL to the server again and again while one run trains; beside it the same run, undisturbed."""
    choose = random.Random(seed)  # noqa: S311 - chooses moments, guards nothing
    recipe = copy.deepcopy(RECIPE)
    model = recipe["blocks"][1]["settings"]
    model["hyperparameters"] |= {"maxSteps": kills * STEPS_A_KILL}
    model["checkpoint"] = model["validation"] = {"every": {"steps": kills * STEPS_A_KILL // 4}}
    # Under load a cold start takes longer than the short lease of the other trials; here one attempt must do.
    world = World(folder, seed=seed, environ={"RUNYARD_LEASE_S": str(Settings.lease_s)})
    try:
        world.start()
        with world.client() as client:
            calm = client.runs.create(flow=recipe).run_id
            assert until_final(client, calm, timeout_s=900) is not None
            run_id = client.runs.create(flow=recipe).run_id
            while not any(event.get("ev") == "step" for event in world.events(run_id)):
                time.sleep(0.05)
            killed, trainers = 0, set()
            while killed < kills and (trainer := world.find("trainer")) is not None:
                trainers.add(trainer.pid)
                time.sleep(choose.uniform(0.05, 0.4))
                server = world.find("server")
                if server is not None and processes.send_signal(server, 9):
                    killed += 1
                    _until(lambda: len(world.answered_after_s) >= killed)  # noqa: B023
            ended = until_final(client, run_id, timeout_s=900)
            before, after = metrics(client, calm), metrics(client, run_id)
            found = [] if killed == kills else [f"the run ended after {killed} of {kills} kills"]
            if ended is None or str(ended.condition) != "ConditionKind.SUCCEEDED":
                found.append(f"the run ended as {ended and ended.condition}")
            if len(trainers) != 1 or ended is None or len(ended.status.attempts) != 1:
                found.append(f"there were {len(trainers)} trainers")
            if len(losses(after)) != kills * STEPS_A_KILL or [p.step for p in after] != [p.step for p in before]:
                found.append(f"{len(after)} points instead of {len(before)}")
            if losses(after) != losses(before) or evaluations(after) != evaluations(before):
                found.append("the points differ from the undisturbed run's")
            if weights(client, run_id) != weights(client, calm):
                found.append("the weights differ from the undisturbed run's")
        answered = sorted(world.answered_after_s)
        found += [f"left over at the end: {what}" for what in world.end()]
        return {
            "kills": killed,
            "points": len(after),
            "answersAgainMedianS": round(statistics.median(answered), 2),
            "answersAgainMaxS": round(answered[-1], 2),
            "problems": found,
        }
    finally:
        world.close()


def power_cuts(folder: Path, *, cuts: int, seed: int) -> dict[str, Any]:
    """Cut the power while clients write; whatever was acknowledged must be there afterwards."""
    reason = why_not()
    if reason:
        return {"cuts": 0, "notRun": reason, "problems": []}
    choose = random.Random(seed)  # noqa: S311
    acknowledged: dict[str, str] = {}
    found: list[str] = []
    began_s = time.monotonic()
    disk = Disk(folder)
    world = World(folder, disk=disk, seed=seed)
    try:
        world.start(controls=False)
        for cut in range(cuts):
            writing = threading.Event()
            writing.set()
            writers = [
                threading.Thread(target=_write, args=(world, writing, acknowledged, cut, number))
                for number in range(WRITERS)
            ]
            for writer in writers:
                writer.start()
            time.sleep(choose.uniform(0.05, 0.5))
            world.cut_power(on_cut=writing.clear)
            for writer in writers:
                writer.join()
            found += _lost(world, acknowledged, cut)
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
        world.close()
        disk.close()


def _write(world: World, writing: threading.Event, acknowledged: dict[str, str], cut: int, number: int) -> None:
    """Create runs and rename them, and note only what was answered with success."""
    with world.client() as client, contextlib.suppress(vi.ViError):
        count = 0
        while writing.is_set():
            name = f"{cut}.{number}.{count}"
            run_id = client.runs.create(flow=RECIPE, metadata={"name": name}).run_id
            acknowledged[run_id] = name
            count += 1


def _lost(world: World, acknowledged: dict[str, str], cut: int) -> list[str]:
    with world.client() as client:
        there = {run.run_id: run for run in client.runs.list(pagination={"page_size": 1000}).all_items()}
    found = [
        f"cut {cut}: run {run_id} ({name}) is lost" for run_id, name in acknowledged.items() if run_id not in there
    ]
    with contextlib.closing(sqlite3.connect(f"file:{world.server_dir}/server.db?mode=ro", uri=True)) as database:
        verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
    return found if verdict == "ok" else [*found, f"cut {cut}: the database says {verdict}"]


def _until(is_true: Any, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, "the server did not come back"
        time.sleep(0.01)
