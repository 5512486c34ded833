"""The image of a table row: a file that the row names, or the bytes that the row holds.

An image is in a column such as ``image`` or ``file_name``, as the name of a file, as
``{bytes, path}`` of Hugging Face's ``datasets``, as bytes, or as a base64 text. A column such as
``id`` or ``image_id`` counts only if there is no other, because it is often a mere number.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from runyard.datasets.images import MAX_BYTES, detect_mime, is_image_name
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.packs import is_safe
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.sources import Source

IMAGES = (
    *("file_name", "image", "images", "img", "picture", "photo", "jpg", "png"),
    *("image_path", "img_path", "image_file", "image_file_name", "image_filename", "imagename"),
    *("image_name", "img_name", "filename", "file", "filepath", "file_path", "path"),
    *("image_bytes", "image_data", "image_base64", "bytes"),
)
# Used if there is none of the others, or if it names an image and they do not.
IDENTIFIERS = ("image_id", "img_id", "imageid", "name", "key", "id")
URLS = ("image_url", "url", "img_url", "coco_url", "flickr_url")
ENDINGS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tif",
}
_MAX_NAME = 1024  # characters
_MIN_BASE64 = 64  # characters; shorter texts are names


class RowImage(NamedTuple):
    """The name of a row's image, and its facts; None if it was not accepted."""

    name: str
    facts: ImageFacts | None
    column: str


class RowImages:
    """The images of the rows of a dataset.

    An image that rows hold is added once: rows with several questions repeat it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[str, bytes] = {}  # digest by name
        self._facts: dict[str, ImageFacts | None] = {}

    def find(
        self, row: Mapping[str, Any], location: SourceLocation, number: int
    ) -> RowImage | None:
        """Find the image of row ``number``; None if the row names none, which is reported."""
        columns = [key for key in IMAGES if row.get(key) not in (None, "", [])]
        identifiers = [key for key in IDENTIFIERS if row.get(key) not in (None, "")]
        named = self._list_named(row, columns, location)
        if different := [other for other in named if other.facts != named[0].facts]:
            cause = f"{named[0].column} and {different[0].column} name different images"
            location.report("ImageAmbiguous", cause, field=different[0].column, value=row)
            return None
        named = named or self._list_named(row, identifiers, location)[:1]
        if named:
            return named[0]
        if columns:
            return self.read(columns[0], row[columns[0]], location, number)
        if identifiers and isinstance(row[identifiers[0]], str | int):
            return RowImage(str(row[identifiers[0]]), None, identifiers[0])
        self._report_absent(row, location)
        return None

    def read(
        self, column: str, value: Any, location: SourceLocation, number: int
    ) -> RowImage | None:
        """Return the image in a cell; None if the cell holds no image, which is reported."""
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and value:
            data = decode_base64(value)
            if data is None and len(value) > _MAX_NAME:
                cause = (
                    f"the value has {len(value):,} characters; expected: a file name, or an image "
                    "as base64"
                )
                location.report("FieldInvalid", cause, field=column, value=value)
                return None
            if data is None:
                facts = self._source.find_image(value, relative_to=location.file)
                return RowImage(value, facts, column)
            value = data
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        content = _get_content(value)
        if content is None:
            cause, code = "the row has no image", "FieldInvalid" if value else "ImageMissing"
            if isinstance(value, list) and len(value) > 1:
                cause = f"the row has {len(value)} images; one is expected"
            location.report(code, cause, field=column, value=_summarize(value))
            return None
        data, path = content
        if not data:
            facts = self._source.find_image(str(path), relative_to=location.file)
            return RowImage(str(path), facts, column)
        return self._add(path, data, location, number, column)

    def _list_named(
        self, row: Mapping[str, Any], columns: Sequence[str], location: SourceLocation
    ) -> list[RowImage]:
        """List the accepted images that these columns name."""
        found = []
        for column in columns:
            value = row[column]
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
            if not isinstance(value, str | int) or isinstance(value, bool):
                continue
            if not 0 < len(str(value)) <= _MAX_NAME:
                continue
            facts = self._source.find_image(str(value), relative_to=location.file)
            if facts is not None:
                found.append(RowImage(str(value), facts, column))
        return found

    def _report_absent(self, row: Mapping[str, Any], location: SourceLocation) -> None:
        if url := next((key for key in URLS if row.get(key)), None):
            location.report(
                "FieldInvalid",
                "images are referred to by file name, not by URL",
                field=url,
                value=row[url],
                fix="download the images, and name the file of each in a column file_name",
            )
            return
        if empty := next((key for key in IMAGES if key in row), None):
            location.report("ImageMissing", "the row has no image", field=empty)
            return
        columns = ", ".join(list(row)[:12]) or "none"
        cause = (
            f"the row does not name an image; the columns are: {columns}; expected: one of "
            f"{', '.join(IMAGES[:2])}, image_path, image_name, filename"
        )
        location.report("FieldMissing", cause, field=IMAGES[0])

    def _add(
        self, path: Any, data: bytes, location: SourceLocation, number: int, column: str
    ) -> RowImage:
        digest = hashlib.sha256(data).digest()
        name = path if isinstance(path, str) and is_safe(path) else None
        ending = ENDINGS.get(detect_mime(data[:16]) or "", "img")
        own_name = f"{location.file.rpartition('.')[0]}/{number:06d}"
        if name is None or self._known.get(name, digest) != digest:
            name = (
                f"{own_name}.{ending}" if name is None else f"{own_name}-{name.rpartition('/')[2]}"
            )
        if name not in self._known:
            self._known[name] = digest
            self._facts[name] = self._source.add_image(
                name, data, found_in=location.file, line=location.line
            )
        return RowImage(name, self._facts[name], column)


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of an image written as base64, also as a data URL; None if it is none."""
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    if not _MIN_BASE64 <= len(text) <= MAX_BYTES * 3 // 2:
        return None
    try:
        head = base64.b64decode(text[:64], validate=True)
        if detect_mime(head[:16]) is None:
            return None
        text = "".join(text.split())
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error):
        return None


def names_image(value: Any) -> bool:
    """Return whether a cell looks like the name of an image, or holds one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return is_image_name(value) or decode_base64(value) is not None
    return isinstance(value, Mapping) and _get_content(value) is not None


def _get_content(value: Any) -> tuple[bytes | None, Any] | None:
    """Return the bytes and the path in a cell; None if it has neither."""
    if not isinstance(value, Mapping):
        return None
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, str):
        data = decode_base64(data)
    if isinstance(data, bytes) and data:
        return data, path
    return (None, path) if isinstance(path, str) and path else None


def _summarize(value: Any) -> str:
    return f"{len(value)} images" if isinstance(value, list) else repr(value)[:80]
