"""Images as models see them; ``runyard.datasets.pixels`` defines that for all parts of Runyard.

The import has checked the structure of each file but not its pixels, so an image may still fail to
decode here.
"""

from runyard.datasets.pixels import BrokenImage, convert_image, decode_image

__all__ = ["BrokenImage", "convert_image", "decode_image"]
