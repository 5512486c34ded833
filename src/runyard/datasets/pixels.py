"""Image files decoded to what models see: as displayed, in RGB with 8 bits per channel.

The one definition for check, preview, import, training and prediction:

* Orientation: what Pillow finds in the metadata (EXIF, then XMP, wherever the file type keeps
  them). Metadata that cannot be read counts as none.
* Transparency: alpha channels and transparent colors are composited on white.
* Depth: integers are reduced to their upper 8 bits if any value is above 255, and kept otherwise.
  Floating-point values up to 1 are multiplied by 255, up to 255 kept, and above that treated as
  16-bit integers. Values below 0 and NaN become 0.

Inspection (``images``) reads size and orientation from the same functions without decoding.
"""

import io
import warnings
from collections.abc import Iterator
from typing import Any, cast

from PIL import ExifTags, Image, ImageFile, ImageMath, UnidentifiedImageError

from runyard.datasets.image_limits import FORMATS, MAX_PIXELS

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNSUPPORTED_MODES = {"LAB": "Lab colors"}
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_EXTRA_SAMPLES = 256, 257, 258, 338
_TIFF_ALPHA = {1, 2, 999}  # associated, unassociated, and what CorelDRAW writes
_PNG_PIXEL_CHUNKS = (b"IDAT", b"acTL", b"fcTL", b"fdAT")


class BrokenImage(Exception):
    """The image cannot be used; the message says why."""


def decode_image(data: bytes, *, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Return the first frame of an image file as displayed, in mode RGB.

    With ``at_least``, a JPEG may be decoded at a fraction of its size that is not below it.

    Raises:
        BrokenImage: the file cannot be decoded, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that it reads anyway
            image = open_image(data)
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(
                    f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels"
                )
            orientation = read_orientation(image, data)
            if at_least is not None:
                image.draft("RGB", at_least)
            image.load()
            if image.format == "TIFF":
                orientation = 1  # Pillow has transposed it
            return _transpose(_convert(image, _read_depth(image, data)), orientation)
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # whose message has an address in memory
        raise BrokenImage("Pillow cannot identify its format") from error
    except Exception as error:  # Pillow's readers raise nearly any class on unexpected bytes
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def convert_image(image: Image.Image) -> Image.Image:
    """Return an image that a program has opened or made as ``decode_image`` returns it.

    Only an image that comes directly from a file is oriented: a processed image has its orientation
    already, while the metadata of the file may still be attached to it.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return _convert(image)
    image.load()
    if image.format == "TIFF":  # which Pillow has transposed
        return _convert(image, _read_depth(image, b""))
    return _transpose(_convert(image), _find_orientation(image))


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Open an image file without decoding it; Pillow raises nearly any class if it cannot."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]  # a TIFF tag of another type, on which Pillow fails when it decodes
    return image


def read_orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the orientation, 1 to 8, of an opened image, before it is decoded."""
    if image.format != "PNG":
        return _find_orientation(image)
    # Metadata may follow the pixels, and Pillow would decode these first.
    return _find_orientation(open_image(remove_png_pixels(data)))


def read_stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return width and height before the image is oriented."""
    if image.format != "TIFF":
        return image.size
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])


def has_alpha(image: Image.Image) -> bool:
    """Return whether an opened image has transparency that is to be composited."""
    if image.format == "TIFF":
        # Without a declaration the fourth channel may be anything, such as infrared.
        return image.has_transparency_data and not _TIFF_ALPHA.isdisjoint(read_extra_samples(image))
    return image.has_transparency_data


def read_extra_samples(image: Image.Image) -> tuple[int, ...]:
    """Return the kinds of the extra channels that a TIFF declares."""
    tags: Any = getattr(image, "tag_v2", {})
    return tuple(tags.get(_TIFF_EXTRA_SAMPLES, ()))


def describe_depth(image: Image.Image) -> str | None:
    """Describe values of more than 8 bits in an opened TIFF; None if it has none."""
    if image.mode == "F":
        return "floating-point values"
    bits = _read_depth(image, b"")
    return f"{bits} bits per channel" if bits > 8 else None


def remove_png_pixels(data: bytes) -> bytes:
    """Return a PNG with all chunks but those of the pixels and frames."""
    kept = [data[:8]]
    for kind, start, end in _list_png_chunks(data):
        if kind not in _PNG_PIXEL_CHUNKS:
            kept.append(data[start:end])
    return b"".join(kept)


def _list_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind, start and end of each complete chunk."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield data[at + 4 : at + 8], at, end
        at = end


def _find_orientation(image: Image.Image) -> int:
    try:
        # The method of PngImageFile would decode the image first.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata, on which Pillow raises nearly any class
        return 1
    return next((number for number in TRANSPOSES if number == value), 1)


def _transpose(image: Image.Image, orientation: int) -> Image.Image:
    method = TRANSPOSES.get(orientation)
    return image if method is None else image.transpose(method)


def _read_depth(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel in the file, where Pillow's mode does not show them."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        bits: tuple[int, ...] = image.tag_v2.get(_TIFF_BITS, (1,))  # type: ignore[attr-defined]
        return max(bits)
    return 16 if image.mode in _DEEP_MODES else 8


def _convert(image: Image.Image, depth: int | None = None) -> Image.Image:
    """Convert to RGB, with transparency on white; ``depth`` is the bits per channel in the file."""
    if image.mode in UNSUPPORTED_MODES:
        raise BrokenImage(f"{UNSUPPORTED_MODES[image.mode]} are not supported")
    if image.mode in _DEEP_MODES:
        return _convert_deep(image, depth or 16)
    if not has_alpha(image):
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    with_alpha = _scale_transparent_color(image, depth or 8).convert("RGBA")
    alpha = with_alpha.getchannel("A")
    lowest, highest = cast("tuple[int, int]", alpha.getextrema())
    if lowest == 255 or (image.format == "BMP" and highest == 0):
        return image.convert("RGB")  # programs that write BMP often leave its alpha at zero
    return _composite(with_alpha.convert("RGB"), alpha)


def _composite(image: Image.Image, alpha: Image.Image) -> Image.Image:
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(image, mask=alpha)
    return on_white


def _scale_transparent_color(image: Image.Image, depth: int) -> Image.Image:
    """Bring the transparent color of a PNG from the depth of the file to 8 bits, as its pixels."""
    color = image.info.get("transparency")
    if depth == 8 or image.mode not in ("L", "RGB") or isinstance(color, bytes):
        return image
    values = color if isinstance(color, tuple) else (color,)
    scaled = tuple(v >> 8 if depth == 16 else v * 255 // ((1 << depth) - 1) for v in values)
    image.info["transparency"] = scaled if isinstance(color, tuple) else scaled[0]
    return image


def _convert_deep(image: Image.Image, depth: int) -> Image.Image:
    if image.mode == "F":
        return _reduce_floats(image).convert("RGB")
    values = image.convert("I")
    gray = values
    if _find_highest(values) > 255:
        step = 16 if depth == 12 else 256
        gray = values.point(lambda value: value / step)
    color = gray.convert("L").convert("RGB")
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return color
    visible = ImageMath.lambda_eval(
        lambda names: (names["values"] != transparent) * 255, values=values
    )
    return _composite(color, visible.convert("L"))


def _reduce_floats(image: Image.Image) -> Image.Image:
    """Return mode L. Comparing with NaN is false, so the larger of NaN and 0 is 0."""
    values: Image.Image = ImageMath.lambda_eval(
        lambda names: names["max"](names["v"], 0.0), v=image
    )
    finite = ImageMath.lambda_eval(
        lambda names: names["max"](names["v"] * (names["v"] < float("inf")), 0.0), v=values
    )
    highest = _find_highest(finite)
    if highest <= 1:
        values = values.point(lambda value: value * 255 + 0.5)
    elif highest > 255:
        values = values.point(lambda value: value / 256)
    return values.convert("L")


def _find_highest(image: Image.Image) -> float:
    """Return the highest value of an image with one channel."""
    return cast("tuple[float, float]", image.getextrema())[1]
