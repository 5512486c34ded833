"""CVAT: images with shapes, and tracks with a box per frame of a video."""

from typing import Any

import pytest

BOX = '<box label="tin" xtl="4.0" ytl="2.0" xbr="12.0" ybr="6.0" occluded="0"/>'


def cvat(*elements: str, meta: str = "") -> str:
    body = "\n".join(elements)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta>{meta}</meta>\n{body}\n</annotations>\n"
    )


def image(*shapes: str, name: str = "a.png", size: str = 'width="40" height="20"') -> str:
    return f'<image id="0" name="{name}" {size}>\n{"".join(shapes)}\n</image>'


def track(*frames: tuple[int, int], label: str = "tin") -> str:
    boxes = "".join(
        f'<box frame="{frame}" outside="{outside}" keyframe="1" xtl="4" ytl="2" xbr="12" ybr="6"/>'
        for frame, outside in frames
    )
    return f'<track id="0" label="{label}">{boxes}</track>'


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (BOX, [4, 2, 12, 6]),
        (
            BOX.replace("/>", ' rotation="90.0"><attribute name="x">1</attribute></box>'),
            [6, 0, 10, 8],
        ),
        ('<polygon label="tin" points="4,2;12.0,2;8,6"/>', [4, 2, 12, 6]),
        ('<ellipse label="tin" cx="10" cy="10" rx="5" ry="2"/>', [5, 8, 15, 12]),
        (
            '<mask label="tin" rle="1, 2" left="4" top="2" width="8" height="4"/>',
            [4, 2, 12, 6],
        ),
    ],
)
def test_each_shape_becomes_its_bounding_box(
    images: Any, list_boxes: Any, shape: str, box: list[float]
) -> None:
    result = images.put("annotations.xml", cvat(image(shape))).check()
    assert result.outcome.format == "CvatXml"
    assert list_boxes(result) == {"images/a.png": [("tin", box)]}
    assert [found.code for found in result.findings] == ["AnnotationsAbsent"]


def test_other_shapes_are_counted_with_their_line(images: Any, list_boxes: Any) -> None:
    points = '\n<points label="tin" points="1,2"/>'
    result = images.put("annotations.xml", cvat(image(BOX, points, points, "<tag/>"))).check()
    assert list_boxes(result) == {"images/a.png": [("tin", [4, 2, 12, 6])]}
    found = [one for one in result.findings if one.code == "AnnotationsIgnored"]
    assert [(one.line, one.field, one.value) for one in found] == [
        (7, "image[0].points", "2"),
        (8, "image[0].tag", "1"),
    ]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (BOX.replace('xtl="4.0"', 'xtl="four"'), "FieldInvalid"),
        (BOX.replace('xtl="4.0"', ""), "FieldInvalid"),
        (BOX.replace('label="tin"', ""), "FieldMissing"),
        (BOX.replace('label="tin"', 'label=" "'), "PhraseEmpty"),
        (BOX.replace("12.0", "4.0"), "BoxEmpty"),
        (BOX.replace("12.0", "nan"), "BoxNotFinite"),
        ('<polygon label="tin" points="4,2;12"/>', "FieldInvalid"),
        ('<polygon label="tin" points=""/>', "FieldInvalid"),
        ("<blob/>", "FieldInvalid"),
    ],
)
def test_a_bad_shape_rejects_its_image(images: Any, list_boxes: Any, bad: str, code: str) -> None:
    good = image(BOX, name="b.png", size='width="30" height="30"')
    result = images.put("annotations.xml", cvat(good, image(BOX, bad))).check()
    assert list(list_boxes(result)) == ["images/b.png"]
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.line) for found in errors] == [(code, 9)]


def test_frames_of_tracks_are_collected(source_folder: Any, make_png: Any, list_boxes: Any) -> None:
    for frame in range(3):
        data = make_png(40, 20, (frame, 0, 0))
        source_folder.put(f"images/frame_{frame:06d}.PNG", data)
    size = "<task><original_size><width>40</width><height>20</height></original_size></task>"
    text = cvat(track((0, 0), (1, 0), (2, 1)), track((1, 0), label="box"), meta=size)
    result = source_folder.put("annotations.xml", text).check()
    assert list_boxes(result) == {
        "images/frame_000000.PNG": [("tin", [4, 2, 12, 6])],
        "images/frame_000001.PNG": [("tin", [4, 2, 12, 6]), ("box", [4, 2, 12, 6])],
    }
    assert [found.code for found in result.findings] == ["AnnotationsAbsent"]


def test_frames_without_images_are_reported_with_the_export_to_choose(images: Any) -> None:
    result = images.put("annotations.xml", cvat(track((0, 0), (7, 0)))).check()
    assert result.outcome.decision == "Rejected"
    assert "Save images" in " ".join(found.fix for found in result.findings)


def test_no_frame_is_read_from_a_file_that_is_cut_off(source_folder: Any, make_png: Any) -> None:
    text = cvat(track((0, 0)), track((0, 0), label="box"))
    source_folder.put("images/frame_000000.png", make_png(40, 20))
    result = source_folder.put("annotations.xml", text[: text.rindex("<track")]).check()
    assert (result.records, result.findings[0].code) == ([], "FileUnreadable")


@pytest.mark.parametrize("frame", ["x", "-1", "1.5", "1e300", "nan"])
def test_a_tracked_box_without_a_frame_is_reported(images: Any, frame: str) -> None:
    text = cvat(track((0, 0)).replace('frame="0"', f'frame="{frame}"'), image(BOX))
    result = images.put("annotations.xml", text).check()
    assert [found.code for found in result.findings if found.severity == "error"] == [
        "FieldInvalid"
    ]


def test_images_of_a_project_are_found_in_their_subset(
    source_folder: Any, make_png: Any, list_boxes: Any
) -> None:
    for number, subset in enumerate(("Train", "Test")):
        source_folder.put(f"images/{subset}/a.png", make_png(40, 20, (number, 0, 0)))
    text = cvat(*(image(BOX, size=f'subset="{subset}"') for subset in ("Train", "Test")))
    result = source_folder.put("annotations.xml", text).check()
    assert sorted(list_boxes(result)) == ["images/Test/a.png", "images/Train/a.png"]


@pytest.mark.parametrize(
    "text",
    [
        cvat(image(BOX))[:-30],
        cvat(image(BOX), "<a>" * 100),
        cvat(image(BOX)).replace("<annotations>", "<!DOCTYPE a><annotations>"),
        cvat(image(BOX)).replace("utf-8", "made-up"),
        cvat(image(BOX.replace("tin", "t\0"))),
    ],
)
def test_a_damaged_file_is_reported(images: Any, text: str) -> None:
    result = images.put("annotations.xml", text).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.file, found.action) for found in errors] == [("annotations.xml", "FileRejected")]


def test_a_tag_without_end_is_not_held_in_memory(images: Any) -> None:
    text = cvat(image(f'<mask label="tin" rle="{"1, " * 6_000_000}"/>'))
    result = images.put("annotations.xml", text).check()
    assert "a tag is longer" in result.findings[0].cause
