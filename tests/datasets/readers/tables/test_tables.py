"""Tables of any file name: their rows, their columns, and what is reported of the others."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.findings import Finding
from runyard.datasets.records import Freeform, Record

Pairs = list[tuple[str, str, str]]
VQA = {"image": "a.png", "question": "What?", "answer": "A tin."}


def list_pairs(records: list[Record]) -> Pairs:
    """List image, question and answer, or image, prompt and text."""
    pairs: Pairs = []
    for record in records:
        contents: Any = record.contents
        if isinstance(contents, Freeform):
            pairs.append((record.asset.filename, contents.prompt, contents.text))
        else:
            pairs += [
                (record.asset.filename, one.question, one.answer) for one in contents.interactions
            ]
    return pairs


def list_errors(findings: list[Finding]) -> list[tuple[str, int | None, str | None, int | None]]:
    return [(f.code, f.line, f.field, f.rows) for f in findings if f.severity == "error"]


@pytest.fixture
def images(source_folder: Any, make_png: Callable[..., bytes]) -> Any:
    return source_folder.put("a.png", make_png(30)).put("b.png", make_png(31))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("train.json", json.dumps([VQA])),
        ("train.json", json.dumps(VQA)),
        ("train.json", json.dumps(VQA) + "\n\n"),
        ("rows/all.json", json.dumps({"info": {"version": 1}, "data": [VQA]})),
        ("train.jsonl", "\ufeff" + json.dumps(VQA)),
        ("train.ndjson", json.dumps(VQA)),
        ("train.jsonl", json.dumps(VQA).encode("utf-16")),
        ("t.jsonl", '{"file": "a.png", "query": "What?", "response": "A tin."}'),
        ("t.jsonl", '{"img_path": "x/../a.png", "prefix": "What?", "suffix": "A tin."}'),
        ("t.jsonl", '{"image_id": "a", "instruction": "What?", "output": "A tin."}'),
        (
            "t.jsonl",
            '{"image": {"path": "a.png"}, "qa": [{"user": "What?", "assistant": "A tin."}]}',
        ),
        ("t.json", '{"7": {"imageId": "a", "question": "What?", "answer": "A tin."}}'),
        ("t.json", '{"a.png": {"question": "What?", "answer": "A tin."}}'),
        ("t.csv", "image,question,answer\na.png,What?,A tin.\n"),
        ("t.csv", "\ufeffImage Name;Question;Answer\r\na.png;What?;A tin.\r\n"),
        ("t.tsv", "id\timage_name\tprompt\tcompletion\n7\ta.png\tWhat?\tA tin.\n"),
        ("t.csv", 'file_name, question, answer\na.png, "What?", "A tin."\n'),
    ],
)
def test_questions_are_read_from_tables_of_any_name(
    images: Any, path: str, content: str | bytes
) -> None:
    result = images.put(path, content).check("vqa")
    assert result.outcome.format == "Table"
    assert list_pairs(result.records) == [("a.png", "What?", "A tin.")]
    assert list_errors(result.findings) == []


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("captions.txt", 'image,caption\na.png,"A tin, red"\na.png,Tin\n', ["A tin, red", "Tin"]),
        ("Flickr8k.token.txt", 'a.png#0\tA "tin\na.png#1\tTin\n', ['A "tin', "Tin"]),
        (
            "results.csv",
            'image_name| comment_number| comment\na.png| 0| A "tin\na.png| 1| Tin\n',
            ['A "tin', "Tin"],
        ),
        ("c.json", '[{"image": "a.png", "captions": ["A", "B"]}]', ["A", "B"]),
        ("c.json", '{"a.png": ["A", "B"], "b.png": []}', ["A", "B"]),
        (
            "dataset.json",
            '{"images": [{"filename": "a.png", "sentences": [{"raw": "A"}, {"raw": "B"}]}]}',
            ["A", "B"],
        ),
        ("x.jsonl", '{"image": "a.png", "text": "A", "caption": "B"}', ["A"]),
    ],
)
def test_every_caption_of_an_image_is_a_row(
    images: Any, path: str, content: str, expected: list[str]
) -> None:
    result = images.put(path, content).check("freeform")
    assert list_pairs(result.records) == [("a.png", "", text) for text in expected]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train.csv": "image_name,label_name\na.png,tin\nb.png,jar\n"}, ["tin", "jar"]),
        ({"labels.csv": "id,label\na,tin\nb,jar\n"}, ["tin", "jar"]),
        ({"l.csv": "file,label\na.png,1\nb.png,0\n", "classes.txt": "jar\ntin\n"}, ["tin", "jar"]),
        (
            {
                "x/l.jsonl": '{"image": "a.png", "label": 1}',
                "dataset_info.json": json.dumps(
                    {"features": {"label": {"_type": "ClassLabel", "names": ["jar", "tin"]}}}
                ),
            },
            ["tin"],
        ),
        ({"l.jsonl": '{"image": "a.png", "label": 7, "class_name": "tin"}'}, ["tin"]),
    ],
)
def test_class_tables_are_read_with_the_names_next_to_them(
    images: Any, files: dict[str, str], expected: list[str]
) -> None:
    for path, content in files.items():
        images.put(path, content)
    result = images.check("vqa")
    assert [answer for _, _, answer in list_pairs(result.records)] == expected
    assert [found.code for found in result.findings if found.file in files] == ["QuestionAssumed"]


@pytest.mark.parametrize(
    "content",
    [
        {"image": "a.png", "label": 3},
        {"image": "a.png", "class_id": 3},
        {"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [3]}},
    ],
)
def test_a_class_number_without_names_says_where_to_write_them(images: Any, content: Any) -> None:
    result = images.put("metadata.jsonl", json.dumps(content)).check()
    [found] = [found for found in result.findings if found.code == "ClassUnknown"]
    assert "classes.txt" in found.fix
    assert result.records == []


@pytest.mark.parametrize(
    ("row", "task", "columns"),
    [
        ({"query": "Q", "instruction": "I", "answer": "A"}, "vqa", "query and instruction"),
        ({"question": "Q", "response": "A", "output": "B"}, "vqa", "response and output"),
        ({"caption": "A", "description": "B"}, "freeform", "caption and description"),
        ({"label": "tin", "category": "can"}, "vqa", "label and category"),
    ],
)
def test_columns_that_could_be_the_same_part_are_not_chosen_between(
    images: Any, row: dict[str, str], task: Any, columns: str
) -> None:
    rows = [{"image": "a.png", **row}, {"image": "b.png", **row}]
    result = images.put("t.json", json.dumps(rows)).check(task)
    [found] = [found for found in result.findings if found.severity == "error"]
    assert (found.code, found.field, found.rows) == ("FieldInvalid", "[0]", 2)
    assert columns in found.cause
    assert (result.outcome.counts["rows"], result.outcome.counts["rowsKept"]) == (2, 0)


@pytest.mark.parametrize(
    ("path", "content", "parts"),
    [
        ("t.jsonl", '{"image": "a.png", "score": 1}', ["image, score", "question with answer"]),
        ("t.csv", "id,breed\na,tin\n", ["id, breed", "label"]),
        ("t.jsonl", '{"image_url": "http://x/a.png", "caption": "x"}', ["by URL"]),
        ("train.csv", "a.png,tin\nb.png,jar\n", ["no line names the columns"]),
        ("train.txt", "a.png 3\nb.png 4\n", ["no line names the columns"]),
        (
            "questions.json",
            '{"questions": [{"image_id": 1, "question": "Q", "question_id": 1}]}',
            ["joined by question_id"],
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_explained(
    images: Any, path: str, content: str, parts: list[str]
) -> None:
    result = images.put(path, content).check("vqa")
    [found] = [found for found in result.findings if found.file == path]
    assert (found.code, found.severity) == ("FormatUnknown", "error")
    assert all(part in found.cause for part in parts)
    assert result.outcome.decision == "Rejected"


@pytest.mark.parametrize(
    ("path", "content", "errors"),
    [
        ("t.csv", "image,text\na.png,A, B\nb.png,jar\n", [("RowInvalid", 2, None, None)]),
        ("t.csv", "image,text\na.png\nb.png,jar\n", [("RowInvalid", 2, None, None)]),
        ("t.csv", 'image,text\na.png,"A" B\nb.png,jar\n', [("RowInvalid", 2, None, 1)]),
        ("t.csv", "image,text\nb.png,jar\na.png,\n", [("TextEmpty", 3, "contents.text", None)]),
        (
            "t.csv",
            "image,text\na.png,\xc4\nb.png,jar\n".encode("cp1252"),
            [("EncodingWrong", 2, None, None)],
        ),
        ("t.csv", 'image,text\nb.png,jar\na.png,"x\ny\n', [("RowInvalid", 3, None, 2)]),
        (
            "t.jsonl",
            '{"image": "b.png", "text": "jar"}\n{"image": "a.png", "te',
            [("RowInvalid", 2, None, None)],
        ),
        (
            "t.json",
            '[{"image": "b.png", "text": "jar"},\n{"image": "a.png", "te',
            [("FileUnreadable", 2, None, None)],
        ),
        (
            "t.jsonl",
            '{"image": "b.png", "text": "jar"}\n{"image": "a.png", "text": NaN}',
            [("FieldInvalid", 2, "text", None)],
        ),
        (
            "t.json",
            '{"b.png": "jar", "c.png": 7}',
            [("RowInvalid", None, "c.png", None)],
        ),
        (
            "metadata.jsonl",
            '{"file_name": "b.png", "text": "jar"}\n{"text": "tin"}\n[1]\n',
            [("FieldMissing", 2, "file_name", None), ("RowInvalid", 3, None, None)],
        ),
        (
            "t.jsonl",
            '{"image": "b.png", "text": "jar"}\n{"image": ["a.png", "b.png"], "text": "x"}',
            [("FieldInvalid", 2, "image", None)],
        ),
        (
            "t.jsonl",
            '{"image": "b.png", "text": "jar"}\n{"image": "a.png", "file": "b.png", "text": "x"}',
            [("ImageAmbiguous", 2, "file", None)],
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_reported_and_the_others_are_kept(
    images: Any, path: str, content: str | bytes, errors: list[Any]
) -> None:
    result = images.put(path, content).check("freeform")
    assert list_pairs(result.records) == [("b.png", "", "jar")]
    assert list_errors(result.findings) == errors
    counts = result.outcome.counts
    assert counts["rows"] == 1 + sum(rows or 1 for *_, rows in errors)


@pytest.mark.parametrize("is_data_url", [False, True])
@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_images_within_rows_are_read_from_base64(
    source_folder: Any, make_png: Callable[..., bytes], ending: str, is_data_url: bool
) -> None:
    text = base64.b64encode(make_png()).decode()
    text = f"data:image/png;base64,{text}" if is_data_url else text
    row = {"index": "7", "image": text, "question": "What?", "answer": "A tin."}
    content = json.dumps(row)
    if ending == "tsv":
        content = "\t".join(row) + "\n" + "\t".join(row.values()) + "\n"
    result = source_folder.put(f"t.{ending}", content).check("vqa")
    assert list_pairs(result.records) == [("t/000001.png", "What?", "A tin.")]


def test_a_long_text_that_is_no_image_is_reported_in_part(images: Any) -> None:
    rows = [{"image": "a.png", "text": "A"}, {"image": "QUJD" * 1000, "text": "B"}]
    result = images.put("t.json", json.dumps(rows)).check("freeform")
    [found] = [found for found in result.findings if found.severity == "error"]
    assert "base64" in found.cause
    assert found.value is not None and len(found.value) == 80


def test_location_tokens_are_kept_and_reported_once(images: Any) -> None:
    rows = [
        {
            "image": name,
            "prefix": "detect tin",
            "suffix": "<loc0102><loc0102><loc0614><loc0512> tin",
        }
        for name in ("a.png", "b.png")
    ]
    result = images.put("_annotations.train.jsonl", "\n".join(map(json.dumps, rows))).check()
    assert [text for _, _, text in list_pairs(result.records)] == [row["suffix"] for row in rows]
    [found] = [found for found in result.findings if found.code == "BoxesInText"]
    assert found.value is not None and "<loc0102>" in found.value
    assert "(2 rows)" in found.cause


def test_submissions_have_made_up_labels_and_are_ignored(images: Any) -> None:
    images.put("train.csv", "image,label\na.png,tin\n")
    result = images.put("sample_submission.csv", "image,label\nb.png,tin\n").check("vqa")
    assert [name for name, _, _ in list_pairs(result.records)] == ["a.png"]
    assert ("FileIgnored", "sample_submission.csv") in [(f.code, f.file) for f in result.findings]
