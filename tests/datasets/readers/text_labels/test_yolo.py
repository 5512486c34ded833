"""YOLO of both kinds: labels in all their variants, and the findings about them."""

import time
from typing import Any

import pytest

LABELS = "0 0.2 0.2 0.2 0.2\n1 0.5 0.5 1 1\n"
ROW = "0 0.3 0.35 0.4 0.5"
TIN = [("tin", 0.1, 0.1, 0.5, 0.6)]


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


@pytest.mark.parametrize(
    "shape",
    [
        "0.1 0.2 0.5 0.2 0.3 0.6",
        "0.3 0.2 0.5 0.4 0.3 0.6 0.1 0.4",
        "0.1 0.2 0.5 0.2 0.5 0.6 0.1 .6",
    ],
)
def test_a_polygon_or_rotated_box_has_the_box_round_it(
    put_labels: Any, list_boxes: Any, shape: str
) -> None:
    result = put_labels(f"0 {shape}\n").check()
    assert list_boxes(result) == {"images/a.png": [("tin", 0.1, 0.2, 0.5, 0.6)]}


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing here\n", "\ufeff"])
def test_a_label_file_without_boxes_is_an_image_without_rows(
    darknet: Any, make_png: Any, text: str
) -> None:
    result = darknet.put("obj/b.png", make_png(30, 30)).put("obj/b.txt", text).check()
    assert (len(result.records), result.codes) == (1, ["AnnotationsAbsent"])


def test_all_label_files_may_be_empty(put_images: Any) -> None:
    folder = put_images("images/a.png", "images/b.png").put("classes.txt", "tin")
    result = folder.put("labels/a.txt", "").put("labels/b.txt", "\n").check()
    assert (result.outcome.format, result.codes) == ("YoloDarknet", ["AnnotationsAbsent"])


def test_a_label_file_of_more_than_16_mib_is_rejected(put_labels: Any) -> None:
    result = put_labels(f"{ROW}\n" * (1 << 20)).check()
    assert (result.records, result.codes[0]) == ([], "FileUnreadable")


def test_a_line_of_many_words_is_rejected_fast(put_labels: Any) -> None:
    started_s = time.process_time()
    result = put_labels("tin 0.3 0.35 0.4 0.5\ntin" + " .5" * 200_000 + " x").check()
    assert (result.records, result.codes[0]) == ([], "RowInvalid")
    result = put_labels("tin 0.3 0.35 0.4 0.5\nbox" + " .5" * 200_000).check()
    assert (result.records, result.codes[0]) == ([], "ClassUnknown")
    assert time.process_time() - started_s < 10


@pytest.mark.parametrize(
    "text",
    [
        "0.0 0.3 0.35 0.4 0.5",
        "0.000000e+00 3.0e-01 3.5E-01 4e-1 .5",
        "0,0.3,0.35,0.4,0.5",
        "0, 0.3, 0.35, 0.4, 0.5",
        "0;0.3;0.35;0.4;0.5",
        "0\t0.3\t0.35\t0.4\t0.5 ",
        "\ufeff0 0.3 0.35 0.4 0.5\r\n\r\n",
        "# class x y w h\n0 0.3 0.35 0.4 0.5  # front row\n",
        "tin 0.3 0.35 0.4 0.5",
        "TIN,0.3,0.35,0.4,0.5",
        '"tin" 0.3 0.35 0.4 0.5',
    ],
)
@pytest.mark.parametrize("folders", [("", ""), ("images/", "labels/")])
def test_labels_are_read_as_different_programs_write_them(
    put_images: Any, list_boxes: Any, folders: tuple[str, str], text: str
) -> None:
    images, labels = folders
    result = (
        put_images(f"{images}a.png")
        .put(f"{labels}a.txt", text)
        .put("classes.txt", "tin\njar")
        .check()
    )
    assert list_boxes(result) == {f"{images}a.png": TIN}
    assert result.findings == []


def test_a_carriage_return_alone_ends_a_line(put_labels: Any, list_boxes: Any) -> None:
    result = put_labels(f"{ROW}\r1 0.75 0.65 0.3 0.5\r").check()
    assert list_boxes(result)["images/a.png"] == [*TIN, ("jar", 0.6, 0.4, 0.9, 0.9)]
    bad = put_labels(f"{ROW}\r7 0.75 0.65 0.3 0.5\r").check()
    assert [found.line for found in bad.findings if found.code == "ClassUnknown"] == [2]


@pytest.mark.parametrize(
    ("names", "row", "name"),
    [
        ("tool box\nbox", "tool box 0.3 0.35 0.4 0.5", "tool box"),
        ("type 2\ntype 1", "type 2 0.3 0.35 0.4 0.5", "type 2"),
        ("2 liter\njar", "2 liter,0.3,0.35,0.4,0.5", "2 liter"),
        ("Tin\ntin", "tin 0.3 0.35 0.4 0.5", "tin"),
        ("1\n0", "0 0.3 0.35 0.4 0.5", "1"),
    ],
)
def test_a_class_may_be_written_by_its_name(
    put_labels: Any, list_boxes: Any, names: str, row: str, name: str
) -> None:
    result = put_labels(row, **{"classes.txt": names}).check()
    assert list_boxes(result) == {"images/a.png": [(name, *TIN[0][1:])]}


@pytest.mark.parametrize(
    ("names", "row", "code"),
    [
        ("Tin\nTIN", "tin 0.3 0.35 0.4 0.5", "ClassUnknown"),
        ("type\ntype 2", "type 2 0.3 0.35 0.4 0.5 0.9", "RowInvalid"),
        ("jar\nbox", "tin 0.3 0.35 0.4 0.5", "ClassUnknown"),
    ],
)
def test_a_name_that_may_be_two_classes_or_none_is_reported(
    put_labels: Any, names: str, row: str, code: str
) -> None:
    result = put_labels(row, **{"classes.txt": names}).check()
    assert (result.records, result.codes[0]) == ([], code)


@pytest.mark.parametrize(
    "rows", [["0 0.3 0.35 0.4 0.5 0.91"], ["0 0.3 0.35 0.4 0.5 1", "1 .5 .5 .1 .1 0"]]
)
def test_a_confidence_is_left_out_and_reported_once_per_file(put_labels: Any, rows: Any) -> None:
    result = put_labels("\n".join(rows)).check()
    assert (len(result.records), result.codes) == (1, ["ConfidenceIgnored"])
    assert f"{len(rows)} of {len(rows)} boxes" in result.findings[0].cause


def test_a_polygon_may_have_a_confidence(put_labels: Any, list_boxes: Any) -> None:
    result = put_labels("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6 0.8\n").check()
    assert list_boxes(result) == {"images/a.png": [("tin", 0.1, 0.2, 0.5, 0.6)]}
    assert result.codes == ["ConfidenceIgnored"]


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ("2 0.2 0.2 0.2 0.2", "ClassUnknown", "class"),
        ("-1 0.2 0.2 0.2 0.2", "FieldInvalid", "class"),
        ("1.5 0.2 0.2 0.2 0.2", "FieldInvalid", "class"),
        ("nan 0.2 0.2 0.2 0.2", "FieldInvalid", "class"),
        ("0 0.2 x 0.2 0.2", "FieldInvalid", "y"),
        ("0 0.2 0.2 0.2 0.2 tin", "FieldInvalid", None),
        ("0 0,2 0,2 0,2 0,2", "FieldInvalid", "x"),
        ("0 0.2 0.2 0.2", "RowInvalid", None),
        ("0.2 0.2 0.2 0.2", "RowInvalid", None),
        ("tin", "RowInvalid", None),
        ("0 0.2 0.2 0.2 0.2 7", "RowInvalid", None),
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


def test_a_line_that_is_not_utf8_is_reported(put_labels: Any) -> None:
    result = put_labels(ROW.encode() + b"\nK\xe4se 0.3 0.35 0.4 0.5\n").check()
    assert [(found.code, found.line) for found in result.findings][:1] == [("EncodingWrong", 2)]


def test_labels_without_an_image_are_reported(darknet: Any) -> None:
    result = darknet.put("obj/c.txt", LABELS).check()
    assert [(found.code, found.file, found.value) for found in result.findings] == [
        ("ImageMissing", "obj/c.txt", "c")
    ]


# Detection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damaged", ["background", "0 0.3 0.35", "<xml/>", "0 0.3 0.35 0.4 a b c", "0 - - - -"]
)
@pytest.mark.parametrize("count", [3, 30])
def test_a_damaged_label_file_among_others_is_reported(
    put_images: Any, damaged: str, count: int
) -> None:
    names = [f"{number:02}" for number in range(count)]
    folder = put_images(*(f"images/{name}.png" for name in names)).put("classes.txt", "tin\njar")
    for name in names:
        folder.put(f"labels/{name}.txt", ROW)
    result = folder.put("labels/01.txt", damaged).check()
    errors = {found.file for found in result.findings if found.severity == "error"}
    assert (len(result.records), errors) == (count - 1, {"labels/01.txt"})


@pytest.mark.parametrize(
    "text", ["0 0.3 0.35 0.4", "0.3 0.35 0.4 0.5", "0 0,3 0,35 0,4 0,5", "tin 20 10 100 60"]
)
def test_damaged_labels_never_become_captions(put_images: Any, text: str) -> None:
    result = put_images("a.png", "b.png").put("a.txt", text).put("b.txt", text).check()
    assert (result.records, result.outcome.decision) == ([], "Rejected")


@pytest.mark.parametrize(
    "text", ["0042", "12.5", "3 4", "a tin at 0.5", "1.5 liters of 2", "#1 tin", "7 8 9"]
)
def test_a_text_with_numbers_may_be_a_caption(put_images: Any, text: str) -> None:
    result = put_images("a.png", "b.png").put("a.txt", text).put("b.txt", "a jar").check()
    assert result.outcome.format == "Captions"
    assert [record.contents.text for record in result.records] == [text, "a jar"]


def test_labels_among_captions_are_reported_and_not_read(put_images: Any) -> None:
    folder = put_images("a.png", "b.png", "c.png").put("a.txt", "a jar").put("b.txt", "a tin")
    result = folder.put("c.txt", ROW).check()
    assert [record.contents.text for record in result.records] == ["a jar", "a tin"]
    assert [(found.code, found.file) for found in result.findings if found.severity == "error"] == [
        ("ContentsUnfit", "c.txt")
    ]


def test_labels_with_classes_among_captions_are_two_formats(put_images: Any) -> None:
    folder = put_images("a.png", "b.png", "c.png").put("a.txt", "a jar").put("b.txt", "a tin")
    result = folder.put("c.txt", ROW).put("classes.txt", "tin").check()
    assert result.codes[0] == "FormatUnknown"
    assert "YoloDarknet" in result.findings[0].cause and "Captions" in result.findings[0].cause


def test_a_thousand_files_more_change_nothing(put_images: Any) -> None:
    folder = put_images("img/0000.png").put("classes.txt", "tin")
    for number in range(1, 1101):
        folder.put(f"lbl/{number:04}.txt", ROW)
    result = folder.put("lbl/0000.txt", ROW).check()
    assert result.outcome.format == "YoloDarknet"
    assert result.outcome.counts["rows"] == 1101
