"""Which format files are of: named when it is clear, refused when it is not, and nothing left untold."""

import json
from typing import Any

import pytest

VQA = {"type": "Vqa", "interactions": [{"order": 1, "question": "q", "answer": "a"}]}
ROW = json.dumps({"id": 1, "asset": {"filename": "a.png", "width": 40, "height": 20}, "contents": VQA})
CSV = "filename,xmin,ymin,xmax,ymax,class\na.png,4,2,12,6,tin\n"


def test_two_formats_are_both_named_and_neither_is_taken(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("rows.jsonl", ROW).put("boxes.csv", CSV).put("more.csv", CSV).take()
    assert (taken.outcome.decision, taken.records) == ("Rejected", [])
    found = taken.findings[0]
    assert (found.code, found.action) == ("FormatUnknown", "FileRejected")
    assert found.cause == "the files fit 2 formats: ViJsonl (rows.jsonl); CsvFourCorner (boxes.csv and 1 more)"


def test_naming_the_format_settles_it_and_tells_the_other_files(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("rows.jsonl", ROW).put("boxes.csv", CSV).take(format="vijsonl")
    assert (taken.outcome.decision, len(taken.records)) == ("Accepted", 1)
    assert [(found.code, found.file) for found in taken.findings] == [("FileIgnored", "boxes.csv")]


@pytest.mark.parametrize(("format", "cause"), [("Coco", "no file is of"), ("Excel", "there is no format 'Excel'")])
def test_a_format_that_is_not_there_is_told_with_those_that_are(
    shelf: Any, picture: Any, format: str, cause: str
) -> None:
    taken = shelf.put("a.png", picture()).put("rows.jsonl", ROW).take(format=format)
    found = next(found for found in taken.findings if found.code == "FormatUnknown")
    assert cause in found.cause
    assert "PascalVoc" in found.cure
    assert taken.outcome.decision == "Rejected"


def test_pictures_alone_are_an_import(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("notes.md", "# hello").put(".DS_Store", b"\0").take("vqa")
    assert (taken.outcome.decision, taken.outcome.counts["images"]) == ("Accepted", 1)
    assert sorted((found.code, found.file) for found in taken.findings) == [
        ("AnnotationsAbsent", "a.png"),
        ("FileIgnored", ".DS_Store"),
        ("FileIgnored", "notes.md"),
    ]


def test_nothing_to_take_is_rejected(shelf: Any) -> None:
    taken = shelf.put("notes.md", "# hello").take()
    assert taken.outcome.decision == "Rejected"
    assert taken.outcome.why == "no picture and no row could be taken"


def test_a_format_that_cannot_carry_the_type_is_told(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("boxes.csv", CSV).take("vqa")
    found = next(found for found in taken.findings if found.code == "ContentsUnfit")
    assert found.cause == "CsvFourCorner carries phrase-grounding, and the dataset is for vqa"
    assert taken.outcome.decision == "Rejected"


def test_rows_of_which_none_can_be_taken_are_rejected(shelf: Any, picture: Any) -> None:
    taken = shelf.put("b.png", picture()).put("rows.jsonl", ROW).take("vqa")
    assert taken.outcome.decision == "Rejected"
    assert taken.outcome.why == "none of the rows could be taken; there are 1 errors"
