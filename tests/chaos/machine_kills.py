"""Kills whole machines while three of them train: ``make machine-kills N=20``.

Machines are processes with data folders of their own that joined a server by invitation. Each time
every process of a machine that trains gets SIGKILL; half of the time its folder is removed as well.
Then the loss must be noticed within ``NOTICED_WITHIN_S``, and the first step of the next attempt
must be reported from another machine within ``RESUMED_WITHIN_S``. The machine is started again, as
itself or as a new one. At the end every run must have the losses and the weights of a run that was
not disturbed, and no report of an attempt may follow one of a later attempt.
"""

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vi
from tests.chaos.checks import get_losses, hash_weights
from vi.api.resources.runs.responses import Run

NOTICED_WITHIN_S, RESUMED_WITHIN_S = 15.0, 30.0
GIVE_UP_AFTER_S = 180.0
POLL_S = 0.05
CLI = [sys.executable, "-P", "-m", "runyard.cli"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How many runs train at once, on how many machines, and how many steps each."""

    training: int = 3
    machines: int = 4  # one is free to take over
    steps: int = 1500

    @property
    def flow(self) -> dict[str, Any]:
        hyperparameters = {"epochs": 10_000, "maxSteps": self.steps, "batchSize": 8}
        model = {
            "hyperparameters": hyperparameters,
            "checkpoint": {"every": {"steps": 50}},
            "validation": {"every": {"steps": 500}, "maxSamples": 4},
            "onOutOfMemory": "fail",
        }
        blocks = [
            {"block": "vi-dataset", "settings": {"maxSamples": 96}},
            {"block": "vi-model", "settings": model},
        ]
        return {"name": "Machine kills", "settings": {"attempts": 100}, "blocks": blocks}


@dataclass(frozen=True)
class Trial:
    """A kill, and the seconds until the loss was noticed and until the run had resumed."""

    machine: str
    is_wiped: bool
    noticed_s: float
    resumed_s: float
    moved_to: str


class Machines:
    """A server without a machine of its own, and machines that joined it."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.setup = setup
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.server_dir = folder / "server"
        self._start("server", [sys.executable, "-P", "-m", "runyard.server"], self.server_dir)
        wait_for(lambda: (self.server_dir / "server.json").exists(), what="the server")
        self.client = vi.Client(config_file=self.server_dir / "credentials.json")

    def join(self) -> str:
        """Let a new machine with an empty folder join; return its name."""
        name = f"machine-{secrets.token_hex(3)}"
        token = self.client.machines.invite().token
        arguments = ["--join", self.client.endpoint, "--token", token, "--name", name]
        self.start(name, *arguments)
        return name

    def start(self, name: str, *arguments: str) -> None:
        self._start(name, [*CLI, "worker", *arguments], self._folder / name)

    def kill(self, name: str, *, is_wiped: bool) -> float:
        """Kill every process of a machine; return when the last was killed."""
        variable = f"RUNYARD_DATA_DIR={self._folder / name}".encode()
        while found := list(find_processes(variable)):
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            killed_s = time.monotonic()
        self._processes[name].wait()
        if is_wiped:
            shutil.rmtree(self._folder / name)
        return killed_s

    def close(self) -> None:
        self.client.close()
        for name in self._processes:
            self._processes[name].send_signal(signal.SIGKILL)
            for pid in find_processes(f"RUNYARD_DATA_DIR={self._folder / name}".encode()):
                os.kill(pid, signal.SIGKILL)
            self._processes[name].wait()

    def _start(self, name: str, command: list[str], data_dir: Path) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RUNYARD_")}
        environ = {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0", "RUNYARD_THREADS": "1"}
        with open(self._folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=kept | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def find_processes(variable: bytes) -> Iterator[int]:
    """Yield the processes that were started with a variable of the environment."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if variable in environ.split(b"\0") and state != "Z":
            yield int(folder.name)


def run_trial(machines: Machines, rng: random.Random) -> Trial:
    """Kill a machine that trains, and measure how soon its run continues elsewhere."""
    client = machines.client
    run = rng.choice(list_training(client, machines.setup))
    number, machine = run.status.attempts[-1].attempt, run.status.attempts[-1].machine
    time.sleep(rng.uniform(0.0, 3.0))
    run = client.runs.get(run.run_id)
    if not is_training(run) or run.status.attempts[-1].attempt != number:
        return run_trial(machines, rng)  # it has ended meanwhile
    is_wiped = rng.random() < 0.5
    killed_s = machines.kill(machine, is_wiped=is_wiped)

    def is_noticed() -> bool:
        now = client.runs.get(run.run_id)
        reason = now.status.conditions[-1].reason
        return reason == "Stopping" or now.status.attempts[-1].attempt > number

    wait_for(is_noticed, what="the loss is noticed")
    noticed_s = time.monotonic() - killed_s

    def has_resumed() -> bool:
        points = client.runs.metrics(run.run_id)
        return any(point.attempt > number for point in points[-20:])

    wait_for(has_resumed, what="the run has resumed")
    resumed_s = time.monotonic() - killed_s
    if is_wiped:
        machines.join()
    else:
        machines.start(machine)
    moved_to = client.runs.get(run.run_id).status.attempts[-1].machine
    return Trial(machine, is_wiped, noticed_s, resumed_s, moved_to)


def is_training(run: Run) -> bool:
    return run.status.conditions[-1].reason == "Training" and run.status.progress is not None


def list_training(client: vi.Client, setup: Setup) -> list[Run]:
    """Return the runs that train, once there are enough of them."""
    found: list[Run] = []

    def are_enough() -> bool:
        found[:] = [run for run in client.runs.list({"page_size": 100}).items if not has_ended(run)]
        for _ in range(len(found), setup.training):
            client.runs.create(setup.flow)
        return sum(is_training(run) for run in found) >= setup.training

    wait_for(are_enough, what=f"{setup.training} runs train")
    return [run for run in found if is_training(run)]


def has_ended(run: Run) -> bool:
    return run.condition is not None and run.condition.is_final


def find_problems(client: vi.Client, setup: Setup) -> Iterator[str]:
    """Compare every run with one that was not disturbed."""
    ids = [run.run_id for run in client.runs.list({"page_size": 1000}).items]
    expected = client.runs.create(setup.flow).run_id
    for run_id in [*ids, expected]:
        run = client.runs.wait(run_id, timeout=900, show_progress=False)
        if run.condition is None or run.condition.value != "Succeeded":
            yield f"{run_id} is {run.condition}: {run.status.conditions[-1]}"
    losses, weights = get_losses(client.runs.metrics(expected)), hash_weights(client, expected)
    for run_id in ids:
        points = client.runs.metrics(run_id)
        attempts = [point.attempt for point in points]
        if attempts != sorted(attempts):
            yield f"{run_id}: a report of an earlier attempt follows one of a later attempt"
        if get_losses(points) != losses:
            yield f"{run_id}: the losses differ from those of an undisturbed run"
        if hash_weights(client, run_id) != weights:
            yield f"{run_id}: the weights differ from those of an undisturbed run"


def wait_for(condition: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still waiting for {what} after {GIVE_UP_AFTER_S:g} s")
        time.sleep(POLL_S)


@contextmanager
def open_machines(folder: Path, setup: Setup) -> Iterator[Machines]:
    machines = Machines(folder, setup)
    try:
        for _ in range(setup.machines):
            machines.join()
        yield machines
    finally:
        machines.close()


def run_trials(
    folder: Path, *, times: int, seed: int, setup: Setup = Setup()
) -> tuple[list[Trial], list[str]]:
    """Run trials one after the other; return them, and what was wrong with the runs."""
    rng = random.Random(seed)  # noqa: S311 - which machine, not a secret
    trials = []
    with open_machines(folder, setup) as machines:
        for _ in range(times):
            trials.append(run_trial(machines, rng))
            print(trials[-1], flush=True)
        problems = list(find_problems(machines.client, setup))
    stayed = [trial for trial in trials if trial.moved_to == trial.machine]
    return trials, [*problems, *(f"{trial} stayed on its machine" for trial in stayed)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials, problems = run_trials(Path(folder), times=given.times, seed=given.seed)
    for name, limit_s, values in (
        ("noticed", NOTICED_WITHIN_S, sorted(trial.noticed_s for trial in trials)),
        ("resumed", RESUMED_WITHIN_S, sorted(trial.resumed_s for trial in trials)),
    ):
        late = sum(value > limit_s for value in values)
        print(
            f"{name}: median {values[len(values) // 2]:.1f} s, longest {values[-1]:.1f} s; "
            f"{late} of {len(values)} took more than {limit_s:g} s"
        )
        problems += [f"{name}: {late} were late"] if late else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
