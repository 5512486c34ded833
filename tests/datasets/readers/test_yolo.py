"""YOLO of both kinds: labels beside pictures or in labels/, names from lists or data.yaml."""

from typing import Any

import pytest

from runyard.datasets.readers.yolo import names_in_yaml

LABELS = "0 0.2 0.2 0.2 0.2\n1 0.5 0.5 1 1\n"


@pytest.fixture
def darknet(shelf: Any, picture: Any) -> Any:
    return shelf.put("obj/a.png", picture()).put("obj/a.txt", LABELS).put("classes.txt", "tin\nbox\n")


def test_darknet_labels_lie_beside_their_pictures(darknet: Any) -> None:
    taken = darknet.put("train.txt", "obj/a.png\n").put("README.txt", "hello").take()
    assert (taken.outcome.format, taken.codes) == ("YoloDarknet", ["FileIgnored"])
    contents = taken.records[0].contents
    assert contents.caption == "tin and box"
    assert contents.grounded_phrases[0].bounds == [pytest.approx((0.1, 0.1, 0.3, 0.3))]
    assert contents.grounded_phrases[1].bounds == [(0.0, 0.0, 1.0, 1.0)]


@pytest.mark.parametrize("names", ["obj.names", "_darknet.labels"])
def test_names_may_be_in_lists_of_other_names(shelf: Any, picture: Any, names: str) -> None:
    taken = shelf.put("a.png", picture()).put("a.txt", LABELS).put(names, "tin\nbox").take()
    assert [phrase.phrase for phrase in taken.records[0].contents.grounded_phrases] == ["tin", "box"]


@pytest.mark.parametrize("layout", ["{kind}/train/a.{ending}", "train/{kind}/a.{ending}"])
def test_ultralytics_labels_lie_in_labels(shelf: Any, picture: Any, layout: str) -> None:
    shelf.put(layout.format(kind="images", ending="png"), picture())
    shelf.put(layout.format(kind="labels", ending="txt"), LABELS)
    taken = shelf.put("data.yaml", "train: images\nnames: [tin, box]\n").take()
    assert (taken.outcome.format, taken.findings, len(taken.records)) == ("YoloKerasPytorch", [], 1)


def test_a_polygon_has_its_box(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("a.txt", "0 0.1 0.2 0.5 0.2 0.3 0.6\n").put("classes.txt", "tin").take()
    assert taken.records[0].contents.grounded_phrases[0].bounds == [(0.1, 0.2, 0.5, 0.6)]


def test_an_empty_label_file_is_a_picture_without_rows(darknet: Any, picture: Any) -> None:
    taken = darknet.put("obj/b.png", picture(30, 30)).put("obj/b.txt", "").take()
    assert (len(taken.records), taken.codes) == (1, ["AnnotationsAbsent"])


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ("2 0.2 0.2 0.2 0.2", "ClassUnknown", "class"),
        ("-1 0.2 0.2 0.2 0.2", "FieldInvalid", "class"),
        ("0 0.2 x 0.2 0.2", "FieldInvalid", "y"),
        ("0 0.2 0.2 0.2", "RowInvalid", None),
        ("0 0.2 0.2 0.2 0.2 0.9", "RowInvalid", None),
        ("0 0.2 0.2 0 0.2", "BoxEmpty", "x y width height"),
        ("0 nan 0.2 0.1 0.2", "BoxNotFinite", "x y width height"),
        ("0 0.2 0.2 -0.2 0.2", "BoxCornersSwapped", "x y width height"),
        ("0 20 10 10 5", "BoxOtherFrame", "x y width height"),
        ("0 1.2 0.2 0.1 0.1", "BoxOutside", "x y width height"),
    ],
)
def test_defects_name_their_line(darknet: Any, bad: str, code: str, field: str | None) -> None:
    taken = darknet.put("obj/a.txt", LABELS + "\n" + bad).take()
    errors = [found for found in taken.findings if found.severity == "error"]
    assert [(found.code, found.file, found.line, found.field) for found in errors] == [(code, "obj/a.txt", 4, field)]
    assert taken.records == []


def test_labels_without_a_picture_are_told(darknet: Any) -> None:
    taken = darknet.put("obj/c.txt", LABELS).take()
    assert [(found.code, found.file, found.value) for found in taken.findings] == [
        ("ImageMissing", "obj/c.txt", "c.jpg")
    ]


def test_classes_that_nobody_names_are_told_once(shelf: Any, picture: Any) -> None:
    taken = shelf.put("a.png", picture()).put("a.txt", LABELS).put("b.txt", LABELS).take()
    assert [found.code for found in taken.findings if found.severity == "error"] == ["ClassUnknown"]
    assert taken.outcome.decision == "Rejected"


@pytest.mark.parametrize(
    "text",
    [
        "names: [tin, box]",
        "names: ['tin', \"box\"]  # two",
        "names:\n  - tin\n  - box\nnc: 2",
        "names:\n- 'tin'\n- box",
        "train: x\nnames:\n  0: tin # metal\n  1: box\n\nval: y",
        "names: {1: box, 0: tin}",
        "names: [\n  'tin',\n  'box'\n]",
    ],
)
def test_names_are_found_however_yaml_writes_them(text: str) -> None:
    assert names_in_yaml(text) == ["tin", "box"]


def test_quoted_names_keep_what_is_quoted() -> None:
    assert names_in_yaml('names: [\'it\'\'s\', "a, b", "c\\"d"]') == ["it's", "a, b", 'c"d']
    assert names_in_yaml("nc: 3") == []
