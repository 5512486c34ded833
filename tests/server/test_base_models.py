"""Base models of the server's machine, fetched by machines that lack them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runyard.server.services import base_models
from tests.support import attempts
from tests.support.attempts import Attempt
from tests.support.server import MakeServer, TestServer

WEIGHTS, BLOBS = "/internal/v1/attempt/weights", "/internal/v1/attempt/blobs"
FILES = {
    "config.json": b'{"model_type": "idefics3"}',
    "model.safetensors": b"weights",
    "tokenizer.model": b"sentencepiece",
    "sub/merges.txt": b"merges",
}
NOT_FETCHED = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", ".cache/x.json": b"{}"}


def add_model(server: TestServer, name: str = "qwen-2b", files: dict[str, bytes] = FILES) -> Path:
    folder = server.settings.data_dir / "models" / name
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def make_flow(**architecture: str) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-model", "settings": {"architecture": architecture}}]}


async def start(server: TestServer, run_id: str = "r1", **architecture: str) -> Attempt:
    return await attempts.start(server, run_id, make_flow(**architecture))


async def list_weights(attempt: Attempt) -> dict[str, str]:
    """Return the hashes of the files that the attempt may fetch, by path."""
    answer = await attempt.client.get(WEIGHTS)
    assert answer.status_code == 200, answer.text
    return {file["path"]: file["sha256"] for file in answer.json()["files"]}


def hash_files(files: dict[str, bytes], part: str = "model_full") -> dict[str, str]:
    return {f"{part}/{path}": hashlib.sha256(data).hexdigest() for path, data in files.items()}


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("qwen-2b", {"weights": "base:qwen-2b"}),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"weights": "Qwen/Qwen2.5-VL-3B-Instruct"}),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"name": "qwen25vl", "size": "3B"}),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"name": "qwen25vl"}),
    ],
)
async def test_the_files_of_the_runs_model_are_listed_and_sent(
    server: TestServer, name: str, architecture: dict[str, str]
) -> None:
    add_model(server, name, FILES | NOT_FETCHED)
    attempt = await start(server, **architecture)
    listed = await list_weights(attempt)
    assert listed == hash_files(FILES)
    for path, content in FILES.items():
        answer = await attempt.client.get(f"{BLOBS}/{listed[f'model_full/{path}']}")
        assert (answer.status_code, answer.content) == (200, content)


async def test_an_adapter_is_sent_with_its_base(server: TestServer) -> None:
    add_model(server, "base")
    adapter = {
        "adapter_config.json": json.dumps({"base_model_name_or_path": "base:base"}).encode(),
        "adapter_model.safetensors": b"adapter",
    }
    add_model(server, "tuned", adapter)
    listed = await list_weights(await start(server, weights="base:tuned"))
    assert listed == hash_files(FILES) | hash_files(adapter, "model_adapter")


async def test_a_checkpoint_keeps_its_layout(server: TestServer) -> None:
    files = hash_files(FILES) | hash_files({"a.safetensors": b"a"}, "model_adapter")
    add_model(server, "mine", {f"model_full/{path}": data for path, data in FILES.items()})
    add_model(server, "mine", {"model_adapter/a.safetensors": b"a"})
    assert await list_weights(await start(server, weights="base:mine")) == files


async def test_a_token_opens_only_the_model_of_its_own_run(server: TestServer) -> None:
    add_model(server)
    add_model(server, "other", {"config.json": b"{}", "model.safetensors": b"other weights"})
    other = await start(server, "r1", weights="base:other")
    [sha256] = [
        sha256 for path, sha256 in (await list_weights(other)).items() if "safetensors" in path
    ]
    mine, without = await start(server, "r2", weights="base:qwen-2b"), await start(server, "r3")
    await list_weights(mine)
    for attempt in (mine, without):
        assert (await attempt.client.get(f"{BLOBS}/{sha256}")).status_code == 404
    assert (await without.client.get(WEIGHTS)).status_code == 404
    assert (await (await server.api()).get(f"{BLOBS}/{sha256}")).status_code == 401
    await other.finish(75)
    for address in (WEIGHTS, f"{BLOBS}/{sha256}"):
        refused = await other.client.get(address)
        assert (refused.status_code, refused.json()["code"]) == (409, "LeaseLost")


async def test_a_file_that_changes_while_it_is_fetched_is_not_sent(server: TestServer) -> None:
    weights = add_model(server) / "model.safetensors"
    attempt = await start(server, weights="base:qwen-2b")
    listed = (await list_weights(attempt))["model_full/model.safetensors"]
    weights.write_bytes(b"changed")
    os.utime(weights, ns=(1, 1))
    refused = await attempt.client.get(f"{BLOBS}/{listed}")
    assert (refused.status_code, refused.json()["code"]) == (409, "BlobMissing")
    assert "model_full/model.safetensors of model 'base:qwen-2b' has changed" in refused.text
    again = (await list_weights(attempt))["model_full/model.safetensors"]
    assert again == hashlib.sha256(b"changed").hexdigest()


async def test_a_model_is_hashed_once_also_over_restarts(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    remember = base_models.BaseModels._remember

    def record(self: Any, settings: Any, path: str, *entry: Any) -> None:
        hashed.append(Path(path).name)
        remember(self, settings, path, *entry)

    monkeypatch.setattr(base_models.BaseModels, "_remember", record)
    async with make_server() as server:
        add_model(server)
        for run_id in ("r1", "r2"):
            await list_weights(await start(server, run_id, weights="base:qwen-2b"))
        assert sorted(hashed) == sorted(Path(path).name for path in FILES)
    async with make_server() as server:
        await list_weights(await start(server, "r3", weights="base:qwen-2b"))
    assert len(hashed) == len(FILES)


async def test_a_request_during_the_hashing_is_answered_to_come_again(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(server)
    attempt = await start(server, weights="base:qwen-2b")
    with monkeypatch.context() as patch:
        patch.setattr(base_models, "ANSWER_WITHIN_S", 0)
        early = await attempt.client.get(WEIGHTS)
    assert (early.status_code, early.json()["code"]) == (503, "StorageUnavailable")
    assert "is being hashed" in early.text and early.headers["retry-after"]
    assert await list_weights(attempt) == hash_files(FILES)


async def test_a_model_that_is_removed_after_the_creation_is_not_found(
    server: TestServer,
) -> None:
    weights = add_model(server)
    attempt = await start(server, weights="base:qwen-2b")
    weights.rename(weights.with_name("renamed"))
    assert (await attempt.client.get(WEIGHTS)).status_code == 404


@pytest.mark.parametrize(
    ("break_model", "expected"),
    [
        (lambda folder: (folder / "x.json").symlink_to("/etc/hostname"), "x.json is a link out"),
        (lambda folder: (folder / "a:b.json").write_text("{}"), "a:b.json' is not a valid path"),
    ],
)
async def test_a_model_that_cannot_be_fetched_is_reported_at_creation(
    server: TestServer, break_model: Any, expected: str
) -> None:
    break_model(add_model(server))
    flow = make_flow(weights="base:qwen-2b")
    answer = await (await server.api()).put(server.path("runs/r1"), json={"spec": {"flow": flow}})
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow")
    [problem] = answer.json()["problems"]
    assert expected in problem["message"] and problem["path"] == "/blocks/0/settings/architecture"


async def test_an_adapter_whose_base_is_missing_is_reported_at_creation(
    server: TestServer,
) -> None:
    add_model(server, "tuned", {"adapter_config.json": b'{"base_model_name_or_path": "base:no"}'})
    flow = make_flow(weights="base:tuned")
    answer = await (await server.api()).put(server.path("runs/r1"), json={"spec": {"flow": flow}})
    message = answer.json()["problems"][0]["message"]
    assert "model 'base:no', the base of adapter 'base:tuned', is not in" in message
    assert "--name no there" in message
