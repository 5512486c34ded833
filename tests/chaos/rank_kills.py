"""Kills one of several ranks, again and again: ``make rank-kills N=200``.

Each time a run with three real ranks is forked from a warm parent, as on every machine, and a rank
chosen at random gets SIGKILL at a random time: while it loads, prepares, trains, evaluates or
saves. Then the other ranks must end within ``PEERS_WITHIN_S``, the attempt must be closed within
``CLOSED_WITHIN_S`` with the cause, and no process of it may be left.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runyard import processes
from runyard.ports import Identity
from runyard.rundir import AttemptDir, read_json
from runyard.trainer.warm import request_fork
from tests.supervisor.conftest import place_attempt
from tests.supervisor.fake_server import FakeServer

RANKS = 3
LONGEST_DELAY_S = 6.0  # after the start; an idle machine trains after one second
PEERS_WITHIN_S, CLOSED_WITHIN_S = 2.0, 5.0
GIVE_UP_AFTER_S = 60.0
POLL_S = 0.005
SUPERVISE = "runyard.supervisor.main:supervise"
MARK = "-" * 200  # room for the marks of attempts, see ``runyard.processes``


@dataclass(frozen=True)
class Trial:
    """A kill: of which rank, what it was doing, and the seconds until all had ended."""

    rank: int
    phase: str
    peers_s: float
    closed_s: float
    problem: str = ""


@contextmanager
def start_warm_parent(folder: Path) -> Iterator[Path]:
    """Start a warm parent; yield its socket."""
    socket = folder / "warm.sock"
    command = [sys.executable, "-m", "runyard.trainer.warm", str(socket), "--child", SUPERVISE]
    environ = {**os.environ, "RUNYARD_ATTEMPT": MARK, "RUNYARD_SUPERVISOR": MARK}
    parent = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        wait_for(socket.exists, what="the warm parent")
        yield socket
    finally:
        parent.kill()
        parent.wait()


def run_trial(folder: Path, server: FakeServer, socket: Path, rng: random.Random) -> Trial:
    """Start a run, kill one of its ranks, and measure the ending."""
    supervisor = start_run(folder, server, socket)
    directory = AttemptDir(folder)
    wait_for(directory.process.exists, what="process.json")
    ranks = processes.list_descendants(supervisor.pid)[:RANKS]
    rank = rng.randrange(RANKS)
    time.sleep(rng.uniform(0.0, LONGEST_DELAY_S))
    phase = (server.phases or [None])[-1] or "loading"
    if not processes.send_signal(ranks[rank], signal.SIGKILL):
        return Trial(rank, phase, 0.0, 0.0, "the rank had ended before the kill")
    begun = time.monotonic()
    wait_for(lambda: not any(is_alive(each) for each in ranks), what="the other ranks")
    peers_s = time.monotonic() - begun
    wait_for(lambda: not is_alive(supervisor), what="the supervisor")
    closed_s = time.monotonic() - begun
    return Trial(rank, phase, peers_s, closed_s, find_problem(directory, rank))


def start_run(folder: Path, server: FakeServer, socket: Path) -> Identity:
    """Start a run that trains longer than any trial; return its supervisor."""
    every = {"every": {"steps": 20}}
    model = {
        "hyperparameters": {"batchSize": 6, "epochs": 1000},
        "validation": {"maxSamples": 6, **every},
        "checkpoint": every,
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"maxSamples": 60}, "style": {}},
        {"block": "vi-model", "settings": model, "style": {}},
    ]
    settings = {"resources": {"workers": RANKS}}
    flow = {"name": "test", "schema": "v1", "settings": settings, "blocks": blocks}
    run = {"kind": "Run", "workspaceId": "org", "runId": folder.parents[1].name}
    document = {"run": run | {"spec": {"flow": flow}}, "attempt": 1, "threads": RANKS}
    (folder / "run.json").write_text(json.dumps(document))
    placed = json.loads((folder / "placed.json").read_text())
    (folder / "placed.json").write_text(json.dumps(placed | {"workers": RANKS, "leaseS": 15.0}))
    server.phases.clear()
    answer = request_fork(
        socket, {"folder": str(folder), "endpoint": server.endpoint, "token": "t"}
    )
    return Identity(processes.boot_id(), answer["pid"], answer["startTicks"])


def find_problem(directory: AttemptDir, rank: int) -> str:
    """Return what is wrong with the end of an attempt; empty if nothing is."""
    ended = read_json(directory.exit) or {}
    expected = f"a rank was lost: rank {rank}, killed by SIGKILL"
    placed = read_json(directory.placed) or {}
    mark = processes.format_mark(placed["organizationId"], placed["runId"], placed["attempt"])
    left = processes.find_marked(processes.ATTEMPT_MARK, mark.__eq__)
    if left:
        return f"{len(left)} processes are left"
    if (ended.get("cause"), ended.get("groupEmpty")) != (expected, True):
        return f"exit.json has {ended}"
    return "" if directory.closed.exists() else "the attempt is not closed"


def is_alive(identity: Identity) -> bool:
    return processes.check_liveness(identity) == "alive"


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting for {what} after {GIVE_UP_AFTER_S:g} s")
        time.sleep(POLL_S)


def run_trials(folder: Path, *, times: int, seed: int) -> list[Trial]:
    """Run trials one after the other."""
    rng, trials, server = random.Random(seed), list[Trial](), FakeServer()  # noqa: S311
    try:
        with start_warm_parent(folder) as socket:
            for number in range(times):
                attempt = place_attempt(folder, attempt=1, run=f"run-{number}")
                trials.append(run_trial(attempt, server, socket, rng))
    finally:
        server.close()
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = run_trials(Path(folder), times=given.times, seed=given.seed)
    problems = [trial for trial in trials if trial.problem]
    for name, limit_s, values in (
        ("peers ended", PEERS_WITHIN_S, sorted(trial.peers_s for trial in trials)),
        ("attempt closed", CLOSED_WITHIN_S, sorted(trial.closed_s for trial in trials)),
    ):
        late = sum(value > limit_s for value in values)
        print(
            f"{name}: median {values[len(values) // 2]:.2f} s, p99 "
            f"{values[int(0.99 * (len(values) - 1))]:.2f} s, longest {values[-1]:.2f} s; "
            f"{late} of {len(values)} took more than {limit_s:g} s"
        )
        problems += [Trial(-1, "", 0, 0, f"{name}: {late} were late")] if late else []
    phases = sorted({trial.phase for trial in trials})
    print(f"killed while: {', '.join(phases)}; by rank: ", end="")
    print([sum(trial.rank == rank for trial in trials) for rank in range(RANKS)])
    for trial in problems:
        print(trial, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
