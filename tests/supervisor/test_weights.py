"""Weights of another run, and base models of the server's machine: fetched to this machine once,
verified, and shared by the runs that start from them.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runyard import processes, rundir
from runyard.controller.api_client import ServerClient
from runyard.controller.placement import place_attempt
from runyard.protocol import AttemptWeights, CheckpointFile, Claim
from runyard.rundir import is_complete
from runyard.settings import Settings
from runyard.supervisor.api_client import AttemptClient
from runyard.supervisor.resume import BlobGone
from runyard.supervisor.shared import free_space
from runyard.supervisor.weights import WeightsFetcher
from vi._http import Http

ORG = f"org-{os.getpid()}"
Start = Callable[[Path, str], subprocess.Popen[bytes]]


class WeightsServer:
    """A fake server with one checkpoint of a base model and an adapter."""

    def __init__(self, name: str = "epoch-1") -> None:
        self.bytes: dict[str, bytes] = {}
        self.fetched: list[str] = []
        files = []
        for path in (
            "model_full/model.safetensors",
            "model_full/sub/config.json",
            "model_adapter/adapter.safetensors",
        ):
            content = f"{name} {path}".encode()
            digest = hashlib.sha256(content).hexdigest()
            self.bytes[digest] = content
            files.append(CheckpointFile(path=path, size_bytes=len(content), sha256=digest))
        self.offered: AttemptWeights | None = AttemptWeights(
            weights=f"run:source/{name}", files=files
        )

    def get_weights(self) -> AttemptWeights | None:
        return self.offered

    def fetch_blob(self, sha256: str, target: Path) -> None:
        if sha256 not in self.bytes:
            raise BlobGone(sha256)
        self.fetched.append(sha256)
        target.write_bytes(self.bytes[sha256])


def write_attempt(
    data_dir: Path,
    run: str = "run-1",
    weights: str = "run:source/epoch-1",
    *,
    attempt: int = 1,
    **placed: Any,
) -> Path:
    folder = data_dir / "runs" / ORG / run / "attempts" / str(attempt)
    folder.mkdir(parents=True, exist_ok=True)
    flow = {"blocks": [{"block": "vi-model", "settings": {"architecture": {"weights": weights}}}]}
    rundir.write_json(
        rundir.AttemptDir(folder).run,
        {
            "run": {"spec": {"flow": flow}},
            "dataDir": str(data_dir),
            "modelFolders": [str(data_dir / "models")],
        },
    )
    rundir.write_json(
        rundir.AttemptDir(folder).placed,
        {
            "organizationId": ORG,
            "runId": run,
            "attempt": attempt,
            "machineId": "m",
            "leaseS": 1.2,
            "graceS": 5.0,
        }
        | placed,
    )
    return folder


def read_weights_document(folder: Path) -> dict[str, Any]:
    found = rundir.read_json(rundir.AttemptDir(folder).weights)
    assert found is not None
    return found


def is_complete_copy(home: Path, weights_server: WeightsServer) -> bool:
    assert weights_server.offered is not None
    return all(
        (home / file.path).read_bytes() == weights_server.bytes[file.sha256]
        for file in weights_server.offered.files
    )


def test_weights_are_fetched_once_and_shared_by_every_run_on_the_machine(tmp_path: Path) -> None:
    weights_server = WeightsServer()
    folders = [write_attempt(tmp_path, run) for run in ("run-1", "run-2")]
    for folder in folders:
        WeightsFetcher(folder, weights_server).fetch()
    homes = {read_weights_document(folder)["folder"] for folder in folders}
    assert read_weights_document(folders[0])["weights"] == "run:source/epoch-1"
    assert len(homes) == 1 and len(weights_server.fetched) == 3
    home = Path(homes.pop())
    assert home.parent == tmp_path / "weights" / ORG
    assert is_complete(home) and is_complete_copy(home, weights_server)


def test_blobs_of_a_server_on_this_machine_are_linked(tmp_path: Path) -> None:
    weights_server = WeightsServer()
    for digest, content in weights_server.bytes.items():
        blob = tmp_path / "blobs" / ORG / digest[:2] / digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
    damaged, *_ = weights_server.bytes
    (tmp_path / "blobs" / ORG / damaged[:2] / damaged).write_bytes(b"flipped")
    folder = write_attempt(tmp_path)
    WeightsFetcher(folder, weights_server).fetch()
    assert weights_server.fetched == [damaged]
    assert is_complete_copy(Path(read_weights_document(folder)["folder"]), weights_server)


def test_files_that_arrived_before_a_lost_connection_are_not_fetched_again(tmp_path: Path) -> None:
    weights_server, folder = WeightsServer(), write_attempt(tmp_path)
    fetch = weights_server.fetch_blob

    def fetch_until_cut(sha256: str, target: Path) -> None:
        if len(weights_server.fetched) == 2:
            target.write_bytes(b"half")
            raise ConnectionError
        fetch(sha256, target)

    weights_server.fetch_blob = fetch_until_cut  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        WeightsFetcher(folder, weights_server).fetch()
    assert rundir.read_json(rundir.AttemptDir(folder).weights) is None
    weights_server.fetch_blob = fetch  # type: ignore[method-assign]
    WeightsFetcher(folder, weights_server).fetch()
    assert len(weights_server.fetched) == 3 and is_complete_copy(
        Path(read_weights_document(folder)["folder"]), weights_server
    )


def test_lost_bytes_are_reported_to_the_trainer(tmp_path: Path) -> None:
    weights_server, folder = WeightsServer(), write_attempt(tmp_path)
    weights_server.bytes.popitem()
    WeightsFetcher(folder, weights_server).fetch()
    assert "has lost bytes of run:source/epoch-1" in read_weights_document(folder)["problem"]


@pytest.mark.parametrize("path", ["../../outside", "/outside", "model_full/../../x", ""])
def test_a_path_that_leaves_the_folder_is_not_followed(tmp_path: Path, path: str) -> None:
    weights_server, folder = WeightsServer(), write_attempt(tmp_path)
    assert weights_server.offered is not None
    weights_server.offered.files[0].path = path
    WeightsFetcher(folder, weights_server).fetch()
    assert "is invalid" in read_weights_document(folder)["problem"]
    assert weights_server.fetched == []


def test_weights_of_an_unknown_form_are_not_requested(tmp_path: Path) -> None:
    folder = write_attempt(tmp_path, weights="run:../../x/y")
    WeightsFetcher(folder, WeightsServer()).fetch()
    assert rundir.read_json(rundir.AttemptDir(folder).weights) is None


class ModelServer(WeightsServer):
    """A fake server with a base model."""

    def __init__(self, name: str = "qwen-2b") -> None:
        super().__init__(name)
        assert self.offered is not None
        self.offered.weights = BASE


BASE = "base:owner/model"


@pytest.mark.parametrize("weights", [BASE, "owner/model", "{models}/owner/model"])
def test_a_base_model_that_this_machine_has_is_used_in_place(tmp_path: Path, weights: str) -> None:
    (tmp_path / "models" / "owner" / "model").mkdir(parents=True)
    folder = write_attempt(tmp_path, weights=weights.format(models=tmp_path / "models"))
    WeightsFetcher(folder, ModelServer()).fetch()
    assert rundir.read_json(rundir.AttemptDir(folder).weights) is None
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_base_model_that_this_machine_lacks_is_fetched_once(
    tmp_path: Path, has_adapter: bool
) -> None:
    if has_adapter:  # without its base
        adapter = tmp_path / "models" / "owner" / "model"
        adapter.mkdir(parents=True)
        rundir.write_json(
            adapter / "adapter_config.json", {"base_model_name_or_path": "base:missing"}
        )
    model_server = ModelServer()
    folders = [write_attempt(tmp_path, run, BASE) for run in ("run-1", "run-2")]
    for folder in folders:
        WeightsFetcher(folder, model_server).fetch()
    documents = [read_weights_document(folder) for folder in folders]
    assert documents[0] == documents[1] and documents[0]["weights"] == BASE
    home = Path(documents[0]["folder"])
    assert home.name.startswith("base-") and is_complete_copy(home, model_server)
    assert len(model_server.fetched) == 3


def test_a_base_model_that_the_server_lacks_too_leaves_the_error_to_the_trainer(
    tmp_path: Path,
) -> None:
    model_server, folder = ModelServer(), write_attempt(tmp_path, weights=BASE)
    model_server.offered = None
    WeightsFetcher(folder, model_server).fetch()
    assert rundir.read_json(rundir.AttemptDir(folder).weights) is None


def test_a_base_model_that_changes_on_the_server_is_reported_to_the_trainer(
    tmp_path: Path,
) -> None:
    model_server, folder = ModelServer(), write_attempt(tmp_path, weights=BASE)

    def refuse(sha256: str, target: Path) -> None:
        raise BlobGone(sha256, "model_full/x of model 'm' has changed")

    model_server.fetch_blob = refuse  # type: ignore[method-assign]
    WeightsFetcher(folder, model_server).fetch()
    assert read_weights_document(folder)["problem"] == "model_full/x of model 'm' has changed"


def test_a_base_model_that_changes_after_an_interrupted_fetch_is_fetched_anew(
    tmp_path: Path,
) -> None:
    model_server, folder = ModelServer("before"), write_attempt(tmp_path, weights=BASE)
    after, contents = ModelServer("after"), dict(model_server.bytes)
    model_server.bytes[next(reversed(contents))] = b"damaged on the way"
    fetcher = WeightsFetcher(folder, model_server)
    with pytest.raises(ConnectionError):
        fetcher.fetch()
    model_server.offered, model_server.bytes = after.offered, after.bytes
    fetcher.fetch()
    home = Path(read_weights_document(folder)["folder"])
    assert is_complete_copy(home, after)
    free_space(tmp_path / "weights", 0, 0)
    assert [path.name for path in home.parent.iterdir()] == [home.name]  # the only one in use
    fetcher.release()


def test_a_base_model_of_other_bytes_than_listed_is_tried_twice(tmp_path: Path) -> None:
    """The file was replaced by another of the same size, with the same time of change."""
    model_server, folder = ModelServer(), write_attempt(tmp_path, weights=BASE)
    first, *_ = model_server.bytes
    model_server.bytes[first] = model_server.bytes[first].upper()
    fetcher = WeightsFetcher(folder, model_server)
    with pytest.raises(ConnectionError):
        fetcher.fetch()
    fetcher.fetch()
    assert "has changed on the server's machine" in read_weights_document(folder)["problem"]


def test_an_unused_base_model_is_evicted_and_one_in_use_never(tmp_path: Path) -> None:
    homes = []
    for number in range(2):
        folder = write_attempt(tmp_path, f"run-{number}", BASE, weightsBytes=1)
        fetcher = WeightsFetcher(folder, ModelServer(f"model-{number}"))
        fetcher.fetch()
        homes.append((fetcher, Path(read_weights_document(folder)["folder"])))
    assert [home.exists() for _, home in homes] == [True, True]
    homes[0][0].release()
    free_space(tmp_path / "weights", 0, 0)
    assert [home.exists() for _, home in homes] == [False, True]
    homes[1][0].release()


def test_the_least_recently_used_weights_are_removed_first_and_those_in_use_never(
    tmp_path: Path,
) -> None:
    homes = []
    for number in range(3):
        weights_server, folder = (
            WeightsServer(f"epoch-{number}"),
            write_attempt(tmp_path, f"run-{number}", weightsBytes=1),
        )
        fetcher = WeightsFetcher(folder, weights_server)
        fetcher.fetch()
        homes.append((fetcher, Path(read_weights_document(folder)["folder"])))
        if number != 1:
            fetcher.release()
    assert [home.exists() for _, home in homes] == [False, True, True]
    free_space(tmp_path / "weights", 0, 0)
    assert [home.exists() for _, home in homes] == [False, True, False]
    homes[1][0].release()


# Writes down the weights it got.
READS_WEIGHTS = """
def train(folder):
    from runyard import rundir
    rundir.write_json(folder / "seen", rundir.read_json(folder / "weights.json"))
    result = {"outcome": "Succeeded", "reason": "Completed", "message": ""}
    rundir.write_json(folder / "result.json", result)
    return 0
"""


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
@pytest.mark.parametrize("failure", [None, "503"])
def test_a_real_supervisor_fetches_the_weights_before_training_starts(
    tmp_path: Path, server: Any, start: Start, failure: str | None
) -> None:
    weights_server = WeightsServer()
    folder = write_attempt(tmp_path)
    server.weights, server.blobs = (
        msgspec.to_builtins(weights_server.offered),
        dict(weights_server.bytes),
    )
    server.fail = lambda path, times: (
        failure if times == 1 and ("weights" in path or "blobs" in path) else None
    )
    assert start(folder, READS_WEIGHTS).wait(60) == 0
    seen = json.loads((folder / "seen").read_text())
    assert seen == read_weights_document(folder) and is_complete_copy(
        Path(seen["folder"]), weights_server
    )


def serve_model(server: Any) -> ModelServer:
    """Let a fake HTTP server offer a base model."""
    model_server = ModelServer()
    server.weights = msgspec.to_builtins(model_server.offered)
    server.blobs = dict(model_server.bytes)
    return model_server


def count_fetches(server: Any) -> dict[str, int]:
    """Return how often each blob was requested."""
    return {
        sha256: server.calls.count(f"GET /internal/v1/attempt/blobs/{sha256}")
        for sha256 in server.blobs
    }


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
def test_a_fetch_that_is_killed_continues_with_the_files_that_are_missing(
    tmp_path: Path, server: Any, start: Start
) -> None:
    model_server = serve_model(server)
    reached, killed = threading.Event(), threading.Event()

    def hold_second_file(path: str, times: int) -> None:
        if "blobs" in path and sum(count_fetches(server).values()) == 2:
            reached.set()
            killed.wait(30)

    server.fail = hold_second_file
    supervisor = start(write_attempt(tmp_path, weights=BASE), READS_WEIGHTS)
    assert reached.wait(30)
    supervisor.kill()
    supervisor.wait()
    killed.set()
    server.fail = lambda path, times: None
    folder = write_attempt(tmp_path, weights=BASE, attempt=2)
    assert start(folder, READS_WEIGHTS).wait(60) == 0
    home = Path(json.loads((folder / "seen").read_text())["folder"])
    assert is_complete(home) and is_complete_copy(home, model_server)
    assert sorted(count_fetches(server).values()) == [1, 1, 2]


@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
def test_two_supervisors_that_start_together_fetch_each_file_once(
    tmp_path: Path, server: Any, start: Start
) -> None:
    model_server = serve_model(server)
    folders = [write_attempt(tmp_path, run, BASE) for run in ("run-1", "run-2")]
    for process in [start(folder, READS_WEIGHTS) for folder in folders]:
        assert process.wait(60) == 0
    [home] = {Path(read_weights_document(folder)["folder"]) for folder in folders}
    assert is_complete_copy(home, model_server)
    assert set(count_fetches(server).values()) == {1}


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[Path]:
    """The data folder of a server that runs as a process."""
    data_dir = tmp_path / "server"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environment = kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environment, stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + 60
    while not (data_dir / "server.json").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    yield data_dir
    process.terminate()
    process.wait()


def test_a_machine_that_joined_gets_weights_of_a_run_that_was_deleted(
    real_server: Path, tmp_path: Path
) -> None:
    """The weights were trained on one machine.

    The run that starts from them is placed on another.
    """
    credentials = json.loads((real_server / "credentials.json").read_text())
    org, endpoint = credentials["organization_id"], credentials["endpoint"]
    user = Http(endpoint, headers={"Authorization": f"Bearer {credentials['secret_key']}"})
    controller = ServerClient(real_server / "secrets" / "controller.json")

    def place_run(run_id: str, machine: str, flow: dict[str, Any]) -> tuple[Path, str]:
        user.call("PUT", f"/workspaces/{org}/runs/{run_id}", body={"spec": {"flow": flow}})
        assignment = controller.claim_run(
            Claim(claim_id=run_id, machine_id=machine, host=machine, slots=1, labels={}, wait_s=0)
        )
        assert assignment is not None and assignment.run_id == run_id
        settings = Settings(data_dir=tmp_path / machine)
        return place_attempt(assignment, settings=settings, machine_id=machine), assignment.token

    first, token = place_run("source", "first", {})
    checkpoint = first / "checkpoints" / "epoch-1"
    contents = {"model_full/config.json": b"{}", "model_full/model.safetensors": b"7" * 100_000}
    for path, content in (contents | {"training_state/state.json": b"{}"}).items():
        (checkpoint / path).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / path).write_bytes(content)
    files = [
        {"path": path, "sizeBytes": full.stat().st_size, "sha256": rundir.sha256_of(full)}
        for path, full in rundir.files_below(checkpoint)
    ]
    manifest = {
        "checkpoint": "epoch-1",
        "step": 1,
        "epoch": 1,
        "time": 1,
        "metrics": {},
        "isBest": True,
    }
    rundir.write_json(checkpoint / "manifest.json", manifest | {"files": files})
    AttemptClient(endpoint, token=token, folder=first).store_checkpoint("epoch-1")

    begun = {
        "blocks": [
            {"block": "vi-model", "settings": {"architecture": {"weights": "run:source/best"}}}
        ]
    }
    folder, token = place_run("new", "second", begun)
    user.call("DELETE", f"/workspaces/{org}/runs/source")
    AttemptClient(endpoint, token=token, folder=folder).prepare_attempt(rundir)
    brought = read_weights_document(folder)
    assert brought["weights"] == "run:source/epoch-1"
    home = Path(brought["folder"])
    assert home.is_relative_to(tmp_path / "second" / "weights" / org)
    assert {
        path: full.read_bytes() for path, full in rundir.files_below(home) if path in contents
    } == contents
    assert not (home / "training_state").exists()
