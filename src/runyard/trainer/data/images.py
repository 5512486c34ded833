"""Pictures as people sent them, made into what models see: turned as EXIF says, 8 bits a channel, RGB.

The import has looked at each file's structure, not at its pixels, so a picture may still turn out to be broken here.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 50_000_000


class BrokenPicture(Exception):
    """The bytes cannot be decoded; the message says why."""


def decoded(data: bytes) -> Image.Image:
    """The first frame of a picture file, as it is shown.

    Raises:
        BrokenPicture: the file holds no picture that can be read, or one of more than 50 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities that Pillow tells and reads anyway
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise BrokenPicture(f"{image.width} x {image.height} are more than {MOST_PIXELS:,} pixels")
            image.load()
            shown = ImageOps.exif_transpose(image)
            return _to_8_bits(shown).convert("RGB")
    except (BrokenPicture, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly everything on bytes they did not expect
        raise BrokenPicture(f"{type(error).__name__}: {error}") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; Pillow's own conversion would cut everything above 255 off."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8)) if values.max(initial=0) > 255 else image
