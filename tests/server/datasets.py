"""Requests of dataset tests: images, records, and complete imports."""

import asyncio
import hashlib
import io
import json
from typing import Any

from PIL import Image

from runyard.datasets.packs import build_pack


def make_image_bytes(number: int, *, side: int = 24, kind: str = "PNG") -> bytes:
    """Return a small image, whose color follows from the number."""
    target = io.BytesIO()
    color = (number * 37 % 256, number * 101 % 256, number // 256 % 256)
    Image.new("RGB", (side, side // 2), color).save(target, kind)
    return target.getvalue()


def vqa_row(number: int, filename: str, *, answer: str = "Two.", side: int = 24) -> dict[str, Any]:
    return {
        "id": str(number),
        "asset": {"type": "Image", "filename": filename, "width": side, "height": side // 2},
        "contents": {
            "type": "Vqa",
            "interactions": [{"order": 1, "question": "How many boxes?", "answer": answer}],
        },
    }


def grounding_row(number: int, filename: str, *, side: int = 24) -> dict[str, Any]:
    return {
        "id": str(number),
        "asset": {"type": "Image", "filename": filename, "width": side, "height": side // 2},
        "contents": {
            "type": "PhraseGrounding",
            "caption": "a red box on a shelf",
            "groundedPhrases": [
                {
                    "phrase": "a red box",
                    "startTokenIndex": 0,
                    "endTokenIndex": 3,
                    "bounds": [[0.1, 0.2, 0.4, 0.6]],
                }
            ],
        },
    }


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_vqa_files(count: int = 3, *, first: int = 1, side: int = 24) -> dict[str, bytes]:
    """Return a folder of images and questions about them, as contents by path."""
    names = [f"shelf/{number}.png" for number in range(first, first + count)]
    files = {name: make_image_bytes(number, side=side) for number, name in enumerate(names, first)}
    rows = [vqa_row(number, name, side=side) for number, name in enumerate(names, first)]
    return {**files, "labels.jsonl": jsonl(*rows)}


class Data:
    """An organization's datasets, as the project's client uses them."""

    def __init__(self, server: Any, api: Any) -> None:
        self.server, self.api = server, api

    def path(self, dataset_id: str, *rest: str) -> str:
        return "/".join((self.server.path(f"datasets/{self.server.org}_{dataset_id}"), *rest))

    async def make(self, type: str = "vqa", name: str = "shelves") -> str:
        answer = await self.api.post(
            self.server.path("datasets"), json={"name": name, "type": type}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["datasetId"])

    async def begin(self, dataset_id: str, **spec: Any) -> dict[str, Any]:
        answer = await self.api.post(self.path(dataset_id, "imports"), json={"spec": spec})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def send(self, url: str, data: bytes) -> Any:
        anonymous = await self.server.client(None)
        return await anonymous.put(f"{url}/{hashlib.sha256(data).hexdigest()}", content=data)

    async def finish(self, begun: dict[str, Any], *packs: bytes) -> Any:
        hashes = [hashlib.sha256(data).hexdigest() for data in packs]
        path = self.path(begun["datasetId"], "imports", begun["datasetImportId"] + ":finish")
        return await self.api.post(path, json={"packs": hashes})

    async def wait_until_over(self, begun: dict[str, Any]) -> dict[str, Any]:
        """Wait until the import is over, and return it."""
        path = self.path(begun["datasetId"], "imports", begun["datasetImportId"])
        async with asyncio.timeout(60):
            while True:
                document = (await self.api.get(path)).json()
                statuses = {condition["status"] for condition in document["status"]["conditions"]}
                key = ("import", self.server.org, begun["datasetImportId"])
                is_over = "FailedReach" in statuses or "Waiting" not in statuses
                # Its folder is gone then as well.
                if is_over and not self.server.services.jobs.is_running(
                    key
                ):  # then its folder is gone, too
                    return dict(document)
                await asyncio.sleep(0.02)

    async def import_files(
        self, dataset_id: str, files: dict[str, bytes], **spec: Any
    ) -> dict[str, Any]:
        """Import files, and wait until the import is over."""
        begun = await self.begin(dataset_id, **spec)
        data = build_pack(files.items())
        assert (await self.send(begun["status"]["upload"]["url"], data)).status_code == 204
        assert (await self.finish(begun, data)).status_code == 200
        return await self.wait_until_over(begun)

    async def get(self, dataset_id: str, *rest: str, **params: Any) -> Any:
        answer = await self.api.get(self.path(dataset_id, *rest), params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def storage(self) -> dict[str, Any]:
        return dict((await self.api.get(self.server.path("storage"))).json())
