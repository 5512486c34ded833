"""Create ML: the center, width and height of boxes in pixels."""

import json
from typing import Any

import pytest


def annotation(*numbers: Any, label: Any = "tin") -> dict[str, Any]:
    sides = ("x", "y", "width", "height")
    return {"label": label, "coordinates": dict(zip(sides, numbers, strict=False))}


def element(image: Any, *annotations: Any) -> dict[str, Any]:
    return {"image": image, "annotations": list(annotations)}


def test_a_box_is_given_by_its_center(images: Any, list_boxes: Any) -> None:
    elements = [
        element("b.png"),
        element("a.png", annotation(8, 4, 8, 4), annotation("20", "10.5", 40, 19, label="box")),
    ]
    result = images.put("images/_annotations.createml.json", json.dumps(elements)).check()
    assert result.outcome.format == "CreateMl"
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6]), ("box", [0, 1, 40, 20])]}
    assert [found.code for found in result.findings] == ["AnnotationsAbsent"]


def test_the_other_names_of_apples_documentation_are_read(images: Any, list_boxes: Any) -> None:
    elements = [{"imagefilename": "a.png", "annotation": [annotation(8, 4, 8, 4)]}]
    result = images.put("labels.json", json.dumps(elements)).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (element("a.png", annotation(8, 4, 8)), "FieldInvalid", "[1].annotations[0].coordinates"),
        (element("a.png", {"label": "x"}), "FieldMissing", "[1].annotations[0].coordinates"),
        (element("a.png", annotation(8, 4, 8, 4, label=3)), "FieldMissing", None),
        (element("a.png", annotation(8, 4, 0, 4)), "BoxEmpty", None),
        (element("a.png", annotation(8, 4, 10**400, 4)), "BoxNotFinite", None),
        (element("c.png", annotation(8, 4, 8, 4)), "ImageMissing", "[1]"),
        (element(None, annotation(8, 4, 8, 4)), "RowInvalid", "[1]"),
        ({"image": "a.png"}, "RowInvalid", "[1]"),
        ("a.png", "RowInvalid", "[1]"),
    ],
)
def test_a_bad_element_is_reported(
    images: Any, list_boxes: Any, bad: Any, code: str, field: str | None
) -> None:
    elements = [element("b.png", annotation(8, 4, 8, 4)), bad]
    result = images.put("images/labels.json", json.dumps(elements)).check()
    assert list(list_boxes(result)) == ["images/b.png"]
    errors = [found for found in result.findings if found.severity == "error"]
    assert [found.code for found in errors] == [code]
    assert field is None or errors[0].field == field


def test_elements_before_a_cut_are_kept_and_the_cut_is_reported(
    images: Any, list_boxes: Any
) -> None:
    text = json.dumps([element("a.png", annotation(8, 4, 8, 4)), element("b.png")])[:-9]
    result = images.put("images/labels.json", text).check()
    assert list(list_boxes(result)) == ["images/a.png"]
    assert ("FileUnreadable", "images/labels.json") in [
        (found.code, found.file) for found in result.findings
    ]
