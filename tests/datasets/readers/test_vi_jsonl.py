"""Vi JSONL: rows as written, and findings with line, field and value for invalid lines."""

import json
from typing import Any

import pytest

from runyard.datasets.records import Freeform, Interaction, Vqa


def line(
    id: Any = 1, *, filename: str = "a.png", width: int = 40, height: int = 20, **contents: Any
) -> str:
    contents = contents or {
        "type": "Vqa",
        "interactions": [{"order": 1, "question": "q", "answer": "a"}],
    }
    asset = {"type": "Image", "filename": filename, "width": width, "height": height}
    return json.dumps({"id": id, "asset": asset, "contents": contents}, ensure_ascii=False)


def test_ids_are_texts_or_numbers(source_folder: Any, make_png: Any) -> None:
    other = line("x", type="Vqa", interactions=[{"order": 1, "question": "é", "answer": "箱"}])
    result = (
        source_folder.put("a.png", make_png())
        .put("rows.jsonl", f"\ufeff{line(7)}\r\n\n{other}")
        .check("vqa")
    )
    assert [record.id for record in result.records] == ["7", "x"]
    assert result.records[1].contents == Vqa(
        interactions=[Interaction(order=1, question="é", answer="箱")]
    )
    assert (result.findings, result.outcome.format) == ([], "ViJsonl")


def test_a_row_without_an_id_is_named_after_its_line(source_folder: Any, make_png: Any) -> None:
    row = json.loads(line())
    del row["id"]
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", json.dumps(row)).check("vqa")
    assert ([record.id for record in result.records], result.findings) == (["rows.jsonl:1"], [])


def test_the_size_may_be_left_out(source_folder: Any, make_png: Any) -> None:
    row = {
        "id": 1,
        "asset": {"filename": "a.png"},
        "contents": {"type": "Freeform", "text": "x", "prompt": "y"},
    }
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", json.dumps(row)).check()
    assert (result.findings, result.outcome.type) == ([], "freeform")
    assert (result.records[0].asset.width, result.records[0].contents) == (
        40,
        Freeform(text="x", prompt="y"),
    )


PHRASE = {
    "phrase": "a",
    "startTokenIndex": 0,
    "endTokenIndex": 1,
    "bounds": [[0, 0, 1, 1], [0, 0, 1, "1"]],
}
GROUNDING: dict[str, Any] = {"type": "PhraseGrounding", "caption": "a b"}


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
            line(
                type="Vqa",
                interactions=[{"order": 1, "question": "q", "answer": "a"}, {"order": 2}],
            ).encode(),
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
def test_an_invalid_line_is_reported_and_the_others_are_accepted(
    source_folder: Any, make_png: Any, bad: bytes, code: str, field: str | None, value: str | None
) -> None:
    other = line(2, type="Vqa", interactions=[{"order": 1, "question": "r", "answer": "b"}])
    result = source_folder.put("a.png", make_png()).put(
        "rows.jsonl", b"\n".join([line().encode(), bad, other.encode()])
    )
    result = result.check("vqa")
    assert [record.id for record in result.records] == ["1", "2"]
    (found,) = result.findings
    assert (found.code, found.line, found.field, found.value) == (code, 2, field, value)


def test_numbers_that_json_lacks_are_reported(source_folder: Any, make_png: Any) -> None:
    row = line(**GROUNDING, groundedPhrases=[{**PHRASE, "bounds": [[0, float("nan"), 1, 1]]}])
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", row).check("phrase-grounding")
    assert [(found.code, found.line) for found in result.findings if found.severity == "error"] == [
        ("BoxNotFinite", 1)
    ]


def test_a_line_without_end_is_left_out_and_the_next_one_accepted(
    source_folder: Any, make_png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.datasets.readers.lines.MAX_LINE_BYTES", 400)
    rows = "\n".join(
        [line(1), line(2, type="Freeform", text="x" * 2000), line(3, type="Freeform", text="x")]
    )
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", rows).check("vqa")
    assert [(found.code, found.line) for found in result.findings] == [
        ("RowInvalid", 2),
        ("ContentsUnfit", 3),
    ]


def test_an_empty_file_is_not_taken_for_rows(source_folder: Any, make_png: Any) -> None:
    result = (
        source_folder.put("a.png", make_png())
        .put("rows.jsonl", line())
        .put("more.jsonl", b"")
        .check("vqa")
    )
    found = [(found.file, found.code) for found in result.findings]
    assert found == [("more.jsonl", "FileIgnored")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_utf_16_with_a_byte_order_mark_is_read(
    source_folder: Any, make_png: Any, encoding: str
) -> None:
    rows = (line() + "\n") * 1000
    result = (
        source_folder.put("a.png", make_png()).put("rows.jsonl", rows.encode(encoding)).check("vqa")
    )
    assert (result.outcome.format, len(result.records)) == ("ViJsonl", 1000)


def test_cut_off_utf_16_is_reported(source_folder: Any, make_png: Any) -> None:
    rows = (line() + "\n" + line()).encode("utf-16")[:-1]
    result = source_folder.put("a.png", make_png()).put("rows.jsonl", rows).check("vqa")
    assert len(result.records) == 1
    assert "EncodingWrong" in result.codes
