"""What is held out is decided by content, seed and share alone."""

import hashlib

from runyard.datasets.splits import is_held_out


def test_the_split_is_by_content_and_seed_alone() -> None:
    pictures = [hashlib.sha256(bytes([number])).digest() for number in range(200)]
    first = [is_held_out(picture, seed=1, fraction=0.2) for picture in pictures]
    assert first == [is_held_out(picture, seed=1, fraction=0.2) for picture in pictures]
    assert first != [is_held_out(picture, seed=2, fraction=0.2) for picture in pictures]
    # A larger share only adds.
    assert all(is_held_out(picture, seed=1, fraction=0.5) for picture, was in zip(pictures, first, strict=True) if was)
