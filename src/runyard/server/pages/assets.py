"""Static files, below an address that has the hash of all of them, so that browsers keep them.

One hash for the folder, since modules import each other by relative names. An address with another
hash gets the newest bytes, uncached: a page that was opened before an upgrade still loads what it
asks for later. The browser libraries below ``vendor`` are installed by ``scripts/assets``, which
compresses them with Brotli, and are part of the wheel. Our own files are sent without comments.
"""

import functools
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.server.http.responses import Response
from runyard.server.pages import comments

FOLDER = Path(__file__).parent / "static"
PREFIX = "/ui/static/"
REQUIRED = ("vendor/htmx.js", "vendor/uplot.js", "vendor/inter.woff2")
MEDIA_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
    ".woff2": b"font/woff2",
}
CACHED = b"public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFile:
    """A file in memory, as it is sent, and compressed."""

    body: bytes
    gzipped: bytes | None
    media_type: bytes
    brotli: bytes | None = None

    def encode_for(self, accepted: bytes) -> tuple[bytes, bytes]:
        """Return the smallest body for an ``Accept-Encoding``, and its encoding."""
        parts = (part.partition(b";") for part in accepted.lower().replace(b" ", b"").split(b","))
        given = {name for name, _, weight in parts if not weight or weight.strip(b"q=0.")}
        if self.brotli is not None and b"br" in given:
            return self.brotli, b"br"
        if self.gzipped is not None and b"gzip" in given:
            return self.gzipped, b"gzip"
        return self.body, b""


@dataclass(frozen=True)
class Assets:
    """All static files and the hash of their contents."""

    hash: str
    files: dict[str, StaticFile]

    @property
    def are_complete(self) -> bool:
        """Return whether the browser libraries are installed."""
        return all(name in self.files for name in REQUIRED)


@functools.cache
def load() -> Assets:
    """Read all files, once for the process."""
    total = hashlib.sha256()
    files = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix not in MEDIA_TYPES or not path.is_file():
            continue
        name, body = path.relative_to(FOLDER).as_posix(), path.read_bytes()
        total.update(f"{name}\0{len(body)}\0".encode() + body)
        files[name] = _build_file(path, name, body)
    return Assets(total.hexdigest()[:12], files)


def _build_file(path: Path, name: str, body: bytes) -> StaticFile:
    if not name.startswith("vendor/") and path.suffix in (".js", ".css"):
        remove = comments.remove_from_script if path.suffix == ".js" else comments.remove_from_style
        body = remove(body.decode()).encode()
    gzipped = None if path.suffix == ".woff2" else gzip.compress(body, 9, mtime=0)
    brotli = path.with_name(f"{path.name}.br")
    return StaticFile(
        body,
        gzipped,
        MEDIA_TYPES[path.suffix],
        brotli=brotli.read_bytes() if brotli.is_file() else None,
    )


def build_url(name: str) -> str:
    """Return the address of a file; raise KeyError for one that does not exist."""
    assets = load()
    if name not in assets.files:
        raise KeyError(f"there is no static file {name!r}")
    return f"{PREFIX}{assets.hash}/{name}"


async def serve(scope: Any, receive: Any, send: Any) -> None:
    """Send the file that the path names. Anybody may read it."""
    await _find(scope)(scope, receive, send)


def _find(scope: Any) -> Response:
    if scope["method"] not in ("GET", "HEAD"):
        return Response(status=405, headers=[(b"allow", b"GET, HEAD")])
    assets = load()
    given_hash, _, name = scope["path"].removeprefix(PREFIX).partition("/")
    asset = assets.files.get(name)
    if asset is None:
        return Response(b"there is no such file\n", media_type=b"text/plain", status=404)
    headers = [
        (b"cache-control", CACHED if given_hash == assets.hash else b"no-cache"),
        (b"vary", b"accept-encoding"),
    ]
    accepted = dict(scope["headers"]).get(b"accept-encoding", b"")
    body, encoding = asset.encode_for(accepted)
    if encoding:
        headers.append((b"content-encoding", encoding))
    return Response(body, media_type=asset.media_type, headers=headers)
