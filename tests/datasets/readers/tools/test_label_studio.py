"""Label Studio: percent of the image, several annotators, and names of uploaded images."""

import json
from typing import Any

import pytest

RECT = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["tin"]}
TIN = {"images/a.png": [("tin", [4, 2, 12, 6])]}


def result(value: Any = RECT, kind: str = "rectanglelabels", **more: Any) -> dict[str, Any]:
    size = {"original_width": 40, "original_height": 20, "image_rotation": 0}
    return (
        {"id": "r1", "type": kind, "value": value, "from_name": "l", "to_name": "i"} | size | more
    )


def task(*results: Any, image: Any = "a.png", **more: Any) -> dict[str, Any]:
    annotation = {"id": 7, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 1, "data": {"image": image}, "annotations": [annotation]} | more


@pytest.mark.parametrize(
    ("one", "box"),
    [
        (result(), [4, 2, 12, 6]),
        (result(RECT | {"rotation": 90}), [0, 2, 4, 10]),
        (
            result({"points": [[10, 10], [30, 10], [20, 30]], "polygonlabels": ["tin"]}),
            [4, 2, 12, 6],
        ),
        (
            result(
                {"x": 25, "y": 50, "radiusX": 10, "radiusY": 10, "ellipselabels": ["tin"]},
                "ellipselabels",
            ),
            [6, 8, 14, 12],
        ),
        (result(original_width=None, original_height=None), [4, 2, 12, 6]),
    ],
)
def test_each_region_becomes_its_bounding_box(
    images: Any, list_boxes: Any, one: Any, box: list[float]
) -> None:
    if "points" in one["value"]:
        one["type"] = "polygonlabels"
    found = images.put("export.json", json.dumps([task(one)])).check()
    assert found.outcome.format == "LabelStudio"
    assert list_boxes(found) == {"images/a.png": [("tin", box)]}
    assert [one.code for one in found.findings] == ["AnnotationsAbsent"]


def test_a_region_and_its_labels_may_be_two_results(images: Any, list_boxes: Any) -> None:
    bare = {key: RECT[key] for key in ("x", "y", "width", "height", "rotation")}
    labels = result(bare | {"labels": ["tin", "box"]}, "labels")
    text = result(bare | {"text": ["500 g"]}, "textarea")
    found = images.put("export.json", json.dumps([task(result(bare, "rectangle"), labels, text)]))
    checked = found.check()
    assert list_boxes(checked) == {"images/a.png": [("tin", [4, 2, 12, 6]), ("box", [4, 2, 12, 6])]}
    assert [one.value for one in checked.findings if one.code == "AnnotationsIgnored"] == ["1"]


def test_rows_of_json_min_are_read(images: Any, list_boxes: Any) -> None:
    row = {
        "image": "/data/upload/3/0badcafe-a.png",
        "id": 1,
        "label": [RECT | {"original_width": 40, "original_height": 20}],
        "choice": "good",
        "annotator": 1,
        "annotation_id": 7,
        "lead_time": 2.5,
    }
    found = images.put("export.json", json.dumps([row, row | {"annotation_id": 8}])).check()
    assert found.outcome.format == "LabelStudio"
    assert list_boxes(found) == TIN
    assert [one.field for one in found.findings if one.code == "AnnotationsIgnored"] == ["[1]"]


def test_one_annotation_of_a_target_storage_is_read(images: Any, list_boxes: Any) -> None:
    annotation = {"id": 7, "result": [result()], "task": {"id": 1, "data": {"image": "a.png"}}}
    assert list_boxes(images.put("7.json", json.dumps(annotation)).check()) == TIN


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/0badcafe-a.png",
        "http://localhost:8080/data/upload/1/0badcafe-a.png?x=1",
        "/data/local-files/?d=images/a.png",
        "s3://bucket/images/a.png",
        "https://example.com/images/a.png",
    ],
)
def test_the_image_of_a_task_is_found(images: Any, list_boxes: Any, image: str) -> None:
    found = images.put("export.json", json.dumps([task(result(), image=image)])).check()
    assert list_boxes(found) == TIN


def test_the_image_is_the_only_value_with_an_image_name(images: Any, list_boxes: Any) -> None:
    data = {"title": "A tin", "scan": "a.png", "page": 3}
    found = images.put("export.json", json.dumps([task(result(), data=data)])).check()
    assert list_boxes(found) == TIN


@pytest.mark.parametrize(
    "data",
    [{"left": "a.png", "right": "b.png"}, {"text": "a"}, {"image": "data:image/png;base64,"}],
)
def test_a_task_without_one_image_is_reported(images: Any, data: Any) -> None:
    found = images.put("export.json", json.dumps([task(result(), data=data)])).check()
    assert found.records == []
    assert (found.findings[0].code, found.findings[0].field) == ("FieldInvalid", "[0].data")


def test_uploads_that_differ_by_their_prefix_alone_are_rejected(images: Any) -> None:
    uploads = ("/data/upload/1/0badcafe-a.png", "/data/upload/1/0badbeef-a.png")
    tasks = [task(result(), image=image, id=n) for n, image in enumerate(uploads)]
    found = images.put("export.json", json.dumps(tasks)).check()
    assert found.records == []
    assert [one.code for one in found.findings[:2]] == ["ImageAmbiguous", "ImageAmbiguous"]


def annotation(label: str, **more: Any) -> dict[str, Any]:
    return {"result": [result(RECT | {"rectanglelabels": [label]})], "was_cancelled": False} | more


@pytest.mark.parametrize(
    ("annotations", "used", "ignored"),
    [
        ([annotation("tin"), annotation("box")], "tin", ["1"]),
        ([annotation("box"), annotation("tin", ground_truth=True)], "tin", ["1"]),
        ([annotation("box", was_cancelled=True), annotation("tin")], "tin", ["1"]),
        ([annotation("tin")], "tin", []),
    ],
)
def test_annotations_of_one_task_are_never_merged(
    images: Any, list_boxes: Any, annotations: Any, used: str, ignored: list[str]
) -> None:
    found = images.put("export.json", json.dumps([task(annotations=annotations)])).check()
    assert list_boxes(found) == {"images/a.png": [(used, [4, 2, 12, 6])]}
    assert [one.value for one in found.findings if one.code == "AnnotationsIgnored"] == ignored


def test_predictions_and_other_results_are_counted(images: Any, list_boxes: Any) -> None:
    brush = result({"rle": [1], "brushlabels": ["tin"]}, "brushlabels")
    choice = result({"choices": ["good"]}, "choices")
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    one = task(result(), brush, choice, relation, predictions=[{"result": [result()]}])
    found = images.put("export.json", json.dumps([one])).check()
    assert list_boxes(found) == TIN
    ignored = [one.cause for one in found.findings if one.code == "AnnotationsIgnored"]
    assert len(ignored) == 4


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (task(result(RECT | {"x": None})), "FieldInvalid"),
        (task(result(image_rotation=90)), "FieldInvalid"),
        (task(result({"x": 1, "y": 1, "width": 5, "height": 5}, "rectangle")), "FieldMissing"),
        (task(result(RECT | {"width": 0})), "BoxEmpty"),
        (task(result(RECT | {"x": 10**400})), "BoxNotFinite"),
        (task(result(original_height=50)), "SizeMismatch"),
        (task(5), "RowInvalid"),
        (task(annotations=[5]), "RowInvalid"),
        (task(annotations=5), "RowInvalid"),
        (task(data=5), "RowInvalid"),
        (5, "RowInvalid"),
    ],
)
def test_a_bad_task_is_reported(images: Any, list_boxes: Any, bad: Any, code: str) -> None:
    tasks = [task(result(original_width=30, original_height=30), image="b.png"), bad]
    found = images.put("export.json", json.dumps(tasks)).check()
    assert list(list_boxes(found)) == ["images/b.png"]
    assert [one.code for one in found.findings if one.severity == "error"] == [code]
