"""Datumaro: class names by number, items of a subset, and images in a folder of that name."""

import json
from typing import Any

import pytest

CLASSES = {"label": {"labels": [{"name": "tin", "parent": ""}, {"name": "box"}], "attributes": []}}
TIN = {"id": 0, "type": "bbox", "label_id": 0, "bbox": [4, 2, 8, 4], "attributes": {}}


def item(*annotations: Any, key: str = "a", **more: Any) -> dict[str, Any]:
    image = {"path": f"{key}.png", "size": [20, 40] if key == "a" else [30, 30]}
    return {"id": key, "annotations": list(annotations), "image": image} | more


def datumaro(*items: Any, **more: Any) -> str:
    return json.dumps({"info": {}, "categories": CLASSES, "items": list(items)} | more)


@pytest.mark.parametrize(
    ("change", "box"),
    [
        ({}, [4, 2, 12, 6]),
        ({"type": "polygon", "points": [4, 2, 12, 2, 8, 6]}, [4, 2, 12, 6]),
        ({"type": "ellipse", "points": [4, 2, 12, 6]}, [4, 2, 12, 6]),
        ({"attributes": {"rotation": 90.0}}, [6, 0, 10, 8]),
        ({"attributes": {"rotation": 0.0}}, [4, 2, 12, 6]),
    ],
)
def test_each_annotation_becomes_its_bounding_box(
    images: Any, list_boxes: Any, change: Any, box: list[float]
) -> None:
    result = images.put("annotations/default.json", datumaro(item(TIN | change))).check()
    assert result.outcome.format == "Datumaro"
    assert list_boxes(result) == {"images/a.png": [("tin", box)]}


def test_items_before_the_categories_are_read(images: Any, list_boxes: Any) -> None:
    text = json.dumps({"items": [item(TIN | {"label_id": 1})], "categories": CLASSES})
    result = images.put("annotations/default.json", text).check()
    assert list_boxes(result) == {"images/a.png": [("box", [4, 2, 12, 6])]}


@pytest.mark.parametrize("more", [{}, {"image": {"path": ""}}, {"media": {"path": "a.png"}}])
def test_images_are_found_in_the_folder_of_their_subset(
    source_folder: Any, make_png: Any, list_boxes: Any, more: Any
) -> None:
    for subset, width in (("train", 40), ("val", 44)):
        source_folder.put(f"images/{subset}/a.png", make_png(width, 20))
        one = item(TIN, image={"path": "a.png"}) | more
        source_folder.put(f"annotations/{subset}.json", datumaro(one))
    assert sorted(list_boxes(source_folder.check())) == ["images/train/a.png", "images/val/a.png"]


def test_other_annotations_are_counted(images: Any, list_boxes: Any) -> None:
    others = [{"type": "mask", "label_id": 0}, {"type": "label", "label_id": 0}, {"type": "mask"}]
    result = images.put("annotations/default.json", datumaro(item(TIN, *others))).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}
    found = [one for one in result.findings if one.code == "AnnotationsIgnored"]
    assert [(one.field, one.value) for one in found] == [
        ("items[0].annotations[1]", "2"),
        ("items[0].annotations[2]", "1"),
    ]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"label_id": 2}, "ClassUnknown", "items[0].annotations[0].label_id"),
        ({"label_id": None}, "ClassUnknown", "items[0].annotations[0].label_id"),
        ({"label_id": -1}, "ClassUnknown", "items[0].annotations[0].label_id"),
        ({"bbox": [4, 2, 8]}, "FieldInvalid", "items[0].annotations[0]"),
        ({"bbox": None}, "FieldInvalid", "items[0].annotations[0]"),
        ({"bbox": [4, 2, 0, 4]}, "BoxEmpty", "items[0].annotations[0]"),
        ({"type": None}, "FieldMissing", "items[0].annotations[0].type"),
        ({"type": "polygon", "points": [1, 2, 3]}, "FieldInvalid", "items[0].annotations[0]"),
    ],
)
def test_a_bad_annotation_rejects_its_item(
    images: Any, list_boxes: Any, change: Any, code: str, field: str
) -> None:
    text = datumaro(item(TIN | change), item(TIN, key="b"))
    result = images.put("annotations/default.json", text).check()
    assert list(list_boxes(result)) == ["images/b.png"]
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.field) for found in errors] == [(code, field)]


@pytest.mark.parametrize("items", [3, "x", None])
def test_items_that_are_no_list_are_reported(images: Any, items: Any) -> None:
    result = images.put("annotations/default.json", datumaro(items=items)).check()
    assert result.outcome.decision == "Rejected"
    assert (result.findings[0].code, result.findings[0].field) == ("FieldInvalid", "items")
