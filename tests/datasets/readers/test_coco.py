"""COCO: boxes in pixels become fractions, captions become texts, and every finding names its
annotation.
"""

import io
import json
import math
from typing import Any

import pytest

from runyard.datasets.readers.json_stream import MalformedJson, iter_elements
from runyard.datasets.records import Freeform

IMAGES = [
    {"id": 10, "file_name": "a.png", "width": 40, "height": 20},
    {"id": 11, "file_name": "b.png"},
]
CATEGORIES = [{"id": 1, "name": "red tin"}, {"id": 2, "name": "box"}]


def coco(*annotations: dict[str, Any], images: Any = IMAGES, categories: Any = CATEGORIES) -> str:
    document = {
        "info": {"year": 2026},
        "annotations": list(annotations),
        "images": images,
        "categories": categories,
    }
    return json.dumps(document, indent=1)


def box(category: Any, *bbox: Any, image: Any = 10, **more: Any) -> dict[str, Any]:
    return {
        "id": 5,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "segmentation": [[1, 2]],
        **more,
    }


@pytest.fixture
def images(source_folder: Any, make_png: Any) -> Any:
    return source_folder.put("images/a.png", make_png(40, 20)).put("images/b.png", make_png(30, 30))


def test_annotations_of_an_image_become_one_row(images: Any) -> None:
    found = coco(
        box(1, 4, 2, 8, 4),
        box(2, 0, 0, 30, 15, image=11),
        box(1, 20, 10, 20, 10),
        box(2, 0, 0, 40, 20),
    )
    result = images.put("annotations/instances.json", found).check()
    assert (result.outcome.format, result.outcome.type, result.findings) == (
        "Coco",
        "phrase-grounding",
        [],
    )
    assert [record.id for record in result.records] == ["images/a.png", "images/b.png"]
    contents = result.records[0].contents
    assert contents.caption == "red tin and box"
    assert [
        (one.phrase, one.start_token_index, one.end_token_index)
        for one in contents.grounded_phrases
    ] == [
        ("red tin", 0, 2),
        ("box", 3, 4),
    ]
    assert contents.grounded_phrases[0].bounds == [(0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0)]


def test_captions_become_texts(images: Any) -> None:
    captions = [
        {"id": 1, "image_id": 10, "caption": " A tin. "},
        {"id": 2, "image_id": 10, "caption": "Red."},
    ]
    result = images.put("captions.json", coco(*captions)).check()
    assert result.outcome.type == "freeform"
    assert [(record.id, record.contents) for record in result.records] == [
        ("images/a.png#1", Freeform(text="A tin.")),
        ("images/a.png#2", Freeform(text="Red.")),
    ]


def test_a_file_of_the_other_kind_is_reported(images: Any) -> None:
    images.put("a.json", coco(box(1, 4, 2, 8, 4)))
    result = images.put("b.json", coco({"id": 1, "image_id": 10, "caption": "x"})).check(
        "phrase-grounding"
    )
    assert len(result.records) == 1
    assert [found.file for found in result.findings if found.code == "FileIgnored"] == ["b.json"]


def test_a_polygon_without_a_box_gets_its_bounding_box(images: Any) -> None:
    one = {"image_id": 10, "category_id": 1, "segmentation": [[4, 2, 12, 2, 12, 6]]}
    result = images.put("a.json", coco(one)).check()
    assert result.records[0].contents.grounded_phrases[0].bounds == [(0.1, 0.1, 0.3, 0.3)]


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (box(9, 4, 2, 8, 4), "ClassUnknown", "annotations[1].category_id"),
        (box(1, 4, 2, 8), "FieldInvalid", "annotations[1].bbox"),
        (box(1, 4, 2, 8, "4 px"), "FieldInvalid", "annotations[1].bbox"),
        (box(1, 4, 2, 0, 4), "BoxEmpty", "annotations[1].bbox"),
        (box(1, 4, 2, math.nan, 4), "BoxNotFinite", "annotations[1].bbox"),
        (box(1, 4, 2, 10**400, 4), "BoxNotFinite", "annotations[1].bbox"),
        (box(1, 41, 2, 8, 4), "BoxOutside", "annotations[1].bbox"),
        ({"image_id": 10, "category_id": 1}, "FieldMissing", "annotations[1].bbox"),
        ({"image_id": 10, "bbox": [1, 2, 3, 4]}, "FieldMissing", "annotations[1].category_id"),
    ],
)
def test_an_error_leaves_out_the_row_of_its_image(
    images: Any, bad: Any, code: str, field: str
) -> None:
    good = [box(1, 4, 2, 8, 4), bad, box(2, 0, 0, 30, 15, image=11)]
    result = images.put("a.json", coco(*good)).check()
    assert [record.asset.filename for record in result.records] == ["images/b.png"]
    assert [(found.code, found.field) for found in result.findings] == [(code, field)]


@pytest.mark.parametrize(
    ("document", "code", "field"),
    [
        (
            coco(box(1, 4, 2, 8, 4), box(1, 4, 2, 8, 4, image=99)),
            "FieldInvalid",
            "annotations[1].image_id",
        ),
        (coco(box(1, 4, 2, 8, 4), {"bbox": []}), "FieldMissing", "annotations[1].image_id"),
        (
            coco(box(1, 4, 2, 8, 4), images=[*IMAGES, {"id": 12}]),
            "FieldMissing",
            "images[2].file_name",
        ),
        (coco(box(1, 4, 2, 8, 4), images=[*IMAGES, IMAGES[0]]), "IdDuplicate", "images[2].id"),
        (
            coco(box(1, 4, 2, 8, 4), categories=[*CATEGORIES, {"id": 3}]),
            "FieldMissing",
            "categories[2].name",
        ),
    ],
)
def test_a_row_without_an_image_is_reported_alone(
    images: Any, document: str, code: str, field: str
) -> None:
    result = images.put("a.json", document).check()
    assert len(result.records) == 1
    assert [(f.code, f.field) for f in result.findings if f.code != "AnnotationsAbsent"] == [
        (code, field)
    ]


def test_a_missing_image_is_reported_with_its_location(images: Any) -> None:
    document = coco(box(1, 4, 2, 8, 4, image=1), images=[*IMAGES, {"id": 1, "file_name": "c.png"}])
    result = images.put("a.json", document).check()
    found = next(found for found in result.findings if found.code == "ImageMissing")
    assert (found.field, found.value) == ("images[2]", "c.png")


def test_a_size_of_another_image_is_reported(images: Any) -> None:
    result = images.put(
        "a.json", coco(box(1, 4, 2, 8, 4), images=[{**IMAGES[0], "width": 41}])
    ).check()
    assert [found.code for found in result.findings if found.severity == "error"] == [
        "SizeMismatch"
    ]


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.99])
def test_a_file_that_was_cut_off_is_reported_with_its_line(images: Any, cut: float) -> None:
    document = coco(*(box(1, 4, 2, 8, 4) for _ in range(5)))
    text = document[: int(len(document) * cut)]
    result = images.put("a.json", text).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (found.code, result.records) == ("FileUnreadable", [])
    assert found.line == pytest.approx(text.count("\n") + 1, abs=12)


# json_stream --------------------------------------------------------------------------------------


class Dripping(io.BytesIO):
    """A file that returns three bytes at a time, whatever is requested."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(3, size or 3))


@pytest.mark.parametrize("file", [io.BytesIO, Dripping])
def test_elements_come_one_by_one_whatever_the_chunks(file: Any) -> None:
    document = {
        "a": [1, "é箱", {"b": [2]}, 12345, True],
        "c": {"d": [1]},
        "e": [],
        "f": "x",
        "g": [[3]],
    }
    data = json.dumps(document, ensure_ascii=False, indent=2).encode()
    expected = [(key, n, v) for key in ("a", "e", "g") for n, v in enumerate(document[key])]
    assert list(iter_elements(file(data))) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a"',
        '{"a" 1}',
        '{"a":[1',
        '{"a":[1 2]}',
        '{"a":[}',
        '{"a":1 "b":2}',
        "{1:2}",
        '{"a":[' + "[" * 9000,
    ],
)
def test_a_file_that_is_not_an_object_of_arrays_is_rejected(text: str) -> None:
    with pytest.raises(MalformedJson):
        list(iter_elements(io.BytesIO(text.encode())))


def test_a_file_larger_than_the_window_is_read_in_parts() -> None:
    import tracemalloc

    data = (
        b'{"annotations":['
        + b",".join(b'{"x":"%s"}' % (b"y" * 1000) for _ in range(20_000))
        + b"]}"
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_elements(io.BytesIO(data))) == 20_000
        assert tracemalloc.get_traced_memory()[1] < len(data) / 2
    finally:
        tracemalloc.stop()
