"""Really encoded pictures of every kind, whole and broken: what is said of them is what Pillow sees."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageOps

from runyard.datasets import images
from runyard.datasets.images import Inspected, inspect

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def noise(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 60).convert(mode)


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or noise()).save(file, format, **options)
    return file.getvalue()


def codes(found: Inspected) -> list[str]:
    return [defect.code for defect in found.defects]


@pytest.mark.parametrize("format", KINDS)
def test_a_sound_picture_has_its_size_and_no_defects(format: str) -> None:
    found = inspect(f"a.{KINDS[format]}", encoded(format))
    assert (found.width, found.height, found.orientation, found.frames) == (60, 40, 1, 1)
    assert codes(found) == []
    assert found.mime == images.ENDINGS[KINDS[format]]


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"quality": 100, "subsampling": 0},
        {"optimize": True, "restart_marker_blocks": 1},
        {"comment": b"\xff\xd9\xff\xda"},
        {"icc_profile": b"\xff\xd9" * 40_000},
    ],
)
def test_jpegs_of_every_layout_are_whole(options: dict[str, Any]) -> None:
    assert codes(inspect("a.jpg", encoded("JPEG", **options))) == []


@pytest.mark.parametrize("options", [{"lossless": True}, {"exif": Image.Exif()}, {"icc_profile": b"x" * 99}])
def test_webps_of_every_layout_are_whole(options: dict[str, Any]) -> None:
    found = inspect("a.webp", encoded("WEBP", **options))
    assert (found.width, found.height, codes(found)) == (60, 40, [])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiffs_of_every_compression_are_whole(compression: str) -> None:
    assert codes(inspect("a.tif", encoded("TIFF", compression=compression))) == []


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_picture_that_was_cut_off_is_told(format: str, share: float) -> None:
    data = encoded(format)
    found = inspect(f"a.{KINDS[format]}", data[: int(len(data) * share)])
    assert codes(found)[-1] in ("ImageTruncated", "ImageBroken")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_is_whole_only_to_its_last_byte(format: str) -> None:
    data = encoded(format)
    for end in range(len(data) - 12, len(data)):
        assert codes(inspect(f"a.{KINDS[format]}", data[:end])), f"{end} of {len(data)} bytes"


def test_a_jpeg_whose_end_was_never_written_is_cut_off() -> None:
    data = encoded("JPEG")
    half = len(data) // 2
    assert codes(inspect("a.jpg", data[:half] + bytes(len(data) - half))) == ["ImageTruncated"]


def test_a_flipped_bit_in_a_png_is_seen() -> None:
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 4
    assert codes(inspect("a.png", bytes(data))) == ["ImageBroken"]


@pytest.mark.parametrize(
    ("data", "code", "cause"),
    [
        (b"", "ImageEmpty", "no bytes"),
        (bytes(500), "ImageBroken", "zero"),
        (b"<!DOCTYPE html><html>404</html>", "ImageBroken", "web page"),
        (b"hello, world, how are you", "ImageBroken", "no kind of picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "ImageTypeUnsupported", "SVG"),
        (b"8BPS" + bytes(40), "ImageTypeUnsupported", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "ImageTypeUnsupported", "PostScript"),
        (b"SIMPLE  =                    T", "ImageTypeUnsupported", "FITS"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "ImageTypeUnsupported", "AVIF"),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xd9", "ImageBroken", "no pixels"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, code: str, cause: str) -> None:
    found = inspect("a.jpg", data)
    assert codes(found) == [code]
    assert cause in found.defects[0].cause


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"x"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data", [png_of_size(65535, 65535), png_of_size(2**31 - 1, 2**31 - 1), jpeg_of_size(65535, 65535)]
)
def test_a_picture_that_would_fill_memory_is_refused_by_its_header(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_with_pillow", None)  # nothing may be decoded
    assert codes(inspect("a.png", data)) == ["ImageTooLarge"]


def test_a_large_tiff_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 60 * 40 - 1)
    monkeypatch.setattr(images, "_with_pillow", None)
    assert codes(inspect("a.tif", encoded("TIFF", compression="tiff_lzw"))) == ["ImageTooLarge"]


@pytest.mark.parametrize(
    ("path", "make", "code"),
    [
        ("a.png", lambda: encoded("JPEG"), "ImageTypeMismatch"),
        ("a", lambda: encoded("PNG"), "ImageTypeMismatch"),
        ("a.jpg", lambda: encoded("JPEG", noise(mode="CMYK")), "ImageCmyk"),
        ("a.tif", lambda: encoded("TIFF", noise(mode="CMYK")), "ImageCmyk"),
        ("a.png", lambda: encoded("PNG", noise(mode="I;16")), "ImageDeep"),
        ("a.tif", lambda: encoded("TIFF", noise(mode="I;16")), "ImageDeep"),
        ("a.gif", lambda: animated("GIF"), "ImageAnimated"),
        ("a.webp", lambda: animated("WEBP"), "ImageAnimated"),
        ("a.png", lambda: animated("PNG"), "ImageAnimated"),
        ("a.tif", lambda: animated("TIFF"), "ImageAnimated"),
        ("a.png", lambda: encoded("PNG", noise(1, 1)), "ImageTiny"),
    ],
)
def test_oddities_are_told_and_the_picture_is_taken(path: str, make: Callable[[], bytes], code: str) -> None:
    found = inspect(path, make())
    assert codes(found) == [code]
    assert found.width > 0


def animated(format: str) -> bytes:
    return encoded(format, noise(), save_all=True, append_images=[noise(), noise()])


def test_frames_are_counted() -> None:
    assert [inspect("a", animated(format)).frames for format in ("GIF", "WEBP", "PNG", "TIFF")] == [3, 3, 3, 3]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_the_one_that_pillow_turns_by(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(format, exif=exif)
    found = inspect(f"a.{KINDS[format]}", data)
    with Image.open(io.BytesIO(data)) as image:
        shown = ImageOps.exif_transpose(image).size
    assert found.orientation == orientation
    assert (found.height, found.width) == shown if orientation >= 5 else (found.width, found.height) == shown
    assert codes(found) == ([] if orientation == 1 else ["ImageRotated"])


@pytest.mark.parametrize(("frame", "codes_told"), [(0xC9, []), (0xC3, ["ImageBroken"])])
def test_a_jpeg_of_a_rare_kind_is_taken_if_it_can_be_decoded(frame: int, codes_told: list[str]) -> None:
    """Arithmetic coding can be read, lossless JPEG cannot; the structure of both is the same."""
    data = bytearray(encoded("JPEG"))
    data[data.index(b"\xff\xc0") + 1] = frame
    assert codes(inspect("a.jpg", bytes(data))) == codes_told


def test_a_jpeg_of_twelve_bits_is_named() -> None:
    data = bytearray(encoded("JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert codes(inspect("a.jpg", bytes(data))) == ["ImageTypeUnsupported"]
