"""A second machine joins by one command, trains from weights of the first, and is drained."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vi
from tests.chaos.checks import hash_weights
from tests.support.waiting import eventually
from vi.api.resources.machines.responses import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TIMEOUT_S = 120
CLI = [sys.executable, "-P", "-m", "runyard.cli"]


def make_flow(epochs: int, **architecture: str) -> dict[str, Any]:
    return {
        "name": "moved",
        "blocks": [
            {"block": "vi-dataset", "settings": {"maxSamples": 64}},
            {
                "block": "vi-model",
                "settings": {
                    "architecture": {"size": "tiny"} | architecture,
                    "hyperparameters": {"epochs": epochs},
                    "validation": {"maxSamples": 8},
                },
            },
        ],
    }


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    return kept | variables


@contextmanager
def start(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command of Runyard until the end of the block."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [*CLI, *arguments], env=environment(), stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a running instance with one slot."""
    folder = tmp_path_factory.mktemp("instance")
    data_dir = folder / "data"
    with start("up", "--port", "0", "--data-dir", str(data_dir), log=folder / "up.log") as process:
        eventually(
            lambda: process.poll() is None and (data_dir / "server.json").exists(),
            timeout_s=TIMEOUT_S,
            what="the server is up",
        )
        yield data_dir


@pytest.fixture(scope="module")
def owner(instance: Path) -> Iterator[vi.Client]:
    with vi.Client(config_file=instance / "credentials.json") as client:
        eventually(lambda: list(client.machines), timeout_s=TIMEOUT_S, what="a machine reports")
        yield client


def run_cli(instance: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*CLI, *arguments, "--data-dir", str(instance)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def machine(
    instance: Path, owner: vi.Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Machine]]:
    """A machine that joined with an empty data folder; call it for its present state."""
    folder = tmp_path_factory.mktemp("machine")
    command = run_cli(instance, "machines", "invite").split()
    assert command[:2] == ["runyard", "worker"]
    arguments = [*command[1:], "--name", "second", "--data-dir", str(folder / "data")]
    with start(*arguments, log=folder / "worker.log") as process:

        def find() -> Machine | None:
            assert process.poll() is None, (folder / "worker.log").read_text()
            return next((each for each in owner.machines if each.spec.name == "second"), None)

        def look() -> Machine:
            return eventually(find, timeout_s=TIMEOUT_S, what="the machine has joined")

        look()
        yield look


def wait_for(client: vi.Client, run_id: str) -> Any:
    return client.runs.wait(run_id, timeout=300, show_progress=False)


def list_losses(client: vi.Client, run_id: str) -> list[tuple[int, float]]:
    """Return step and loss in the order in which they arrived: no step lost, none repeated."""
    points = client.runs.metrics(run_id)
    return [(point.step, point.values["loss"]) for point in points if "loss" in point.values]


def test_a_machine_with_an_empty_folder_trains_from_weights_of_another(
    instance: Path, owner: vi.Client, machine: Callable[[], Machine]
) -> None:
    first = owner.machines.list().items[-1]
    owner.machines.exclude(machine().machine_id)
    source = owner.runs.create(make_flow(1))
    ended = wait_for(owner, source.run_id)
    assert [attempt.machine for attempt in ended.status.attempts] == [first.spec.name]
    owner.machines.resume(machine().machine_id)
    run_cli(instance, "machines", "exclude", first.spec.name)
    try:
        begun = owner.runs.create(make_flow(1, weights=f"run:{source.run_id}/latest"))
        ended = wait_for(owner, begun.run_id)
    finally:
        owner.machines.resume(first.machine_id)
    assert ended.condition is not None and ended.condition.value == "Succeeded"
    assert [attempt.machine for attempt in ended.status.attempts] == ["second"]


def test_a_run_moves_from_a_drained_machine_and_loses_no_step(
    instance: Path, owner: vi.Client, machine: Callable[[], Machine]
) -> None:
    first = next(each for each in owner.machines if each.spec.name != "second")
    owner.machines.exclude(first.machine_id)
    run = owner.runs.create(make_flow(60))

    def is_training() -> bool:
        has_run = machine().status.runs == [run.run_id]
        return has_run and owner.runs.get(run.run_id).status.progress is not None

    eventually(is_training, timeout_s=TIMEOUT_S, what="the run trains on the second machine")
    owner.machines.resume(first.machine_id)
    run_cli(instance, "machines", "drain", "second", "--within", "0s")
    ended = wait_for(owner, run.run_id)
    owner.machines.resume(machine().machine_id)
    assert ended.condition is not None and ended.condition.value == "Succeeded"
    before, after = ended.status.attempts
    assert (before.machine, after.machine) == ("second", first.spec.name)
    assert before.exit_code == 75
    undisturbed = owner.runs.create(make_flow(60))
    wait_for(owner, undisturbed.run_id)
    assert list_losses(owner, run.run_id) == list_losses(owner, undisturbed.run_id)
    assert hash_weights(owner, run.run_id) == hash_weights(owner, undisturbed.run_id)


def test_a_machine_does_not_start_in_the_data_folder_of_an_instance(instance: Path) -> None:
    command = [*CLI, "worker", "--join", "http://127.0.0.1:1", "--token", "ryjn_x"]
    done = subprocess.run(
        [*command, "--data-dir", str(instance)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8
    assert "try: another --data-dir" in done.stderr
