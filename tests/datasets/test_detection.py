"""Format detection: a clear format is used, an unclear one is rejected, and ignored files are
reported.
"""

import json
from typing import Any

import pytest

VQA = {"type": "Vqa", "interactions": [{"order": 1, "question": "q", "answer": "a"}]}
ROW = json.dumps(
    {"id": 1, "asset": {"filename": "a.png", "width": 40, "height": 20}, "contents": VQA}
)
CSV = "filename,xmin,ymin,xmax,ymax,class\na.png,4,2,12,6,tin\n"


def test_two_formats_are_both_named_and_neither_is_used(source_folder: Any, make_png: Any) -> None:
    result = (
        source_folder.put("a.png", make_png())
        .put("rows.jsonl", ROW)
        .put("boxes.csv", CSV)
        .put("more.csv", CSV)
        .check()
    )
    assert (result.outcome.decision, result.records) == ("Rejected", [])
    found = result.findings[0]
    assert (found.code, found.action) == ("FormatUnknown", "FileRejected")
    assert found.cause == (
        "the files match 2 formats: --format ViJsonl: 1 file (rows.jsonl); "
        "--format CsvFourCorner: 2 files (boxes.csv, more.csv)"
    )
    assert "choose one with --format ViJsonl or --format CsvFourCorner" in found.fix


def test_naming_the_format_settles_it_and_reports_the_other_files(
    source_folder: Any, make_png: Any
) -> None:
    result = (
        source_folder.put("a.png", make_png())
        .put("rows.jsonl", ROW)
        .put("boxes.csv", CSV)
        .check(format="vijsonl")
    )
    assert (result.outcome.decision, len(result.records)) == ("Accepted", 1)
    assert [(found.code, found.file) for found in result.findings] == [("FileIgnored", "boxes.csv")]


@pytest.mark.parametrize(
    ("format", "cause"), [("Coco", "no file has"), ("Excel", "there is no format 'Excel'")]
)
def test_a_missing_format_is_reported_with_the_detected_ones(
    source_folder: Any, make_png: Any, format: str, cause: str
) -> None:
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", ROW).check(format=format)
    found = next(found for found in result.findings if found.code == "FormatUnknown")
    assert cause in found.cause
    assert "the files match --format ViJsonl: 1 file (rows.jsonl)" in found.cause
    assert "PascalVoc" in found.fix
    assert result.outcome.decision == "Rejected"


def test_images_without_annotations_can_be_imported(source_folder: Any, make_png: Any) -> None:
    result = (
        source_folder.put("a.png", make_png())
        .put("notes.md", "# hello")
        .put(".DS_Store", b"\0")
        .check("vqa")
    )
    assert (result.outcome.decision, result.outcome.counts["images"]) == ("Accepted", 1)
    assert sorted((found.code, found.file) for found in result.findings) == [
        ("AnnotationsAbsent", "a.png"),
        ("FileIgnored", "notes.md"),
    ]


def test_an_import_without_usable_files_is_rejected(source_folder: Any) -> None:
    result = source_folder.put("notes.md", "# hello").check()
    assert result.outcome.decision == "Rejected"
    assert result.outcome.why == "no image and no row could be accepted"


def test_a_format_that_cannot_carry_the_type_is_reported(source_folder: Any, make_png: Any) -> None:
    result = source_folder.put("a.png", make_png()).put("boxes.csv", CSV).check("vqa")
    found = next(found for found in result.findings if found.code == "ContentsUnfit")
    assert found.cause == "CsvFourCorner carries phrase-grounding, but the dataset is for vqa"
    assert result.outcome.decision == "Rejected"


def test_rows_of_which_none_can_be_accepted_are_rejected(source_folder: Any, make_png: Any) -> None:
    result = source_folder.put("b.png", make_png()).put("rows.jsonl", ROW).check("vqa")
    assert result.outcome.decision == "Rejected"
    assert result.outcome.why == "none of the rows could be accepted; there is 1 error"


@pytest.mark.parametrize(
    ("path", "is_error"),
    [("export.json", True), ("labels/a.txt", True), ("README.roboflow.txt", False)],
)
def test_unread_data_is_an_error_if_no_label_was_read(
    source_folder: Any, make_png: Any, path: str, is_error: bool
) -> None:
    result = source_folder.put("a.png", make_png()).put(path, "\x7f{}").check("vqa")
    assert result.outcome.decision == ("Rejected" if is_error else "Accepted")
    (found,) = [found for found in result.findings if found.file == path]
    assert found.code == ("FormatUnknown" if is_error else "FileIgnored")


def test_unread_data_beside_labels_is_a_warning(source_folder: Any, make_png: Any) -> None:
    folder = source_folder.put("a.png", make_png()).put("rows.jsonl", ROW)
    result = folder.put("notes.json", "[1]").check()
    assert [(found.code, found.file) for found in result.findings] == [
        ("FileIgnored", "notes.json")
    ]
