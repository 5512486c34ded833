"""Runs with several workers: their start, and the end of all when one is lost."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes
from tests.supervisor.fake_server import FakeServer

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]

# Every rank writes a file with its place and process id; then rank 0 waits or ends.
TRAINER = """
import json, os, signal, time
def train(folder):
    place = {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    rank = int(place["RANK"] or 0)
    print("output of", rank, flush=True)
    partial = folder / f"{rank}.partial"
    partial.write_text(json.dumps({"place": place, "pid": os.getpid()}))
    partial.rename(folder / f"{rank}.rank")
    END
    time.sleep(120)
    return 1
"""
WAITS = TRAINER.replace("END", "pass")
ENDS_ON_RANK_0 = (
    TRAINER.replace("END", "if rank == 0 and wait_for_others(folder): return 0")
    + """
def wait_for_others(folder):
    while len(list(folder.glob("*.rank"))) < 3:
        time.sleep(0.02)
    return True
"""
)

# Every rank waits for the others.
HANGS = (
    TRAINER.replace("END", "wait_in_vain(folder, rank)")
    + """
from runyard import beats
def wait_in_vain(folder, rank):
    beats.BeatWriter(folder / f"rank-{rank}.beat").write("waiting")
"""
)
GIVES_UP_AFTER_2_S = """
from runyard.supervisor import main, stalls
stalls.CHECK_EVERY_S = main.CHECK_EVERY_S = 0.2
main.StallDetector = lambda: stalls.StallDetector(name_after_s=1.0, end_after_s=2.0)
"""


def set_workers(folder: Path, count: int) -> None:
    placed = json.loads((folder / "placed.json").read_text())
    (folder / "placed.json").write_text(json.dumps(placed | {"workers": count}))


def read_ranks(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return what the ranks wrote, once all have."""
    deadline = time.monotonic() + 20
    while len(list(folder.glob("*.rank"))) < count:
        assert time.monotonic() < deadline, sorted(path.name for path in folder.rglob("*"))
        time.sleep(0.02)
    return [json.loads((folder / f"{rank}.rank").read_text()) for rank in range(count)]


def read_exit(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "exit.json").read_text())
    return document


@pytest.mark.usefixtures("server")
def test_every_worker_gets_its_rank_and_a_log(folder: Path, start: Start) -> None:
    set_workers(folder, 3)
    assert start(folder, ENDS_ON_RANK_0).wait(20) == 0
    places = [rank["place"] for rank in read_ranks(folder, 3)]
    assert places == [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3"} for rank in range(3)
    ]
    logs = [folder / "logs" / name for name in ("stdout.log", "stdout.1.log", "stdout.2.log")]
    assert [log.read_text() for log in logs] == [f"output of {rank}\n" for rank in range(3)]
    assert read_exit(folder)["exitCode"] == 0


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("lost", [0, 2])
def test_a_killed_rank_ends_the_attempt_and_no_process_is_left(
    folder: Path, start: Start, lost: int
) -> None:
    set_workers(folder, 3)
    supervisor = start(folder, WAITS)
    ranks = read_ranks(folder, 3)
    os.kill(ranks[lost]["pid"], signal.SIGKILL)
    assert supervisor.wait(20) == 0
    ended = read_exit(folder)
    cause = f"a rank was lost: rank {lost}, killed by SIGKILL"
    assert (ended["cause"], ended["groupEmpty"]) == (cause, True)
    assert not any(Path(f"/proc/{rank['pid']}").exists() for rank in ranks)


@pytest.mark.parametrize(
    ("limits", "named_after", "ended_after"),
    [(GIVES_UP_AFTER_2_S, 1, 2), pytest.param("", 30, 45, marks=pytest.mark.slow)],
    ids=["quickly", "after the real limits"],
)
def test_a_stopped_rank_is_named_and_ends_the_attempt(
    limits: str,
    named_after: int,
    ended_after: int,
    folder: Path,
    start: Start,
    server: FakeServer,
) -> None:
    set_workers(folder, 3)
    supervisor = start(folder, HANGS + limits)
    ranks = read_ranks(folder, 3)
    os.kill(ranks[1]["pid"], signal.SIGSTOP)
    assert supervisor.wait(20 + ended_after) == 0
    ended = read_exit(folder)
    stopped = "rank 1 is stopped by a signal between steps for over"
    assert (ended["cause"], ended["groupEmpty"]) == (
        f"a rank was lost: {stopped} {ended_after} s; the others wait",
        True,
    )
    assert not any(Path(f"/proc/{rank['pid']}").exists() for rank in ranks)
    assert f"{stopped} {named_after} s; the others wait" in server.notes


@pytest.mark.usefixtures("server")
def test_a_single_trainer_has_no_rank(folder: Path, start: Start) -> None:
    supervisor = start(folder, TRAINER.replace("END", "return 0"))
    assert supervisor.wait(20) == 0
    assert set(read_ranks(folder, 1)[0]["place"].values()) == {None}


@pytest.mark.e2e
@pytest.mark.usefixtures("server")
def test_two_real_ranks_train_below_a_supervisor(folder: Path, start: Start) -> None:
    set_workers(folder, 2)
    model = {"hyperparameters": {"maxSteps": 3, "batchSize": 4}, "validation": {"maxSamples": 2}}
    dataset = {"maxSamples": 12}
    flow = {
        "name": "test",
        "schema": "v1",
        "settings": {"resources": {"workers": 2}},
        "blocks": [
            {"block": "vi-dataset", "settings": dataset, "style": {}},
            {"block": "vi-model", "settings": model, "style": {}},
        ],
    }
    run = {"kind": "Run", "workspaceId": "org", "runId": "run-1", "spec": {"flow": flow}}
    (folder / "run.json").write_text(json.dumps({"run": run, "attempt": 1, "threads": 2}))
    supervisor = start(folder, "from runyard.trainer.main import train_attempt as train")
    assert supervisor.wait(120) == 0
    log = (folder / "logs" / "stdout.log").read_text()
    assert read_exit(folder) | {"time": 0} == {
        "exitCode": 0,
        "signal": None,
        "groupEmpty": True,
        "cause": "exit code 0",
        "time": 0,
    }, log
    result = json.loads((folder / "result.json").read_text())
    assert (result["outcome"], result["checkpoint"]) == ("Succeeded", "epoch-1")
    assert (folder / "logs" / "stdout.1.log").read_text() == ""
