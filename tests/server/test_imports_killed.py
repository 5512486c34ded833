"""A server killed at any stage of an import loses nothing acknowledged, and completes it."""

import hashlib
import http.client
import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runyard.datasets.packs import build_pack

TIMEOUT_S = 60.0
COUNT = 2500  # three chunks of images and three of records

pytestmark = pytest.mark.e2e


def make_pixel(number: int) -> bytes:
    """Return an image of one pixel, whose color follows from the number; faster than Pillow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    colour = bytes((number & 255, number >> 8 & 255, number >> 16 & 255))
    pixels = zlib.compress(b"\0" + colour)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def row(number: int) -> bytes:
    asset = {"filename": f"{number}.png", "width": 1, "height": 1}
    contents = {
        "type": "Vqa",
        "interactions": [{"order": 1, "question": "Which?", "answer": str(number)}],
    }
    return json.dumps({"id": str(number), "asset": asset, "contents": contents}).encode() + b"\n"


@pytest.fixture(scope="module")
def packs() -> list[bytes]:
    pictures = [(f"{number}.png", make_pixel(number)) for number in range(COUNT)]
    labels = ("labels.jsonl", b"".join(map(row, range(COUNT))))
    return [build_pack(pictures[: COUNT // 2]), build_pack([*pictures[COUNT // 2 :], labels])]


class Server:
    """A real server process over a data folder, and requests to it."""

    def __init__(self, data_dir: Path) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
        }
        (data_dir / "server.json").unlink(missing_ok=True)
        environ = kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
        )
        waited(lambda: (data_dir / "server.json").exists() or self.process.poll() is not None)
        document = json.loads((data_dir / "credentials.json").read_text())
        self.org, self._key = document["organization_id"], document["secret_key"]
        self._host = urlsplit(document["endpoint"]).netloc

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)
        sent = (
            body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        )
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status < 300, content
        return json.loads(content) if content else None

    def at(self, dataset_id: str, *rest: str) -> str:
        return "/".join((f"/workspaces/{self.org}/datasets/{self.org}_{dataset_id}", *rest))

    def put_pack(self, begun: dict[str, Any], data: bytes) -> None:
        url = urlsplit(begun["status"]["upload"]["url"]).path
        self.ask("PUT", f"{url}/{hashlib.sha256(data).hexdigest()}", data)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def waited(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def state(data_dir: Path) -> tuple[str, int, int]:
    """Return the state of the only import, and its numbers of stored images and records."""
    connection = sqlite3.connect(f"file:{data_dir}/server.db?mode=ro", uri=True, timeout=10)
    try:
        found: tuple[str, int, int] = connection.execute(
            "SELECT state, images_done, records_done FROM imports"
        ).fetchone()
        return found
    finally:
        connection.close()


# The state of the store when the server is killed.
MOMENTS: dict[str, Callable[[tuple[str, int, int]], bool]] = {
    "sealed": lambda seen: seen[0] != "Receiving",
    "some images are stored": lambda seen: seen[1] >= 1000 or seen[0] == "Done",
    "some records are in": lambda seen: seen[2] >= 1000 or seen[0] == "Done",
    "done": lambda seen: seen[0] == "Done",
}


def test_an_import_survives_a_kill_at_every_stage(tmp_path: Path, packs: list[bytes]) -> None:
    """Kills of one import and of the deletion after it.

    Each must find the state that the last one left.
    """
    data_dir = tmp_path / "data"
    server = Server(data_dir)
    try:
        made = server.ask(
            "POST", f"/workspaces/{server.org}/datasets", {"name": "dots", "type": "vqa"}
        )
        dataset_id = made["datasetId"]
        begun = server.ask("POST", server.at(dataset_id, "imports"), {"spec": {}})
        place = server.at(dataset_id, "imports", begun["datasetImportId"])
        server.put_pack(begun, packs[0])
        server.kill()

        server = Server(data_dir)
        again = server.ask("GET", place)
        server.put_pack(again, packs[1])
        hashes = [hashlib.sha256(data).hexdigest() for data in packs]
        server.ask("POST", place + ":finish", {"packs": hashes})
        for is_moment in MOMENTS.values():
            waited(lambda is_moment=is_moment: is_moment(state(data_dir)))  # type: ignore[misc]
            server.kill()
            server = Server(data_dir)

        document = server.ask("GET", place)
        assert [condition["status"] for condition in document["status"]["conditions"]] == [
            "Reached"
        ] * 3, document
        statistic = server.ask("GET", server.at(dataset_id))["statistic"]
        assert (
            statistic["assetTotal"],
            statistic["annotationTotal"],
            statistic["assetAnnotated"],
        ) == (COUNT,) * 3
        versions = server.ask("GET", server.at(dataset_id, "versions"))["items"]
        assert [(version["assets"], version["records"]) for version in versions] == [(COUNT, COUNT)]
        found = server.ask("GET", f"/workspaces/{server.org}/storage")
        assert found["rowsWithoutBlobs"] == []
        waited(
            lambda: (
                server.ask("GET", f"/workspaces/{server.org}/storage")["foldersWithoutImports"]
                == []
            )
        )

        server.ask("DELETE", server.at(dataset_id))
        server.kill()
        server = Server(data_dir)
        deletion = server.at(dataset_id, "deleteOperation")
        waited(
            lambda: server.ask("GET", deletion)["status"]["conditions"][0]["status"] == "Reached"
        )
        server.ask("POST", f"/workspaces/{server.org}/storage/collections")
        found = server.ask("GET", f"/workspaces/{server.org}/storage")
        assert (found["agrees"], found["blobs"]) == (True, 0), found
    finally:
        server.kill()
