"""Class folders, whatever is around them."""

from collections.abc import Callable
from typing import Any

import pytest

Check = Callable[..., Any]


@pytest.fixture
def check(source_folder: Any, make_png: Callable[..., bytes]) -> Check:
    """Check a folder with these images and documents."""

    def put_and_check(images: str, documents: str = "") -> Any:
        for number, path in enumerate(images.split()):
            source_folder.put(path, make_png(30 + number))
        for path in documents.split():
            source_folder.put(path, "about")
        return source_folder.check("freeform")

    return put_and_check


@pytest.mark.parametrize(
    ("images", "documents", "classes"),
    [
        ("tin/1.png jar/2.png", "", "jar tin"),
        ("train/tin/1.png train/jar/2.png valid/tin/3.png", "README.dataset.txt", "jar tin tin"),
        ("dataset/train/tin/1.png dataset/train/jar/2.png", "dataset/LICENSE", "jar tin"),
        ("Images/tin/1.png Images/jar/2.png", "requirements.txt classes.txt", "jar tin"),
        ("seg_train/seg_train/sea/1.png seg_test/seg_test/ice/1.png", "", "ice sea"),
        ("tin/images/1.png jar/images/2.png", "", "jar tin"),
        ("train/images/tin/1.png test/images/jar/2.png", "notes.md", "jar tin"),
        ("tin/1.png jar/2.png tin/.ipynb_checkpoints/3.png .thumbs/4.png", "", "jar tin"),
    ],
)
def test_classes_are_found_below_other_folders(
    check: Check, images: str, documents: str, classes: str
) -> None:
    result = check(images, documents)
    assert result.outcome.format == "Captions"
    assert [record.contents.text for record in result.records] == classes.split()


@pytest.mark.parametrize(
    ("images", "documents", "part"),
    [
        ("tin/1.png tin/2.png", "", "'tin'"),
        ("train/tin/1.png val/tin/2.png", "", "'tin'"),
        ("data/images/tin/1.png", "", "'tin'"),
        ("food/tin/1.png food/jar/2.png toys/car/3.png", "", "'food/jar' is nested"),
        ("images/1.png images/2.png", "", ""),
        ("images/1.png masks/1.png", "", ""),
        ("training/image_2/1.png training/semantic/1.png", "", ""),
        ("image_2/1.png semantic_rgb/1.png instance/1.png", "", ""),
        ("images/1.png more/1.png other/2.png", "", ""),
        ("tin/1.png jar/2.png", "labels.csv", ""),
        ("tin/1.png jar/2.png", "train.json", ""),
    ],
)
def test_folders_that_may_not_be_classes_give_no_rows(
    check: Check, images: str, documents: str, part: str
) -> None:
    result = check(images, documents)
    assert result.records == []
    causes = [found.cause for found in result.findings if found.code == "AnnotationsAbsent"]
    assert any("have no rows" in cause for cause in causes)
    assert len(causes) == 1 + bool(part) and part in causes[0]


def test_images_next_to_class_folders_are_reported_by_name(check: Check) -> None:
    result = check("tin/1.png jar/2.png logo.png plot.png")
    ignored = [found.file for found in result.findings if found.code == "FileIgnored"]
    assert (len(result.records), ignored) == (2, ["logo.png", "plot.png"])
