"""Which pictures are held out: content, seed and fraction alone decide, so that adding pictures moves none across."""

import hashlib


def is_held_out(sha256: str, *, seed: int, fraction: float) -> bool:
    """Whether the picture with these bytes (hex digits of their SHA-256) belongs to the held-out part."""
    digest = hashlib.sha256(seed.to_bytes(8, "big") + bytes.fromhex(sha256)).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
