"""Weights that flows name: allowed model folders, and checkpoints of other runs."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from runyard.model_folders import SETTING
from runyard.rundir import weights_name
from tests.support import attempts
from tests.support.server import MakeServer, TestServer, open_server


def flow_of(weights: str) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-model", "settings": {"architecture": {"weights": weights}}}]}


async def create(server: TestServer, weights: str, run_id: str = "new") -> Any:
    api = await server.api()
    return await api.put(server.path(f"runs/{run_id}"), json={"spec": {"flow": flow_of(weights)}})


async def train_run(server: TestServer, run_id: str = "source") -> None:
    """A run with two checkpoints of which the first is the best, over."""
    attempt = await attempts.start(server, run_id)
    await attempt.checkpoint("epoch-1", content=b"first " + run_id.encode(), best=True)
    await attempt.checkpoint("epoch-2", content=b"second " + run_id.encode(), best=False)
    await attempt.finish(
        0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-2"
    )


async def started(server: TestServer) -> Any:
    attempt = await attempts.claim(server, "c")
    await attempt.start()
    return attempt


async def blobs_agree(server: TestServer) -> bool:
    return bool((await (await server.api()).get(server.path("storage"))).json()["agrees"])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FIRST = sha256(b"first source")


async def test_a_folder_outside_the_operators_is_rejected_alike_whether_or_not_it_exists(
    server: TestServer, tmp_path: Path
) -> None:
    data_dir = server.settings.data_dir
    own = data_dir / "models" / "qwen"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    for folder in (data_dir / "runs/o/r", data_dir / "weights/o/h", tmp_path / "there"):
        folder.mkdir(parents=True)
    (data_dir / "models" / "out").symlink_to(tmp_path / "there")
    outside = [
        *(
            data_dir / name
            for name in ("", "models", "runs/o/r", "runs/o/gone", "weights/o/h", "secrets")
        ),
        *(tmp_path / "there", tmp_path / "gone", own / "../../runs/o/r", data_dir / "models/out"),
        *(
            "/etc",
            "/etc/passwd",
            "/etc/config.json",
            "/",
            "~",
            "~root/x",
            "~nobody-at-all/x",
            "/proc/self/root",
        ),
    ]
    api, answers = await server.api(), set()
    for path in map(str, outside):
        for answer in (
            await create(server, path),
            await api.put(server.path("flows/f"), json={"spec": flow_of(path)}),
        ):
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (400, "InvalidFlow"), path
            [found] = problem["problems"]
            assert found["path"] == "/blocks/0/settings/architecture/weights"
            answers.add((found["message"].replace(repr(path), "PATH"), found["allowed"]))
    [(message, _)] = answers
    assert SETTING in message
    assert (await create(server, str(own))).status_code == 201
    absent = str(data_dir / "models" / "not-there")
    assert (await api.put(server.path("flows/f"), json={"spec": flow_of(absent)})).is_success
    assert (await create(server, absent, "absent")).json()["code"] == "InvalidFlow"


async def test_models_are_named_by_the_operators_folders(
    make_server: MakeServer, tmp_path: Path
) -> None:
    async with make_server(model_folders=str(tmp_path / "shelf")) as server:
        unknown = await create(server, "base:qwen-2b")
        assert unknown.json()["problems"][0]["allowed"].endswith("none yet")
        for name in ("qwen-2b", "owner/model"):
            (tmp_path / "shelf" / name).mkdir(parents=True)
            (tmp_path / "shelf" / name / "config.json").write_text("{}")
        (tmp_path / "data" / "runs").mkdir(exist_ok=True)
        (tmp_path / "shelf" / "sneaky").symlink_to(tmp_path / "data" / "runs")
        assert (await create(server, "base:qwen-2b")).status_code == 201
        assert (await create(server, "base:owner/model", "other")).status_code == 201
        assert (await create(server, "owner/model", "hub")).status_code == 201
        for name in ("Qwen/Qwen2.5-VL-3B-Instruct", str(tmp_path / "shelf" / "gone")):
            problem = (await create(server, name, "never")).json()["problems"][0]
            assert f"'{name}' is not in the model folders" in problem["message"]
            remedy = "NAME there, then weights base:NAME" if name.startswith("/") else name
            assert f"runyard models add FOLDER --name {remedy}" in problem["message"]
        for name in (
            "base:qwen-3b",
            "base:sneaky",
            "base:../qwen-2b",
            "base:",
            "qwen-2b",
            "./qwen-2b",
        ):
            answer = await create(server, name, "never")
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow"), name
        assert (
            "base:owner/model, base:qwen-2b"
            in (await create(server, "base:no", "never")).json()["detail"]
        )


@pytest.mark.parametrize(
    ("asked", "found"),
    [("latest", "epoch-2"), ("best", "epoch-1"), ("epoch-1", "epoch-1"), ("epoch-2", "epoch-2")],
)
async def test_the_checkpoint_is_frozen_when_the_run_is_created(
    server: TestServer, asked: str, found: str
) -> None:
    await train_run(server)
    made = await create(server, f"run:source/{asked}")
    assert made.status_code == 201, made.text
    settings = made.json()["spec"]["flow"]["blocks"][0]["settings"]
    assert settings["architecture"]["weights"] == f"run:source/{found}"
    assert (await create(server, f"run:source/{asked}")).status_code == 200
    attempt = await started(server)
    offered = (await attempt.client.get("/internal/v1/attempt/weights")).json()
    content = {"epoch-1": b"first source", "epoch-2": b"second source"}[found]
    assert offered == {
        "weights": f"run:source/{found}",
        "files": [
            {
                "path": "model_full/model.safetensors",
                "size_bytes": len(content),
                "sha256": sha256(content),
            },
        ],
    }


async def test_a_checkpoint_that_does_not_exist_is_rejected(server: TestServer) -> None:
    await train_run(server)
    await attempts.start(server, "empty")
    for weights in ("run:nobody/latest", "run:source/epoch-9", "run:empty/latest", "run:new/best"):
        answer = await create(server, weights)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow"), weights
    await (await server.api()).delete(server.path("runs/source"))
    assert (await create(server, "run:source/epoch-1")).status_code == 400


async def test_deleting_the_other_run_removes_no_bytes_and_a_token_opens_no_others(
    server: TestServer,
) -> None:
    api, blobs = await server.api(), server.services.blobs(server.org)
    await train_run(server)
    await train_run(server, "unrelated")
    assert (await create(server, "run:source/best")).status_code == 201
    await api.delete(server.path("runs/source"))
    assert set(blobs.hashes()) == {
        sha256(b"first source"),
        sha256(b"first unrelated"),
        sha256(b"second unrelated"),
    }
    assert (await api.post(server.path("storage/collections"))).status_code in (200, 201)
    assert await blobs_agree(server)
    attempt = await started(server)
    mine = await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256(b'first source')}")
    assert mine.content == b"first source"
    for content in (b"second source", b"first unrelated"):
        answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256(content)}")
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")
    home = (
        server.settings.weights_dir
        / server.org
        / weights_name([("model_full/model.safetensors", FIRST)])
    )
    home.mkdir(parents=True)
    await attempt.finish(64)
    assert (await attempt.client.get("/internal/v1/attempt/weights")).json()["code"] == "LeaseLost"
    await api.delete(server.path("runs/new"))
    assert not home.exists()
    assert sha256(b"first source") not in set(blobs.hashes())
    assert await blobs_agree(server)


async def test_a_checkpoint_that_its_own_run_removed_is_kept_for_the_other(
    server: TestServer,
) -> None:
    flow = {
        "blocks": [
            {"block": "vi-model", "settings": {"checkpoint": {"keep": 1, "keepBest": False}}}
        ]
    }
    source = await attempts.start(server, "source", flow)
    await source.checkpoint("epoch-1", content=b"first")
    assert (await create(server, "run:source/latest")).status_code == 201
    await source.checkpoint("epoch-2", content=b"second")
    await source.checkpoint("epoch-3", content=b"third")
    assert set(server.services.blobs(server.org).hashes()) == {sha256(b"first"), sha256(b"third")}


async def test_a_run_without_weights_of_another_run_fetches_none(server: TestServer) -> None:
    attempt = await attempts.start(server, "plain")
    answer = await attempt.client.get("/internal/v1/attempt/weights")
    assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")


async def test_a_run_created_before_weights_were_kept_finds_what_its_flow_names(
    server: TestServer,
) -> None:
    await train_run(server)
    await create(server, "run:source/epoch-2")
    await server.services.store.write(
        lambda connection: connection.exec_driver_sql("DELETE FROM weight_files")
    )
    attempt = await started(server)
    [file] = (await attempt.client.get("/internal/v1/attempt/weights")).json()["files"]
    answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{file['sha256']}")
    assert answer.content == b"second source"


def test_weights_are_backed_up_and_restored_in_a_new_data_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_server(tmp_path / "old") as server:
            await train_run(server)
            await create(server, "run:source/best")
            api = await server.api()
            await api.delete(server.path("runs/source"))
            backup = (await api.post(server.path("storage/backups"))).content
        async with open_server(tmp_path / "new") as server:
            answer = await (await server.api()).post(
                server.path("storage/restores"), content=backup
            )
            assert answer.status_code == 200, answer.text
            attempt = await started(server)
            [file] = (await attempt.client.get("/internal/v1/attempt/weights")).json()["files"]
            answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{file['sha256']}")
            assert answer.content == b"first source"

    asyncio.run(scenario())
