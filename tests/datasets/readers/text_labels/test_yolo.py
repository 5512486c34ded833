"""YOLO of both kinds: labels next to images or in labels/, names from lists or data.yaml."""

from typing import Any

import pytest

LABELS = "0 0.2 0.2 0.2 0.2\n1 0.5 0.5 1 1\n"


@pytest.fixture
def darknet(source_folder: Any, make_png: Any) -> Any:
    return (
        source_folder.put("obj/a.png", make_png())
        .put("obj/a.txt", LABELS)
        .put("classes.txt", "tin\nbox\n")
    )


def test_darknet_labels_are_next_to_their_images(darknet: Any) -> None:
    result = darknet.put("train.txt", "obj/a.png\n").put("README.txt", "hello").check()
    assert (result.outcome.format, result.codes) == ("YoloDarknet", ["FileIgnored"])
    contents = result.records[0].contents
    assert contents.caption == "tin and box"
    assert contents.grounded_phrases[0].bounds == [pytest.approx((0.1, 0.1, 0.3, 0.3))]
    assert contents.grounded_phrases[1].bounds == [(0.0, 0.0, 1.0, 1.0)]


@pytest.mark.parametrize("names", ["obj.names", "_darknet.labels"])
def test_class_lists_may_have_other_file_names(
    source_folder: Any, make_png: Any, names: str
) -> None:
    result = (
        source_folder.put("a.png", make_png()).put("a.txt", LABELS).put(names, "tin\nbox").check()
    )
    assert [phrase.phrase for phrase in result.records[0].contents.grounded_phrases] == [
        "tin",
        "box",
    ]


@pytest.mark.parametrize("layout", ["{kind}/train/a.{ending}", "train/{kind}/a.{ending}"])
def test_ultralytics_labels_are_in_labels(source_folder: Any, make_png: Any, layout: str) -> None:
    source_folder.put(layout.format(kind="images", ending="png"), make_png())
    source_folder.put(layout.format(kind="labels", ending="txt"), LABELS)
    result = source_folder.put("data.yaml", "train: images\nnames: [tin, box]\n").check()
    assert (result.outcome.format, result.findings, len(result.records)) == (
        "YoloKerasPytorch",
        [],
        1,
    )


def test_a_polygon_has_its_box(source_folder: Any, make_png: Any) -> None:
    result = (
        source_folder.put("a.png", make_png())
        .put("a.txt", "0 0.1 0.2 0.5 0.2 0.3 0.6\n")
        .put("classes.txt", "tin")
        .check()
    )
    assert result.records[0].contents.grounded_phrases[0].bounds == [(0.1, 0.2, 0.5, 0.6)]


def test_an_empty_label_file_is_an_image_without_rows(darknet: Any, make_png: Any) -> None:
    result = darknet.put("obj/b.png", make_png(30, 30)).put("obj/b.txt", "").check()
    assert (len(result.records), result.codes) == (1, ["AnnotationsAbsent"])


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
def test_findings_name_their_line(darknet: Any, bad: str, code: str, field: str | None) -> None:
    result = darknet.put("obj/a.txt", LABELS + "\n" + bad).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.file, found.line, found.field) for found in errors] == [
        (code, "obj/a.txt", 4, field)
    ]
    assert result.records == []


def test_labels_without_an_image_are_reported(darknet: Any) -> None:
    result = darknet.put("obj/c.txt", LABELS).check()
    assert [(found.code, found.file, found.value) for found in result.findings] == [
        ("ImageMissing", "obj/c.txt", "c.jpg")
    ]


def test_classes_without_names_are_reported_once_per_file(
    source_folder: Any, make_png: Any
) -> None:
    result = (
        source_folder.put("a.png", make_png()).put("a.txt", LABELS).put("b.txt", LABELS).check()
    )
    assert [found.code for found in result.findings if found.severity == "error"] == [
        "ClassUnknown"
    ]
    assert result.outcome.decision == "Rejected"


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
    assert parse_yaml_names(text) == ["tin", "box"]


def test_quoted_names_keep_their_text() -> None:
    assert parse_yaml_names('names: [\'it\'\'s\', "a, b", "c\\"d"]') == ["it's", "a, b", 'c"d']
    assert parse_yaml_names("nc: 3") == []
