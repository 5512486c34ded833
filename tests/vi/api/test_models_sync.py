# Generated from test_models_async.py by scripts/unasync: change that file, then run the script.
"""``client.models``: finding a checkpoint, and fetching it over a real connection."""

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vi
from vi.api import _manifest
from vi.api._manifest import MANIFEST
from vi.api.resources.models._folder import DEFAULT_SAVE_DIR

FILES = {
    "model_full/run.json": b"{}",
    "model_full/model.safetensors": b"w" * 50_000,
    "model_full/config.json": b"{}",
}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def model_document(byte_server: Any) -> Callable[..., dict[str, Any]]:
    def build(model_id: str = "epoch-3", **contents: Any) -> dict[str, Any]:
        link = {
            "downloadUrl": {"url": byte_server.url, "expiresAt": 0},
            "sha256": byte_server.sha256,
            **contents,
        }
        return {
            "kind": "RunOutput",
            "workspaceId": "lab",
            "runId": "r-1",
            "runOutputId": model_id,
            "spec": {"kind": "Checkpoint", "epoch": 3, "evaluationMetrics": {"accuracy": 0.97}},
            "status": {
                "observedGeneration": 1,
                "conditions": [],
                "storageObject": "-",
                "contents": link,
            },
        }

    return build


@pytest.fixture
def client(key: str, byte_server: Any) -> Iterator[vi.Client]:
    byte_server.content = tar_of(FILES)
    with vi.Client(key, "lab", endpoint=byte_server.endpoint, max_retries=0) as client:
        yield client


def test_models_are_listed_in_pages(
    client: vi.Client, byte_server: Any, model_document: Any
) -> None:
    byte_server.documents.append(
        {"items": [model_document("epoch-1"), model_document("epoch-2")], "nextPage": None}
    )
    models = client.models.list("r-1")
    assert [model.model_id for model in models.items] == ["epoch-1", "epoch-2"]
    assert models[0].spec.evaluation_metrics == {"accuracy": 0.97}
    assert byte_server.asked == ["GET /workspaces/lab/runs/r-1/outputs?s=10"]


@pytest.mark.parametrize(
    ("ckpt", "name"), [(None, "latest"), ("best", "best"), ("epoch-3", "epoch-3")]
)
def test_one_model_is_requested_by_name(
    client: vi.Client, byte_server: Any, model_document: Any, ckpt: str | None, name: str
) -> None:
    document = model_document()
    for answer in (document, {"items": [document]}, {**document, "items": [document]}):
        byte_server.documents.append(answer)
        model = client.models.get("r-1", ckpt)
        assert (type(model).__name__, model.model_id) == ("Model", "epoch-3")
    assert byte_server.asked[0] == f"GET /workspaces/lab/runs/r-1/outputs/{name}"


def test_a_run_without_models_is_reported(client: vi.Client, byte_server: Any, server: Any) -> None:
    byte_server.documents.append({"items": []})
    with pytest.raises(vi.ViOperationError, match="run r-1 has no checkpoint"):
        client.models.get("r-1")


def test_a_model_is_downloaded_into_its_own_folder(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document(sizeBytes=len(byte_server.content)))
    found = client.models.download("r-1", save_dir=tmp_path)
    assert found.model_path == tmp_path / "r-1" / "epoch-3" / "model_full"
    assert found.run_config_path.read_bytes() == b"{}"
    assert (found.run_id, found.model_id, found.adapter_path) == ("r-1", "epoch-3", None)
    assert (found.model_path / "model.safetensors").read_bytes() == FILES[
        "model_full/model.safetensors"
    ]
    assert [path.name for path in (tmp_path / "r-1").iterdir()] == ["epoch-3"]
    assert byte_server.asked == ["GET /workspaces/lab/runs/r-1/outputs/latest?contents=y"]


def test_get_model_is_a_shortcut(
    client: vi.Client,
    byte_server: Any,
    model_document: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    byte_server.documents.append(model_document())
    found = client.get_model("r-1")
    assert (
        found.model_path == Path(DEFAULT_SAVE_DIR).expanduser() / "r-1" / "epoch-3" / "model_full"
    )


def test_two_checkpoints_of_one_run_do_not_mix(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document("epoch-1"))
    first = client.models.download("r-1", "epoch-1", save_dir=tmp_path)
    byte_server.content = tar_of({**FILES, "model_full/model.safetensors": b"v" * 50_000})
    byte_server.documents.append(model_document("epoch-2"))
    second = client.models.download("r-1", "epoch-2", save_dir=tmp_path)
    assert (first.model_path / "model.safetensors").read_bytes()[:1] == b"w"
    assert (second.model_path / "model.safetensors").read_bytes()[:1] == b"v"


def test_an_existing_model_is_downloaded_again_only_with_overwrite(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document())
    first = client.models.download("r-1", save_dir=tmp_path)
    byte_server.documents.append(model_document())
    assert client.models.download("r-1", save_dir=tmp_path) == first
    assert len(byte_server.ranges) == 1
    (first.model_path / "stale.bin").write_bytes(b"old")
    byte_server.documents.append(model_document())
    client.models.download("r-1", save_dir=tmp_path, overwrite=True)
    assert len(byte_server.ranges) == 2
    assert not (first.model_path / "stale.bin").exists()
    assert [path.name for path in (tmp_path / "r-1").iterdir()] == ["epoch-3"]


def rewrite(path: Path, content: bytes) -> None:
    """Write different bytes of the same length and restore the times, as a faulty disk would."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def link(path: Path, *, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


def replace_by_folder(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.mkdir()


WEIGHTS = "model_full/model.safetensors"
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated weights": lambda folder: os.truncate(folder / WEIGHTS, 10),
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "longer weights": lambda folder: (folder / WEIGHTS).write_bytes(b"w" * 50_001),
    "missing weights": lambda folder: (folder / WEIGHTS).unlink(),
    "other weights of the same length": lambda folder: (folder / WEIGHTS).write_bytes(
        b"x" * 50_000
    ),
    "one other byte, times set back": lambda folder: rewrite(
        folder / WEIGHTS, b"w" * 49_999 + b"v"
    ),
    "changed run.json": lambda folder: (folder / "model_full/run.json").write_bytes(b"[]"),
    "missing config": lambda folder: (folder / "model_full/config.json").unlink(),
    "a link in place of the weights": lambda folder: link(folder / WEIGHTS, to=folder / "moved"),
    "a folder in place of the weights": lambda folder: replace_by_folder(folder / WEIGHTS),
    "missing manifest": lambda folder: (folder / MANIFEST).unlink(),
    "damaged manifest": lambda folder: (folder / MANIFEST).write_bytes(b'{"files": ['),
    "manifest of nothing": lambda folder: (folder / MANIFEST).write_bytes(
        b'{"identity": null, "files": []}'
    ),
    "empty folder": lambda folder: replace_by_folder(folder),
}


@pytest.mark.parametrize("is_proven_before", [False, True], ids=["fresh", "proven"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_an_incomplete_copy_is_downloaded_again(
    client: vi.Client,
    byte_server: Any,
    model_document: Any,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    is_proven_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_manifest, "_SETTLED_NS", 0)
    byte_server.documents += [model_document()] * 4
    folder = (client.models.download("r-1", save_dir=tmp_path)).model_path.parent
    if is_proven_before:
        # The clock of the file system moves, so the times that are recorded now prove something.
        time.sleep(0.02)
        client.models.download("r-1", save_dir=tmp_path)
    fetched = len(byte_server.ranges)
    damage(folder)
    found = client.models.download("r-1", save_dir=tmp_path)
    assert len(byte_server.ranges) > fetched
    for name, content in FILES.items():
        assert (found.model_path.parent / name).read_bytes() == content
    fetched = len(byte_server.ranges)
    client.models.download("r-1", save_dir=tmp_path)
    assert len(byte_server.ranges) == fetched


def test_a_copy_whose_files_cannot_have_changed_is_not_hashed_again(
    client: vi.Client,
    byte_server: Any,
    model_document: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[Path] = []
    original = _manifest.hash_file

    def hash_and_note(path: Path) -> str:
        hashed.append(path)
        return original(path)

    monkeypatch.setattr(_manifest, "_SETTLED_NS", 0)
    byte_server.documents += [model_document()] * 4
    folder = (client.models.download("r-1", save_dir=tmp_path)).model_path.parent
    time.sleep(0.02)
    monkeypatch.setattr(_manifest, "hash_file", hash_and_note)
    client.models.download("r-1", save_dir=tmp_path)
    assert len(hashed) == len(FILES)
    (folder / "notes.txt").write_text("mine")
    client.models.download("r-1", save_dir=tmp_path)
    assert len(hashed) == len(FILES)
    (folder / WEIGHTS).touch()
    client.models.download("r-1", save_dir=tmp_path)
    assert hashed[len(FILES) :] == [folder / WEIGHTS]
    assert (folder / "notes.txt").read_text() == "mine"


def test_times_that_were_just_recorded_prove_nothing(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents += [model_document()] * 3
    folder = (client.models.download("r-1", save_dir=tmp_path)).model_path.parent
    client.models.download("r-1", save_dir=tmp_path)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_manifest.Manifest)
    assert [record.seen for record in manifest.files] == [None] * len(FILES)


def test_a_copy_of_another_archive_is_fetched_again(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document())
    client.models.download("r-1", save_dir=tmp_path)
    byte_server.content = tar_of({**FILES, WEIGHTS: b"v" * 50_000})
    byte_server.documents.append(model_document())
    found = client.models.download("r-1", save_dir=tmp_path)
    assert (found.model_path / "model.safetensors").read_bytes() == b"v" * 50_000


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        (["Pending"], ["no checkpoint yet; it is Pending", "runs wait r-1"]),
        (["Pending", "Running"], ["no checkpoint yet; it is Running", "runs wait r-1"]),
        (
            ["Pending", "Running", "Failed"],
            ["ended in Failed", "and has no checkpoint", "runs logs r-1"],
        ),
    ],
)
@pytest.mark.parametrize("call", ["get", "download", "get_model"])
def test_a_run_without_a_checkpoint_is_reported_with_its_state(
    key: str, server: Any, run_document: Any, conditions: list[str], words: list[str], call: str
) -> None:
    last = {"condition": conditions[-1], "reason": "Because", "message": "of something"}
    server.answers({"message": "model 'latest' was not found", "code": "NotFound"}, status=404)
    server.answers(run_document(*conditions[:-1], last))
    server.answers({"items": []})
    client = vi.Client(key, "lab", transport=server.transport)
    ask = client.get_model if call == "get_model" else getattr(client.models, call)
    with pytest.raises(vi.ViNotFoundError) as raised:
        ask("r-1")
    for word in (*words, "Because: of something"):
        assert word in str(raised.value)
    assert (raised.value.status_code, raised.value.code) == (404, "NotFound")


def test_a_missing_checkpoint_and_a_missing_run_have_different_errors(
    key: str, server: Any, run_document: Any, model_document: Any
) -> None:
    client = vi.Client(key, "lab", transport=server.transport)
    server.answers({"message": "model 'epoch-9' was not found"}, status=404)
    server.answers(run_document("Running"))
    server.answers({"items": [model_document()]})
    with pytest.raises(vi.ViNotFoundError, match="model 'epoch-9' was not found"):
        client.models.get("r-1", "epoch-9")
    server.answers({"message": "model 'latest' was not found"}, status=404)
    server.answers({"message": "run 'r-1' was not found"}, status=404)
    with pytest.raises(vi.ViNotFoundError, match="run 'r-1' was not found"):
        client.models.get("r-1")


def test_a_damaged_model_is_never_left_behind(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document(sha256="0" * 64))
    with pytest.raises(vi.ViDownloadError, match="damaged"):
        client.models.download("r-1", save_dir=tmp_path)
    assert list((tmp_path / "r-1").iterdir()) == []


def test_an_interrupted_download_resumes_in_the_next_call(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.faults = [20_000]
    byte_server.documents.append(model_document())
    with pytest.raises(vi.ViDownloadError, match="20000 bytes, which are kept"):
        client.models.download("r-1", save_dir=tmp_path)
    assert not (tmp_path / "r-1" / "epoch-3").exists()
    byte_server.documents.append(model_document())
    client.models.download("r-1", save_dir=tmp_path)
    assert byte_server.ranges == ["bytes=0-", "bytes=20000-"]


def test_names_from_the_server_never_leave_the_folder(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document("../../evil"))
    with pytest.raises(vi.ViInvalidParameterError, match="runOutputId"):
        client.models.download("r-1", save_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_link_raises(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    document = model_document()
    document["status"]["contents"] = None
    byte_server.documents.append(document)
    with pytest.raises(vi.ViDownloadError, match="no download link"):
        client.models.download("r-1", save_dir=tmp_path)


def test_an_unwritable_folder_is_reported(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    (tmp_path / "r-1").write_text("in the way")
    byte_server.documents.append(model_document())
    with pytest.raises(vi.ViDownloadError, match="cannot be stored"):
        client.models.download("r-1", save_dir=tmp_path)


def test_a_link_without_a_host_belongs_to_the_api(
    client: vi.Client, byte_server: Any, model_document: Any, tmp_path: Path
) -> None:
    byte_server.documents.append(model_document(downloadUrl={"url": "/downloads/abc?signature=x"}))
    found = client.models.download("r-1", save_dir=tmp_path)
    assert found.model_path.is_dir()
    assert all("Authorization" not in headers for headers in byte_server.headers_seen)
