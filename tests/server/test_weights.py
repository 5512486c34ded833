"""Weights that flows name: model folders that the operator chose, and checkpoints of other runs, kept for the run."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.model_folders import SETTING
from runyard.rundir import weights_name

InHouse = Callable[..., None]


def flow_of(weights: str) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-model", "settings": {"architecture": {"weights": weights}}}]}


async def create(house: Any, weights: str, run_id: str = "new") -> Any:
    api = await house.api()
    return await api.put(house.path(f"runs/{run_id}"), json={"spec": {"flow": flow_of(weights)}})


async def trained(house: Any, acts: Any, run_id: str = "source") -> None:
    """A run with two checkpoints of which the first is the best, over."""
    attempt = await acts.running(house, run_id)
    await attempt.checkpoint("epoch-1", content=b"first " + run_id.encode(), best=True)
    await attempt.checkpoint("epoch-2", content=b"second " + run_id.encode(), best=False)
    await attempt.finish(0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-2")


async def started(house: Any, acts: Any) -> Any:
    attempt = await acts.claim(house, "c")
    await attempt.start()
    return attempt


async def blobs_agree(house: Any) -> bool:
    return bool((await (await house.api()).get(house.path("storage"))).json()["agrees"])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FIRST = sha256(b"first source")


def test_a_folder_that_the_operator_did_not_choose_is_rejected_alike_whether_or_not_it_exists(
    in_house: InHouse, tmp_path: Path
) -> None:
    async def story(house: Any) -> None:
        data_dir = house.settings.data_dir
        own = data_dir / "models" / "qwen"
        own.mkdir(parents=True)
        (own / "config.json").write_text("{}")
        for path in (data_dir / "runs/o/r", data_dir / "weights/o/h", tmp_path / "there"):
            path.mkdir(parents=True)
        (data_dir / "models" / "out").symlink_to(tmp_path / "there")
        outside = [
            *(data_dir / name for name in ("", "models", "runs/o/r", "runs/o/gone", "weights/o/h", "secrets")),
            *(tmp_path / "there", tmp_path / "gone", own / "../../runs/o/r", data_dir / "models/out"),
            *("/etc", "/etc/passwd", "/etc/config.json", "/", "~", "~root/x", "~nobody-at-all/x", "/proc/self/root"),
        ]
        api, told = await house.api(), set()
        for path in map(str, outside):
            for answer in (
                await create(house, path),
                await api.put(house.path("flows/f"), json={"spec": flow_of(path)}),
            ):
                problem = answer.json()
                assert (answer.status_code, problem["code"]) == (400, "InvalidFlow"), path
                [found] = problem["problems"]
                assert found["path"] == "/blocks/0/settings/architecture/weights"
                told.add((found["message"].replace(repr(path), "PATH"), found["allowed"]))
        [(message, _)] = told
        assert SETTING in message
        assert (await create(house, str(own))).status_code == 201
        assert (await create(house, str(data_dir / "models" / "not-there"), "absent")).status_code == 201

    in_house(story)


def test_models_are_named_by_the_operators_folders(in_house: InHouse, tmp_path: Path) -> None:
    async def story(house: Any) -> None:
        unknown = await create(house, "base:qwen-2b")
        assert unknown.json()["problems"][0]["allowed"].endswith("none yet")
        for name in ("qwen-2b", "owner/model"):
            (tmp_path / "shelf" / name).mkdir(parents=True)
            (tmp_path / "shelf" / name / "config.json").write_text("{}")
        (tmp_path / "data" / "runs").mkdir(exist_ok=True)
        (tmp_path / "shelf" / "sneaky").symlink_to(tmp_path / "data" / "runs")
        assert (await create(house, "base:qwen-2b")).status_code == 201
        assert (await create(house, "base:owner/model", "other")).status_code == 201
        assert (await create(house, "Qwen/Qwen2.5-VL-3B-Instruct", "hub")).status_code == 201
        for name in ("base:qwen-3b", "base:sneaky", "base:../qwen-2b", "base:", "qwen-2b", "./qwen-2b"):
            answer = await create(house, name, "never")
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow"), name
        assert "base:owner/model, base:qwen-2b" in (await create(house, "base:no", "never")).json()["detail"]

    in_house(story, model_folders=str(tmp_path / "shelf"))


@pytest.mark.parametrize(
    ("asked", "found"), [("latest", "epoch-2"), ("best", "epoch-1"), ("epoch-1", "epoch-1"), ("epoch-2", "epoch-2")]
)
def test_the_checkpoint_is_frozen_when_the_run_is_created(in_house: InHouse, acts: Any, asked: str, found: str) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        made = await create(house, f"run:source/{asked}")
        assert made.status_code == 201, made.text
        settings = made.json()["spec"]["flow"]["blocks"][0]["settings"]
        assert settings["architecture"]["weights"] == f"run:source/{found}"
        assert (await create(house, f"run:source/{asked}")).status_code == 200
        attempt = await started(house, acts)
        offered = (await attempt.client.get("/internal/v1/attempt/weights")).json()
        content = {"epoch-1": b"first source", "epoch-2": b"second source"}[found]
        assert offered == {
            "weights": f"run:source/{found}",
            "files": [
                {"path": "model_full/model.safetensors", "size_bytes": len(content), "sha256": sha256(content)},
            ],
        }

    in_house(story)


def test_a_checkpoint_that_does_not_exist_is_rejected(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await acts.running(house, "empty")
        for weights in ("run:nobody/latest", "run:source/epoch-9", "run:empty/latest", "run:new/best"):
            answer = await create(house, weights)
            assert (answer.status_code, answer.json()["code"]) == (400, "InvalidFlow"), weights
        await (await house.api()).delete(house.path("runs/source"))
        assert (await create(house, "run:source/epoch-1")).status_code == 400

    in_house(story)


def test_deleting_the_other_run_takes_no_byte_away_and_a_token_opens_no_others(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        api, blobs = await house.api(), house.services.blobs(house.org)
        await trained(house, acts)
        await trained(house, acts, "unrelated")
        assert (await create(house, "run:source/best")).status_code == 201
        await api.delete(house.path("runs/source"))
        assert set(blobs.hashes()) == {sha256(b"first source"), sha256(b"first unrelated"), sha256(b"second unrelated")}
        assert (await api.post(house.path("storage/collections"))).status_code in (200, 201)
        assert await blobs_agree(house)
        attempt = await started(house, acts)
        mine = await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256(b'first source')}")
        assert mine.content == b"first source"
        for content in (b"second source", b"first unrelated"):
            answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{sha256(content)}")
            assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")
        home = house.settings.weights_dir / house.org / weights_name([("model_full/model.safetensors", FIRST)])
        home.mkdir(parents=True)
        await attempt.finish(64)
        assert (await attempt.client.get("/internal/v1/attempt/weights")).json()["code"] == "LeaseLost"
        await api.delete(house.path("runs/new"))
        assert not home.exists()
        assert sha256(b"first source") not in set(blobs.hashes())
        assert await blobs_agree(house)

    in_house(story)


def test_a_checkpoint_that_its_own_run_keeps_no_more_is_kept_for_the_other(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        flow = {"blocks": [{"block": "vi-model", "settings": {"checkpoint": {"keep": 1, "keepBest": False}}}]}
        source = await acts.running(house, "source", flow)
        await source.checkpoint("epoch-1", content=b"first")
        assert (await create(house, "run:source/latest")).status_code == 201
        await source.checkpoint("epoch-2", content=b"second")
        await source.checkpoint("epoch-3", content=b"third")
        assert set(house.services.blobs(house.org).hashes()) == {sha256(b"first"), sha256(b"third")}

    in_house(story)


def test_a_run_without_weights_of_another_has_none_to_fetch(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        attempt = await acts.running(house, "plain")
        answer = await attempt.client.get("/internal/v1/attempt/weights")
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")

    in_house(story)


def test_a_run_created_before_weights_were_kept_finds_what_its_flow_names(in_house: InHouse, acts: Any) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        await create(house, "run:source/epoch-2")
        await house.services.store.write(lambda connection: connection.exec_driver_sql("DELETE FROM weight_files"))
        attempt = await started(house, acts)
        [file] = (await attempt.client.get("/internal/v1/attempt/weights")).json()["files"]
        answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{file['sha256']}")
        assert answer.content == b"second source"

    in_house(story)


def test_weights_are_in_a_backup_and_come_back_in_a_new_data_folder(acts: Any, tmp_path: Path) -> None:
    async def story() -> None:
        async with acts.open_house(tmp_path / "old") as house:
            await trained(house, acts)
            await create(house, "run:source/best")
            api = await house.api()
            await api.delete(house.path("runs/source"))
            backup = (await api.post(house.path("storage/backups"))).content
        async with acts.open_house(tmp_path / "new") as house:
            answer = await (await house.api()).post(house.path("storage/restores"), content=backup)
            assert answer.status_code == 200, answer.text
            attempt = await started(house, acts)
            [file] = (await attempt.client.get("/internal/v1/attempt/weights")).json()["files"]
            answer = await attempt.client.get(f"/internal/v1/attempt/blobs/{file['sha256']}")
            assert answer.content == b"first source"

    asyncio.run(story())
