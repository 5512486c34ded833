"""The image of a label file, in every arrangement of folders."""

from typing import Any

import pytest

ROW = "0 0.3 0.35 0.4 0.5"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a.png", "a.txt"),
        ("images/train/a.png", "labels/train/a.txt"),
        ("train/images/a.png", "train/labels/a.txt"),
        ("x/labels/images/a.png", "x/labels/labels/a.txt"),
        ("labels/images/a.png", "labels/labels/a.txt"),
        ("Images/a.png", "Labels/a.txt"),
        ("IMAGES/a.png", "labels/a.txt"),
        ("images/A.PNG", "labels/a.txt"),
        ("images/a.png", "labels/a.png.txt"),
        ("images/a_jpg.rf.01.png", "labels/a_jpg.rf.01.txt"),
        ("img/a.png", "lbl/a.txt"),
        ("img/a.png", "annotations/a.txt"),
        ("images/Capture_décran.png", "labels/Capture_d%C3%A9cran.txt"),
        ("images/a b.png", "labels/a%20b.txt"),
    ],
)
def test_the_image_of_a_label_file_is_found(put_images: Any, image: str, label: str) -> None:
    result = put_images(image).put(label, ROW).put("classes.txt", "tin").check()
    assert [record.asset.filename for record in result.records] == [image]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("valid/images/a.png", "train/labels/a.txt"),
        ("images/val/a.png", "labels/train/a.txt"),
        ("test/a.png", "train/a.txt"),
    ],
)
def test_labels_never_belong_to_an_image_of_another_split(
    put_images: Any, image: str, label: str
) -> None:
    result = put_images(image).put(label, ROW).put("classes.txt", "tin").check()
    assert (result.records, result.codes[0]) == ([], "ImageMissing")


@pytest.mark.parametrize("images", [("images/a.png", "images/a.webp.png", "images/a.jpg")])
def test_two_images_of_one_name_are_not_chosen_from(
    put_images: Any, images: tuple[str, ...]
) -> None:
    result = put_images(*images).put("labels/a.txt", ROW).put("classes.txt", "tin").check()
    assert (result.records, result.codes[-2]) == ([], "ImageAmbiguous")


@pytest.mark.parametrize("folders", [("one", "two"), ("x/one", "x/two")])
def test_two_label_files_of_one_image_are_both_rejected(
    put_images: Any, folders: tuple[str, str]
) -> None:
    folder = put_images("img/a.png").put("classes.txt", "tin")
    for name in folders:
        folder.put(f"{name}/a.txt", ROW)
    result = folder.check()
    errors = [found.code for found in result.findings if found.severity == "error"]
    assert (result.records, errors) == ([], ["ImageAmbiguous", "ImageAmbiguous"])
