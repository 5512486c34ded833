"""DOTA: rotated boxes in pixels, with their names."""

from typing import Any

import pytest

ROW = "20 10 100 10 100 60 20 60 tin 0"
TIN = [("tin", 0.1, 0.1, 0.5, 0.6)]


@pytest.mark.parametrize(
    "text",
    [
        ROW,
        "imagesource:GoogleEarth\ngsd:0.146\n" + ROW,
        "20.0 10.0 100.0 10.0 100.0 60.0 20.0 60.0 tin 1",
        "\ufeff100 60 20 60 20 10 100 10 tin\r\n",
        "60 10 100 35 60 60 20 35 tin 0",
        "20,10,100,10,100,60,20,60,tin,0",
    ],
)
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("train/images/a.png", "train/labelTxt/a.txt"),
        ("images/a.png", "labelTxt-v1.5/a.txt"),
        ("a.png", "a.txt"),
    ],
)
def test_rotated_boxes_have_the_box_round_them(
    put_images: Any, list_boxes: Any, image: str, label: str, text: str
) -> None:
    result = put_images(image).put(label, text).check()
    assert (result.outcome.format, result.findings) == ("Dota", [])
    assert list_boxes(result) == {image: TIN}


@pytest.mark.parametrize("name", ["large-vehicle", "small vehicle", "7"])
def test_names_come_from_the_rows(put_images: Any, list_boxes: Any, name: str) -> None:
    row = f"20 10 100 10 100 60 20 60 {name} 0"
    result = put_images("images/a.png").put("labelTxt/a.txt", row).check()
    assert list_boxes(result) == {"images/a.png": [(name, *TIN[0][1:])]}


def test_a_data_yaml_next_to_them_is_part_of_the_data(put_images: Any, list_boxes: Any) -> None:
    folder = put_images("train/images/a.png", "train/images/b.png").put("data.yaml", "names: [tin]")
    folder.put("train/labelTxt/b.txt", "")
    result = folder.put("train/labelTxt/a.txt", ROW).check()
    assert list_boxes(result) == {"train/images/a.png": TIN}
    assert result.codes == ["AnnotationsAbsent"]


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ("20 10 100 10 100 60 20 tin 0", "FieldInvalid", "y4"),
        ("20 10 100 10 100 60", "RowInvalid", None),
        ("20 x 100 10 100 60 20 60 tin 0", "FieldInvalid", "y1"),
        ("0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6", "RowInvalid", None),
        ("250 10 290 10 290 60 250 60 tin 0", "BoxOutside", "x1 y1 x2 y2 x3 y3 x4 y4"),
    ],
)
def test_findings_name_their_line(put_images: Any, bad: str, code: str, field: str | None) -> None:
    result = put_images("images/a.png").put("labelTxt/a.txt", f"{ROW}\n{bad}\n").check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.line, found.field) for found in errors] == [(code, 2, field)]
    assert result.records == []


def test_labels_of_another_format_are_two_formats(put_images: Any) -> None:
    folder = put_images("images/a.png", "images/b.png").put("labelTxt/a.txt", ROW)
    result = folder.put("labels/b.txt", "0 0.3 0.35 0.4 0.5").put("classes.txt", "tin").check()
    assert result.codes[0] == "FormatUnknown"
    assert "Dota" in result.findings[0].cause and "YoloDarknet" in result.findings[0].cause


def test_fractions_are_reported(put_images: Any) -> None:
    row = "0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6 tin 0"
    result = put_images("images/a.png").put("labelTxt/a.txt", row).check()
    assert (result.outcome.format, result.records) == ("Dota", [])
    assert result.codes[0] == "BoxOtherFrame"
