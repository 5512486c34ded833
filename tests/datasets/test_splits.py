"""The held-out split depends only on content, seed and share."""

import hashlib

from runyard.datasets.splits import is_held_out


def test_the_split_is_by_content_and_seed_alone() -> None:
    images = [hashlib.sha256(bytes([number])).digest() for number in range(200)]
    first = [is_held_out(image, seed=1, fraction=0.2) for image in images]
    assert first == [is_held_out(image, seed=1, fraction=0.2) for image in images]
    assert first != [is_held_out(image, seed=2, fraction=0.2) for image in images]
    # A larger share only adds.
    assert all(
        is_held_out(image, seed=1, fraction=0.5)
        for image, was in zip(images, first, strict=True)
        if was
    )
