"""Datasets in both stores: images, annotations, versions, pinned runs, and deletion."""

import asyncio
import hashlib
import io
import json
import zipfile
from functools import partial
from typing import Any

import pytest
from PIL import Image

from runyard.server.services import retention
from runyard.server.services.imports import sweep
from runyard.server.services.runs import deletion
from runyard.store.datasets import datasets as dataset_rows
from tests.server.datasets import (
    Data,
    grounding_row,
    jsonl,
    make_image_bytes,
    make_vqa_files,
    vqa_row,
)
from tests.support import attempts
from tests.support.server import TestServer


async def open_data(server: TestServer) -> Data:
    return Data(server, await server.api())


async def named(data: Data, dataset_id: str) -> dict[str, dict[str, Any]]:
    """Return assets by the last part of their names."""
    listed = (await data.get(dataset_id, "assets", s=100))["items"]
    return {asset["filename"].rpartition("/")[2]: asset for asset in listed}


async def test_a_dataset_is_read_updated_and_listed(server: TestServer) -> None:
    data = await open_data(server)
    ids = [await data.make(name=f"shelf {number}") for number in range(3)]
    assert all(id.isalnum() for id in ids)
    changed = await data.api.patch(
        data.path(ids[0]),
        json={"name": "new", "description": "boxes", "metadata": {"attributes": {"team": "v"}}},
    )
    assert changed.json()["name"] == "new"
    again = (await data.api.get(server.path(f"datasets/{ids[0]}"))).json()
    assert (again["description"], again["metadata"]["attributes"]) == ("boxes", {"team": "v"})
    stale = await data.api.patch(
        data.path(ids[0]), json={"name": "x"}, headers={"if-match": '"old"'}
    )
    assert stale.json()["code"] == "EtagMismatch"
    first = (await data.api.get(server.path("datasets"), params={"s": 2})).json()
    second = (
        await data.api.get(server.path("simpleDatasets"), params={"s": 2, "p": first["nextPage"]})
    ).json()
    assert {d["datasetId"] for d in first["items"] + second["items"]} == set(ids)
    assert second["nextPage"] is None
    refused = await data.api.post(
        server.path("datasets"), json={"name": "x", "type": "segmentation"}
    )
    assert refused.json()["problems"][0]["path"] == "/type"


async def test_images_are_sorted_filtered_paged_renamed_and_downloaded(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(5))
    names = [f"shelf/{number}.png" for number in range(1, 6)]
    for sorting in ("filename", "metadata.fileSize", "assetId", "lastModified.contents", "default"):
        seen: list[str] = []
        token: str | None = ""
        for _ in range(3):
            params = {"s": 2, "sortBy": sorting, "o": "desc"} | ({"p": token} if token else {})
            page = await data.get(dataset_id, "assets", **params)
            seen += [asset["filename"] for asset in page["items"]]
            token = page["nextPage"]
        assert (sorted(seen), token) == (names, None), sorting
        if sorting == "filename":
            assert seen == names[::-1]
    filtered = await data.get(dataset_id, "assets", filter="{'filename': '3.p'}", contents="y")
    assert [asset["filename"] for asset in filtered["items"]] == ["shelf/3.png"]
    assert (await data.get(dataset_id, "assets:count", filter="shelf/")) == {"count": 5}
    asset = filtered["items"][0]
    assert asset["metadata"]["sha256"] == hashlib.sha256(make_image_bytes(3)).hexdigest()
    anonymous = await server.client(None)
    url = asset["contents"]["asset"]["url"]
    assert url.endswith("/3.png")
    assert (await anonymous.get(url)).content == make_image_bytes(3)
    part = await anonymous.get(url, headers={"range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, make_image_bytes(3)[2:6])

    place = data.path(dataset_id, "assets", asset["assetId"])
    renamed = await data.api.post(place + "/name", json={"filename": "shelf/three.png"})
    assert renamed.json()["filename"] == "shelf/three.png"
    taken = await data.api.post(place + "/name", json={"filename": "shelf/1.png"})
    assert (taken.status_code, taken.json()["code"]) == (409, "NameTaken")
    for name in ("../x.png", "/x.png", "a//b.png", ""):
        assert (await data.api.post(place + "/name", json={"filename": name})).status_code == 400, (
            name
        )
    by_name = await data.api.post(
        data.path(dataset_id, "assetFiles", "nothing.png", "name"), json={"filename": "x"}
    )
    assert by_name.status_code == 404
    assert (await data.api.delete(place)).status_code == 204
    assert (await data.api.get(place)).status_code == 404
    assert (await anonymous.get(url)).status_code == 404
    assert (await data.get(dataset_id))["statistic"]["annotationTotal"] == 4


async def test_annotations_are_listed_part_by_part_and_edited(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make("phrase-grounding")
    done = await data.import_files(
        dataset_id, {"a.png": make_image_bytes(1), "l.jsonl": jsonl(grounding_row(1, "a.png"))}
    )
    asset = (await named(data, dataset_id))["a.png"]
    place = ("assets", asset["assetId"], "annotations")
    caption, box = (await data.get(dataset_id, *place))["items"]
    assert caption["spec"]["contents"] == {"kind": "Caption", "contents": "a red box on a shelf"}
    assert box["spec"]["contents"]["target"] == [0, 9]
    assert box["spec"]["contents"]["bound"] == [[0.1, 0.2], [0.4, 0.2], [0.4, 0.6], [0.1, 0.6]]
    assert (
        caption["spec"]["aggregation"]["whole"]
        == box["spec"]["aggregation"]["whole"]
        == {"id": "1"}
    )
    first = await data.get(dataset_id, *place, s=1)
    assert (await data.get(dataset_id, *place, s=1, p=first["nextPage"]))["items"] == [box]

    async def put(annotation: dict[str, Any], contents: Any) -> Any:
        path = data.path(dataset_id, *place, annotation["annotationId"])
        return await data.api.put(path, json={"spec": {"contents": contents}})

    moved = await put(box, {"bound": [[0, 0], [1, 0], [1, 0.5], [0, 0.5]], "target": [13, 20]})
    assert moved.json()["spec"]["contents"]["bound"][2] == [1.0, 0.5]
    assert moved.json()["spec"]["contents"]["target"] == [13, 20]
    for contents in (
        {"bound": [[0, 0], [2, 0], [2, 1], [0, 1]]},
        {"bound": [[0.5, 0.5], [0.5, 0.5]]},
        {"bound": "no"},
        {"target": [90, 95]},
    ):
        refused = await put(box, contents)
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidBody"), contents
    assert (await put(caption, {"contents": "no words of it"})).status_code == 400
    worded = await put(caption, {"contents": "there is a shelf"})
    assert worded.json()["spec"]["contents"]["contents"] == "there is a shelf"
    assert (
        await data.api.delete(data.path(dataset_id, *place, box["annotationId"]))
    ).status_code == 204
    assert len((await data.get(dataset_id, *place))["items"]) == 1
    assert (await data.get(dataset_id))["statistic"]["annotationTotal"] == 1
    assert (
        await data.api.delete(data.path(dataset_id, *place, caption["annotationId"]))
    ).content == b""
    statistic = (await data.get(dataset_id))["statistic"]
    assert (statistic["annotationTotal"], statistic["assetAnnotated"], statistic["assetTotal"]) == (
        0,
        0,
        1,
    )
    assert done["status"]["version"]


async def test_questions_are_returned_as_a_json_caption(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(1))
    asset = (await named(data, dataset_id))["1.png"]
    place = ("assets", asset["assetId"], "annotations")
    [document] = (await data.get(dataset_id, *place))["items"]
    contents = json.loads(document["spec"]["contents"]["contents"])
    assert contents["interactions"][0]["answer"] == "Two."
    contents["interactions"][0]["answer"] = "Three."
    path = data.path(dataset_id, *place, document["annotationId"])
    changed = await data.api.patch(path, json={"contents": json.dumps(contents)})
    assert "Three." in changed.json()["spec"]["contents"]["contents"]
    for bad in ("{}", "no", json.dumps({"type": "Freeform", "text": "x"})):
        assert (await data.api.patch(path, json={"contents": bad})).json()[
            "code"
        ] == "InvalidBody", bad


async def create_run(server: TestServer, run_id: str, **settings: Any) -> Any:
    flow = {"blocks": [{"block": "vi-dataset", "settings": settings}]}
    return await (await server.api()).put(
        server.path(f"runs/{run_id}"), json={"spec": {"flow": flow}}
    )


async def test_a_run_is_pinned_to_a_version_that_is_kept_as_long_as_the_run(
    server: TestServer,
) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    done = await data.import_files(dataset_id, make_vqa_files(3))
    created = await create_run(server, "r1", datasetId=dataset_id)
    settings = created.json()["spec"]["flow"]["blocks"][0]["settings"]
    assert (settings["datasetVersion"], settings["projectKind"]) == (
        done["status"]["version"],
        "vqa",
    )

    [asset] = [asset for name, asset in (await named(data, dataset_id)).items() if name == "2.png"]
    await data.api.delete(data.path(dataset_id, "assets", asset["assetId"]))
    attempt = await attempts.claim(server)
    offered = (await attempt.client.get("/internal/v1/attempt/dataset")).json()
    assert (offered["version"], offered["assets"], offered["records"]) == (
        settings["datasetVersion"],
        3,
        3,
    )
    manifest = await attempt.client.get(
        f"/internal/v1/attempt/blobs/{offered['manifest']['sha256']}"
    )
    assert hashlib.sha256(manifest.content).hexdigest()[:16] == offered["version"]
    lines = [json.loads(line) for line in manifest.content.splitlines()]
    assert [line["filename"] for line in lines] == [f"shelf/{n}.png" for n in (1, 2, 3)]
    body = (await attempt.client.get("/internal/v1/attempt/dataset/contents")).content
    places = {content: rest for content, *rest in map(json.loads, body.splitlines())}
    packs = {
        stored["sha256"]: (
            await attempt.client.get(f"/internal/v1/attempt/blobs/{stored['sha256']}")
        ).content
        for stored in offered["packs"]
    }
    for line in lines:
        blob, offset, size = places[line["sha256"]]
        assert hashlib.sha256(packs[blob][offset : offset + size]).hexdigest() == line["sha256"]
    other = hashlib.sha256(b"other").hexdigest()
    assert (await attempt.client.get(f"/internal/v1/attempt/blobs/{other}")).status_code == 404

    # A new run uses the current content; the old version can still be named.
    newer = await create_run(server, "r2", datasetId=dataset_id)
    assert (
        newer.json()["spec"]["flow"]["blocks"][0]["settings"]["datasetVersion"]
        != offered["version"]
    )
    again = await create_run(server, "r3", datasetId=dataset_id, datasetVersion=offered["version"])
    assert again.status_code == 201, again.text

    refused = await data.api.delete(data.path(dataset_id))
    assert (refused.status_code, refused.json()["code"]) == (409, "DatasetInUse")
    assert "r1" in refused.json()["message"]
    # Once no run needs it, the version is removed, and the image with it.
    await attempt.start()
    for run_id in ("r1", "r3"):
        await data.api.delete(server.path(f"runs/{run_id}"))
    await attempt.finish(75)
    await deletion.sweep(server.services)
    versions = (await data.get(dataset_id, "versions"))["items"]
    assert [version["assets"] for version in versions] == [2]
    found = await data.storage()
    assert found["agrees"], found
    for left in (await data.get(dataset_id, "assets", contents="y"))["items"]:
        content = (await (await server.client(None)).get(left["contents"]["asset"]["url"])).content
        assert hashlib.sha256(content).hexdigest() == left["metadata"]["sha256"]
    held = b"".join(
        server.services.blobs(server.org).open(h).read()
        for h in server.services.blobs(server.org).hashes()
    )
    assert make_image_bytes(1) in held
    assert make_image_bytes(2) not in held


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"datasetId": "nowhere"}, "/blocks/0/settings/datasetId"),
        ({"datasetVersion": "0" * 16}, "/blocks/0/settings/datasetVersion"),
        ({"projectKind": "phrase-grounding"}, "/blocks/0/settings/projectKind"),
    ],
)
async def test_a_flow_that_does_not_fit_its_dataset_is_refused_with_the_path(
    server: TestServer, settings: dict[str, str], place: str
) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    empty = await create_run(server, "r0", datasetId=dataset_id)
    assert "has no records" in empty.json()["message"]
    await data.import_files(dataset_id, make_vqa_files(1))
    refused = await create_run(server, "r1", **({"datasetId": dataset_id} | settings))
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidFlow"), refused.text
    assert [problem["path"] for problem in refused.json()["problems"]] == [place]


async def test_a_run_of_a_mixture_is_pinned_to_each_version(server: TestServer) -> None:
    data = await open_data(server)
    own, mixed, held_out, other = [await data.make(name=name) for name in "abcd"]
    versions = {
        dataset_id: (await data.import_files(dataset_id, make_vqa_files(number)))["status"][
            "version"
        ]
        for number, dataset_id in enumerate((own, mixed, held_out, other), 1)
    }
    settings: dict[str, Any] = {
        "datasetId": own,
        "weight": 1,
        "mixture": [{"datasetId": mixed, "weight": 2}],
        "validationDataset": {"datasetId": held_out},
    }
    created = (await create_run(server, "r1", **settings)).json()
    pinned = created["spec"]["flow"]["blocks"][0]["settings"]
    assert pinned["datasetVersion"] == versions[own]
    assert pinned["mixture"][0]["datasetVersion"] == versions[mixed]
    assert pinned["validationDataset"]["datasetVersion"] == versions[held_out]

    attempt = await attempts.claim(server)

    async def ask(path: str, dataset_id: str) -> Any:
        return await attempt.client.get(
            f"/internal/v1/attempt/{path}", params={"dataset": dataset_id}
        )

    for dataset_id in (own, mixed, held_out):
        offered = (await ask("dataset", dataset_id)).json()
        assert offered["version"] == versions[dataset_id]
        lines = (await ask("dataset/contents", dataset_id)).content.splitlines()
        assert len(lines) == offered["assets"]
        for blob in (offered["manifest"], *offered["packs"]):
            found = await attempt.client.get(f"/internal/v1/attempt/blobs/{blob['sha256']}")
            assert found.status_code == 200
    for path in ("dataset", "dataset/contents"):
        assert (await ask(path, other)).status_code == 404
        assert (await attempt.client.get(f"/internal/v1/attempt/{path}")).status_code == 404
    for dataset_id in (own, mixed, held_out):
        refused = await data.api.delete(data.path(dataset_id))
        assert (refused.status_code, refused.json()["code"]) == (409, "DatasetInUse")
    assert (await data.api.delete(data.path(other))).status_code in (200, 202, 204)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        ({"mixture": [{"datasetId": "nowhere"}]}, "mixture/0/datasetId", "does not exist"),
        ({"validationDataset": {"datasetId": "nowhere"}}, "validationDataset/datasetId", "does"),
        ({"mixture": [{"datasetId": "EMPTY"}]}, "mixture/0/datasetId", "has no records"),
        ({"mixture": [{"datasetId": "BOXES"}]}, "mixture/0/datasetId", "is of kind"),
        (
            {"mixture": [{"datasetId": "MIXED", "datasetVersion": "0" * 16}]},
            "mixture/0/datasetVersion",
            "does not exist",
        ),
        ({"datasetId": None, "mixture": [{"datasetId": "MIXED"}]}, "datasetId", "built in"),
    ],
)
async def test_a_mixture_with_a_wrong_dataset_is_refused_with_the_path(
    server: TestServer, settings: dict[str, Any], place: str, words: str
) -> None:
    data = await open_data(server)
    ids = {name: await data.make(name=name) for name in ("OWN", "MIXED", "EMPTY")}
    ids["BOXES"] = await data.make("phrase-grounding")
    for name in ("OWN", "MIXED"):
        await data.import_files(ids[name], make_vqa_files(1))
    await data.import_files(
        ids["BOXES"], {"a.png": make_image_bytes(1), "l.jsonl": jsonl(grounding_row(1, "a.png"))}
    )
    text = json.dumps({"datasetId": "OWN"} | settings)
    for name, dataset_id in ids.items():
        text = text.replace(f'"{name}"', f'"{dataset_id}"')
    asked = {name: value for name, value in json.loads(text).items() if value is not None}
    refused = await create_run(server, "r1", **asked)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidFlow"), refused.text
    assert [each["path"] for each in refused.json()["problems"]] == [f"/blocks/0/settings/{place}"]
    assert words in refused.json()["problems"][0]["message"]


async def test_a_deleted_dataset_leaves_neither_rows_nor_bytes(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id, kept = await data.make(), await data.make(name="kept")
    await data.import_files(dataset_id, make_vqa_files(4))
    await data.import_files(kept, make_vqa_files(2))
    await data.api.post(
        data.path(dataset_id, "datasetExports"), json={"spec": {"format": "ViJsonl"}}
    )
    waiting = await data.begin(dataset_id)
    answer = await data.api.delete(data.path(dataset_id))
    assert (answer.status_code, answer.json()["kind"]) == (200, "DeletedDataset")
    assert (await data.api.get(data.path(dataset_id))).status_code == 404
    assert (await data.api.delete(data.path(dataset_id))).status_code == 404
    assert (await data.send(waiting["status"]["upload"]["url"], b"x")).status_code in (404, 409)
    async with asyncio.timeout(30):
        await server.services.jobs.wait_until_idle()
    await deletion.sweep(server.services)
    document = (await data.api.get(data.path(dataset_id, "deleteOperation"))).json()
    assert [condition["status"] for condition in document["status"]["conditions"]] == ["Reached"]
    place: Any = {"org": server.org, "dataset_id": dataset_id}
    assert server.services.store.read(partial(dataset_rows.count_rows, **place)) == {}
    found = await data.storage()
    assert found["agrees"], found
    # The other dataset shares two of the images, and keeps them.
    listed = (await data.get(kept, "assets", contents="y"))["items"]
    anonymous = await server.client(None)
    for asset in listed:
        content = (await anonymous.get(asset["contents"]["asset"]["url"])).content
        assert hashlib.sha256(content).hexdigest() == asset["metadata"]["sha256"]
    await data.api.delete(data.path(kept))
    await server.services.jobs.wait_until_idle()
    found = await data.storage()
    assert (found["agrees"], found["blobs"]) == (True, 0), found


@pytest.mark.sqlite_only
async def test_local_copies_of_a_deleted_dataset_are_removed_unless_shared(
    server: TestServer,
) -> None:
    data = await open_data(server)
    settings = server.services.settings
    first, second = await data.make(), await data.make(name="the same")
    await data.import_files(first, make_vqa_files(2))
    await data.import_files(second, make_vqa_files(2))
    [version] = {
        (await data.get(dataset_id, "versions"))["items"][0]["datasetVersionId"]
        for dataset_id in (first, second)
    }
    brought = settings.datasets_dir / server.org / version
    caches = {
        dataset_id: settings.cache_dir / server.org / dataset_id for dataset_id in (first, second)
    }
    for folder in (brought, *caches.values()):
        folder.mkdir(parents=True)
        (folder / "pictures").write_bytes(b"x")
    await data.api.delete(data.path(first))
    await server.services.jobs.wait_until_idle()
    assert (brought.exists(), caches[first].exists(), caches[second].exists()) == (
        True,
        False,
        True,
    )
    await data.api.delete(data.path(second))
    await server.services.jobs.wait_until_idle()
    assert (brought.exists(), caches[second].exists()) == (False, False)


async def test_a_pack_of_mostly_unused_bytes_is_rewritten(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(8))
    blobs = server.services.blobs(server.org)
    before = sum(blobs.size_bytes(sha256) for sha256 in blobs.hashes())
    names = [f"shelf/{number}.png" for number in range(1, 8)]
    spec = {
        "filter": {"filenames": names},
        "metadataQuery": None,
        "ruleQuery": None,
        "strictQuery": None,
    }
    begun = await data.api.post(
        data.path(dataset_id, "deleteManyAssetsSessions"), json={"spec": spec}
    )
    await server.services.jobs.wait_until_idle()
    session = begun.json()["deleteManyAssetsSessionId"]
    document = await data.get(dataset_id, "deleteManyAssetsSessions", session)
    assert [condition["status"] for condition in document["status"]["conditions"]] == ["Reached"]
    assert list(await named(data, dataset_id)) == ["8.png"]
    [asset] = (await data.get(dataset_id, "assets", contents="y"))["items"]
    assert (
        await (await server.client(None)).get(asset["contents"]["asset"]["url"])
    ).content == make_image_bytes(8)
    assert sum(blobs.size_bytes(sha256) for sha256 in blobs.hashes()) < before / 2
    found = await data.storage()
    assert found["agrees"], found
    await retention.remove_unneeded_images(server.services, org=server.org)


@pytest.mark.sqlite_only
async def test_lost_bytes_of_a_dataset_are_reported_and_strays_removed(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    done = await data.import_files(dataset_id, make_vqa_files(2))
    blobs = server.services.blobs(server.org)
    for sha256 in list(blobs.hashes()):
        blobs.delete(sha256)
    stray = server.settings.imports_dir / server.org / "stray"
    stray.mkdir(parents=True)
    found = await data.storage()
    assert found["foldersWithoutImports"] == ["stray"]
    lost = {(file["datasetId"], file["path"]) for file in found["rowsWithoutBlobs"]}
    assert lost == {("", "pictures"), (dataset_id, f"version {done['status']['version']}")}
    await data.api.post(server.path("storage/collections"))
    assert not stray.exists()
    answer = await create_run(server, "r1", datasetId=dataset_id)
    assert answer.status_code == 201
    # Deletion still works: lost bytes need no removal.
    await data.api.delete(server.path("runs/r1"))
    await data.api.delete(data.path(dataset_id))
    async with asyncio.timeout(30):
        await server.services.jobs.wait_until_idle()
    found = await data.storage()
    assert found["agrees"], found


@pytest.mark.sqlite_only
async def test_an_invalid_filter_deletes_nothing(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    path = data.path(dataset_id, "deleteManyAssetsSessions")
    for spec in (
        {},
        {"filter": ""},
        {"filter": {"colour": "red"}},
        {"filter": "a", "metadataQuery": "x"},
    ):
        answer = await data.api.post(path, json={"spec": spec})
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), spec


@pytest.mark.sqlite_only
async def test_an_export_is_a_zip_of_images_and_records(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    await data.import_files(dataset_id, make_vqa_files(4))
    names = {}
    for format, ratio in (("ViFull", 0.5), ("ViJsonl", None), ("Parquet", None)):
        spec = {"format": format, "options": {"normalized": True, "splitRatio": ratio}}
        server.clock.forward(1)
        begun = (
            await data.api.post(data.path(dataset_id, "datasetExports"), json={"spec": spec})
        ).json()
        assert [c["status"] for c in begun["status"]["conditions"]] == ["Waiting"]
        await server.services.jobs.wait_until_idle()
        document = await data.get(dataset_id, "datasetExports", begun["datasetExportId"])
        assert [c["status"] for c in document["status"]["conditions"]] == ["Reached"], document
        whole = (
            await (await server.client(None)).get(document["status"]["downloadUrl"]["url"])
        ).content
        assert hashlib.sha256(whole).hexdigest() == document["status"]["sha256"]
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            names[format] = archive.namelist()
            if format == "ViJsonl":
                [name] = [name for name in names[format] if name.endswith(".jsonl")]
                rows = [json.loads(line) for line in archive.read(name).splitlines()]
                assert {row["id"] for row in rows} == {"1", "2", "3", "4"}
    assert [name for name in names["Parquet"] if name.endswith(".parquet")]
    images = [name for name in names["ViFull"] if "/images/" in name]
    assert len(images) == 4
    assert {name.partition("/")[0] for name in names["ViFull"]} <= {"training", "validation"}
    listed = (await data.get(dataset_id, "datasetExports"))["items"]
    assert [export["spec"]["format"] for export in listed] == ["Parquet", "ViJsonl", "ViFull"]
    refused = await data.api.post(
        data.path(dataset_id, "datasetExports"), json={"spec": {"format": "Coco"}}
    )
    assert refused.status_code == 400, refused.text
    assert refused.json()["problems"][0]["path"] == "/spec/format"
    server.clock.forward(8 * 24 * 3600)
    await sweep.sweep(server.services)
    assert (await data.get(dataset_id, "datasetExports"))["items"] == []
    assert (await data.storage())["agrees"]


@pytest.mark.sqlite_only
async def test_a_preview_shows_some_images(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    done = await data.import_files(dataset_id, make_vqa_files(3))
    for params in ({"count": 2}, {"version": done["status"]["version"]}):
        answer = await data.api.get(data.path(dataset_id, "preview"), params=params)
        assert answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as shown:
            assert shown.width > 300
    assert (
        await data.api.get(data.path(dataset_id, "preview"), params={"version": "x"})
    ).status_code == 404
    assert (await data.storage())["agrees"]


@pytest.mark.sqlite_only
async def test_no_organization_reaches_datasets_of_another(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    done = await data.import_files(dataset_id, make_vqa_files(1))
    for rest in (
        (),
        ("assets",),
        ("imports", done["datasetImportId"]),
        ("versions",),
        ("preview",),
    ):
        path = data.path(dataset_id, *rest).replace(server.org, "org-other")
        assert (await data.api.get(path)).status_code == 404


@pytest.mark.sqlite_only
async def test_an_overwritten_image_makes_another_version(server: TestServer) -> None:
    data = await open_data(server)
    dataset_id = await data.make()
    one = await data.import_files(
        dataset_id, {"a.png": make_image_bytes(1), "l.jsonl": jsonl(vqa_row(1, "a.png"))}
    )
    two = await data.import_files(
        dataset_id, {"a.png": make_image_bytes(2), "l.jsonl": jsonl(vqa_row(1, "a.png"))}
    )
    assert one["status"]["version"] != two["status"]["version"]
    [asset] = (await data.get(dataset_id, "assets", contents="y"))["items"]
    assert (
        await (await server.client(None)).get(asset["contents"]["asset"]["url"])
    ).content == make_image_bytes(2)
    await deletion.sweep(server.services)
    assert [v["datasetVersionId"] for v in (await data.get(dataset_id, "versions"))["items"]] == [
        two["status"]["version"]
    ]
    assert (await data.storage())["agrees"]
