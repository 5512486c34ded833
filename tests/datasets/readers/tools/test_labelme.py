"""LabelMe: a JSON file per image, with shapes in pixels and perhaps the image itself."""

import base64
import json
from typing import Any

import pytest

from runyard.datasets.readers.sniffing import sniff_json
from runyard.datasets.readers.tools.labelme import LabelMeReader
from runyard.datasets.sources import FolderSource

SQUARE = [[4, 2], [12, 6]]


def shape(points: Any, kind: str | None = "rectangle", label: Any = "tin") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, "group_id": None}


def labelme(*shapes: Any, **more: Any) -> str:
    document = {"version": "5.2.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png"}
    sizes = {"imageData": None, "imageHeight": 20, "imageWidth": 40}
    return json.dumps(document | sizes | more)


@pytest.mark.parametrize(
    ("shapes", "box"),
    [
        (shape(SQUARE), [4, 2, 12, 6]),
        (shape([[12, 6], [4, 2]]), [4, 2, 12, 6]),
        (shape([[4, 2], [12, 2], [12, 6], [4, 6]]), [4, 2, 12, 6]),
        (shape([[4, 2], [12, 2], [8, 6]], "polygon"), [4, 2, 12, 6]),
        (shape([[4, 2], [12, 2], [8, 6]], None), [4, 2, 12, 6]),
        (shape([[10, 10], [13, 14]], "circle"), [5, 5, 15, 15]),
        (shape([["4", "2.5"], ["12", "6"]]), [4, 2.5, 12, 6]),
    ],
)
def test_each_shape_becomes_its_bounding_box(
    images: Any, list_boxes: Any, shapes: Any, box: list[float]
) -> None:
    result = images.put("images/a.json", labelme(shapes)).check()
    assert (result.outcome.format, result.findings[1:]) == ("LabelMe", [])
    assert list_boxes(result) == {"images/a.png": [("tin", box)]}


@pytest.mark.parametrize(
    "more",
    [
        {"imagePath": "..\\images\\a.png"},
        {"imagePath": "C:\\data\\images\\a.png"},
        {"imagePath": "a.jpg"},
        {"imagePath": None},
        {"imageHeight": None, "imageWidth": None},
        {"imageHeight": 0, "imageWidth": 0},
        {"imageData": "not used"},
    ],
)
def test_the_image_is_found_under_an_old_name(images: Any, list_boxes: Any, more: Any) -> None:
    result = images.put("labels/a.json", labelme(shape(SQUARE), **more)).check()
    assert [found.code for found in result.findings] == ["AnnotationsAbsent"]
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}


def test_an_embedded_image_is_used_if_there_is_no_file(
    images: Any, make_png: Any, list_boxes: Any
) -> None:
    data = base64.b64encode(make_png(40, 20, (1, 2, 3))).decode()
    text = labelme(shape(SQUARE), imagePath="gone.png", imageData=data)
    result = images.put("labels/c.json", text).check()
    assert list_boxes(result) == {"labels/c.png": [("tin", [4, 2, 12, 6])]}


@pytest.mark.parametrize("data", ["AAAA", "no base64!", 5, [1]])
def test_a_damaged_embedded_image_is_reported(images: Any, data: Any) -> None:
    text = labelme(shape(SQUARE), imagePath="gone.png", imageData=data)
    result = images.put("labels/c.json", text).check()
    assert result.records == []
    assert ("ImageMissing", "labels/c.json") in [(one.code, one.file) for one in result.findings]


def test_shapes_without_a_box_are_counted_once(images: Any, list_boxes: Any) -> None:
    points = [shape([[1, 1]], "point"), shape([[1, 1], [2, 2]], "line")]
    result = (
        images.put("images/a.json", labelme(shape(SQUARE), *points, points[0]))
        .put("images/b.json", labelme(points[0], imagePath="b.png"))
        .check()
    )
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}
    found = [one for one in result.findings if one.code == "AnnotationsIgnored"]
    assert [(one.file, one.field, one.value) for one in found] == [
        ("images/a.json", "shapes[1]", "3"),
        ("images/a.json", "shapes[2]", "1"),
    ]
    assert found[0].cause.startswith("left out: 3 shapes of type point in 2 files")


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (shape([[4, 2]]), "FieldInvalid", "shapes[1].points"),
        (shape([[4, 2], [1, None]]), "FieldInvalid", "shapes[1].points"),
        (shape([[4, 2], [5, 5]], "polygon"), "FieldInvalid", "shapes[1].points"),
        (shape(SQUARE, "blob"), "FieldInvalid", "shapes[1].shape_type"),
        (shape(SQUARE, label=None), "FieldMissing", "shapes[1].points"),
        (shape([[4, 2], [4, 6]]), "BoxEmpty", "shapes[1].points"),
        (shape([[4, float("nan")], [4, 6]]), "BoxNotFinite", "shapes[1].points"),
        ("shape", "RowInvalid", "shapes[1]"),
    ],
)
def test_a_bad_shape_rejects_its_row(images: Any, bad: Any, code: str, field: str) -> None:
    result = images.put("images/a.json", labelme(shape(SQUARE), bad)).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.file, found.field) for found in errors] == [
        (code, "images/a.json", field)
    ]


def test_a_file_with_another_images_name_is_rejected(images: Any) -> None:
    result = images.put("images/b.json", labelme(shape(SQUARE))).check()
    assert result.records == []
    assert (result.findings[0].code, result.findings[0].field) == ("ImageAmbiguous", "imagePath")


def test_detection_does_not_keep_embedded_images(source_folder: Any) -> None:
    text = labelme(shape(SQUARE * 5000, "polygon"), imageData="A" * 100_000)
    source_folder.put("a.json", text).put("b.json", labelme(imageData="A" * (2 << 20)))
    source = FolderSource(source_folder.folder, lambda _: None)
    source.find_files()
    form = sniff_json(source, "a.json")
    assert form is not None
    assert len(repr(form)) < 5000
    assert LabelMeReader().detect(source) == ["a.json", "b.json"]


def test_flags_of_whole_images_are_counted(images: Any) -> None:
    images.put("images/a.json", labelme(shape(SQUARE), flags={"cat": True, "dog": False}))
    result = images.check()
    (found,) = [found for found in result.findings if found.code == "AnnotationsIgnored"]
    assert found.cause == "left out: 1 flags of whole images; this is the first"
