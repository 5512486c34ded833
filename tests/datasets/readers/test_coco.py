"""COCO: boxes in pixels become fractions, captions become texts, and every finding names its
annotation.
"""

import io
import json
import math
from typing import Any

import pytest

from runyard.datasets.ingest import check_folder
from runyard.datasets.options import ReadOptions
from runyard.datasets.readers.boxes import RowSpool
from runyard.datasets.readers.coco import CocoReader
from runyard.datasets.readers.json_stream import MalformedJson, iter_elements
from runyard.datasets.records import Freeform
from runyard.datasets.sources import FolderSource
from tests.datasets.conftest import KeptRecords

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


TIN = [("red tin", (0.1, 0.1, 0.3, 0.3))]


def list_boxes(record: Any) -> list[tuple[str, Any]]:
    return [
        (one.phrase, pytest.approx(box))
        for one in record.contents.grounded_phrases
        for box in one.bounds
    ]


def tin(**more: Any) -> dict[str, Any]:
    """Make the annotation of ``TIN``, changed by ``more``; None removes a key."""
    one = {**box(1, 4, 2, 8, 4), "iscrowd": 0, **more}
    return {key: value for key, value in one.items() if value is not None}


POLYGON = [[4, 2, 12, 2, 12, 6]]


@pytest.mark.parametrize(
    "document",
    [
        coco(tin(image_id="10", category_id="1")),
        coco(tin(image_id=10.0)),
        coco(tin(), images=[{**IMAGES[0], "id": "10"}]),
        coco(tin(image_id="a"), images=[{**IMAGES[0], "id": "a"}]),
        coco(tin(bbox=["4", "2.0", " 8 ", 4])),
        coco(tin(), images=[{**IMAGES[0], "width": "40.0", "height": 20.0}]),
        coco(tin(bbox=[], segmentation=POLYGON)),
        coco(tin(bbox=None, segmentation=[*POLYGON, [5, 3, 6, 3, 6, 4]])),
        coco(tin(bbox=None, segmentation=POLYGON[0])),
        coco(tin(bbox=None, segmentation={"size": [20, 40], "counts": [82, 4] + [16, 4] * 7})),
        coco(tin(bbox=[], segmentation={"size": [20, 40], "counts": "b24`00000000000000^a0"})),
        coco(tin(category_id="red tin")),
        coco(tin(category_id="red tin"), categories=["red tin", "box"]),
        coco(tin(category_id="red tin"), categories=[]),
        coco(tin(category_id=None, category_name="red tin"), categories=[]),
        coco(tin(), images=[{"id": 10, "coco_url": "http://example.com/x/a.png?size=1"}]),
        coco(tin(), images=[{"id": 10, "path": "C:\\photos\\a.png"}]),
        coco(tin(), tin(bbox=[0, 0, 40, 20], iscrowd=1), tin(bbox=[0, 0, 40, 20], iscrowd=True)),
        "\ufeff" + coco(tin()),
        json.dumps({"x": "y" * 200_000})[:-1] + ", " + coco(tin())[1:],
        json.dumps({"annotations": [tin()], "categories": CATEGORIES, "images": IMAGES}),
    ],
)
def test_files_are_read_as_tools_write_them(images: Any, document: str) -> None:
    result = images.put("a.json", document).check()
    assert [found for found in result.findings if found.severity == "error"] == []
    (record,) = result.records
    assert list_boxes(record) == TIN


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([coco(tin())], "phrase-grounding"),
        ([coco(), coco(tin())], "phrase-grounding"),
        ([coco({"id": 1, "image_id": 10, "caption": "x"})], "freeform"),
        ([coco({"id": 1, "image_id": 10, "caption": "x"}), coco(tin())], "phrase-grounding"),
        ([coco({"id": 1, "image_id": 10, "caption": "x"}), coco()], None),
        ([coco()], None),
    ],
)
def test_the_first_annotations_show_the_type(
    images: Any, documents: list[str], expected: str | None
) -> None:
    for number, document in enumerate(documents):
        images.put(f"{number}.json", document)
    source = FolderSource(images.folder, lambda _: None)
    source.find_files()
    files = CocoReader().detect(source)
    assert len(files) == len(documents)
    assert CocoReader().find_type(source, files) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_other_encodings_with_a_mark_are_read(images: Any, encoding: str) -> None:
    result = images.put("a.json", coco(tin()).encode(encoding)).check()
    assert list_boxes(result.records[0]) == TIN


@pytest.mark.parametrize("count", [1, 2, 5])
def test_crowds_are_left_out_and_reported_once(images: Any, count: int) -> None:
    crowd = tin(bbox=[0, 0, 40, 20], iscrowd=1)
    result = images.put("a.json", coco(tin(), *[crowd] * count)).check()
    found = next(found for found in result.findings if found.code == "BoxCrowd")
    assert (found.severity, found.value, len(result.records)) == ("warning", str(count), 1)


@pytest.mark.parametrize(
    ("bad", "categories", "code", "expected"),
    [
        (tin(image_id=10, category_id=7), CATEGORIES, "ClassUnknown", "no category"),
        (tin(category_id="7"), [], "ClassUnknown", "no category"),
        (tin(category_id=1), ["red tin"], "ClassUnknown", "no category"),
        (
            tin(),
            [*CATEGORIES, {"id": 1, "name": "jar"}],
            "ClassUnknown",
            "two categories of different names",
        ),
        (tin(bbox=[], segmentation=[]), CATEGORIES, "FieldInvalid", "no 'bbox'"),
        (
            tin(bbox=None, segmentation={"size": [20, 40], "counts": [800]}),
            CATEGORIES,
            "FieldMissing",
            "neither polygons nor a mask",
        ),
        (
            tin(bbox=None, segmentation={"size": [20, 40], "counts": [0, 900]}),
            CATEGORIES,
            "FieldMissing",
            "neither polygons nor a mask",
        ),
        (tin(bbox=[1, 2, None, 4]), CATEGORIES, "FieldInvalid", "four numbers"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_cause(
    images: Any, bad: Any, categories: Any, code: str, expected: str
) -> None:
    result = images.put("a.json", coco(bad, categories=categories)).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (result.records, found.code) == ([], code)
    assert expected in found.cause


@pytest.mark.parametrize(
    ("boxes", "option"),
    [
        ([[0.1, 0.1, 0.2, 0.2]], "--box-unit fraction"),
        ([[100, 100, 400, 500], [600, 400, 300, 500]], "--box-unit thousandth"),
        ([[4, 2, 12, 6], [21, 11, 38, 19], [22, 1, 39, 18]], "--box-form corners"),
    ],
)
def test_another_frame_rejects_the_file_once(images: Any, boxes: Any, option: str) -> None:
    result = images.put("a.json", coco(*(tin(bbox=box) for box in boxes))).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (result.records, found.code, found.rows) == ([], "BoxOtherFrame", 1)
    assert option in found.fix


def test_a_chosen_frame_applies_to_boxes_and_polygons_but_not_to_masks(images: Any) -> None:
    mask = {"size": [20, 40], "counts": [82, 4] + [16, 4] * 7}
    annotations = [
        tin(bbox=[10, 10, 30, 30]),
        tin(bbox=None, segmentation=[[10, 10, 30, 10, 30, 30]], category_id=2),
        tin(bbox=None, segmentation=mask, image_id=11),
    ]
    listed = [*IMAGES[:1], {**IMAGES[1], "width": 40, "height": 20}]
    images.put("images/b.png", (images.folder / "images/a.png").read_bytes())
    images.put("a.json", coco(*annotations, images=listed))
    records = KeptRecords()
    options = ReadOptions(box_unit="percent", box_form="corners")
    check_folder(images.folder, records=records, options=options)
    assert [list_boxes(record) for record in records.records] == [
        [*TIN, ("box", TIN[0][1])],
        TIN,
    ]


def test_boxes_of_keypoint_files_are_not_added_again(images: Any) -> None:
    instances = [tin(), box(2, 0, 0, 15, 15, image=11), box(2, 20, 10, 20, 10)]
    images.put("annotations/instances_train.json", coco(*instances))
    people = [tin(keypoints=[5, 5, 2]), box(1, 20, 20, 10, 10, image=11)]
    result = images.put("annotations/person_keypoints_train.json", coco(*people)).check()
    assert [len(list_boxes(record)) for record in result.records] == [2, 1, 1]
    found = next(found for found in result.findings if found.code == "BoxDuplicate")
    assert (found.file, found.value, found.rows) == (
        "annotations/person_keypoints_train.json",
        "1",
        1,
    )
    assert "instances_train.json" in found.cause


def test_the_same_boxes_in_files_of_other_folders_are_reported_by_row(images: Any) -> None:
    images.put("x/a.json", coco(tin()))
    result = images.put("y/a.json", coco(tin())).check()
    assert len(result.records) == 2
    assert "RowDuplicate" in result.codes


@pytest.mark.parametrize(
    "document",
    [
        json.dumps([{"image_id": 10, "category_id": 1, "bbox": [4, 2, 8, 4], "score": 0.9}]),
        json.dumps([{"image_id": 10, "category_id": 1, "segmentation": {}, "score": 0.9}]),
        json.dumps([{"image_id": 10, "category_id": 1, "keypoints": [1, 2, 2], "score": 1}]),
    ],
)
def test_predictions_are_named_as_such(images: Any, document: str) -> None:
    result = images.put("results.json", document).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (found.code, found.file) == ("ContentsUnfit", "results.json")
    assert "predictions" in found.cause
    result = images.put("a.json", coco(tin())).check()
    assert len(result.records) == 1
    assert [found.file for found in result.findings if found.code == "FileIgnored"] == [
        "results.json"
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"images": IMAGES, "annotations": [{"image_id": 10, "segments_info": []}]},
        {"annotations": [{"image_id": 10, "question_id": 1, "answers": []}], "info": {}},
        {"images": IMAGES, "categories": CATEGORIES},
        {"annotations": [{"text": "x"}]},
        {"images": ["a.png"], "labels": [1]},
    ],
)
def test_files_that_only_resemble_coco_are_not_read(images: Any, document: Any) -> None:
    assert images.put("a.json", json.dumps(document)).check().outcome.format != "Coco"


def test_boxes_move_to_disk_and_come_back_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowSpool, "_MEMORY_BYTES", 100)
    with RowSpool() as spool:
        for number in range(300):
            spool.add(number % 7 + 1, b"%d" % number)
        assert [spool.has(row) for row in (0, 1, 7, 8)] == [False, True, True, False]
        assert spool.read(3) == [b"%d" % number for number in range(2, 300, 7)]
        assert spool.read(0) == spool.read(99) == []


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
