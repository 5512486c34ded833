"""Folders of images with labels in text files, and the boxes that are read from them."""

from collections.abc import Callable
from typing import Any

import pytest

TIN = (0.1, 0.1, 0.5, 0.6)
Boxes = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def put_images(source_folder: Any, make_png: Any) -> Callable[..., Any]:
    """Put images of 200 x 100 pixels of different colors: ``put_images("a.png", "b.png")``."""

    def put(*paths: str) -> Any:
        for number, path in enumerate(paths):
            source_folder.put(path, make_png(200, 100, (number % 200, number // 200, 7)))
        return source_folder

    return put


@pytest.fixture
def put_labels(put_images: Any) -> Callable[..., Any]:
    """Put an image, its label file, and a list of the classes tin and jar."""

    def put(text: str | bytes, **files: str) -> Any:
        folder = put_images("images/a.png").put("labels/a.txt", text)
        for path, content in (files or {"classes.txt": "tin\njar\n"}).items():
            folder.put(path, content)
        return folder

    return put


@pytest.fixture
def list_boxes() -> Callable[[Any], Boxes]:
    """List the boxes of each image of a result: name, then rounded corners."""

    def list_all(result: Any) -> Boxes:
        found: Boxes = {}
        for record in result.records:
            found[record.asset.filename] = [
                (phrase.phrase, *(round(number, 4) for number in box))
                for phrase in record.contents.grounded_phrases
                for box in phrase.bounds
            ]
        return found

    return list_all
