"""Rows of a box with keypoints are never read as polygons."""

from typing import Any

import pytest

THREE = "0 0.3 0.35 0.4 0.5 0.12 0.2 2 0.2 0.3 2 0.0 0.0 0 0.45 0.55 1"
EVEN = "0 0.3 0.35 0.4 0.5" + " 0.2 0.3 2 0.25 0.4 1" * 3
TWO = "0 0.3 0.35 0.4 0.5 0.12 0.2 0.2 0.3 0.45 0.55"
PERSON = "0 0.3 0.35 0.4 0.5" + " 0.2 0.3 2" * 17
TIN = [("tin", 0.1, 0.1, 0.5, 0.6)]


@pytest.mark.parametrize(
    ("shape", "row"),
    [
        ("[4, 3]", THREE),
        ("[6, 3]", EVEN),
        ("[3, 2]", TWO),
        ("[17, 3]", PERSON),
        ("\n- 3\n- 2", TWO),
        ("[17, 3]", "0 0.3 0.35 0.4 0.5"),
    ],
)
def test_kpt_shape_says_that_rows_have_keypoints(
    put_labels: Any, list_boxes: Any, shape: str, row: str
) -> None:
    result = put_labels(row, **{"data.yaml": f"kpt_shape: {shape}\nnames: [tin]"}).check()
    assert (list_boxes(result), result.findings) == ({"images/a.png": TIN}, [])


def test_kpt_shape_may_be_in_another_file_than_the_names(put_labels: Any, list_boxes: Any) -> None:
    files = {"classes.txt": "tin", "data.yaml": "kpt_shape: [4, 3]\nnc: 1"}
    assert list_boxes(put_labels(THREE, **files).check()) == {"images/a.png": TIN}


def test_a_row_that_contradicts_kpt_shape_is_reported(put_labels: Any) -> None:
    result = put_labels(THREE, **{"data.yaml": "kpt_shape: [5, 3]\nnames: [tin]"}).check()
    assert result.codes[0] == "RowInvalid"
    assert "17 numbers" in result.findings[0].cause and "has 20" in result.findings[0].cause


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[0, 3]", "[99999, 3]", "{a: 1}"])
def test_an_invalid_kpt_shape_is_reported(put_labels: Any, shape: str) -> None:
    row = "0 0.3 0.35 0.4 0.5"
    result = put_labels(row, **{"data.yaml": f"kpt_shape: {shape}\nnames: [tin]"}).check()
    assert [(found.code, found.field) for found in result.findings] == [
        ("FieldInvalid", "kpt_shape")
    ]


@pytest.mark.parametrize("row", [THREE, EVEN, TWO, PERSON, f"{PERSON}\n{PERSON}"])
def test_without_kpt_shape_likely_poses_are_reported(put_labels: Any, row: str) -> None:
    result = put_labels(row).check()
    assert result.records == []
    assert {found.code for found in result.findings if found.severity == "error"} == {"RowInvalid"}
    assert "kpt_shape" in result.findings[0].fix


@pytest.mark.parametrize(
    "rows",
    [
        # The first could be a box with keypoints; the second cannot.
        [TWO, "0 0.1 0.1 0.5 0.1 0.5 0.6 0.3 0.7 0.1 0.6"],
        [TWO, "0 0.1 0.1 0.5 0.1 0.5 0.6 0.4 0.6 0.3 0.7 0.1 0.6"],
        [TWO, "0 0.5 0.1 0.5 0.6 0.1 0.6 0.1 0.1 0.3 0.1"],
    ],
)
def test_polygons_of_different_forms_are_polygons(put_labels: Any, rows: list[str]) -> None:
    result = put_labels("\n".join(rows)).check()
    assert (len(result.records), result.findings) == (1, [])


def test_the_task_says_that_rows_are_polygons(put_labels: Any, list_boxes: Any) -> None:
    result = put_labels(TWO, **{"data.yaml": "task: segment\nnames: [tin]"}).check()
    assert list_boxes(result) == {"images/a.png": [("tin", 0.12, 0.2, 0.45, 0.55)]}
