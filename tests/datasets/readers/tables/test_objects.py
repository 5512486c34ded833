"""Boxes in the columns of tables, and the frame that all boxes of a file show."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from runyard.datasets.options import ReadOptions

SIZE = (200, 100)
CORNERS = [[120, 40, 180, 90], [20, 10, 120, 70], [90, 20, 190, 95], [5, 5, 60, 50]]
FRACTIONS = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.2, 0.2]]
SIZES = [[20, 10, 40, 50], [100, 30, 60, 20]]


def write_rows(
    source_folder: Any, make_png: Callable[..., bytes], ending: str, boxes: list[list[float]]
) -> Any:
    rows: list[dict[str, Any]] = []
    for number, box in enumerate(boxes):
        source_folder.put(f"{number}.png", make_png(*SIZE, (number, 0, 0)))
        floats = [float(value) for value in box]
        rows.append(
            {"file_name": f"{number}.png", "objects": {"bbox": [floats], "category": ["tin"]}}
        )
    path = source_folder.folder / f"metadata.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return source_folder


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("boxes", "option"), [(CORNERS, "--box-form corners"), (FRACTIONS, "--box-unit fraction")]
)
def test_boxes_in_another_frame_leave_out_the_file(
    source_folder: Any,
    make_png: Callable[..., bytes],
    ending: str,
    boxes: list[list[float]],
    option: str,
) -> None:
    result = write_rows(source_folder, make_png, ending, boxes).check()
    assert result.records == []
    [found] = [found for found in result.findings if found.code == "BoxOtherFrame"]
    assert (found.file, found.rows, found.action) == (
        f"metadata.{ending}",
        len(boxes),
        "FileRejected",
    )
    assert option in found.fix
    assert result.outcome.counts["rowsRejected"] == len(boxes)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("boxes", "options", "first"),
    [
        (SIZES, ReadOptions(), (0.1, 0.1, 0.3, 0.6)),
        (CORNERS, ReadOptions(box_form="corners"), (0.6, 0.4, 0.9, 0.9)),
        (FRACTIONS, ReadOptions(box_unit="fraction"), (0.1, 0.2, 0.4, 0.6)),
    ],
)
def test_boxes_are_read_in_the_frame_of_the_options(
    source_folder: Any,
    make_png: Callable[..., bytes],
    ending: str,
    boxes: list[list[float]],
    options: ReadOptions,
    first: Any,
) -> None:
    result = write_rows(source_folder, make_png, ending, boxes).check(options=options)
    assert len(result.records) == len(boxes)
    contents: Any = result.records[0].contents
    assert contents.grounded_phrases[0].bounds[0] == pytest.approx(first)


@pytest.mark.parametrize(
    "row",
    [
        {"objects": {"bbox": [[20, 10, 40, 50]], "category": ["tin"]}},
        {"objects": [{"bbox": [20, 10, 40, 50], "label": "tin"}]},
        {"annotations": [{"box": [20, 10, 40, 50], "category_id": 1}]},
        {"bboxes": [[20, 10, 40, 50]], "labels": ["tin"]},
        {"boxes": [[20, 10, 40, 50]], "classes": [1]},
    ],
)
def test_boxes_are_found_in_structs_lists_and_columns(
    source_folder: Any, make_png: Callable[..., bytes], row: dict[str, Any]
) -> None:
    source_folder.put("a.png", make_png(*SIZE)).put("classes.txt", "jar\ntin\n")
    [record] = source_folder.put("t.json", json.dumps([{"image": "a.png", **row}])).check().records
    assert record.contents.caption == "tin"
    assert record.contents.grounded_phrases[0].bounds == [(0.1, 0.1, 0.3, 0.6)]


@pytest.mark.parametrize(
    ("boxes", "names", "code"),
    [
        ([[1, 2, 30, 40], [1, 2, 3]], ["tin", "jar"], "FieldInvalid"),
        ([[1, 2, 30, 40], [1, 2, "3", 4]], ["tin", "jar"], "FieldInvalid"),
        ([[1, 2, 30, 40], [1, 2, 3, 4]], ["tin", 7], "ClassUnknown"),
        ([[1, 2, 30, 40], [1, 2, 3, 4]], ["tin"], "FieldInvalid"),
    ],
)
def test_a_box_that_cannot_be_read_leaves_out_its_row(
    source_folder: Any, make_png: Callable[..., bytes], boxes: Any, names: Any, code: str
) -> None:
    rows = [
        {"image": "a.png", "objects": {"bbox": boxes, "category": names}},
        {"image": "a.png", "objects": {"bbox": [[1, 2, 30, 40]], "category": ["tin"]}},
    ]
    source_folder.put("a.png", make_png(*SIZE))
    result = source_folder.put("t.jsonl", "\n".join(map(json.dumps, rows))).check()
    assert [found.code for found in result.findings if found.severity == "error"] == [code]
    assert len(result.records) == 1


def test_a_long_row_with_boxes_is_recognized(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    boxes = [[1 + number, 2, 30, 40] for number in range(100)]
    row = {"image": "a.png", "objects": {"bbox": boxes, "category": ["tin"] * 100}}
    source_folder.put("a.png", make_png(*SIZE)).put("t.json", json.dumps({"rows": [row]}))
    [record] = source_folder.check().records
    assert len(record.contents.grounded_phrases[0].bounds) == 100
