"""The held-out split, decided by each image's content, so that adding images moves none to the
other part.
"""

import hashlib


def is_held_out(sha256: bytes, *, seed: int, fraction: float) -> bool:
    """Return whether the image with this SHA-256 (32 bytes, of its file) belongs to the held-out
    part.
    """
    digest = hashlib.sha256(seed.to_bytes(8, "big") + sha256).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
