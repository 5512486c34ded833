"""Inspection and decoding agree on size, orientation and transparency, whatever the metadata."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from runyard.datasets.findings import KINDS
from runyard.datasets.images import Inspection, inspect
from runyard.datasets.pixels import (
    TRANSPOSES,
    BrokenImage,
    convert_image,
    decode_image,
    remove_png_pixels,
)
from tests.datasets.test_fuzz import fuzz

WIDTH, HEIGHT = 12, 9
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"


def make_corners(mode: str = "RGB") -> Image.Image:
    """An image that no transposition leaves as it is."""
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    shades = np.stack([x * 20, y * 25, (x + 2 * y) * 7], axis=-1).astype(np.uint8)
    return Image.fromarray(shades).convert(mode)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def has_errors(found: Inspection) -> bool:
    return any(KINDS[finding.code].severity == "error" for finding in found.findings)


def codes(data: bytes) -> list[str]:
    found = [finding.code for finding in inspect("a", data).findings]
    return [code for code in found if code not in ("ImageTypeMismatch", "ImageTiny")]


def assert_agreement(data: bytes, plain: Image.Image) -> None:
    """Check that ``data``, which shows ``plain`` before it is oriented, is judged as decoded."""
    found = inspect("a", data)
    try:
        decoded = decode_image(data)
    except BrokenImage:
        assert has_errors(found), "inspection accepted an image that cannot be decoded"
        return
    assert not has_errors(found), f"inspection rejected a readable image: {found.findings}"
    shown = (found.width, found.height)
    assert decoded.size == (shown[::-1] if found.orientation >= 5 else shown)
    method = TRANSPOSES.get(found.orientation)
    expected = plain if method is None else plain.transpose(method)
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))
    by_pillow = transpose_with_pillow(data)
    assert by_pillow is None or np.array_equal(np.asarray(decoded), np.asarray(by_pillow))


def transpose_with_pillow(data: bytes) -> Image.Image | None:
    """Return what Pillow's own function makes of it; None if it fails on the metadata.

    Also None for an animated PNG, of which it ignores the metadata after the first frame.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as opened:
                if opened.format == "PNG" and getattr(opened, "is_animated", False):
                    return None
                return ImageOps.exif_transpose(opened).convert("RGB")
        except Exception:
            return None


# Metadata -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """An entry of a TIFF directory; ``value`` is the inline value or the offset, as bytes."""

    tag: int
    kind: int
    count: int
    value: int

    def pack(self, order: str) -> bytes:
        head = struct.pack(f"{order}HHI", self.tag, self.kind, self.count)
        if self.kind in (3, 8) and self.count <= 2:
            return head + struct.pack(f"{order}HH", self.value & 0xFFFF, self.value & 0xFFFF)
        if self.kind in (1, 2, 6, 7):
            return head + bytes([self.value & 0xFF] * 4)
        if self.kind == 11:
            return head + struct.pack(f"{order}f", self.value)
        return head + struct.pack(f"{order}I", self.value)


ORIENTATIONS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 48 + 6, 256])
ORIENTATION_ENTRIES = st.builds(
    Entry,
    tag=st.just(274),
    kind=st.one_of(st.just(3), st.integers(0, 14)),
    count=st.one_of(st.just(1), st.integers(0, 3)),
    value=ORIENTATIONS,
)
OTHER_ENTRIES = st.builds(
    Entry,
    tag=st.sampled_from([256, 271, 282, 296, 305, 34665, 40961]),
    kind=st.integers(0, 14),
    count=st.sampled_from([0, 1, 2, 5, 9, 4000]),
    value=st.sampled_from([0, 1, 8, 20, 60, 200, 1 << 31]),
)
HEADERS = st.sampled_from([b"II*\0", b"MM\0*", b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0"])


@st.composite
def exif_blocks(draw: st.DrawFn) -> bytes:
    """EXIF data, mostly readable, without the prefix of JPEG."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=30))
    header = draw(HEADERS)
    order = "<" if header.startswith(b"II") else ">"
    entries = draw(st.lists(st.one_of(ORIENTATION_ENTRIES, OTHER_ENTRIES), max_size=4))
    count = len(entries) + draw(st.sampled_from([0, 0, 0, 1, -1]))
    at = draw(st.sampled_from([8, 8, 8, 10, 5000]))
    data = header + struct.pack(f"{order}I", at) + bytes(max(0, min(at, 10) - 8))
    data += struct.pack(f"{order}H", max(0, count))
    data += b"".join(entry.pack(order) for entry in entries) + bytes(4)
    data += bytes(draw(st.sampled_from([0, 0, 40])))
    return data[: len(data) - draw(st.sampled_from([0, 0, 0, 3, 9]))]


@st.composite
def xmp_packets(draw: st.DrawFn) -> bytes:
    value = draw(st.sampled_from([b"1", b"3", b"6", b"8", b"9", b"x", b""]))
    form = draw(
        st.sampled_from(
            [
                b'<a tiff:Orientation="%s"/>',
                b"<tiff:Orientation>%s</tiff:Orientation>",
                b"<a tiff:Orientation='%s'/>",
                b"<a orientation=%s/>",
                b"\xff\xfe%s",
            ]
        )
    )
    return form % value


# Files --------------------------------------------------------------------------------------------


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@st.composite
def jpeg_metadata(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["exif", "exif", "exif", "xmp", "comment", "photoshop", "mpf"]))
    if kind == "exif":
        prefix = b"Exif\0\0" * draw(st.sampled_from([1, 1, 1, 2]))
        return jpeg_segment(0xE1, prefix + draw(exif_blocks()))
    if kind == "xmp":
        return jpeg_segment(0xE1, XMP_PREFIX + draw(xmp_packets()))
    if kind == "comment":
        return jpeg_segment(0xFE, b"tiff:Orientation=6")
    if kind == "photoshop":
        blocks = draw(
            st.sampled_from([b"", b"8BIM\x03\xed\0", b"8BIM\x03\xed\0\0\0\0\0\x10" + b"x"])
        )
        return jpeg_segment(0xED, b"Photoshop 3.0\0" + blocks)
    return jpeg_segment(0xE2, b"MPF\0" + draw(exif_blocks()))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"dpi": (72, 72)}])
def test_every_jpeg_is_shown_as_inspected(options: dict[str, object]) -> None:
    plain = save(make_corners(), "JPEG", **options)
    shown = decode_image(plain)

    @fuzz
    @given(
        st.lists(jpeg_metadata(), max_size=3), st.lists(jpeg_metadata(), max_size=1), st.booleans()
    )
    def attempt(before: list[bytes], after: list[bytes], is_first: bool) -> None:
        at = 2 if is_first else 4 + int.from_bytes(plain[4:6], "big")
        parts = [plain[:at], *before, plain[at:-2], *after, plain[-2:]]
        assert_agreement(b"".join(parts), shown)

    attempt()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    head = struct.pack(">I", len(content)) + kind + content
    return head + struct.pack(">I", zlib.crc32(kind + content))


@st.composite
def png_metadata(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["eXIf", "profile", "xmp", "text", "gAMA", "iCCP"]))
    exif, xmp = draw(exif_blocks()), draw(xmp_packets())
    prefixed = draw(st.sampled_from([b"", b"Exif\0\0"])) + exif
    key = b"XML:com.adobe.xmp\0"
    profile = b"Raw profile type exif\0"
    text = b"\nexif\n%8d\n%s\n" % (len(prefixed), prefixed.hex().encode())
    choices = {
        "eXIf": [(b"eXIf", exif), (b"eXIf", prefixed)],
        "profile": [
            (b"tEXt", profile + text),
            (b"zTXt", profile + b"\0" + zlib.compress(text)),
            (b"tEXt", profile + b"\nexif\n 9\nnot hexadecimal"),
        ],
        "xmp": [
            (b"iTXt", key + b"\0\0\0\0" + xmp),
            (b"iTXt", key + b"\1\0\0\0" + zlib.compress(xmp)),
            (b"tEXt", key + xmp),
        ],
        "text": [(b"tEXt", b"Comment\0tiff:Orientation=6"), (b"tEXt", b"exif\0" + prefixed)],
        "gAMA": [(b"gAMA", bytes(4)), (b"gAMA", bytes(2))],
        "iCCP": [(b"iCCP", b"a\0\0x"), (b"iCCP", b"a\0\1x")],
    }
    return png_chunk(*draw(st.sampled_from(choices[kind])))


@pytest.mark.parametrize("frames", [1, 2])
def test_every_png_is_shown_as_inspected(frames: int) -> None:
    more = {"save_all": True, "append_images": [make_corners().rotate(180)]} if frames > 1 else {}
    plain = save(make_corners(), "PNG", **more)
    pixels, end = plain.index(b"IDAT") - 4, len(plain) - 12

    @fuzz
    @given(st.lists(png_metadata(), max_size=2), st.lists(png_metadata(), max_size=2))
    def attempt(before: list[bytes], after: list[bytes]) -> None:
        parts = [plain[:33], *before, plain[33:pixels], plain[pixels:end], *after, plain[end:]]
        assert_agreement(b"".join(parts), make_corners())

    attempt()


def riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_webp_is_shown_as_inspected(mode: str) -> None:
    plain = save(make_corners(mode), "WEBP", lossless=True)
    canvas = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    exif = st.builds(
        lambda prefix, block: riff_chunk(b"EXIF", prefix + block),
        st.sampled_from([b"", b"Exif\0\0"]),
        exif_blocks(),
    )
    metadata = st.one_of(exif, st.builds(lambda xmp: riff_chunk(b"XMP ", xmp), xmp_packets()))

    @fuzz
    @given(
        st.sampled_from([None, 0, 4, 8, 12, 16, 28]),
        st.lists(metadata, max_size=3),
        st.lists(metadata, max_size=1),
    )
    def attempt(flags: int | None, after: list[bytes], before: list[bytes]) -> None:
        extended = [] if flags is None else [riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + canvas)]
        body = b"WEBP" + b"".join([*extended, *before, plain[12:], *after])
        assert_agreement(riff_chunk(b"RIFF", body), make_corners())

    attempt()


@st.composite
def tiff_files(draw: st.DrawFn) -> bytes:
    """An uncompressed RGB image whose other tags are drawn."""
    header = draw(st.sampled_from([b"II*\0", b"MM\0*"]))
    order = "<" if header == b"II*\0" else ">"
    pixels = make_corners().tobytes()
    bits_at = 8 + len(pixels)
    xmp = draw(xmp_packets())
    xmp_at = bits_at + 6
    at = xmp_at + len(xmp)
    entries = [
        Entry(256, 4, 1, WIDTH),
        Entry(257, 4, 1, HEIGHT),
        Entry(258, 3, 3, bits_at),
        Entry(259, 3, 1, 1),
        Entry(262, 3, 1, 2),
        Entry(273, 4, 1, 8),
        *draw(st.lists(ORIENTATION_ENTRIES, max_size=2)),
        Entry(277, 3, 1, 3),
        Entry(278, 4, 1, HEIGHT),
        Entry(279, 4, 1, len(pixels)),
    ]
    if draw(st.booleans()):
        entries.append(Entry(700, draw(st.sampled_from([1, 1, 7, 2, 3])), len(xmp), xmp_at))
    directory = struct.pack(f"{order}H", len(entries))
    for entry in entries:
        packed = entry.pack(order)
        is_offset = entry.tag in (258, 700)
        directory += packed[:8] + struct.pack(f"{order}I", entry.value) if is_offset else packed
    is_animated = draw(st.booleans())
    following = at + len(directory) + 4 if is_animated else 0
    pages = [directory + struct.pack(f"{order}I", following)]
    if is_animated:
        pages.append(directory + bytes(4))
    bits = struct.pack(f"{order}HHH", 8, 8, 8)
    start = header + struct.pack(f"{order}I", at)
    return start + pixels + bits + xmp + b"".join(pages) + bytes(40)


@fuzz
@given(tiff_files())
def test_every_tiff_is_shown_as_inspected(data: bytes) -> None:
    assert_agreement(data, make_corners())


def test_a_gif_is_as_large_as_its_first_frame() -> None:
    data = bytearray(save(make_corners("P"), "GIF"))
    data[6:10] = struct.pack("<HH", 5, 4)  # the screen
    found = inspect("a.gif", bytes(data))
    assert (found.width, found.height) == decode_image(bytes(data)).size == (WIDTH, HEIGHT)


# Kinds of pixels ----------------------------------------------------------------------------------


def make_png(depth: int, color: int, *, transparent: bytes | None = None) -> bytes:
    """A PNG of 8 x 8 pixels with the values 0, 1, 2, ... in each row, where they fit."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    bits = "".join(f"{(n % 8) % (1 << depth):0{depth}b}" for n in range(8) for _ in range(channels))
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, 0))]
    if color == 3:
        chunks.append(png_chunk(b"PLTE", bytes(range(min(256, 1 << depth) * 3 % 256)) or b"abc"))
    if transparent is not None:
        chunks.append(png_chunk(b"tRNS", transparent))
    chunks += [png_chunk(b"IDAT", zlib.compress(row * 8)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("color", range(8))
@pytest.mark.parametrize("transparent", [None, b"\0\1\0\1\0\1", b"\0"])
def test_every_kind_of_png_is_accepted_if_it_can_be_decoded(
    depth: int, color: int, transparent: bytes | None
) -> None:
    data = make_png(depth, color, transparent=transparent)
    try:
        decoded = decode_image(data)
    except BrokenImage:
        assert has_errors(inspect("a", data))
        return
    assert decoded.mode == "RGB"
    expected = ["ImageDeep"] if depth == 16 else []
    if color in (4, 6) or (transparent is not None and color in (0, 2, 3)):
        expected.append("ImageAlpha")
    assert codes(data) == expected


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_gray_is_compared_in_the_depth_of_the_file(depth: int) -> None:
    data = make_png(depth, 0, transparent=b"\0\1")
    row = np.asarray(decode_image(data))[0, :, 0].tolist()
    scale = 1 if depth == 16 else 255 // ((1 << depth) - 1)
    values = [n % (1 << depth) for n in range(8)]
    assert row == [255 if value == 1 else value * scale for value in values]


BITS = [(1,), (8,), (12,), (16,), (32,), (8, 8), (8, 8, 8), (16, 16, 16), (8, 8, 8, 8)]


@fuzz
@given(
    st.sampled_from([b"II*\0", b"MM\0*"]),
    st.sampled_from(BITS),
    st.sampled_from([0, 1, 2, 3, 5, 6, 8]),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from([None, 0, 1, 2, 999]),
)
def test_every_kind_of_tiff_is_accepted_if_it_can_be_decoded(
    header: bytes, bits: tuple[int, ...], colors: int, sample_format: int, extra: int | None
) -> None:
    order = "<" if header == b"II*\0" else ">"
    row_bytes = (8 * sum(bits) + 7) // 8
    bits_at, palette_at, pixels_at = 8, 32, 32 + 3 * 2 * 256
    entries = [
        Entry(256, 3, 1, 8),
        Entry(257, 3, 1, 8),
        Entry(258, 3, len(bits), bits_at if len(bits) > 2 else bits[0]),
        Entry(259, 3, 1, 1),
        Entry(262, 3, 1, colors),
        Entry(273, 4, 1, pixels_at),
        Entry(277, 3, 1, len(bits)),
        Entry(279, 4, 1, row_bytes * 8),
        Entry(320, 3, 3 * (1 << min(8, bits[0])), palette_at),
        *([] if extra is None else [Entry(338, 3, 1, extra)]),
        Entry(339, 3, 1, sample_format),
    ]
    packed = b"".join(
        entry.pack(order)[:8] + struct.pack(f"{order}I", entry.value)
        if entry.kind == 3 and entry.count > 2
        else entry.pack(order)
        for entry in entries
    )
    stored_bits = struct.pack(f"{order}{len(bits)}H", *bits).ljust(palette_at - bits_at, b"\0")
    at = pixels_at + row_bytes * 8
    data = header + struct.pack(f"{order}I", at) + stored_bits + bytes(range(256)) * 6
    data += bytes(n * 37 % 251 for n in range(row_bytes * 8))
    data += struct.pack(f"{order}H", len(entries)) + packed + bytes(4)
    try:
        decoded = decode_image(data)
    except BrokenImage:
        assert has_errors(inspect("a", data))
        return
    assert decoded.mode == "RGB"
    found = codes(data)
    assert ("ImageDeep" in found) == (max(bits) > 8)
    assert ("ImageCmyk" in found) == (colors == 5)
    assert "ImageAlpha" in found or extra is None


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
        *[("PNG", mode) for mode in ("1", "L", "P", "RGB", "I;16")],
        *[("TIFF", mode) for mode in ("1", "L", "P", "RGB", "I;16", "I", "CMYK", "YCbCr")],
        *[("GIF", mode) for mode in ("1", "L", "P")],
        *[("BMP", mode) for mode in ("1", "L", "P", "RGB")],
        *[("WEBP", mode) for mode in ("L", "RGB")],
    ],
)
def test_an_opaque_image_has_the_pixels_that_pillow_gives(format: str, mode: str) -> None:
    data = save(make_corners(mode), format)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(decode_image(data)), np.asarray(opened.convert("RGB")))
    assert "ImageAlpha" not in codes(data)


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")]
)
def test_transparency_is_shown_on_white(format: str, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 0, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    data = save(image.convert(mode), format, **({"lossless": True} if format == "WEBP" else {}))
    decoded = decode_image(data)
    assert codes(data) == ["ImageAlpha"]
    assert [decoded.getpixel((n, n)) for n in (0, 1, 2)] == [(255,) * 3, (0,) * 3, (127,) * 3]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_color_of_a_palette_is_shown_on_white(format: str) -> None:
    data = save(make_corners("P"), format, transparency=make_corners("P").getpixel((0, 0)))
    assert codes(data) == ["ImageAlpha"]
    assert decode_image(data).getpixel((0, 0)) == (255, 255, 255)


def test_an_alpha_channel_without_transparency_changes_nothing() -> None:
    image = make_corners()
    image.putalpha(255)
    assert np.array_equal(np.asarray(decode_image(save(image, "PNG"))), np.asarray(make_corners()))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0, 0.5, 1, -1], [0, 128, 255, 0]),
        ([NAN, 0.5, INF, -INF], [0, 128, 255, 0]),
        ([0, 1.9, 3.5, 255], [0, 1, 3, 255]),
        ([0, 256, 65535, 70000], [0, 1, 255, 255]),
        ([INF, NAN, NAN, NAN], [255, 0, 0, 0]),
    ],
)
def test_floating_point_values_are_scaled_by_their_range(
    values: list[float], shown: list[int]
) -> None:
    data = save(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == shown
    assert codes(data) == ["ImageDeep"]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("highest", [255, 256, 4095, 65535])
def test_deep_integers_keep_their_upper_bits(format: str, highest: int) -> None:
    values = np.linspace(0, highest, 600).astype(np.uint16).reshape(20, 30)
    gray = np.asarray(decode_image(save(Image.fromarray(values), format)))[..., 0]
    assert np.array_equal(gray, values if highest <= 255 else values >> 8)


def test_an_image_from_a_file_is_converted_as_in_training_and_another_keeps_its_sides() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = save(make_corners(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert isinstance(opened, ImageFile.ImageFile)
        shown = convert_image(opened)
        rotated = opened.rotate(90)
        assert convert_image(ImageOps.exif_transpose(opened)).size == shown.size
    assert np.array_equal(np.asarray(shown), np.asarray(decode_image(data)))
    assert convert_image(rotated).size == rotated.size
    assert convert_image(convert_image(shown)).size == shown.size


def test_a_png_without_pixels_keeps_its_other_chunks() -> None:
    data = save(make_corners(), "PNG", pnginfo=None, exif=b"Exif\0\0II*\0" + bytes(4))
    assert remove_png_pixels(data).count(b"eXIf") == 1
    assert b"IDAT" not in remove_png_pixels(data)
