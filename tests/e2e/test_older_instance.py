"""Data of an earlier revision, opened by this one: database, run folders and a backup.

``tests/samples/instance-8e25313.tar.xz`` was made by revision 8e25313: one run that trained when
every process of the instance was killed after its first checkpoint, one that was killed by its
user, a saved flow, and a backup.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vi
from tests.support.server import open_server

SAMPLE = "tests/samples/instance-8e25313.tar.xz"
TIMEOUT_S = 120


@contextmanager
def running_instance(data_dir: Path, eventually: Callable[..., Any]) -> Iterator[vi.Client]:
    """``runyard up`` over a data folder, and a client of it."""
    environ = {
        **os.environ,
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_THREADS": "1",
        "RUNYARD_GRACE_S": "5",
        "RUNYARD_WARM": "0",
    }
    command = [sys.executable, "-P", "-m", "runyard.cli", "up", "--port", "0", "--end-with-stdin"]
    log = data_dir.with_suffix(".log")
    with open(log, "wb") as output:
        up = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    with up:
        try:
            eventually(
                lambda: b"Runyard is up" in log.read_bytes(),
                timeout_s=TIMEOUT_S,
                what="runyard up is up",
            )
            with vi.Client(config_file=data_dir / "credentials.json") as client:
                yield client
        finally:
            up.communicate(timeout=TIMEOUT_S)  # closes its input


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder with ``data`` and ``runyard.backup`` of the earlier revision."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(repository / SAMPLE) as tar:
        tar.extractall(folder, filter="data")
    return folder


def find_run(client: vi.Client, sample: str) -> Any:
    [run] = [run for run in client.runs.list().items if run.metadata.attributes["sample"] == sample]
    return run


async def test_a_database_of_an_earlier_revision_is_migrated_and_listed(
    older: Path, tmp_path: Path
) -> None:
    shutil.copytree(older / "data", tmp_path / "data")
    async with open_server(tmp_path / "data") as server:
        answer = await (await server.api()).get(server.path("runs"))
    runs = {run["metadata"]["attributes"]["sample"]: run for run in answer.json()["items"]}
    conditions = {name: run["status"]["conditions"][-1] for name, run in runs.items()}
    assert conditions["killed"]["condition"] == "Cancelled"
    assert conditions["interrupted"]["condition"] == "Running"


@pytest.mark.slow
@pytest.mark.e2e
def test_a_killed_instance_of_an_earlier_revision_resumes_its_run(
    older: Path, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    with running_instance(older / "data", eventually) as client:
        assert find_run(client, "killed").condition == "Cancelled"
        assert [flow.spec.name for flow in client.flows.list().items] == ["Sample"]
        run = client.runs.wait(
            find_run(client, "interrupted").run_id, timeout=TIMEOUT_S, show_progress=False
        )
        assert run.condition == "Succeeded"
        [resume] = (older / "data" / "runs").glob(f"*/{run.run_id}/attempts/2/resume.json")
        assert "epoch-1" in resume.read_text()
        assert client.get_model(run.run_id, save_path=tmp_path / "model").model_path


@pytest.mark.e2e
def test_a_backup_of_an_earlier_revision_is_restored(
    older: Path, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    data_dir = tmp_path / "fresh"
    data_dir.mkdir()
    with running_instance(data_dir, eventually):
        command = [
            sys.executable,
            "-m",
            "runyard.cli",
            "restore",
            str(older / "runyard.backup"),
            "--yes",
        ]
        environ = {**os.environ, "RUNYARD_DATA_DIR": str(data_dir)}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr
        with vi.Client(config_file=data_dir / "credentials.json") as client:
            [model] = client.models.list(find_run(client, "interrupted").run_id).items
            assert client.get_model(model.run_id, save_path=tmp_path / "model").model_path
