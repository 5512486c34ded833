import json
from collections.abc import Callable
from typing import Any

import pytest

from runyard.datasets.records import Freeform, PhraseGrounding


def test_a_text_next_to_each_image(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    source_folder.put("x/a.png", make_png(30)).put("x/a.txt", "\ufeffein rotes Feld\n").put(
        "x/b.PNG", make_png(31)
    )
    source_folder.put("x/b.txt", "two\nlines").put("x/c.png", make_png(32)).put(
        "x/d.txt", "of nothing"
    )
    result = source_folder.check()
    assert (result.outcome.format, result.outcome.type) == ("Captions", "freeform")
    assert [(record.asset.filename, record.contents) for record in result.records] == [
        ("x/a.png", Freeform(text="ein rotes Feld")),
        ("x/b.PNG", Freeform(text="two\nlines")),
    ]
    assert [(f.code, f.file) for f in result.findings if f.severity == "error"] == [
        ("ImageMissing", "x/d.txt")
    ]
    assert result.outcome.counts["rows"] == 3


@pytest.mark.parametrize(
    ("text", "code"), [(b"", "FileEmpty"), (b"\xff\xfe\x00", "EncodingWrong"), (b"  ", "TextEmpty")]
)
def test_empty_captions_are_reported(
    source_folder: Any, make_png: Callable[..., bytes], text: bytes, code: str
) -> None:
    source_folder.put("a.png", make_png(30)).put("a.txt", text).put("b.png", make_png(31)).put(
        "b.txt", "red"
    )
    result = source_folder.check("freeform")
    assert [record.asset.filename for record in result.records] == ["b.png"]
    assert [(f.code, f.file) for f in result.findings if f.severity == "error"] == [(code, "a.txt")]


def test_yolo_labels_are_not_taken_for_captions(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("a.png", make_png()).put("a.txt", "0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1\n").put(
        "classes.txt", "a\nb\n"
    )
    assert source_folder.check().outcome.format == "YoloDarknet"


@pytest.mark.parametrize("ending", ["txt", "caption"])
def test_numbers_and_single_words_are_captions(
    source_folder: Any, make_png: Callable[..., bytes], ending: str
) -> None:
    source_folder.put("a.png", make_png(30)).put(f"a.{ending}", "0042\n")
    source_folder.put("b.png", make_png(31)).put(f"b.{ending}", "tin").put("README.txt", "about")
    texts = [record.contents for record in source_folder.check().records]
    assert texts == [Freeform(text="0042"), Freeform(text="tin")]


def test_a_text_of_two_images_is_not_given_to_one_of_them(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("a.png", make_png(30)).put("a.gif", make_png(31)).put("a.txt", "red")
    result = source_folder.check("freeform")
    assert result.records == []
    assert "ImageAmbiguous" in result.codes


def test_texts_that_do_not_fit_the_type_are_counted(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    for name in "abc":
        source_folder.put(f"{name}.png", make_png(30 + ord(name))).put(f"{name}.txt", "red")
    result = source_folder.check("vqa")
    [found] = [found for found in result.findings if found.code == "ContentsUnfit"]
    assert (found.rows, result.outcome.counts["rows"]) == (3, 3)


def test_image_folder_with_a_jsonl_table(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    rows: list[Any] = [
        {"file_name": "a.png", "text": "red"},
        {"file_name": "sub/b.png", "text": "blue"},
        {"text": "of nothing"},
        {"file_name": "c.png", "text": 3},
        {"file_name": "d.png", "text": "gone"},
    ]
    source_folder.put("train/a.png", make_png(30)).put("train/sub/b.png", make_png(31)).put(
        "train/c.png", make_png(32)
    )
    source_folder.put("test/a.png", make_png(33)).put(
        "train/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    )
    result = source_folder.check("freeform")
    assert [(record.asset.filename, record.contents) for record in result.records] == [
        ("train/a.png", Freeform(text="red")),
        ("train/sub/b.png", Freeform(text="blue")),
    ]
    assert [(f.code, f.line) for f in result.findings if f.severity == "error"] == [
        ("FieldMissing", 3),
        ("FieldInvalid", 4),
        ("ImageMissing", 5),
    ]


def test_image_folder_with_objects(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    row = {"file_name": "a.png", "objects": {"bbox": [[4, 5, 8, 10]], "categories": ["tin"]}}
    source_folder.put("a.png", make_png(40, 20)).put("metadata.jsonl", json.dumps(row))
    [record] = source_folder.check().records
    assert isinstance(record.contents, PhraseGrounding)
    assert record.contents.grounded_phrases[0].bounds == [(0.1, 0.25, 0.3, 0.75)]


def test_image_folder_with_a_csv_table(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    table = (
        'file_name,question,answer\na.png,"What, then?","a ""tin"""\na.png,Who?\n'
        "a.png,Where?,here\n"
    )
    result = source_folder.put("a.png", make_png()).put("metadata.csv", table).check("vqa")
    pairs = [
        (r.contents.interactions[0].question, r.contents.interactions[0].answer)
        for r in result.records
    ]
    assert pairs == [("What, then?", 'a "tin"'), ("Where?", "here")]
    assert [(f.code, f.line) for f in result.findings] == [("RowInvalid", 3)]


def test_folders_named_after_classes(source_folder: Any, make_png: Callable[..., bytes]) -> None:
    source_folder.put("train/cat/1.png", make_png(30)).put("train/dog/1.png", make_png(31)).put(
        "README.md", "about"
    )
    result = source_folder.check("vqa")
    pairs = [
        (r.contents.interactions[0].question, r.contents.interactions[0].answer)
        for r in result.records
    ]
    assert pairs == [("What is this?", "cat"), ("What is this?", "dog")]
    assert result.codes.count("QuestionAssumed") == 1
    assert [record.contents for record in source_folder.check("freeform").records] == [
        Freeform(text="cat"),
        Freeform(text="dog"),
    ]


def test_folders_that_only_group_images_are_not_classes(
    source_folder: Any, make_png: Callable[..., bytes]
) -> None:
    source_folder.put("images/1.png", make_png(30)).put("more/1.png", make_png(31))
    assert source_folder.check().outcome.format is None
    source_folder.put("images/1.png", make_png(30)).put("more/1.png", make_png(31)).put(
        "notes.json", "{}"
    )
    assert source_folder.check().outcome.format is None


@pytest.mark.parametrize("images", [("7.png", "one/7.jpg"), ("one/7.png", "two/7.PNG")])
def test_a_text_file_belongs_to_the_image_next_to_it(
    source_folder: Any, make_png: Any, images: tuple[str, str]
) -> None:
    for number, image in enumerate(images):
        source_folder.put(image, make_png(color=(number, 0, 0)))
        source_folder.put(f"{image.rpartition('.')[0]}.txt", f"the text of {image}")
    result = source_folder.check()
    texts = {record.asset.filename: record.contents.text for record in result.records}
    assert texts == {image: f"the text of {image}" for image in images}
