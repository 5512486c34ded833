"""KITTI: objects of road scenes, with boxes in pixels."""

from typing import Any

import pytest

ROW = "Car 0.00 0 -1.57 20.00 10.00 100.00 60.00 1.5 1.6 3.9 1.0 1.5 8.4 -1.56"
IGNORED = "DontCare -1 -1 -10 120.00 50.00 150.00 60.00 -1 -1 -1 -1000 -1000 -1000 -10"
CAR = [("Car", 0.1, 0.1, 0.5, 0.6)]


@pytest.mark.parametrize("text", [ROW, f"{ROW} 0.87\n", f"{ROW}\r\n", ROW.replace(" ", "  ")])
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("training/image_2/000001.png", "training/label_2/000001.txt"),
        ("image_2/training/7.png", "label_2/training/7.txt"),
        ("a.png", "a.txt"),
    ],
)
def test_objects_have_their_type_and_box(
    put_images: Any, list_boxes: Any, image: str, label: str, text: str
) -> None:
    result = put_images(image).put(label, text).check()
    assert (result.outcome.format, result.findings) == ("Kitti", [])
    assert list_boxes(result) == {image: CAR}


def test_calibration_next_to_labels_is_not_taken_for_labels(put_images: Any) -> None:
    folder = put_images("image_2/1.png").put("label_2/1.txt", ROW)
    result = folder.put("calib/1.txt", f"P0: {' '.join(['7.2e+02'] * 12)}\n").check()
    assert result.outcome.format == "Kitti"
    assert [(found.code, found.file) for found in result.findings] == [
        ("FileIgnored", "calib/1.txt")
    ]


def test_the_other_camera_does_not_matter(put_images: Any, list_boxes: Any) -> None:
    folder = put_images("image_2/1.png", "image_3/1.png").put("label_2/1.txt", ROW)
    assert list_boxes(folder.check()) == {"image_2/1.png": CAR}


@pytest.mark.parametrize("rows", [[ROW, IGNORED], [IGNORED, ROW, IGNORED]])
def test_regions_without_labels_are_left_out_and_reported_once(
    put_images: Any, list_boxes: Any, rows: list[str]
) -> None:
    result = put_images("image_2/1.png").put("label_2/1.txt", "\n".join(rows)).check()
    assert list_boxes(result) == {"image_2/1.png": CAR}
    assert result.codes == ["RegionIgnored"]
    assert result.findings[0].line == rows.index(IGNORED) + 1


def test_a_file_of_such_regions_alone_is_an_image_without_rows(put_images: Any) -> None:
    folder = put_images("image_2/1.png", "image_2/2.png").put("label_2/1.txt", ROW)
    result = folder.put("label_2/2.txt", IGNORED).check()
    assert (len(result.records), sorted(result.codes)) == (
        1,
        ["AnnotationsAbsent", "RegionIgnored"],
    )


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (ROW.rpartition(" ")[0], "RowInvalid", None),
        (f"{ROW} 1 2", "RowInvalid", None),
        (ROW.replace("10.00", "x"), "FieldInvalid", "top"),
        (ROW.replace("100.00", "20.00"), "BoxEmpty", "left top right bottom"),
        (ROW.replace("20.00", "150.00"), "BoxCornersSwapped", "left top right bottom"),
    ],
)
def test_findings_name_their_line(put_images: Any, bad: str, code: str, field: str | None) -> None:
    result = put_images("image_2/1.png").put("label_2/1.txt", f"{ROW}\n{bad}\n").check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.line, found.field) for found in errors] == [(code, 2, field)]
