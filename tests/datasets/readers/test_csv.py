"""CSV in both layouts, in pixels and fractions, as various programs write it."""

from typing import Any

import pytest


@pytest.fixture
def images(source_folder: Any, make_png: Any) -> Any:
    return source_folder.put("a.png", make_png(40, 20)).put("b.png", make_png(30, 30))


FOUR = (
    "filename,xmin,ymin,xmax,ymax,class\na.png,4,2,12,6,tin\nb.png,0,0,15,30,box\n"
    "a.png,20,10,40,20,tin\n"
)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("CsvFourCorner", FOUR),
        ("CsvFourCorner", FOUR.replace(",", ";")),
        ("CsvFourCorner", "\ufeff" + FOUR.replace("\n", "\r\n")),
        ("CsvFourCorner", FOUR.replace("filename,xmin", "FileName, XMin").replace("tin", '"tin"')),
        (
            "CsvFourCorner",
            "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,20,tin,4,2,12,6\n"
            "b.png,30,30,box,0,0,15,30\na.png,40,20,tin,20,10,40,20\n",
        ),
        (
            "CsvFourCorner",
            "image\tlabel\txmin\tymin\txmax\tymax\na.png\ttin\t.1\t.1\t.3\t.3\n"
            "b.png\tbox\t0\t0\t0.5\t1\n"
            "a.png\ttin\t0.5\t0.5\t1\t1\n",
        ),
        (
            "CsvWidthHeight",
            "filename,x,y,width,height,class\na.png,4,2,8,4,tin\nb.png,0,0,15,30,box\n"
            "a.png,20,10,20,10,tin\n",
        ),
        (
            "CsvWidthHeight",
            "filename,x,y,width,height,class\na.png,.1,.1,.2,.2,tin\nb.png,0,0,0.5,1,box\n"
            "a.png,.5,.5,.5,.5,tin\n",
        ),
    ],
)
def test_every_csv_layout_gives_the_same_boxes(images: Any, format: str, text: str) -> None:
    result = images.put("rows.csv", text).check()
    assert (result.outcome.format, result.findings) == (format, [])
    first, second = result.records
    assert [first.asset.filename, second.asset.filename] == ["a.png", "b.png"]
    (tin,) = first.contents.grounded_phrases
    assert tin.phrase == first.contents.caption == "tin"
    assert tin.bounds == [pytest.approx((0.1, 0.1, 0.3, 0.3)), pytest.approx((0.5, 0.5, 1, 1))]
    assert second.contents.grounded_phrases[0].bounds == [(0, 0, 0.5, 1)]


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ("a.png,4,2,x,6,tin", "FieldInvalid", "xmax"),
        ("a.png,4,2,,6,tin", "FieldMissing", "xmax"),
        ("a.png,4,2,12,6", "RowInvalid", None),
        (",4,2,12,6,tin", "FieldMissing", "filename"),
        ("a.png,4,2,12,6,", "PhraseEmpty", "xmin,ymin,xmax,ymax"),
        ("a.png,4,2,inf,6,tin", "BoxNotFinite", "xmin,ymin,xmax,ymax"),
        ("a.png,12,2,4,6,tin", "BoxCornersSwapped", "xmin,ymin,xmax,ymax"),
        ("a.png,4,2,4,6,tin", "BoxEmpty", "xmin,ymin,xmax,ymax"),
        ("a.png,4,22,8,26,tin", "BoxOutside", "xmin,ymin,xmax,ymax"),
    ],
)
def test_findings_name_their_own_line(images: Any, bad: str, code: str, field: str | None) -> None:
    result = images.put("rows.csv", FOUR + bad + "\n").check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.line, found.field) for found in errors] == [(code, 5, field)]


def test_lines_are_counted_as_an_editor_counts_them(images: Any) -> None:
    text = FOUR + 'b.png,0,0,15,30,"two\nlines"\n\nz.png,1,1,2,2,tin\n'
    result = images.put("rows.csv", text).check()
    assert [(found.code, found.line) for found in result.findings if found.severity == "error"] == [
        ("ImageMissing", 8)
    ]


def test_a_file_that_is_not_utf8_is_rejected_as_a_whole(images: Any) -> None:
    result = images.put("rows.csv", FOUR.encode() + b"b.png,1,1,2,2,d\xe9\n").check()
    assert result.records == []
    assert [
        (found.code, found.action) for found in result.findings if found.severity == "error"
    ] == [("EncodingWrong", "FileRejected")]


def test_a_size_that_is_not_the_images_is_reported(images: Any) -> None:
    text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,41,20,tin,4,2,12,6\n"
    result = images.put("rows.csv", text).check()
    assert [(found.code, found.line) for found in result.findings if found.severity == "error"] == [
        ("SizeMismatch", 2)
    ]
