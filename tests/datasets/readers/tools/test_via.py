"""VIA: regions in pixels, whose class is one of the attributes that the user named."""

import json
from typing import Any

import pytest

RECT = {"name": "rect", "x": 4, "y": 2, "width": 8, "height": 4}


def region(shape: Any = RECT, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes or {"class": "tin"}}


def entry(*regions: Any, name: Any = "a.png") -> dict[str, Any]:
    return {"filename": name, "size": 1, "regions": list(regions), "file_attributes": {}}


def via(*entries: Any) -> str:
    return json.dumps({f"{number}.png1": one for number, one in enumerate(entries)})


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (RECT, [4, 2, 12, 6]),
        (
            {"name": "polygon", "all_points_x": [4, 12, 8], "all_points_y": [2, 2, 6]},
            [4, 2, 12, 6],
        ),
        ({"name": "circle", "cx": 10, "cy": 10, "r": 5}, [5, 5, 15, 15]),
        ({"name": "ellipse", "cx": 10, "cy": 10, "rx": 5, "ry": 2}, [5, 8, 15, 12]),
        (
            {"name": "ellipse", "cx": 10, "cy": 10, "rx": 5, "ry": 2, "theta": 1.5707963},
            [8, 5, 12, 15],
        ),
    ],
)
def test_each_region_becomes_its_bounding_box(
    images: Any, list_boxes: Any, shape: Any, box: list[float]
) -> None:
    result = images.put("via.json", via(entry(region(shape)))).check()
    assert result.outcome.format == "Via"
    assert list_boxes(result) == {"images/a.png": [("tin", box)]}


def test_a_project_and_regions_of_version_1_are_read(images: Any, list_boxes: Any) -> None:
    old = entry() | {"regions": {"0": region(), "1": region(label="box") | {}}}
    old["regions"]["1"]["region_attributes"] = {"class": "box"}
    project = {"_via_settings": {"ui": {}}, "_via_img_metadata": {"a.png1": old}}
    result = images.put("project.json", json.dumps(project | {"_via_attributes": {}})).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6]), ("box", [4, 2, 12, 6])]}


@pytest.mark.parametrize(
    "attributes",
    [
        {"anything": "tin"},
        {"type": "tin", "color": "red"},
        {"Class Name": "tin", "type": "round", "name": "Bob"},
        {"label": {"tin": True, "box": False}, "note": "x"},
        {"type": "tin", "name": "", "image_quality": {}},
    ],
)
def test_the_class_is_the_attribute_named_like_one(
    images: Any, list_boxes: Any, attributes: Any
) -> None:
    result = images.put("via.json", via(entry(region(**attributes)))).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}


@pytest.mark.parametrize(
    "attributes", [{"type": "tin", "name": "Bob"}, {"material": "tin", "color": "red"}]
)
def test_several_attributes_that_may_be_the_class_are_reported(
    images: Any, attributes: Any
) -> None:
    result = images.put("via.json", via(entry(region(**attributes)))).check()
    found = result.findings[0]
    assert (result.records, found.code, found.action) == ([], "ClassUnknown", "FileRejected")
    assert all(repr(name) in found.cause for name in attributes)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (entry(region({"name": "rect", "x": 4})), "FieldInvalid"),
        (entry(region({"name": "blob"})), "FieldInvalid"),
        (entry(region(None)), "FieldMissing"),
        (entry(region(RECT, other="x")), "FieldMissing"),
        (entry(region(RECT | {"width": 0})), "BoxEmpty"),
        (
            entry(region({"name": "polygon", "all_points_x": [1], "all_points_y": [1, 2]})),
            "FieldInvalid",
        ),
        (entry(region(), name=None), "RowInvalid"),
        (entry(region()) | {"regions": 5}, "RowInvalid"),
        ([], "RowInvalid"),
    ],
)
def test_a_bad_region_rejects_its_image(images: Any, list_boxes: Any, bad: Any, code: str) -> None:
    result = images.put("via.json", via(entry(region(), name="b.png"), bad)).check()
    assert list(list_boxes(result)) == ["images/b.png"]
    errors = [found for found in result.findings if found.severity == "error"]
    assert [found.code for found in errors] == [code]


def test_a_project_whose_images_are_no_object_is_reported(images: Any) -> None:
    result = images.put("via.json", json.dumps({"_via_img_metadata": 5})).check()
    assert [one.code for one in result.findings[:1]] == ["RowInvalid"]


def test_points_and_lines_are_counted(images: Any, list_boxes: Any) -> None:
    point = region({"name": "point", "cx": 1, "cy": 1})
    result = images.put("via.json", via(entry(point, region(), point))).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}
    found = [one for one in result.findings if one.code == "AnnotationsIgnored"]
    assert [(one.field, one.value) for one in found] == [("0.png1.regions[0]", "2")]


def project3(*regions: Any, **more: Any) -> str:
    """Return a project of VIA 3; each region is a list of numbers and an option."""
    options = {"aname": "screws", "type": 3, "options": {"0": "tin", "1": "box"}}
    metadata = {
        f"1_{number}": {"vid": "1", "flg": 0, "z": [], "xy": xy, "av": {"1": option}}
        for number, (xy, option) in enumerate(regions)
    }
    parts = {
        "project": {"pid": "x"},
        "config": {},
        "attribute": {"1": options},
        "file": {"7": {"fid": "7", "fname": "a.png", "type": 2, "src": "http://x/a.png"}},
        "metadata": metadata,
        "view": {"1": {"fid_list": ["7"]}},
    }
    return json.dumps(parts | more)


def test_a_project_of_version_3_is_read(images: Any, list_boxes: Any) -> None:
    regions = [
        ([2, 4, 2, 8, 4], "0"),
        ([3, 10, 10, 5], "1"),
        ([7, 4, 2, 16, 2, 8, 6], "0,1"),
        ([8, 4, 4, 8, 2, 20, 4, 8, 6], "0"),
        ([1, 4, 2], "0"),
    ]
    result = images.put("via.json", project3(*regions)).check()
    assert result.outcome.format == "Via"
    assert list_boxes(result) == {
        "images/a.png": [
            *[("tin", [4, 2, 12, 6]), ("tin", [4, 2, 16, 6]), ("tin", [4, 2, 20, 6])],
            *[("box", [5, 5, 15, 15]), ("box", [4, 2, 16, 6])],
        ]
    }
    found = [one for one in result.findings if one.code == "AnnotationsIgnored"]
    assert [(one.field, one.value) for one in found] == [("metadata.1_4", "1")]


@pytest.mark.parametrize(
    ("regions", "more", "code"),
    [
        ([([2, 4, 2, 8], "0")], {}, "FieldInvalid"),
        ([([99, 4, 2, 8, 4], "0")], {}, "FieldInvalid"),
        ([([2, 4, 2, 8, 4], "5")], {}, "FieldMissing"),
        ([([2, 4, 2, 8, 4], "")], {}, "FieldMissing"),
        ([([2, 4, 2, 8, 4], "0")], {"view": {}, "file": 3}, "FieldMissing"),
        ([("xy", "0")], {}, "RowInvalid"),
        ([], {"metadata": 3}, "RowInvalid"),
    ],
)
def test_a_bad_region_of_version_3_is_reported(
    images: Any, regions: Any, more: Any, code: str
) -> None:
    result = images.put("via.json", project3(*regions, **more)).check()
    assert result.records == []
    assert [one.code for one in result.findings if one.severity == "error"] == [code]
