"""Time from an invitation to the first step of a run on a new machine.

The server's own machine trains a run. Then an invitation is made, a machine with an empty data
folder joins with it, and a run that starts from the weights of the first one is created for that
machine. The time is from the request for the invitation until the server has the first step.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vi

CLI = [sys.executable, "-P", "-m", "runyard.cli"]
GIVE_UP_AFTER_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # the first run learns nothing in twenty steps
    with tempfile.TemporaryDirectory(prefix="runyard-join-") as name:
        folder = Path(name)
        server_dir = folder / "server"
        with start(["up", "--port", "0"], server_dir), open_client(server_dir) as client:
            first = wait_for(lambda: client.machines.list().items, what="the first machine")[0]
            source = client.runs.create(make_flow())
            client.runs.wait(source.run_id, timeout=GIVE_UP_AFTER_S, show_progress=False)
            client.machines.exclude(first.machine_id)
            seconds = [
                measure(client, folder / f"machine-{number}", f"run:{source.run_id}/latest")
                for number in range(given.rounds)
            ]
    for second in seconds:
        print(f"invitation to first step: {second:.1f} s")
    print(f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s")


def measure(client: vi.Client, data_dir: Path, weights: str) -> float:
    """Return the seconds until a new machine has reported the first step."""
    begun_s = time.monotonic()
    token = client.machines.invite().token
    command = ["worker", "--join", client.endpoint, "--token", token, "--name", data_dir.name]
    with start(command, data_dir):
        run = client.runs.create(make_flow(weights=weights))
        wait_for(lambda: client.runs.metrics(run.run_id), what="the first step")
        taken_s = time.monotonic() - begun_s
        ended = client.runs.wait(run.run_id, timeout=GIVE_UP_AFTER_S, show_progress=False)
    assert [attempt.machine for attempt in ended.status.attempts] == [data_dir.name]
    machine = next(each for each in client.machines if each.spec.name == data_dir.name)
    client.machines.remove(machine.machine_id)
    return taken_s


def make_flow(**architecture: str) -> dict[str, Any]:
    settings = {
        "architecture": {"size": "tiny"} | architecture,
        "hyperparameters": {"maxSteps": 20},
        "validation": {"maxSamples": 8},
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"maxSamples": 64}},
        {"block": "vi-model", "settings": settings},
    ]
    return {"name": "join", "blocks": blocks}


@contextmanager
def start(arguments: list[str], data_dir: Path) -> Iterator[None]:
    """Run a command until the end of the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    with open(data_dir.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [*CLI, *arguments, "--data-dir", str(data_dir)], env=kept, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


@contextmanager
def open_client(data_dir: Path) -> Iterator[vi.Client]:
    wait_for((data_dir / "server.json").exists, what="the server")
    with vi.Client(config_file=data_dir / "credentials.json") as client:
        yield client


def wait_for(look: Callable[[], Any], *, what: str) -> Any:
    deadline_s = time.monotonic() + GIVE_UP_AFTER_S
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"still waiting for {what} after {GIVE_UP_AFTER_S:g} s")
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    main()
