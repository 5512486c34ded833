"""Really encoded images of every kind, complete and broken: inspection agrees with Pillow."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageOps

from runyard.datasets import images
from runyard.datasets.images import Inspection, inspect

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def make_noise(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 60).convert(mode)


def encode_image(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or make_noise()).save(file, format, **options)
    return file.getvalue()


def codes(found: Inspection) -> list[str]:
    return [finding.code for finding in found.findings]


@pytest.mark.parametrize("format", KINDS)
def test_a_valid_image_has_its_size_and_no_findings(format: str) -> None:
    found = inspect(f"a.{KINDS[format]}", encode_image(format))
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
def test_jpegs_of_every_layout_are_complete(options: dict[str, Any]) -> None:
    assert codes(inspect("a.jpg", encode_image("JPEG", **options))) == []


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"exif": Image.Exif()}, {"icc_profile": b"x" * 99}]
)
def test_webps_of_every_layout_are_complete(options: dict[str, Any]) -> None:
    found = inspect("a.webp", encode_image("WEBP", **options))
    assert (found.width, found.height, codes(found)) == (60, 40, [])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiffs_of_every_compression_are_complete(compression: str) -> None:
    assert codes(inspect("a.tif", encode_image("TIFF", compression=compression))) == []


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_image_is_reported(format: str, share: float) -> None:
    data = encode_image(format)
    found = inspect(f"a.{KINDS[format]}", data[: int(len(data) * share)])
    assert codes(found)[-1] in ("ImageTruncated", "ImageBroken")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_an_image_is_complete_only_with_its_last_byte(format: str) -> None:
    data = encode_image(format)
    for end in range(len(data) - 12, len(data)):
        assert codes(inspect(f"a.{KINDS[format]}", data[:end])), f"{end} of {len(data)} bytes"


def test_a_jpeg_without_an_end_marker_is_truncated() -> None:
    data = encode_image("JPEG")
    half = len(data) // 2
    assert codes(inspect("a.jpg", data[:half] + bytes(len(data) - half))) == ["ImageTruncated"]


def test_a_flipped_bit_in_a_png_is_detected() -> None:
    data = bytearray(encode_image("PNG"))
    data[len(data) // 2] ^= 4
    assert codes(inspect("a.png", bytes(data))) == ["ImageBroken"]


@pytest.mark.parametrize(
    ("data", "code", "cause"),
    [
        (b"", "ImageEmpty", "no bytes"),
        (bytes(500), "ImageBroken", "zero"),
        (b"<!DOCTYPE html><html>404</html>", "ImageBroken", "web page"),
        (b"hello, world, how are you", "ImageBroken", "cannot read it as an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "ImageTypeUnsupported", "SVG"),
        (b"8BPS" + bytes(40), "ImageTypeUnsupported", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "ImageTypeUnsupported", "PostScript"),
        (b"SIMPLE  =                    T", "ImageTypeUnsupported", "FITS"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "ImageTypeUnsupported", "AVIF"),
        (b"\xff\xd8\xff\xe0\0\x04ab\xff\xd9", "ImageBroken", "no pixel data"),
    ],
)
def test_a_file_that_is_not_an_image_is_reported(data: bytes, code: str, cause: str) -> None:
    found = inspect("a.jpg", data)
    assert codes(found) == [code]
    assert cause in found.findings[0].cause


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"x"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encode_image("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [png_of_size(65535, 65535), png_of_size(2**31 - 1, 2**31 - 1), jpeg_of_size(65535, 65535)],
)
def test_an_image_that_would_fill_memory_is_rejected_by_its_header(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_use_pillow", None)  # nothing may be decoded
    assert codes(inspect("a.png", data)) == ["ImageTooLarge"]


def test_a_large_tiff_is_rejected_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40 - 1)
    monkeypatch.setattr(images, "_use_pillow", None)
    assert codes(inspect("a.tif", encode_image("TIFF", compression="tiff_lzw"))) == [
        "ImageTooLarge"
    ]


@pytest.mark.parametrize(
    ("path", "make", "code"),
    [
        ("a.png", lambda: encode_image("JPEG"), "ImageTypeMismatch"),
        ("a", lambda: encode_image("PNG"), "ImageTypeMismatch"),
        ("a.jpg", lambda: encode_image("JPEG", make_noise(mode="CMYK")), "ImageCmyk"),
        ("a.tif", lambda: encode_image("TIFF", make_noise(mode="CMYK")), "ImageCmyk"),
        ("a.png", lambda: encode_image("PNG", make_noise(mode="I;16")), "ImageDeep"),
        ("a.tif", lambda: encode_image("TIFF", make_noise(mode="I;16")), "ImageDeep"),
        ("a.gif", lambda: encode_animation("GIF"), "ImageAnimated"),
        ("a.webp", lambda: encode_animation("WEBP"), "ImageAnimated"),
        ("a.png", lambda: encode_animation("PNG"), "ImageAnimated"),
        ("a.tif", lambda: encode_animation("TIFF"), "ImageAnimated"),
        ("a.png", lambda: encode_image("PNG", make_noise(1, 1)), "ImageTiny"),
    ],
)
def test_warnings_are_reported_and_the_image_is_accepted(
    path: str, make: Callable[[], bytes], code: str
) -> None:
    found = inspect(path, make())
    assert codes(found) == [code]
    assert found.width > 0


def encode_animation(format: str) -> bytes:
    return encode_image(
        format, make_noise(), save_all=True, append_images=[make_noise(), make_noise()]
    )


def test_frames_are_counted() -> None:
    assert [
        inspect("a", encode_animation(format)).frames for format in ("GIF", "WEBP", "PNG", "TIFF")
    ] == [3, 3, 3, 3]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_the_one_that_pillow_applies(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encode_image(format, exif=exif)
    found = inspect(f"a.{KINDS[format]}", data)
    with Image.open(io.BytesIO(data)) as image:
        format_value = ImageOps.exif_transpose(image).size
    assert found.orientation == orientation
    assert (
        (found.height, found.width) == format_value
        if orientation >= 5
        else (found.width, found.height) == format_value
    )
    assert codes(found) == ([] if orientation == 1 else ["ImageRotated"])


@pytest.mark.parametrize(("frame", "expected_codes"), [(0xC9, []), (0xC3, ["ImageBroken"])])
def test_a_jpeg_of_a_rare_kind_is_accepted_if_it_can_be_decoded(
    frame: int, expected_codes: list[str]
) -> None:
    """Arithmetic coding can be read, lossless JPEG cannot; the structure of both is the same."""
    data = bytearray(encode_image("JPEG"))
    data[data.index(b"\xff\xc0") + 1] = frame
    assert codes(inspect("a.jpg", bytes(data))) == expected_codes


def test_a_jpeg_with_twelve_bits_is_reported() -> None:
    data = bytearray(encode_image("JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert codes(inspect("a.jpg", bytes(data))) == ["ImageTypeUnsupported"]
