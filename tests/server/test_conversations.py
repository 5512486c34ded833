"""Conversations about several images: stored, listed, versioned, exported, and their images."""

import asyncio
import io
import json
import zipfile
from typing import Any

import msgspec
import pytest

from runyard.datasets.records import Conversation
from runyard.server.services.datasets import versions
from runyard.store.datasets import versions as version_rows
from tests.server.datasets import Data, jsonl, make_image_bytes, vqa_row
from tests.server.test_ingestion import Session
from tests.support.server import TestServer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>Compare with <image>."},
    {"role": "assistant", "content": "The second is larger."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
CONTENTS = {"type": "Conversation", "images": ["a.png", "b.png"], "turns": TURNS}


def talk_row(number: int, contents: dict[str, Any]) -> dict[str, Any]:
    return vqa_row(number, "a.png") | {"contents": contents}


async def import_conversations(server: TestServer, type: str = "vqa") -> tuple[Data, str]:
    """Import a conversation of a.png that shows b.png, and one of c.png alone."""
    data = Data(server, await server.api())
    dataset_id = await data.make(type)
    alone = talk_row(2, {"type": "Conversation", "turns": [*TURNS[3:], *TURNS[3:]]})
    alone["asset"] = {"type": "Image", "filename": "c.png"}
    done = await data.import_files(
        dataset_id,
        {
            **{f"{name}.png": make_image_bytes(n) for n, name in enumerate("abcd", start=1)},
            "l.jsonl": jsonl(talk_row(1, CONTENTS), alone),
        },
    )
    assert done["status"]["progress"]["rowsKept"] == 2, done
    return data, dataset_id


async def list_assets(data: Data, dataset_id: str) -> dict[str, dict[str, Any]]:
    listed = (await data.get(dataset_id, "assets", s=100))["items"]
    return {asset["filename"]: asset for asset in listed}


async def list_annotations(data: Data, dataset_id: str, filename: str) -> list[dict[str, Any]]:
    asset = (await list_assets(data, dataset_id))[filename]
    found = await data.get(dataset_id, "assets", asset["assetId"], "annotations")
    return list(found["items"])


async def read_contents(data: Data, dataset_id: str, filename: str) -> list[Any]:
    found = await list_annotations(data, dataset_id, filename)
    return [json.loads(one["spec"]["contents"]["contents"]) for one in found]


@pytest.mark.parametrize("type", ["vqa", "freeform"])
async def test_a_conversation_is_one_annotation_with_its_contents(
    server: TestServer, type: str
) -> None:
    data, dataset_id = await import_conversations(server, type)
    assert await read_contents(data, dataset_id, "a.png") == [CONTENTS]
    assert await read_contents(data, dataset_id, "b.png") == []


async def test_a_version_lists_the_images_that_only_a_conversation_shows(
    server: TestServer,
) -> None:
    data, dataset_id = await import_conversations(server)
    [version] = (await data.get(dataset_id, "versions"))["items"]
    assert (version["assets"], version["records"]) == (3, 2)
    row = server.services.store.read(
        lambda tx: version_rows.get(
            tx, org=server.org, dataset_id=dataset_id, version=version["datasetVersionId"]
        )
    )
    assert row is not None
    lines = list(versions.iter_lines(server.services, row))
    assert [(line.filename, len(line.records)) for line in lines] == [
        ("a.png", 1),
        ("b.png", 0),
        ("c.png", 1),
    ]
    assert msgspec.json.decode(lines[0].records[0], type=Conversation).images == ["a.png", "b.png"]


async def test_a_renamed_image_is_renamed_in_its_conversations(server: TestServer) -> None:
    data, dataset_id = await import_conversations(server)
    assets = await list_assets(data, dataset_id)
    for old, new in (("b.png", "x/b.png"), ("a.png", "x/a.png")):
        path = data.path(dataset_id, "assets", assets[old]["assetId"], "name")
        answer = await data.api.post(path, json={"filename": new})
        assert answer.status_code == 200, answer.text
    [contents] = await read_contents(data, dataset_id, "x/a.png")
    assert contents["images"] == ["x/a.png", "x/b.png"]


async def test_an_image_that_a_conversation_shows_is_not_deleted_alone(server: TestServer) -> None:
    data, dataset_id = await import_conversations(server)
    assets = await list_assets(data, dataset_id)
    path = data.path(dataset_id, "assets", assets["b.png"]["assetId"])
    refused = await data.api.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "ImageInUse")
    assert "is shown by conversations of other images (1)" in refused.json()["message"]
    first = data.path(dataset_id, "assets", assets["a.png"]["assetId"])
    assert (await data.api.delete(first)).status_code == 204
    assert (await data.api.delete(path)).status_code == 204
    assert list(await list_assets(data, dataset_id)) == ["c.png", "d.png"]


async def test_a_bulk_deletion_reports_the_conversations_that_go_with_it(
    server: TestServer,
) -> None:
    data, dataset_id = await import_conversations(server)
    begun = await data.api.post(
        data.path(dataset_id, "deleteManyAssetsSessions"),
        json={"spec": {"filter": {"filenames": ["b.png", "d.png"]}}},
    )
    assert begun.status_code == 201, begun.text
    async with asyncio.timeout(30):
        await server.services.jobs.wait_until_idle()
    document = await data.get(
        dataset_id, "deleteManyAssetsSessions", begun.json()["deleteManyAssetsSessionId"]
    )
    assert document["status"]["conditions"][0]["message"] == (
        "2 images were deleted, and conversations of other images that showed them: 1"
    )
    dataset = await data.get(dataset_id)
    assert dataset["statistic"]["annotationTotal"] == 1
    assert dataset["statistic"]["assetAnnotated"] == 1
    assert (await list_assets(data, dataset_id))["a.png"]["metadata"]["annotations"]["total"] == 0
    assert (await data.storage())["agrees"]


@pytest.mark.parametrize(
    ("policy", "left"), [("RemoveLinkedResource", 1), ("KeepLinkedResource", 2)]
)
async def test_an_overwritten_image_takes_its_conversations_with_it_if_asked(
    server: TestServer, policy: str, left: int
) -> None:
    data, dataset_id = await import_conversations(server)
    session = Session(data, dataset_id)
    files = {"b.png": make_image_bytes(9)}
    assert (await session.begin(files, onAssetOverwritten=policy)).status_code == 201
    assert (await session.put("b.png", files["b.png"])).status_code == 204
    await session.wait_until_over()
    dataset = await data.get(dataset_id)
    assert dataset["statistic"]["annotationTotal"] == left
    assert dataset["statistic"]["assetAnnotated"] == left


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"images": ["a.png", "z.png"]}, "the dataset has no image 'z.png'"),
        ({"images": ["b.png", "a.png"]}, "must be several and begin with 'a.png'"),
        ({"images": []}, "image marks in user turns (2) and of images (1) differ"),
        ({"turns": TURNS[:-1]}, "turn 4: the last question has no answer"),
        ({"turns": TURNS[1:2] * 2}, "turn 2: two questions without an answer between them"),
        ({"turns": [*TURNS[:4], {"role": "assistant", "content": " "}]}, "turn 5 is empty"),
        ({"turns": [{"role": "tool", "content": "x"}]}, "must be the record's contents as JSON"),
    ],
)
async def test_an_edited_conversation_is_checked(
    server: TestServer, changes: dict[str, Any], why: str
) -> None:
    data, dataset_id = await import_conversations(server)
    [found] = await list_annotations(data, dataset_id, "a.png")
    path = data.path(dataset_id, "assets", found["assetId"], "annotations", found["annotationId"])

    async def put(contents: Any) -> Any:
        body = {"spec": {"contents": {"contents": json.dumps(contents)}}}
        return await data.api.put(path, json=body)

    refused = await put(CONTENTS | changes)
    assert (refused.status_code, refused.json()["code"]) == (400, "InvalidBody")
    assert why in refused.json()["message"]
    good = CONTENTS | {"images": ["a.png", "d.png"], "turns": TURNS[1:]}
    assert (await put(good)).status_code == 200
    assert await read_contents(data, dataset_id, "a.png") == [good]


@pytest.mark.sqlite_only
@pytest.mark.parametrize("format", ["ViFull", "ViJsonl", "Parquet", "Conversations"])
async def test_an_export_of_conversations_is_imported_again(
    server: TestServer, format: str
) -> None:
    data, dataset_id = await import_conversations(server)
    spec = {"format": format, "options": {"pictures": True}}
    begun = (
        await data.api.post(data.path(dataset_id, "datasetExports"), json={"spec": spec})
    ).json()
    await server.services.jobs.wait_until_idle()
    document = await data.get(dataset_id, "datasetExports", begun["datasetExportId"])
    url = document["status"]["downloadUrl"]["url"]
    whole = (await (await server.client(None)).get(url)).content
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    again = await data.make(name="again")
    done = await data.import_files(again, files)
    assert done["status"]["findings"]["errors"] == 0, done["status"]
    first = next(name for name in await list_assets(data, again) if name.endswith("a.png"))
    [contents] = await read_contents(data, again, first)
    assert contents["turns"] == TURNS
    assert [name.rpartition("/")[2] for name in contents["images"]] == ["a.png", "b.png"]


@pytest.mark.sqlite_only
async def test_an_export_reports_the_conversations_it_leaves_out(server: TestServer) -> None:
    data, dataset_id = await import_conversations(server, "freeform")
    begun = await data.api.post(
        data.path(dataset_id, "datasetExports"), json={"spec": {"format": "Coco"}}
    )
    await server.services.jobs.wait_until_idle()
    document = await data.get(dataset_id, "datasetExports", begun.json()["datasetExportId"])
    [condition] = document["status"]["conditions"]
    assert (condition["status"], condition["message"]) == (
        "Reached",
        "conversations that Coco cannot carry were left out: 2",
    )


@pytest.mark.sqlite_only
async def test_a_preview_shows_a_conversation(server: TestServer) -> None:
    data, dataset_id = await import_conversations(server)
    answer = await data.api.get(data.path(dataset_id, "preview"), params={"count": 4})
    assert answer.content.startswith(b"\x89PNG"), answer.text


async def test_rows_of_text_only_are_stored_with_an_image_that_stands_for_them(
    server: TestServer,
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make("vqa")
    rows = [{"images": [], "messages": TURNS[3:]}, {"images": [], "messages": TURNS[3:]}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    done = await data.import_files(dataset_id, {"talks.jsonl": lines})
    assert done["status"]["progress"]["rowsKept"] == 2, done
    contents = {"type": "Conversation", "turns": TURNS[3:], "isTextOnly": True}
    for name in ("talks/text-000001.png", "talks/text-000002.png"):
        assert await read_contents(data, dataset_id, name) == [contents]
    [version] = (await data.get(dataset_id, "versions"))["items"]
    assert (version["assets"], version["records"]) == (2, 2)
