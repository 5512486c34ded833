"""Which pictures are held out: a rule of their content, so that adding pictures moves none to the other side."""

import hashlib


def is_held_out(sha256: bytes, *, seed: int, fraction: float) -> bool:
    """Whether the picture with this SHA-256 (32 bytes, of its file) belongs to the held-out part."""
    digest = hashlib.sha256(seed.to_bytes(8, "big") + sha256).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
