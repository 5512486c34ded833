"""Images of datasets for people: the file itself, or a thumbnail of it as WebP.

A thumbnail is made by Pillow on a thread, one at a time for each of two threads, so that a page of
many images occupies no more of the server. The newest are kept in memory. An image is found by the
hash of its content, so neither it nor its thumbnail ever changes.
"""

import asyncio
import io
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from runyard.blobs import BlobError
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.files import StoredFile
from runyard.store.datasets import assets as asset_rows

SIZES = (160, 320, 640)  # pixels, of the longer side
MAX_BYTES = 30 << 10
QUALITIES = (80, 60, 40, 20)
CACHE_BYTES = 32 << 20
_PNG, _WEBP = "image/png", "image/webp"
_SIGNATURES = (
    (b"\xff\xd8", "image/jpeg"),
    (b"\x89PNG", _PNG),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)
_pool = ThreadPoolExecutor(2, thread_name_prefix="thumbnails")


@dataclass(frozen=True)
class ImageBytes:
    """The bytes of an image file, its media type, and a tag that changes with the bytes."""

    data: bytes
    mime: str
    tag: str

    @classmethod
    def from_png(cls, data: bytes) -> "ImageBytes":
        return cls(data, _PNG, f"{len(data):x}-{hash_bytes(data)}")


class _Cache:
    """The newest thumbnails, up to ``CACHE_BYTES``; threads share it."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], ImageBytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> ImageBytes | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: tuple[str, int], image: ImageBytes) -> None:
        with self._lock:
            if key in self._found:
                return
            self._found[key] = image
            self._size_bytes += len(image.data)
            while self._size_bytes > CACHE_BYTES:
                _, removed = self._found.popitem(last=False)
                self._size_bytes -= len(removed.data)


_cache = _Cache()


async def read_image(services: Services, *, org: str, content: str, size: int | None) -> ImageBytes:
    """Return the image with this content hash, or a thumbnail of at most ``size`` pixels.

    Raises:
        Refusal: NotFound; it was deleted, or cannot be decoded.
    """
    span = services.store.read(partial(asset_rows.find_blob_span, org=org, content=content))
    if span is None:
        raise _image_gone("the image was deleted with its dataset")
    if size is not None and (cached := _cache.get((content, size))) is not None:
        return cached
    file = StoredFile(org, span.sha256, span.offset, span.size_bytes, content, "", content)

    def read() -> bytes:
        try:
            return b"".join(file.read(services, 0, span.size_bytes))
        except (BlobError, EOFError, OSError) as error:
            raise _image_gone(f"its bytes are lost: {error}") from error

    data = await asyncio.get_running_loop().run_in_executor(_pool, read)
    image = ImageBytes(data, _detect_mime(data), content)
    if size is None:
        return image
    thumbnail = await make_thumbnail(image, size)
    _cache.put((content, size), thumbnail)
    return thumbnail


async def make_thumbnail(image: ImageBytes, size: int | None) -> ImageBytes:
    """Return the image at most ``size`` pixels wide and high; itself if it is small enough.

    Raises:
        Refusal: NotFound; it cannot be decoded.
    """
    if size is None:
        return image
    return await asyncio.get_running_loop().run_in_executor(_pool, _shrink, image, size)


def _shrink(image: ImageBytes, size: int) -> ImageBytes:
    from runyard.datasets.pixels import BrokenImage, decode_image

    try:
        decoded = decode_image(image.data, at_least=(size, size))
    except (BrokenImage, MemoryError) as error:
        raise _image_gone(f"it cannot be decoded: {error}") from error
    if image.mime == _PNG and max(decoded.size) <= size and len(image.data) <= MAX_BYTES:
        return image  # also exact, where a few enlarged pixels are looked at
    decoded.thumbnail((size, size))
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        decoded.save(buffer, "WEBP", quality=quality, method=4)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return ImageBytes(data, _WEBP, f"{image.tag}-{size}")


def hash_bytes(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:32]


def _detect_mime(data: bytes) -> str:
    """Return the media type by the first bytes; never one that a browser would run."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _WEBP
    found = (mime for signature, mime in _SIGNATURES if data.startswith(signature))
    return next(found, "application/octet-stream")


def _image_gone(why: str) -> Refusal:
    return Refusal("NotFound", f"the image is not available: {why}")
