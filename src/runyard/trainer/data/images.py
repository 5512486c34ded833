"""Image files decoded to what models see: EXIF orientation applied, 8 bits per channel, RGB.

The import has checked the structure of each file but not its pixels, so an image may still fail to
decode here.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000


class BrokenImage(Exception):
    """The bytes cannot be decoded; the message says why."""


def decode_image(data: bytes) -> Image.Image:
    """Return the first frame of an image file, oriented as viewers show it.

    Raises:
        BrokenImage: the file cannot be decoded, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that it reads anyway
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(
                    f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels"
                )
            image.load()
            oriented = ImageOps.exif_transpose(image)
            return _convert_to_8_bits(oriented).convert("RGB")
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly any class on unexpected bytes
        raise BrokenImage(f"{type(error).__name__}: {error}") from error


def _convert_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion would clip every value above 255."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    return (
        Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8))
        if values.max(initial=0) > 255
        else image
    )
