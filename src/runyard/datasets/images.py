"""Inspection of untrusted image files: type, size, orientation, and whether the file is complete.

Inspection parses the structure and does not decode pixels: JPEG markers to the end of the image,
PNG chunks with their checksums, the blocks of GIF and WebP, the strips of TIFF and the length of
BMP. That finds what goes wrong in practice (files truncated, zeroed, renamed, or of another type)
in a few microseconds per image, and reads width and height before anything of that size is
allocated.

What training will see is decided by ``pixels``: Pillow opens an image there, without decoding it,
and says its size, orientation and transparency. Only JPEG, PNG and WebP files with ordinary
metadata are read here, because most images are such files. An image is decoded, within the same
limits, only if its structure does not show whether it is readable: a TIFF, a BMP, a JPEG with
arithmetic coding.
"""

import hashlib
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c

from runyard.datasets.image_limits import FORMATS, MAX_PIXELS

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_BYTES = 128 << 20
MIN_SIDE = 8  # a smaller image is more likely a placeholder
MAX_FRAMES = 10_000

ENDINGS = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "jpe": "image/jpeg",
    "jfif": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "dib": "image/bmp",
    "gif": "image/gif",
    "tif": "image/tiff",
    "tiff": "image/tiff",
}
UNSUPPORTED_ENDINGS = frozenset(
    (
        *(
            "avif",
            "heic",
            "heif",
            "jp2",
            "j2k",
            "jpx",
            "jxl",
            "ico",
            "icns",
            "psd",
            "svg",
            "eps",
            "ps",
            "dng",
            "cr2",
        ),
        *("nef", "arw", "exr", "hdr", "tga", "pcx", "ppm", "pgm", "pbm", "fits", "dcm"),
    )
)
_UNSUPPORTED_MAGIC = {  # image types that are recognized by their first bytes and not supported
    b"8BPS": "a Photoshop file",
    b"%!PS": "PostScript",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x01\x00": "an icon",
    b"SIMPLE  =": "FITS",
    b"\xff\x0a": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
}


_ALPHA_CHANNEL = "it has an alpha channel"


class ImageFinding(NamedTuple):
    """A finding about an image, still without its location."""

    code: str
    cause: str
    value: str | None = None


@dataclass(slots=True)
class Inspection:
    """The result of an inspection. Findings of severity error mean that the image cannot be used.

    Width and height are as stored; ``orientation``, 1 to 8, is the one that decoding applies.
    """

    mime: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    frames: int = 1
    findings: list[ImageFinding] = field(default_factory=list)


class _BrokenImage(Exception):
    def __init__(self, code: str, cause: str):
        super().__init__(cause)
        self.code, self.cause = code, cause


def is_image_name(path: str) -> bool:
    """Return whether the file extension is that of an image, supported or not."""
    ending = path.rpartition(".")[2].lower()
    return ending in ENDINGS or ending in UNSUPPORTED_ENDINGS


def detect_mime(head: bytes) -> str | None:
    """Detect the MIME type from the first 16 bytes.

    Return None for anything but the six supported types.
    """
    if head[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "image/tiff"
    if (
        head[:2] == b"BM"
        and len(head) >= 16
        and head[6:10] == b"\0\0\0\0"
        and head[14] in (12, 40, 52, 56, 64, 108, 124)
    ):
        return "image/bmp"
    return None


def is_image(path: str, head: bytes) -> bool:
    """Return whether to inspect a file as an image, by its first 16 bytes or its extension."""
    return detect_mime(head) is not None or is_image_name(path)


def inspect(path: str, data: bytes) -> Inspection:
    """Inspect an image; only the extension of ``path`` is used."""
    found = Inspection()
    try:
        _inspect(data, found)
    except _BrokenImage as broken:
        found.findings.append(ImageFinding(broken.code, broken.cause))
        return found
    except (struct.error, IndexError):
        found.findings.append(
            ImageFinding(
                "ImageTruncated", f"the file ends within its structure, after {len(data)} bytes"
            )
        )
        return found
    _add_warnings(path, found)
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _inspect(data: bytes, found: Inspection) -> None:
    if not data:
        raise _BrokenImage("ImageEmpty", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise _BrokenImage(
            "ImageTooLarge", f"the file has {len(data):,} bytes; the limit is {MAX_BYTES:,}"
        )
    mime = detect_mime(data[:16])
    if mime is None:
        raise _explain_unknown(data)
    found.mime = mime
    _INSPECTORS[mime](data, found)
    _check_size(found)


def _check_size(found: Inspection) -> None:
    if found.width <= 0 or found.height <= 0:
        raise _BrokenImage("ImageBroken", f"its size is {found.width} x {found.height}")
    if found.width * found.height > MAX_PIXELS:
        raise _BrokenImage(
            "ImageTooLarge",
            f"{found.width} x {found.height} are {found.width * found.height:,} pixels; the limit "
            f"is {MAX_PIXELS:,}",
        )


def _explain_unknown(data: bytes) -> _BrokenImage:
    for magic, what in _UNSUPPORTED_MAGIC.items():
        if data.startswith(magic):
            return _BrokenImage("ImageTypeUnsupported", f"it is {what}")
    if data[4:8] == b"ftyp":
        return _BrokenImage(
            "ImageTypeUnsupported", f"it is AVIF, HEIC or a video (brand {data[8:12]!r})"
        )
    start = data[:256].lstrip().lower()
    if start.startswith((b"<svg", b"<?xml")):
        return _BrokenImage("ImageTypeUnsupported", "it is SVG or other XML, not a raster image")
    if start.startswith((b"<!doctype html", b"<html")):
        return _BrokenImage("ImageBroken", "it is a web page, probably saved in place of the image")
    if not data.strip(b"\0"):
        return _BrokenImage("ImageBroken", f"all of its {len(data)} bytes are zero")
    return _BrokenImage(
        "ImageBroken",
        f"cannot read it as an image: first bytes {data[:8]!r} (supported: {', '.join(FORMATS)})",
    )


def _add_warnings(path: str, found: Inspection) -> None:
    ending = path.rpartition(".")[2].lower() if "." in path else ""
    if ENDINGS.get(ending, "") != found.mime:
        kind = found.mime.partition("/")[2].upper()
        found.findings.append(
            ImageFinding(
                "ImageTypeMismatch", f"the file is {kind} but its extension is {ending!r}", path
            )
        )
    if found.orientation != 1:
        turned = " and swaps width and height" if found.orientation >= 5 else ""
        found.findings.append(
            ImageFinding(
                "ImageRotated", f"its EXIF or XMP orientation is {found.orientation}{turned}"
            )
        )
    if found.frames > 1:
        found.findings.append(
            ImageFinding("ImageAnimated", f"it has {found.frames} frames or pages")
        )
    if min(found.width, found.height) < MIN_SIDE:
        found.findings.append(
            ImageFinding("ImageTiny", f"it is {found.width} x {found.height} pixels")
        )


# JPEG ---------------------------------------------------------------------------------------------

# Within pixel data, FF is followed by 00 or by a restart marker; anything else ends the data.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SIMPLE_FRAMES = (0xC0, 0xC1, 0xC2)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Frames, tables, restart intervals and comments, which Pillow reads in the same way.
_PLAIN_MARKERS = frozenset((*_SIMPLE_FRAMES, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE))
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without content
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(slots=True)
class _JpegHeader:
    """What the segments before the pixels say."""

    frame: int = 0
    exif: bytes | None = None
    is_plain: bool = True  # whether the orientation needs no more than this module

    def add(self, data: bytes, marker: int, start: int, end: int) -> None:
        """Add a segment with a marker that is not plain."""
        if marker == 0xE1 and data.startswith(_EXIF, start):
            self.is_plain = self.is_plain and self.exif is None
            self.exif = data[start + len(_EXIF) : end]
        elif marker == 0xE1 and data.startswith(_XMP, start):
            self.is_plain = self.is_plain and data.find(b"tiff:Orientation", start, end) < 0
        elif marker == 0xE2:
            # Several images in one file; the profile of colors is the usual content.
            self.is_plain = self.is_plain and not data.startswith(b"MPF\0", start)
        elif marker < 0xE0 or marker == 0xED:
            # A rare marker, or blocks of Photoshop: Pillow may fail on them.
            self.is_plain = False

    def find_orientation(self) -> int | None:
        """Return the orientation; None if Pillow must decide."""
        if not self.is_plain:
            return None
        return 1 if self.exif is None else _read_plain_orientation(self.exif)


def _inspect_jpeg(data: bytes, found: Inspection) -> None:
    at, header, has_pixels = 2, _JpegHeader(), False
    while True:
        marker, start, at = _read_jpeg_segment(data, at)
        if marker == 0xD9:
            break
        if marker in _FRAMES and not has_pixels:
            header.frame = marker
            _read_jpeg_frame(data, start, found)
        if marker not in _PLAIN_MARKERS and not has_pixels:
            header.add(data, marker, start, at)
        elif marker == 0xDA:
            has_pixels = True
            ahead = _NEXT_MARKER.search(data, at)
            if ahead is None:
                raise _BrokenImage(
                    "ImageTruncated", f"the pixel data does not end within its {len(data)} bytes"
                )
            at = ahead.start()
    if not header.frame or not has_pixels:
        raise _BrokenImage("ImageBroken", "it has no pixel data")
    orientation = header.find_orientation()
    if header.frame not in _SIMPLE_FRAMES:
        _read_with_pillow(data, found, decode=True)
    elif orientation is None:
        _read_with_pillow(data, found)
    else:
        found.orientation = orientation


def _read_jpeg_segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Read the marker at ``at``.

    Return it, where its content starts, and where the next marker begins.
    """
    if data[at] != 0xFF:
        raise _BrokenImage("ImageBroken", f"byte {at} should begin a JPEG marker")
    marker = data[at + 1]
    while marker == 0xFF:
        at += 1
        marker = data[at + 1]
    if marker in _BARE_MARKERS:
        return marker, at + 2, at + 2
    length = data[at + 2] << 8 | data[at + 3]
    if length < 2:
        raise _BrokenImage(
            "ImageBroken", f"the JPEG segment at byte {at} has an invalid length of {length} bytes"
        )
    end = at + 2 + length
    if end > len(data):
        raise _BrokenImage(
            "ImageTruncated",
            f"the JPEG segment at byte {at} ends at byte {end}, the file at {len(data)}",
        )
    return marker, at + 4, end


def _read_jpeg_frame(data: bytes, start: int, found: Inspection) -> None:
    precision, height, width, components = struct.unpack_from(">BHHB", data, start)
    found.width, found.height = width, height
    if components == 4 and not any(finding.code == "ImageCmyk" for finding in found.findings):
        found.findings.append(ImageFinding("ImageCmyk", "it is a JPEG with four color channels"))
    if precision != 8 or components not in (1, 3, 4):
        raise _BrokenImage(
            "ImageTypeUnsupported",
            f"it is a JPEG with {components} channels of {precision} bits (supported: 1, 3 or 4 "
            "channels of 8 bits)",
        )


def _read_plain_orientation(exif: bytes) -> int | None:
    """Read the orientation from an EXIF block of the common form; None for any other form.

    Pillow ends reading at the first entry whose value is beyond the block, so this does, too.
    """
    try:
        if exif[:4] not in (b"II*\0", b"MM\0*"):
            return None
        order, at = _read_tiff_header(exif)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        layout, value_bytes = f"{order}HHII", 0
        for number in range(count):
            place = at + 2 + 12 * number
            tag, kind, length, offset = struct.unpack_from(layout, exif, place)
            if tag == _ORIENTATION:
                value: int = struct.unpack_from(f"{order}H", exif, place + 8)[0]
                is_plain = kind == 3 and length == 1
                return (value if 1 <= value <= 8 else 1) if is_plain else None
            size = length * _EXIF_SIZES.get(kind, 1 << 32)
            if size > 4:
                value_bytes += size
                if value_bytes > len(exif) or offset + size > len(exif):
                    return None
    except struct.error:
        return None
    return 1


# PNG ----------------------------------------------------------------------------------------------


# Color type: the depths that it may have.
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_ALPHA = (4, 6)
_PLAIN_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"sBIT", b"bKGD", b"tIME"}


def _inspect_png(data: bytes, found: Inspection) -> None:
    at, kinds, view = 8, set(), memoryview(data)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise _BrokenImage(
                "ImageTruncated",
                f"the PNG chunk {kind!r} at byte {at} ends at {end}, the file at {len(data)}",
            )
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _BrokenImage(
                "ImageBroken", f"the checksum of the PNG chunk {kind!r} at byte {at} is wrong"
            )
        if (at == 8) != (kind == b"IHDR"):
            raise _BrokenImage("ImageBroken", f"it has no header, or a second one, at byte {at}")
        kinds.add(kind)
        if kind == b"acTL":
            found.frames = max(1, int.from_bytes(data[at + 8 : at + 12], "big"))
        elif kind == b"IEND":
            break
        at = end
    if b"IDAT" not in kinds:
        raise _BrokenImage("ImageBroken", "it has no pixel data")
    color = _read_png_header(data, found)
    if not kinds <= _PLAIN_CHUNKS:
        _read_with_pillow(data, found)
    elif color in _PNG_ALPHA:
        found.findings.append(ImageFinding("ImageAlpha", _ALPHA_CHANNEL))


def _read_png_header(data: bytes, found: Inspection) -> int:
    """Read size and depth from a header of the right length; return the color type."""
    found.width, found.height, depth, color, _, scheme = struct.unpack_from(">IIBBBB", data, 16)
    if int.from_bytes(data[8:12], "big") < 13 or depth not in _PNG_DEPTHS.get(color, ()) or scheme:
        raise _BrokenImage(
            "ImageBroken",
            f"its header has color type {color}, {depth} bits per channel and filter method "
            f"{scheme}, which PNG does not define",
        )
    if depth == 16:
        found.findings.append(ImageFinding("ImageDeep", "it is a PNG with 16 bits per channel"))
    return int(color)


# GIF ----------------------------------------------------------------------------------------------


def _inspect_gif(data: bytes, found: Inspection) -> None:
    found.width, found.height, flags = struct.unpack_from("<HHB", data, 6)
    at, frames = 13 + _count_palette_bytes(flags), 0
    while data[at] != 0x3B:
        if data[at] == 0x2C:
            frames += 1
            # The descriptor, its palette, the code width.
            at += 10 + _count_palette_bytes(data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        else:
            raise _BrokenImage("ImageBroken", f"byte {at} does not begin a GIF block")
        while data[at]:
            at += 1 + data[at]
        at += 1
        if frames > MAX_FRAMES:
            raise _BrokenImage("ImageTooLarge", f"it has more than {MAX_FRAMES:,} frames")
    if not frames:
        raise _BrokenImage("ImageBroken", "it has no pixel data")
    found.frames = frames
    _read_with_pillow(data, found)


def _count_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


# WebP ---------------------------------------------------------------------------------------------


def _inspect_webp(data: bytes, found: Inspection) -> None:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _BrokenImage(
            "ImageTruncated", f"its header declares {end} bytes, but the file has {len(data)}"
        )
    at, frames, has_pixels, is_simple = 12, 0, False, True
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        start = at + 8
        if start + length > end:
            raise _BrokenImage(
                "ImageTruncated", f"the WebP chunk {kind!r} at byte {at} ends after the file"
            )
        if kind == b"VP8X":
            is_simple = False
            found.width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            found.height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"ANMF":
            frames += 1
        elif kind in (b"VP8 ", b"VP8L"):
            if not found.width:
                found.width, found.height = _read_webp_size(data, kind, start)
            if not has_pixels:
                is_simple = is_simple and at == 12 and _is_plain_webp(data, kind, start, length)
            has_pixels = True
        at = start + length + (length & 1)
    if not has_pixels and not frames:
        raise _BrokenImage("ImageBroken", "it has no pixel data")
    found.frames = max(1, frames)
    if not is_simple:
        _read_with_pillow(data, found)
    elif data[12:16] == b"VP8L" and data[24] & 0x10:
        found.findings.append(ImageFinding("ImageAlpha", _ALPHA_CHANNEL))


def _read_webp_size(data: bytes, kind: bytes, start: int) -> tuple[int, int]:
    if kind == b"VP8L":
        if data[start] != 0x2F:
            raise _BrokenImage("ImageBroken", "its lossless pixel data has no valid start")
        bits = int.from_bytes(data[start + 1 : start + 5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[start + 3 : start + 6] != b"\x9d\x01\x2a":
        raise _BrokenImage("ImageBroken", "its pixel data has no valid start")
    width, height = struct.unpack_from("<HH", data, start + 6)
    return width & 0x3FFF, height & 0x3FFF


def _is_plain_webp(data: bytes, kind: bytes, start: int, length: int) -> bool:
    """Return whether the first bits of the pixels are as the standard wants them."""
    if kind == b"VP8L":
        return data[start + 4] >> 5 == 0  # the version
    bits = int.from_bytes(data[start : start + 3], "little")
    is_key_frame, is_shown = not bits & 1, bits & 0x10
    return bool(is_key_frame and is_shown and bits >> 1 & 7 <= 3 and bits >> 5 < length)


# BMP ----------------------------------------------------------------------------------------------


def _inspect_bmp(data: bytes, found: Inspection) -> None:
    offset, header = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 14)[0]
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    found.width, found.height = width, abs(height)
    _check_size(found)
    if compression in (0, 3):
        needed = offset + (width * bits + 31) // 32 * 4 * abs(height)
        if needed > len(data):
            raise _BrokenImage(
                "ImageTruncated",
                f"its pixel data needs {needed} bytes, but the file has {len(data)}",
            )
    _read_with_pillow(data, found, decode=True)


# TIFF, and the EXIF of the others, which is TIFF --------------------------------------------------

_WIDTH, _HEIGHT, _PHOTOMETRIC, _ORIENTATION = 256, 257, 262, 274
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_SIZES = {1: (1, "B"), 3: (2, "H"), 4: (4, "I")}
# Bytes per value of each type of EXIF entry that Pillow reads; it skips entries of other types.
_EXIF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def _inspect_tiff(data: bytes, found: Inspection) -> None:
    order, at = _read_tiff_header(data)
    tags, following = _read_directory(data, order, at)
    found.width, found.height = (tags.get(name, [0])[0] for name in (_WIDTH, _HEIGHT))
    _check_size(found)
    for starts, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        for start, length in zip(tags.get(starts, []), tags.get(lengths, []), strict=False):
            if start + length > len(data):
                raise _BrokenImage(
                    "ImageTruncated",
                    f"its pixel data ends at byte {start + length}, the file at {len(data)}",
                )
    if tags.get(_PHOTOMETRIC, [2])[:1] == [5]:
        found.findings.append(ImageFinding("ImageCmyk", "it is a TIFF with CMYK colors"))
    seen = {at}
    while following and following not in seen and len(seen) < MAX_FRAMES:
        seen.add(following)
        _, following = _read_directory(data, order, following)
    found.frames = len(seen)
    _read_with_pillow(data, found, decode=True)


def _read_tiff_header(data: bytes) -> tuple[str, int]:
    order = "<" if data[:2] == b"II" else ">"
    return order, struct.unpack_from(f"{order}I", data, 4)[0]


def _read_directory(data: bytes, order: str, at: int) -> tuple[dict[int, list[int]], int]:
    """Read the integer tags of a TIFF directory, and where the next directory begins (0: none)."""
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags: dict[int, list[int]] = {}
    for number in range(count):
        entry = at + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        if kind not in _SIZES:
            continue
        size, letter = _SIZES[kind]
        start = (
            entry + 8 if size * length <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
        )
        if start + size * length > len(data):
            raise _BrokenImage(
                "ImageTruncated", f"the TIFF tag {tag} is beyond the end of the file"
            )
        # As in Pillow, the first of equal tags counts.
        tags.setdefault(tag, list(struct.unpack_from(f"{order}{length}{letter}", data, start)))
    return tags, struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)[0]


# Pillow, which decodes the images ----------------------------------------------------------------


def _read_with_pillow(data: bytes, found: Inspection, *, decode: bool = False) -> None:
    """Take size and orientation from Pillow, and what else the pixels need.

    With ``decode`` also decode the first frame, to see whether that is possible. The size has been
    checked before, and is checked again because some types give it in several places.
    """
    from runyard.datasets import pixels

    _check_size(found)
    is_png = found.mime == "image/png"
    header = pixels.remove_png_pixels(data) if is_png else data

    def use(image: "ImageFile") -> None:
        found.width, found.height = pixels.read_stored_size(image)
        _check_size(found)
        if image.mode in pixels.UNSUPPORTED_MODES:
            what = pixels.UNSUPPORTED_MODES[image.mode]
            raise _BrokenImage("ImageTypeUnsupported", f"it has {what}")
        found.orientation = pixels.read_orientation(image, header)
        found.findings += _describe_pixels(image)
        if decode:
            image.load()

    _use_pillow(header, use)


def _describe_pixels(image: "ImageFile") -> list[ImageFinding]:
    """Report what decoding changes: more than 8 bits per channel, transparency."""
    from runyard.datasets import pixels

    described = []
    if image.format == "TIFF" and (depth := pixels.describe_depth(image)):
        described.append(ImageFinding("ImageDeep", f"it is a TIFF with {depth}"))
    if pixels.has_alpha(image):
        is_color = "transparency" in image.info
        cause = "it has a transparent color" if is_color else _ALPHA_CHANNEL
        described.append(ImageFinding("ImageAlpha", cause))
    elif pixels.read_extra_samples(image) or image.has_transparency_data:
        described.append(
            ImageFinding("ImageAlpha", "it has a channel beyond its colors, which is not used")
        )
    return described


def _use_pillow(data: bytes, use: "Callable[[ImageFile], None]") -> None:
    from PIL import UnidentifiedImageError

    from runyard.datasets import pixels

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with pixels.open_image(data) as image:
                use(image)
        except MemoryError:
            raise _BrokenImage(
                "ImageTooLarge", "decoding it takes more memory than allowed"
            ) from None
        except _BrokenImage:
            raise
        except Exception as error:  # Pillow's plugins raise whatever the bytes make them raise
            if isinstance(error, UnidentifiedImageError):
                reason = "its header or its metadata is not as the type wants it"
            else:
                reason = str(error)[:200]
            code = "ImageTruncated" if "truncated" in reason else "ImageBroken"
            raise _BrokenImage(code, f"it cannot be decoded: {reason}") from error


_INSPECTORS: dict[str, Callable[[bytes, Inspection], None]] = {
    "image/jpeg": _inspect_jpeg,
    "image/png": _inspect_png,
    "image/webp": _inspect_webp,
    "image/gif": _inspect_gif,
    "image/bmp": _inspect_bmp,
    "image/tiff": _inspect_tiff,
}
