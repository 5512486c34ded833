"""Store and disk agree, or the server reports the differences.

A collection removes only unneeded bytes.
"""

import shutil
from typing import Any

from runyard import limits
from tests.support import attempts
from tests.support.server import TestServer


async def check(server: TestServer) -> dict[str, Any]:
    answer = await (await server.api()).get(server.path("storage"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def collect(server: TestServer) -> dict[str, Any]:
    answer = await (await server.api()).post(server.path("storage/collections"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def train_run(server: TestServer) -> Any:
    attempt = await attempts.start(server, "r1")
    await attempt.checkpoint(content=b"weights")
    (server.settings.runs_dir / server.org / "r1").mkdir(parents=True)
    return attempt


async def test_store_and_disk_agree_after_a_training_and_a_deletion(
    server: TestServer,
) -> None:
    assert (await check(server))["agrees"]
    attempt = await train_run(server)
    await attempt.finish(
        0, outcome="Succeeded", reason="Completed", message="done", checkpoint="epoch-1"
    )
    found = await check(server)
    assert (found["agrees"], found["blobs"]) == (True, 1)
    await (await server.api()).delete(server.path("runs/r1"))
    found = await check(server)
    assert (found["agrees"], found["blobs"]) == (True, 0)


async def test_bytes_without_a_row_are_kept_only_while_an_attempt_is_open(
    server: TestServer,
) -> None:
    attempt = await train_run(server)
    digest = await attempt.upload(b"never reported")
    found = await collect(server)
    assert (found["agrees"], found["arriving"], found["blobsWithoutRows"]) == (True, 1, [])
    assert server.services.blobs(server.org).has(digest)
    await attempt.finish(75)
    found = await check(server)
    assert (found["agrees"], found["blobsWithoutRows"], found["isRemoved"]) == (
        False,
        [digest],
        False,
    )
    assert (await collect(server))["isRemoved"]
    assert not server.services.blobs(server.org).has(digest)
    found = await check(server)
    assert (found["agrees"], found["blobs"]) == (True, 1)


async def test_lost_bytes_are_reported_by_checkpoint_and_path(
    server: TestServer,
) -> None:
    await train_run(server)
    (digest,) = server.services.blobs(server.org).hashes()
    server.services.blobs(server.org).delete(digest)
    for found in (await check(server), await collect(server), await check(server)):
        assert not found["agrees"]
        lost = {
            (file["runId"], file["modelId"], file["path"]) for file in found["rowsWithoutBlobs"]
        }
        assert lost == {
            ("r1", "epoch-1", "model_full/model.safetensors"),
            ("r1", "epoch-1", "training_state/state.json"),
        }


async def test_folders_of_runs_that_do_not_exist_are_found_and_links_are_not_followed(
    server: TestServer, tmp_path: Any
) -> None:
    await train_run(server)
    runs_dir = server.settings.runs_dir / server.org
    (runs_dir / "stray" / "attempts").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (runs_dir / "link").symlink_to(elsewhere)
    assert (await check(server))["foldersWithoutRuns"] == ["link", "stray"]
    await collect(server)
    assert [path.name for path in runs_dir.iterdir()] == ["r1"]
    assert (elsewhere / "kept").exists()
    shutil.rmtree(runs_dir)
    assert (await check(server))["agrees"]


async def test_a_long_report_is_truncated_and_a_collection_removes_everything(
    server: TestServer,
) -> None:
    folder = server.settings.runs_dir / server.org
    for number in range(limits.REPORT_ITEMS.value + 3):
        (folder / f"stray-{number}").mkdir(parents=True)
    found = await check(server)
    assert (len(found["foldersWithoutRuns"]), found["omitted"]) == (limits.REPORT_ITEMS.value, 3)
    assert (await collect(server))["omitted"] == 3
    assert list(folder.iterdir()) == []
    assert (await check(server))["agrees"]
