"""CSV in both layouts, in pixels and fractions, as various programs write it."""

from typing import Any

import pytest

from runyard.datasets.ingest import check_folder
from runyard.datasets.options import ReadOptions
from tests.datasets.conftest import KeptRecords


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


TIN = [("tin", (0.1, 0.1, 0.3, 0.3))]


def list_boxes(record: Any) -> list[tuple[str, Any]]:
    return [
        (one.phrase, pytest.approx(box))
        for one in record.contents.grounded_phrases
        for box in one.bounds
    ]


@pytest.mark.parametrize(
    "text",
    [
        "filename,xmin,ymin,xmax,ymax,category_name\na.png,4,2,12,6,tin\n",
        "filename,xmin,ymin,xmax,ymax,Tag\na.png,4,2,12,6,tin\n",
        "image_id,x1,y1,x2,y2,label_id\na.png,4,2,12,6,tin\n",
        "image_name,Left,Top,Right,Bottom,class\na.png,4,2,12,6,tin\n",
        "img;x min;y min;x max;y max;class\na.png;4,0;2,0;12;6;tin\n",
        "image,x,y,w,h,image_width,image_height,label\na.png,4,2,8,4,40,20,tin\n",
        "image_name,label_name,x1,y1,w,h\na.png,tin,4,2,8,4\n",
        "path,x_center,y_center,width,height,class\na.png,8,4,8,4,tin\n",
        "path,x_center,y_center,width,height,class\na.png,.2,.2,.2,.2,tin\n",
        'image_id,width,height,bbox,class\na,40,20,"[4.0, 2.0, 8.0, 4.0]",tin\n',
        "image_id\tbbox\tclass\na.png\t4 2 8 4\ttin\n",
        "a.png,4,2,12,6,tin\n",
        "a.png,4,2,12,6,tin,40,20\nb.png,,,,,,30,30\n",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
        "a,x,tin,1,0.1,0.3,0.1,0.3,0\na,x,tin,1,0,1,0,1,1\n",
        "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
        'region_attributes\na.png,1,{},1,0,"{""name"":""rect"",""x"":4,""y"":2,""width"":8,'
        '""height"":4}","{""class"":""tin""}"\nb.png,1,{},0,0,"{}","{}"\n',
        "filename,region_shape_attributes,region_attributes\n"
        'a.png,"{""name"":""polygon"",""all_points_x"":[4,12,8],""all_points_y"":[2,2,6]}",'
        '"{""kind"":{""tin"":true}}"\n',
        "filename,region_shape_attributes,region_attributes\n"
        'a.png,"{""name"":""ellipse"",""cx"":8,""cy"":4,""rx"":4,""ry"":2}",'
        '"{""name"":""tin""}"\n',
    ],
)
def test_layouts_of_other_tools_are_read(images: Any, text: str) -> None:
    result = images.put("rows.csv", text).check()
    assert [found for found in result.findings if found.severity == "error"] == []
    (record,) = result.records
    assert list_boxes(record) == TIN


def test_open_images_names_its_classes_in_another_file(images: Any) -> None:
    images.put("class-descriptions-boxable.csv", "/m/01,tin\n/m/02,box\n")
    text = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,/m/01,0.1,0.3,0.1,0.3,0\n"
    result = images.put("rows.csv", text + "b,/m/02,0,1,0,1,1\n").check()
    assert list_boxes(result.records[0]) == TIN
    assert [(found.code, found.value) for found in result.findings] == [
        ("BoxCrowd", "1"),
        ("AnnotationsAbsent", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("filename,xmin,ymin,xmax,ymax\na.png,4,2,12,6\n", "ClassUnknown", "filename, xmin"),
        ('image_id,bbox,source\na.png,"[4, 2, 8, 4]",x\n', "ClassUnknown", "image_id, bbox"),
        ("image_id,x1,y1,x2,y2,class_id\na.png,4,2,12,6,3\n", "ClassUnknown", "only numbers"),
        ("a.png,4,2,12,6,0\n", "ClassUnknown", "only numbers"),
        ("photo,xmin,ymin,xmax,ymax,class\na.png,4,2,12,6,tin\n", "FieldMissing", "photo"),
    ],
)
def test_a_missing_column_rejects_the_file_and_names_its_columns(
    images: Any, text: str, code: str, expected: str
) -> None:
    result = images.put("rows.csv", text).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (result.records, found.code, found.action) == ([], code, "FileRejected")
    assert expected in found.cause
    assert "column" in found.fix


@pytest.mark.parametrize(
    "text",
    [
        "image,question,answer\na.png,What?,tin\n",
        "file_name,text\na.png,a tin\n",
        'image,bbox,question,answer\na.png,"[4, 2, 8, 4]",What?,tin\n',
        "a.png,a tin\nb.png,a box\n",
        "name,x,y\ntin,1,2\n",
        "a.png,4,2,12,6\n",
        "1,4,2,12,6,tin\n",
    ],
)
def test_tables_of_other_content_are_not_read_as_boxes(images: Any, text: str) -> None:
    result = images.put("rows.csv", text).check()
    assert result.outcome.format not in ("CsvFourCorner", "CsvWidthHeight")


@pytest.mark.parametrize(
    "empty",
    ["b.png,,,,,", "b.png,nan,nan,nan,nan,nan", "b.png,,,,,No finding", "b.png, , , , ,"],
)
def test_lines_without_a_box_are_images_without_objects(images: Any, empty: str) -> None:
    text = f"filename,xmin,ymin,xmax,ymax,class\n{empty}\na.png,4,2,12,6,tin\n"
    result = images.put("rows.csv", text).check()
    assert [list_boxes(record) for record in result.records] == [TIN]
    assert {found.code for found in result.findings} == {"AnnotationsAbsent"}


@pytest.mark.parametrize(
    ("text", "option"),
    [
        (
            "filename,x,y,width,height,class\na.png,4,2,30,15,tin\nb.png,16,16,29,29,tin\n"
            "a.png,21,11,39,19,tin\n",
            "--box-form corners",
        ),
        (
            "filename,xmin,ymin,xmax,ymax,class\na.png,22,12,8,4,tin\nb.png,20,20,9,9,tin\n",
            "--box-form size",
        ),
        (
            "filename,xmin,ymin,xmax,ymax,class\na.png,100,100,900,800,tin\n"
            "b.png,200,300,700,990,tin\n",
            "--box-unit thousandth",
        ),
        (
            "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,tin,4,12,2,6,0\n",
            "--box-unit pixel",
        ),
    ],
)
def test_another_frame_rejects_the_file_once(images: Any, text: str, option: str) -> None:
    result = images.put("rows.csv", text).check()
    (found,) = (found for found in result.findings if found.severity == "error")
    assert (result.records, found.code, found.action) == ([], "BoxOtherFrame", "FileRejected")
    assert option in found.fix
    assert found.rows == (1 if "ImageID" in text else 2)


@pytest.mark.parametrize("number", ["1.02", "1.0004", "1.3"])
def test_fractions_past_the_edge_stay_fractions(images: Any, number: str) -> None:
    text = f"filename,xmin,ymin,xmax,ymax,class\na.png,.1,.1,.3,.3,tin\nb.png,.5,.5,1,{number},x\n"
    result = images.put("rows.csv", text).check()
    assert [list_boxes(record) for record in result.records] == [TIN, [("x", (0.5, 0.5, 1, 1))]]
    assert [found.code for found in result.findings] == ["BoxClipped"]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (ReadOptions(box_unit="percent"), "10,10,30,30"),
        (ReadOptions(box_unit="thousandth", box_form="size"), "100,100,200,200"),
        (ReadOptions(box_form="size"), "4,2,8,4"),
        (ReadOptions(box_unit="fraction"), "0.1,0.1,0.3,0.3"),
    ],
)
def test_chosen_frames_are_read(images: Any, options: ReadOptions, numbers: str) -> None:
    images.put("rows.csv", f"filename,xmin,ymin,xmax,ymax,class\na.png,{numbers},tin\n")
    records = KeptRecords()
    check_folder(images.folder, records=records, options=options)
    assert list_boxes(records.records[0]) == TIN
