"""The project's import sessions: packs in, findings out, and a dataset with correct counts."""

import asyncio
import hashlib
import json
from typing import Any

from runyard.datasets.packs import build_pack
from runyard.rundir import read_json
from runyard.server.services.imports import import_jobs
from tests.server.datasets import Data, jsonl, make_image_bytes, make_vqa_files, vqa_row
from tests.support.server import TestServer


async def open_data(server: TestServer) -> Data:
    return Data(server, await server.api())


def statuses(document: dict[str, Any]) -> list[str]:
    return [condition["status"] for condition in document["status"]["conditions"]]


async def test_a_folder_becomes_a_dataset_with_a_version(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    begun = await data.begin(dataset_id, source="shelves", files=4)
    assert [c["condition"] for c in begun["status"]["conditions"]] == [
        "Finished",
        "Checked",
        "Received",
    ]
    assert statuses(begun) == ["Waiting"] * 3

    server.clock.forward(1)
    done = await data.import_files(dataset_id, make_vqa_files(3))
    assert statuses(done) == ["Reached"] * 3, done
    assert done["status"]["findings"] == {"errors": 0, "warnings": 0, "byCode": {}}
    assert (done["status"]["progress"]["images"], done["status"]["progress"]["rowsKept"]) == (3, 3)
    assert done["status"]["upload"] is None
    document = await data.get(dataset_id)
    assert (document["statistic"]["assetTotal"], document["statistic"]["annotationTotal"]) == (3, 3)
    assert document["statistic"]["assetAnnotated"] == 3
    assert document["version"] == done["status"]["version"] is not None
    versions = (await data.get(dataset_id, "versions"))["items"]
    assert [(v["datasetVersionId"], v["number"], v["assets"], v["records"]) for v in versions] == [
        (document["version"], 1, 3, 3)
    ]
    listed = (await data.get(dataset_id, "imports"))["items"]
    assert [item["datasetImportId"] for item in listed] == [
        done["datasetImportId"],
        begun["datasetImportId"],
    ]


async def test_the_same_content_is_the_same_version_and_takes_no_more_disk_space(
    server: TestServer,
) -> None:
    data = await open_data(server)
    first, second = await data.make(), await data.make(name="copy")
    one = await data.import_files(first, make_vqa_files(3))
    blobs = (await data.storage())["blobs"]
    other = await data.import_files(second, make_vqa_files(3))
    again = await data.import_files(first, make_vqa_files(3))
    assert one["status"]["version"] == other["status"]["version"] == again["status"]["version"]
    assert (await data.get(first))["statistic"]["annotationTotal"] == 3
    found = await data.storage()
    assert (found["agrees"], found["blobs"]) == (True, blobs)


async def test_ids_that_restart_from_one_for_other_images_lose_no_rows(server: TestServer) -> None:
    """An id identifies a row only together with its image."""
    data = await open_data(server)
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(2))
    files = {"other/9.png": make_image_bytes(9), "more.jsonl": jsonl(vqa_row(1, "other/9.png"))}
    await data.import_files(dataset_id, files)
    mended = {
        "other/9.png": make_image_bytes(9),
        "more.jsonl": jsonl(vqa_row(1, "other/9.png", answer="Three.")),
    }
    await data.import_files(dataset_id, mended)
    statistic = (await data.get(dataset_id))["statistic"]
    assert (statistic["assetTotal"], statistic["annotationTotal"], statistic["assetAnnotated"]) == (
        3,
        4,
        3,
    )


async def test_findings_are_paged_and_kept_after_the_import(
    server: TestServer,
) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    files = make_vqa_files(2) | {"shelf/broken.png": make_image_bytes(7)[:40]}
    files["labels.jsonl"] += jsonl(vqa_row(8, "shelf/nowhere.png"), vqa_row(9, "<b>.png"))
    done = await data.import_files(dataset_id, files)
    assert statuses(done) == ["Reached"] * 3
    assert done["status"]["findings"]["errors"] == 3
    place = ("imports", done["datasetImportId"])
    first = await data.get(dataset_id, *place, "findings", s=2, severity="error")
    second = await data.get(
        dataset_id, *place, "findings", s=2, severity="error", p=first["nextPage"]
    )
    assert (len(first["items"]), len(second["items"]), second["nextPage"]) == (2, 1, None)
    missing = await data.get(dataset_id, *place, "findings", code="ImageMissing")
    assert [(item["file"], item["line"]) for item in missing["items"]] == [
        ("labels.jsonl", 3),
        ("labels.jsonl", 4),
    ]
    report = await data.get(dataset_id, *place, "report")
    assert {group["code"]: group["count"] for group in report["groups"]} == done["status"][
        "findings"
    ]["byCode"]
    path = data.path(dataset_id, *place, "report")
    page = await data.api.get(path, headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "&lt;b&gt;.png" in page.text
    assert "<b>" not in page.text
    refused = await data.api.get(
        data.path(dataset_id, *place, "findings"), params={"severity": "bad"}
    )
    assert refused.json()["code"] == "InvalidQuery"


async def test_with_reject_all_one_finding_leaves_the_dataset_unchanged(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    files = make_vqa_files(2)
    files["labels.jsonl"] += b"{]\n"
    done = await data.import_files(dataset_id, files, onError="RejectAll")
    assert statuses(done) == ["FailedReach", "FailedReach", "Reached"]
    assert "RejectAll" in done["status"]["why"]
    assert (await data.get(dataset_id))["statistic"]["assetTotal"] == 0
    found = await data.storage()
    assert found["agrees"], found
    assert found["blobs"] == 1  # the report


async def test_a_pack_that_differs_from_its_announcement_is_refused(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    begun = await data.begin(dataset_id)
    url, whole = begun["status"]["upload"]["url"], build_pack(make_vqa_files(1).items())
    anonymous = await server.client(None)
    wrong = await anonymous.put(f"{url}/{'0' * 64}", content=whole)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "InvalidBody")
    assert (await anonymous.put(f"{url}/x", content=whole)).json()["code"] == "InvalidId"
    assert (await anonymous.get(url)).json()["code"] == "MethodNotAllowed"
    altered = url[:-2] + ("aa" if url[-2:] != "aa" else "bb")
    assert (await data.send(altered, whole)).json()["code"] == "NotFound"
    digest = hashlib.sha256(whole).hexdigest()
    early = await data.finish(begun, whole)
    assert (early.status_code, early.json()["code"]) == (409, "BlobMissing")
    assert digest in early.json()["message"]
    for _ in range(2):
        assert (await data.send(url, whole)).status_code == 204
    for _ in range(2):
        assert (await data.finish(begun, whole)).status_code == 200
    assert statuses(await data.wait_until_over(begun)) == ["Reached"] * 3
    late = await data.send(url, whole)
    assert (late.status_code, late.json()["code"]) == (409, "ImportOver")


async def test_cancelled_and_abandoned_imports_leave_nothing(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    cancelled, abandoned = await data.begin(dataset_id), await data.begin(dataset_id)
    for begun, files in ((cancelled, make_vqa_files(1)), (abandoned, make_vqa_files(1, first=5))):
        assert (
            await data.send(begun["status"]["upload"]["url"], build_pack(files.items()))
        ).status_code == 204
    place = data.path(dataset_id, "imports", cancelled["datasetImportId"])
    document = (await data.api.post(place + ":cancel")).json()
    assert {c["reason"] for c in document["status"]["conditions"]} == {"CancelledByUser"}
    assert set(statuses(document)) == {"FailedReach"}
    assert statuses((await data.api.post(place + ":cancel")).json()) == statuses(document)
    server.clock.forward(25 * 3600)
    await import_jobs.sweep(server.services)
    document = await data.wait_until_over(abandoned)
    assert set(statuses(document)) == {"FailedReach"}
    assert "in time" in document["status"]["why"]
    found = await data.storage()
    assert (found["agrees"], found["blobs"]) == (True, 0), found
    assert (await data.api.post(place + ":explode")).json()[
        "code"
    ] == "InvalidId"  # no route defines that action


async def test_uploads_in_progress_are_not_garbage_collected(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    begun, whole = await data.begin(dataset_id), build_pack(make_vqa_files(2).items())
    await data.send(begun["status"]["upload"]["url"], whole)
    await data.api.post(server.path("storage/collections"))
    await data.finish(begun, whole)
    assert statuses(await data.wait_until_over(begun)) == ["Reached"] * 3


async def test_images_inside_containers_become_assets(server: TestServer) -> None:
    """The worker packs them itself; the archive is gone when the import is over."""
    import io
    import zipfile

    data = await open_data(server)
    dataset_id = await data.make()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in make_vqa_files(2).items():
            archive.writestr(name, content)
    done = await data.import_files(dataset_id, {"all.zip": target.getvalue()})
    assert statuses(done) == ["Reached"] * 3, done
    assert (await data.get(dataset_id))["statistic"]["assetTotal"] == 2
    assert (await data.storage())["agrees"]


async def test_options_of_an_import_are_stored_and_given_to_the_worker(server: TestServer) -> None:
    data = await open_data(server)
    options = {
        "onError": "Warn",
        "boxUnit": "percent",
        "boxForm": "size",
        "onBadBox": "drop",
        "split": "ignore",
    }
    begun = await data.begin(await data.make(), **options)
    assert {name: begun["spec"][name] for name in options} == options
    pack = build_pack(make_vqa_files(1).items())
    assert (await data.send(begun["status"]["upload"]["url"], pack)).status_code == 204
    folder = import_jobs.get_folder(server.services, server.org, begun["datasetImportId"])
    async with asyncio.timeout(30):
        while (job := read_json(folder / "job.json")) is None:
            await asyncio.sleep(0.02)
    assert job["policies"] == options
    assert (await data.finish(begun, pack)).status_code == 200
    assert statuses(await data.wait_until_over(begun)) == ["Reached"] * 3


async def test_a_malformed_body_is_refused_with_the_location(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    path = data.path(dataset_id, "imports")
    for spec, place in (
        ({"onError": "Ignore"}, "/spec/onError"),
        ({"boxUnit": "px"}, "/spec/boxUnit"),
        ({"boxForm": "xywh"}, "/spec/boxForm"),
        ({"onBadBox": "Drop"}, "/spec/onBadBox"),
        ({"formats": "coco"}, "/spec"),
    ):
        answer = await data.api.post(path, json={"spec": spec})
        assert answer.json()["code"] == "InvalidBody"
        assert answer.json()["problems"][0]["path"] == place
    nowhere = await data.api.post(data.path("nowhere", "imports"), json={"spec": {}})
    assert nowhere.status_code == 404
    assert json.loads(nowhere.content)["code"] == "NotFound"
