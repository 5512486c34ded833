import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.records import Freeform, PhraseGrounding


def test_a_text_beside_each_picture(shelf: Any, picture: Callable[..., bytes]) -> None:
    shelf.put("x/a.png", picture(30)).put("x/a.txt", "\ufeffein rotes Feld\n").put("x/b.PNG", picture(31))
    shelf.put("x/b.txt", "two\nlines").put("x/c.png", picture(32)).put("x/d.txt", "of nothing")
    taken = shelf.take()
    assert (taken.outcome.format, taken.outcome.type) == ("Captions", "freeform")
    assert [(record.asset.filename, record.contents) for record in taken.records] == [
        ("x/a.png", Freeform(text="ein rotes Feld")),
        ("x/b.PNG", Freeform(text="two\nlines")),
    ]
    assert sorted(taken.codes) == ["AnnotationsAbsent", "FileIgnored"]


@pytest.mark.parametrize(
    ("text", "code"), [(b"", "FileEmpty"), (b"\xff\xfe\x00", "EncodingWrong"), (b"  ", "TextEmpty")]
)
def test_texts_that_say_nothing(shelf: Any, picture: Callable[..., bytes], text: bytes, code: str) -> None:
    shelf.put("a.png", picture(30)).put("a.txt", text).put("b.png", picture(31)).put("b.txt", "red")
    taken = shelf.take("freeform")
    assert [record.asset.filename for record in taken.records] == ["b.png"]
    assert [(f.code, f.file) for f in taken.findings if f.severity == "error"] == [(code, "a.txt")]


def test_numbers_of_yolo_are_no_captions(shelf: Any, picture: Callable[..., bytes]) -> None:
    shelf.put("a.png", picture()).put("a.txt", "0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1\n").put("classes.txt", "a\nb\n")
    assert shelf.take().outcome.format == "YoloDarknet"


def test_image_folder_with_a_table_in_lines(shelf: Any, picture: Callable[..., bytes]) -> None:
    rows: list[Any] = [
        {"file_name": "a.png", "text": "red"},
        {"file_name": "sub/b.png", "text": "blue"},
        {"text": "of nothing"},
        {"file_name": "c.png", "text": 3},
        {"file_name": "d.png", "text": "gone"},
    ]
    shelf.put("train/a.png", picture(30)).put("train/sub/b.png", picture(31)).put("train/c.png", picture(32))
    shelf.put("test/a.png", picture(33)).put("train/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    taken = shelf.take("freeform")
    assert [(record.asset.filename, record.contents) for record in taken.records] == [
        ("train/a.png", Freeform(text="red")),
        ("train/sub/b.png", Freeform(text="blue")),
    ]
    assert [(f.code, f.line) for f in taken.findings if f.severity == "error"] == [
        ("FieldMissing", 3),
        ("FieldInvalid", 4),
        ("ImageMissing", 5),
    ]


def test_image_folder_with_objects(shelf: Any, picture: Callable[..., bytes]) -> None:
    row = {"file_name": "a.png", "objects": {"bbox": [[4, 5, 8, 10]], "categories": ["tin"]}}
    shelf.put("a.png", picture(40, 20)).put("metadata.jsonl", json.dumps(row))
    [record] = shelf.take().records
    assert isinstance(record.contents, PhraseGrounding)
    assert record.contents.grounded_phrases[0].bounds == [(0.1, 0.25, 0.3, 0.75)]


def test_image_folder_with_a_table_of_commas(shelf: Any, picture: Callable[..., bytes]) -> None:
    table = 'file_name,question,answer\na.png,"What, then?","a ""tin"""\na.png,Who?\na.png,Where?,here\n'
    taken = shelf.put("a.png", picture()).put("metadata.csv", table).take("vqa")
    pairs = [(r.contents.interactions[0].question, r.contents.interactions[0].answer) for r in taken.records]
    assert pairs == [("What, then?", 'a "tin"'), ("Where?", "here")]
    assert [(f.code, f.line) for f in taken.findings] == [("RowInvalid", 3)]


def test_folders_named_after_what_they_show(shelf: Any, picture: Callable[..., bytes]) -> None:
    shelf.put("train/cat/1.png", picture(30)).put("train/dog/1.png", picture(31)).put("README.md", "about")
    taken = shelf.take("vqa")
    pairs = [(r.contents.interactions[0].question, r.contents.interactions[0].answer) for r in taken.records]
    assert pairs == [("What is this?", "cat"), ("What is this?", "dog")]
    assert taken.codes.count("QuestionAssumed") == 1
    assert [record.contents for record in shelf.take("freeform").records] == [
        Freeform(text="cat"),
        Freeform(text="dog"),
    ]


def test_folders_that_only_sort_pictures_are_no_classes(shelf: Any, picture: Callable[..., bytes]) -> None:
    shelf.put("images/1.png", picture(30)).put("more/1.png", picture(31))
    assert shelf.take().outcome.format is None
    shelf.put("images/1.png", picture(30)).put("more/1.png", picture(31)).put("notes.json", "{}")
    assert shelf.take().outcome.format is None
