"""Vi JSONL: rows as they are, and lines that are no rows told with line, field and value."""

import json
from typing import Any

import pytest

from runyard.datasets.records import Freeform, Interaction, Vqa


def line(id: Any = 1, *, filename: str = "a.png", width: int = 40, height: int = 20, **contents: Any) -> str:
    contents = contents or {"type": "Vqa", "interactions": [{"order": 1, "question": "q", "answer": "a"}]}
    asset = {"type": "Image", "filename": filename, "width": width, "height": height}
    return json.dumps({"id": id, "asset": asset, "contents": contents}, ensure_ascii=False)


def test_ids_are_texts_or_numbers(shelf: Any, picture: Any) -> None:
    other = line("x", type="Vqa", interactions=[{"order": 1, "question": "é", "answer": "箱"}])
    taken = shelf.put("a.png", picture()).put("rows.jsonl", f"\ufeff{line(7)}\r\n\n{other}").take("vqa")
    assert [record.id for record in taken.records] == ["7", "x"]
    assert taken.records[1].contents == Vqa(interactions=[Interaction(order=1, question="é", answer="箱")])
    assert (taken.findings, taken.outcome.format) == ([], "ViJsonl")


def test_a_row_without_an_id_is_called_after_its_line(shelf: Any, picture: Any) -> None:
    row = json.loads(line())
    del row["id"]
    taken = shelf.put("a.png", picture()).put("rows.jsonl", json.dumps(row)).take("vqa")
    assert ([record.id for record in taken.records], taken.findings) == (["rows.jsonl:1"], [])


def test_the_size_may_be_left_out(shelf: Any, picture: Any) -> None:
    row = {"id": 1, "asset": {"filename": "a.png"}, "contents": {"type": "Freeform", "text": "x", "prompt": "y"}}
    taken = shelf.put("a.png", picture()).put("rows.jsonl", json.dumps(row)).take()
    assert (taken.findings, taken.outcome.type) == ([], "freeform")
    assert (taken.records[0].asset.width, taken.records[0].contents) == (40, Freeform(text="x", prompt="y"))


PHRASE = {"phrase": "a", "startTokenIndex": 0, "endTokenIndex": 1, "bounds": [[0, 0, 1, 1], [0, 0, 1, "1"]]}
GROUNDING = {"type": "PhraseGrounding", "caption": "a b"}


@pytest.mark.parametrize(
    ("bad", "code", "field", "value"),
    [
        (b'{"id": 1, "asset"', "RowInvalid", None, '{"id": 1, "asset"'),
        (b"[1, 2]", "RowInvalid", None, "[1, 2]"),
        (b'{"id": 1}', "FieldMissing", "asset", None),
        (line(filename="").encode(), "FieldInvalid", "asset.filename", ""),
        (line(type="Caption", caption="x").encode(), "FieldInvalid", "contents.type", "Caption"),
        (line(type="Vqa").encode(), "FieldMissing", "contents.interactions", None),
        (
            line(type="Vqa", interactions=[{"order": 1, "question": "q", "answer": "a"}, {"order": 2}]).encode(),
            "FieldMissing",
            "contents.interactions[1].question",
            None,
        ),
        (
            line(**GROUNDING, groundedPhrases=[{**PHRASE, "bounds": []}, PHRASE]).encode(),
            "FieldInvalid",
            "contents.groundedPhrases[1].bounds[1][3]",
            "1",
        ),
        (
            line(**GROUNDING, groundedPhrases=[{**PHRASE, "bounds": [[0, 0, 1]]}]).encode(),
            "FieldInvalid",
            "contents.groundedPhrases[0].bounds[0]",
            "[0, 0, 1]",
        ),
        (line(width="40").encode(), "FieldInvalid", "asset.width", "40"),  # type: ignore[arg-type]
        (line().encode().replace(b'"q"', b'"\xff"'), "EncodingWrong", None, None),
    ],
)
def test_a_line_that_is_no_row_is_told_and_the_others_are_taken(
    shelf: Any, picture: Any, bad: bytes, code: str, field: str | None, value: str | None
) -> None:
    other = line(2, type="Vqa", interactions=[{"order": 1, "question": "r", "answer": "b"}])
    taken = shelf.put("a.png", picture()).put("rows.jsonl", b"\n".join([line().encode(), bad, other.encode()]))
    taken = taken.take("vqa")
    assert [record.id for record in taken.records] == ["1", "2"]
    (found,) = taken.findings
    assert (found.code, found.line, found.field, found.value) == (code, 2, field, value)


def test_numbers_that_json_does_not_know_are_named(shelf: Any, picture: Any) -> None:
    row = line(**GROUNDING, groundedPhrases=[{**PHRASE, "bounds": [[0, float("nan"), 1, 1]]}])
    taken = shelf.put("a.png", picture()).put("rows.jsonl", row).take("phrase-grounding")
    assert [(found.code, found.line) for found in taken.findings if found.severity == "error"] == [("BoxNotFinite", 1)]


def test_a_line_without_end_is_left_out_and_the_next_one_taken(
    shelf: Any, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.datasets.readers.lines.LONGEST_LINE_BYTES", 400)
    rows = "\n".join([line(1), line(2, type="Freeform", text="x" * 2000), line(3, type="Freeform", text="x")])
    taken = shelf.put("a.png", picture()).put("rows.jsonl", rows).take("vqa")
    assert [(found.code, found.line) for found in taken.findings] == [("RowInvalid", 2), ("ContentsUnfit", 3)]


@pytest.mark.parametrize(("data", "code"), [(b"", "FileIgnored"), ((line() + "\n").encode("utf-16"), "FileIgnored")])
def test_files_that_are_empty_or_of_two_bytes_a_letter_are_not_taken_for_rows(
    shelf: Any, picture: Any, data: bytes, code: str
) -> None:
    taken = shelf.put("a.png", picture()).put("rows.jsonl", line()).put("more.jsonl", data).take("vqa")
    assert [(found.file, found.code) for found in taken.findings] == [("more.jsonl", code)]
