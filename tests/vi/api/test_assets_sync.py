# Generated from test_assets_async.py by scripts/unasync: change that file, then run the script.
"""``client.assets.download`` reuses a local image only if its bytes equal the server's."""

import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi

IMAGE = b"\x89PNG" + bytes(range(200))


@pytest.mark.parametrize(
    ("here", "is_fetched"),
    [(None, True), (IMAGE, False), (IMAGE[:-1], True), (IMAGE[:-1] + b"x", True), (b"", True)],
)
def test_an_image_is_downloaded_unless_it_is_cached(
    key: str, server: Any, tmp_path: Path, here: bytes | None, is_fetched: bool
) -> None:
    asset = {
        "assetId": "a-1",
        "filename": "shelf/1.png",
        "metadata": {"fileSize": len(IMAGE), "sha256": hashlib.sha256(IMAGE).hexdigest()},
        "contents": {"asset": {"url": "/downloads/a-1"}},
    }
    server.answers({"items": [asset], "nextPage": None})
    target = tmp_path / "d1" / "shelf" / "1.png"
    if here is not None:
        target.parent.mkdir(parents=True)
        target.write_bytes(here)
    if is_fetched:
        server.script.append(httpx2.Response(200, content=IMAGE))
    with vi.Client(key, "lab", transport=server.transport) as client:
        client.assets.download("d1", tmp_path)
    assert target.read_bytes() == IMAGE
    assert len(server.asked) == (2 if is_fetched else 1)
