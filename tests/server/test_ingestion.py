"""Sessions of single files, as the published client sends them: checks, parts, deadlines."""

import base64
from typing import Any

import google_crc32c
import pytest

from runyard.server.services.imports import import_jobs, multipart
from tests.server.datasets import Data, jsonl, make_image_bytes, make_vqa_files, vqa_row
from tests.support.server import TestServer

SOURCE = ("assetSources", "managed", "datature", "default")


class Session:
    """One session, as its client uses it."""

    def __init__(self, data: Data, dataset_id: str) -> None:
        self.data, self.dataset_id = data, dataset_id
        self.document: dict[str, Any] = {}

    async def begin(self, files: dict[str, bytes], **spec: Any) -> Any:
        assets = [
            {
                "filename": name,
                "mime": "image/png",
                "size": len(content),
                "crc32c": signed(content),
                "kind": "Image",
            }
            for name, content in files.items()
        ]
        path = self.data.path(self.dataset_id, *SOURCE, "assetIngestionSessions")
        answer = await self.data.api.post(
            path, json={"spec": {"assets": assets, "kind": "Upload", **spec}}
        )
        if answer.status_code == 201:
            self.document = answer.json()
        return answer

    @property
    def uploads(self) -> dict[str, dict[str, Any]]:
        return {
            asset["metadata"]["filename"]: asset["upload"]
            for asset in self.document["status"]["assets"]
        }

    async def put(self, name: str, content: bytes) -> Any:
        anonymous = await self.data.server.client(None)
        return await anonymous.put(
            self.uploads[name]["url"], content=content, headers=self.uploads[name]["headers"]
        )

    async def wait_until_over(self) -> dict[str, Any]:
        await self.data.server.services.jobs.wait_until_idle()
        return dict(
            await self.data.get(
                self.dataset_id,
                *SOURCE,
                "assetIngestionSessions",
                self.document["assetIngestionSessionId"],
            )
        )


def signed(content: bytes) -> int:
    return int.from_bytes(google_crc32c.Checksum(content).digest(), "big", signed=True)  # type: ignore[no-untyped-call]


async def session_of(server: TestServer) -> Session:
    data = Data(server, await server.api())
    return Session(data, await data.make())


async def test_files_become_images_once_the_last_one_has_arrived(server: TestServer) -> None:
    session = await session_of(server)
    files = {f"{number}.png": make_image_bytes(number) for number in range(3)}
    await session.begin(files, onAssetOverwritten="KeepLinkedResource")
    assert session.document["spec"]["onAssetOverwritten"] == "KeepLinkedResources"
    for name, content in files.items():
        wrong = await session.put(name, content[:-1] + b"x")
        assert (wrong.status_code, wrong.json()["code"]) == (400, "InvalidBody")
        assert (await session.put(name, content)).status_code == 204
    document = await session.wait_until_over()
    assert [condition["status"] for condition in document["status"]["conditions"]] == ["Reached"]
    assert document["status"]["progressCount"] == {"total": 3, "succeeded": 3, "errored": 0}
    [asset] = (await session.data.get(session.dataset_id, "assets", filter="0.png"))["items"]
    expected = google_crc32c.Checksum(files["0.png"]).digest()  # type: ignore[no-untyped-call]
    assert base64.b64decode(asset["metadata"]["hash"]["contents"]) == expected
    assert (await session.data.storage())["agrees"]


@pytest.mark.parametrize(
    ("mode", "expected"), [("FailAfterOne", "FailedReach"), ("FailAfterAll", "Reached")]
)
async def test_valid_images_are_kept_when_others_are_broken(
    server: TestServer, mode: str, expected: str
) -> None:
    session = await session_of(server)
    files = {"good.png": make_image_bytes(1), "broken.png": make_image_bytes(2)[:50]}
    await session.begin(files, failureMode=mode)
    for name, content in files.items():
        await session.put(name, content)
    document = await session.wait_until_over()
    assert [condition["status"] for condition in document["status"]["conditions"]] == [expected]
    [event] = document["status"]["events"]
    assert (event["kind"], event["files"]) == ("Error", {"broken.png": "ECORRUPT"})
    assert (await session.data.get(session.dataset_id, "assets:count")) == {"count": 1}


async def test_a_session_expires_an_hour_after_its_last_byte(server: TestServer) -> None:
    session = await session_of(server)
    files = {"a.png": make_image_bytes(1), "b.png": make_image_bytes(2)}
    await session.begin(files)
    server.clock.forward(3000)
    await session.put("a.png", files["a.png"])
    server.clock.forward(3000)
    await import_jobs.sweep(server.services)
    assert (await session.put("a.png", files["a.png"])).status_code == 204
    server.clock.forward(3700)
    await import_jobs.sweep(server.services)
    document = await session.wait_until_over()
    assert [condition["status"] for condition in document["status"]["conditions"]] == [
        "FailedReach"
    ]
    assert document["status"]["events"][0]["files"]["b.png"] == "ETIMEOUT"
    found = await session.data.storage()
    assert (found["agrees"], found["blobs"]) == (True, 0)


async def test_a_session_is_cancelled(server: TestServer) -> None:
    session = await session_of(server)
    await session.begin({"a.png": make_image_bytes(1)})
    place = session.data.path(
        session.dataset_id,
        *SOURCE,
        "assetIngestionSessions",
        session.document["assetIngestionSessionId"],
    )
    document = (await session.data.api.post(place + ":cancel")).json()
    assert document["status"]["conditions"][0]["reason"] == "CancelledByUser"
    late = await session.put("a.png", make_image_bytes(1))
    assert (late.status_code, late.json()["code"]) == (409, "ImportOver")


async def test_an_invalid_announcement_is_refused(server: TestServer) -> None:
    session = await session_of(server)
    for files in ({}, {"../a.png": b"x"}, {"/a.png": b"x"}):
        answer = await session.begin(files)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidBody"), files


async def test_a_large_file_is_uploaded_in_parts(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", 40)
    session = await session_of(server)
    content = make_image_bytes(1)
    await session.begin({"large.png": content})
    data, api = session.data, session.data.api
    root = data.path(session.dataset_id, *SOURCE, "multipartUploads")
    spec = {
        "ingestionId": session.document["ingestionId"],
        "filename": "large.png",
        "sizeBytes": len(content),
    }
    begun = (await api.post(root, json={"spec": {**spec, "contentType": "image/png"}})).json()
    place, count = f"{root}/{begun['multipartUploadId']}", begun["status"]["partCount"]
    assert count == -(-len(content) // 40)
    each = len(content) // count
    early = await api.post(f"{place}/completion")
    assert (early.status_code, early.json()["code"]) == (409, "BlobMissing")
    anonymous = await server.client(None)
    for part in range(1, count + 1):
        end = part * each if part < count else len(content)
        document = (await api.post(f"{place}/parts/{part}", json={})).json()
        assert (await api.post(f"{place}/parts/{part}/completion", json={})).status_code == 409
        short = await anonymous.put(document["url"], content=content[(part - 1) * each : end - 1])
        assert short.json()["code"] == "InvalidBody"
        sent = await anonymous.put(document["url"], content=content[(part - 1) * each : end])
        assert sent.status_code == 204
        headers = {name: sent.headers[name] for name in document["responseHeaders"]}
        done = await api.post(f"{place}/parts/{part}/completion", json={"responseHeaders": headers})
        assert done.status_code == 200
    assert (await api.post(f"{place}/parts/{count + 1}", json={})).status_code == 404
    assert (await api.post(f"{place}/completion")).status_code == 200
    document = await session.wait_until_over()
    assert [condition["status"] for condition in document["status"]["conditions"]] == ["Reached"]
    [asset] = (await data.get(session.dataset_id, "assets", contents="y"))["items"]
    assert (await anonymous.get(asset["contents"]["asset"]["url"])).content == content


async def test_annotation_files_are_matched_with_the_existing_images(
    server: TestServer,
) -> None:
    data = Data(server, await server.api())
    dataset_id = await data.make()
    await data.import_files(
        dataset_id,
        {name: content for name, content in make_vqa_files(2).items() if name.endswith("png")},
    )
    assert (await data.get(dataset_id))["version"] is None
    root = data.path(dataset_id, "annotationImportSessions")
    late = {"spec": {"uploadBefore": 5}}
    assert (await data.api.post(root, json=late)).json()["code"] == "InvalidBody"

    async def import_files(content: bytes, **policies: str) -> dict[str, Any]:
        spec = {"uploadBefore": server.clock.now_ms() + 60_000, "failurePolicies": policies}
        begun = (await data.api.post(root, json={"spec": spec})).json()
        assert [c["condition"] for c in begun["status"]["conditions"]] == [
            "Complete",
            "FilesInserted",
        ]
        place = f"{root}/{begun['annotationImportSessionId']}"
        crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()  # type: ignore[no-untyped-call]
        files = {"l.jsonl": {"sizeBytes": len(content), "crc32c": crc, "kind": "Unknown"}}
        where = (await data.api.post(f"{place}/files", json={"files": files})).json()["files"][
            "l.jsonl"
        ]
        reached = {"condition": "FilesInserted", "status": "Reached", "lastTransitionTime": 1}
        change = {"status": {"conditions": [reached]}}
        early = await data.api.patch(f"{place}/status", json=change)
        assert (early.status_code, early.json()["code"]) == (409, "BlobMissing")
        assert (
            await (await server.client(None)).put(where["url"], content=content)
        ).status_code == 204
        assert (await data.api.patch(f"{place}/status", json=change)).status_code == 200
        await server.services.jobs.wait_until_idle()
        return dict((await data.api.get(place)).json())

    rows = jsonl(vqa_row(1, "shelf/1.png"), vqa_row(2, "2.png"), vqa_row(3, "nowhere.png"))
    refused = await import_files(rows)
    assert {condition["status"] for condition in refused["status"]["conditions"]} == {
        "Reached",
        "FailedReach",
    }
    assert refused["status"]["reason"]
    taken = await import_files(rows, onBadAnnotation="Warn", onBadFile="Warn")
    assert {condition["status"] for condition in taken["status"]["conditions"]} == {"Reached"}, (
        taken
    )
    assert taken["status"]["annotations"]["statusCount"] == {"Inserted": 2, "Rejected": 1}
    logged = (await data.api.get(f"{root}/{taken['annotationImportSessionId']}/logs")).json()[
        "items"
    ]
    assert [line["code"] for line in logged if line["severity"] == "error"] == ["ImageMissing"]
    again = await import_files(jsonl(vqa_row(1, "shelf/1.png")))
    assert (
        "already exists" in again["status"]["reason"]
        or "there already" in again["status"]["reason"]
    )
    over = await import_files(
        jsonl(vqa_row(1, "shelf/1.png", answer="Nine.")), onOverwritten="Warn"
    )
    assert {condition["status"] for condition in over["status"]["conditions"]} == {"Reached"}
    assert (await data.get(dataset_id))["statistic"]["annotationTotal"] == 2
    begun = await data.api.post(
        root, json={"spec": {"uploadBefore": server.clock.now_ms() + 60_000}}
    )
    place = f"{root}/{begun.json()['annotationImportSessionId']}"
    cancelled = await data.api.patch(f"{place}/status", json={"spec": {"status": "Cancelled"}})
    assert {c["reason"] for c in cancelled.json()["status"]["conditions"]} == {"CancelledByUser"}
