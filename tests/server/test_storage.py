"""Store and disk agree, or the server says in what they do not; a collection removes only what nothing needs."""

import shutil
from collections.abc import Callable
from typing import Any

from runyard import limits


async def check(house: Any) -> dict[str, Any]:
    answer = await (await house.api()).get(house.path("storage"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def collect(house: Any) -> dict[str, Any]:
    answer = await (await house.api()).post(house.path("storage/collections"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def trained(house: Any, acts: Any) -> Any:
    attempt = await acts.running(house, "r1")
    await attempt.checkpoint(content=b"weights")
    (house.settings.runs_dir / house.org / "r1").mkdir(parents=True)
    return attempt


def test_a_trained_and_a_deleted_run_leave_store_and_disk_agreeing(in_house: Callable[..., None], acts: Any) -> None:
    async def story(house: Any) -> None:
        assert (await check(house))["agrees"]
        attempt = await trained(house, acts)
        await attempt.finish(0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-1")
        found = await check(house)
        assert (found["agrees"], found["blobs"]) == (True, 1)
        await (await house.api()).delete(house.path("runs/r1"))
        found = await check(house)
        assert (found["agrees"], found["blobs"]) == (True, 0)

    in_house(story)


def test_bytes_without_a_row_are_arriving_while_an_attempt_is_open_and_rubbish_after(
    in_house: Callable[..., None], acts: Any
) -> None:
    async def story(house: Any) -> None:
        attempt = await trained(house, acts)
        digest = await attempt.upload(b"never reported")
        found = await collect(house)
        assert (found["agrees"], found["arriving"], found["blobsWithoutRows"]) == (True, 1, [])
        assert house.services.blobs(house.org).has(digest)
        await attempt.finish(75)
        found = await check(house)
        assert (found["agrees"], found["blobsWithoutRows"], found["isRemoved"]) == (False, [digest], False)
        assert (await collect(house))["isRemoved"]
        assert not house.services.blobs(house.org).has(digest)
        found = await check(house)
        assert (found["agrees"], found["blobs"]) == (True, 1)

    in_house(story)


def test_lost_bytes_are_told_by_checkpoint_and_path_and_not_papered_over(
    in_house: Callable[..., None], acts: Any
) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        (digest,) = house.services.blobs(house.org).hashes()
        house.services.blobs(house.org).delete(digest)
        for found in (await check(house), await collect(house), await check(house)):
            assert not found["agrees"]
            lost = {(file["runId"], file["modelId"], file["path"]) for file in found["rowsWithoutBlobs"]}
            assert lost == {
                ("r1", "epoch-1", "model_full/model.safetensors"),
                ("r1", "epoch-1", "training_state/state.json"),
            }

    in_house(story)


def test_folders_of_runs_that_do_not_exist_are_found_and_links_are_not_followed(
    in_house: Callable[..., None], acts: Any, tmp_path: Any
) -> None:
    async def story(house: Any) -> None:
        await trained(house, acts)
        runs_dir = house.settings.runs_dir / house.org
        (runs_dir / "stray" / "attempts").mkdir(parents=True)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "kept").touch()
        (runs_dir / "link").symlink_to(elsewhere)
        assert (await check(house))["foldersWithoutRuns"] == ["link", "stray"]
        await collect(house)
        assert [path.name for path in runs_dir.iterdir()] == ["r1"]
        assert (elsewhere / "kept").exists()
        shutil.rmtree(runs_dir)
        assert (await check(house))["agrees"]

    in_house(story)


def test_a_long_report_is_cut_and_says_so_and_a_collection_removes_all_of_it(in_house: Callable[..., None]) -> None:
    async def story(house: Any) -> None:
        folder = house.settings.runs_dir / house.org
        for number in range(limits.REPORT_ITEMS.value + 3):
            (folder / f"stray-{number}").mkdir(parents=True)
        found = await check(house)
        assert (len(found["foldersWithoutRuns"]), found["omitted"]) == (limits.REPORT_ITEMS.value, 3)
        assert (await collect(house))["omitted"] == 3
        assert list(folder.iterdir()) == []
        assert (await check(house))["agrees"]

    in_house(story)
