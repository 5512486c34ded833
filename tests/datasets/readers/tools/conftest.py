"""Two images of 40 x 20 and 30 x 30 pixels, and the boxes that a check accepts, in pixels."""

from collections.abc import Callable
from typing import Any

import pytest

Boxes = dict[str, list[tuple[str, list[float]]]]


@pytest.fixture
def images(source_folder: Any, make_png: Any) -> Any:
    return source_folder.put("images/a.png", make_png(40, 20)).put("images/b.png", make_png(30, 30))


@pytest.fixture
def list_boxes() -> Callable[[Any], Boxes]:
    """List the accepted boxes of each image: class name and corners in pixels."""

    def collect(result: Any) -> Boxes:
        found: Boxes = {}
        for record in result.records:
            size = (record.asset.width, record.asset.height) * 2
            found[record.asset.filename] = [
                (phrase.phrase, [round(v * side, 3) for v, side in zip(box, size, strict=True)])
                for phrase in record.contents.grounded_phrases
                for box in phrase.bounds
            ]
        return found

    return collect
