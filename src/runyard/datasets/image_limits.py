"""What images may be at most, for the inspection, which imports no Pillow, and for decoding."""

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # the only formats that Pillow may open
