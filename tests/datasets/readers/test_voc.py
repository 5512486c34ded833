"""Pascal VOC: objects with their lines; dangerous XML features are rejected."""

import io
from typing import Any

import pytest

from runyard.datasets.options import ReadOptions
from runyard.datasets.readers.tools.xml_files import XmlRejected
from runyard.datasets.readers.voc import parse_xml


def voc(
    *objects: str,
    size: str = "<size><width>40</width><height>20</height></size>",
    name: str = "a.png",
) -> str:
    body = "\n".join(objects)
    return (
        f'<?xml version="1.0"?>\n<annotation>\n<filename>{name}</filename>\n{size}\n{body}\n'
        "</annotation>\n"
    )


def make_object(name: str, *corners: Any) -> str:
    tags = "".join(
        f"<{tag}>{c}</{tag}>"
        for tag, c in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False)
    )
    return f"<object><name>{name}</name><bndbox>{tags}</bndbox></object>"


@pytest.fixture
def images(source_folder: Any, make_png: Any) -> Any:
    return source_folder.put("images/a.png", make_png(40, 20))


def test_objects_become_phrases(images: Any) -> None:
    result = images.put(
        "xml/a.xml",
        voc(make_object("tin &amp; lid", 4, 2, 12, 6), make_object("box", 0, 0, 40, "20.0")),
    ).check()
    assert (result.outcome.format, result.findings) == ("PascalVoc", [])
    contents = result.records[0].contents
    assert contents.caption == "tin & lid and box"
    assert contents.grounded_phrases[0].bounds == [(0.1, 0.1, 0.3, 0.3)]


@pytest.mark.parametrize("name", ["", "gone.jpg"])
def test_an_image_is_found_by_the_files_own_name(images: Any, name: str) -> None:
    result = images.put("xml/a.xml", voc(make_object("tin", 4, 2, 12, 6), name=name)).check()
    assert [record.asset.filename for record in result.records] == ["images/a.png"]


def test_zeros_for_a_size_mean_that_it_is_not_known(images: Any) -> None:
    size = "<size><width>0</width><height>0</height></size>"
    assert (
        images.put("a.xml", voc(make_object("tin", 4, 2, 12, 6), size=size)).check().findings == []
    )


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ("<object><name>x</name></object>", "FieldMissing", "object[1].bndbox"),
        (make_object("x", 1, 2, 3), "FieldMissing", "object[1].bndbox.ymax"),
        (make_object("x", 1, 2, "3,5", 4), "FieldInvalid", "object[1].bndbox.xmax"),
        (make_object("x", 1, 2, "nan", 4), "BoxNotFinite", "object[1].bndbox"),
        (make_object("x", 9, 2, 3, 4), "BoxCornersSwapped", "object[1].bndbox"),
        (make_object("", 1, 2, 3, 4), "PhraseEmpty", "object[1].bndbox"),
    ],
)
def test_findings_name_the_line_of_their_object(
    images: Any, bad: str, code: str, field: str
) -> None:
    result = images.put("a.xml", voc(make_object("tin", 4, 2, 12, 6), bad)).check()
    errors = [found for found in result.findings if found.severity == "error"]
    assert [(found.code, found.line, found.field) for found in errors] == [(code, 6, field)]


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "c">]>\n<annotation>&b;</annotation>',
        '<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>',
        "<annotation>" + "<a>" * 100 + "</a>" * 100 + "</annotation>",
        "<annotation><object>",
        "<annotation/><annotation/>",
        "<annotation>&undefined;</annotation>",
    ],
)
def test_malformed_xml_and_external_entities_are_rejected(images: Any, text: str) -> None:
    result = images.put("a.xml", voc(make_object("tin", 4, 2, 12, 6))).put("b.xml", text).check()
    assert len(result.records) == 1
    assert [(found.code, found.file, found.action) for found in result.findings] == [
        ("FileUnreadable", "b.xml", "FileRejected")
    ]


def encode(text: str, declared: str, codec: str) -> bytes:
    return text.replace("?>", f' encoding="{declared}"?>', 1).encode(codec)


@pytest.mark.parametrize(
    ("declared", "codec"),
    [
        ("gbk", "gbk"),
        ("GB2312", "gb18030"),
        ("Big5", "big5"),
        ("Shift_JIS", "cp932"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-16-le"),
        ("utf-16", "utf-8"),
        ("UTF-8", "utf-8-sig"),
    ],
)
def test_the_declared_encoding_is_used(images: Any, declared: str, codec: str) -> None:
    text = voc(make_object("缶 世", 4, 2, 12, 6))
    result = images.put("a.xml", encode(text, declared, codec)).check()
    assert result.findings == []
    assert result.records[0].contents.caption == "缶 世"


@pytest.mark.parametrize("text", ["\n\n" + voc(), voc().replace("1.0", "1.1")])
def test_a_declaration_that_expat_rejects_is_no_error(images: Any, text: str) -> None:
    bad = make_object("x", 1, 2, 3)
    result = images.put("a.xml", text.replace("</annotation>", f"{bad}</annotation>")).check()
    lines = text.count("\n")
    assert [(found.code, found.line) for found in result.findings[:1]] == [("FieldMissing", lines)]


@pytest.mark.parametrize(
    ("declared", "codec"), [("made-up", "utf-8"), ("gbk", "cp1252"), ("utf-8", "cp1252")]
)
def test_a_wrong_encoding_is_reported(images: Any, declared: str, codec: str) -> None:
    text = voc(make_object("café", 4, 2, 12, 6))
    result = images.put("a.xml", encode(text, declared, codec)).check()
    assert [(found.code, found.file) for found in result.findings[:1]] == [
        ("EncodingWrong", "a.xml")
    ]
    assert result.records == []


def test_a_file_that_names_another_files_image_is_rejected(images: Any, make_png: Any) -> None:
    result = (
        images.put("images/b.png", make_png(41))
        .put("xml/a.xml", voc(make_object("tin", 4, 2, 12, 6)))
        .put("xml/b.xml", voc(make_object("jar", 4, 2, 12, 6), name="a.png"))
        .check()
    )
    assert [record.contents.caption for record in result.records] == ["tin"]
    found = result.findings[0]
    assert (found.code, found.file, found.line, found.field) == (
        "ImageAmbiguous",
        "xml/b.xml",
        3,
        "filename",
    )
    assert "'images/a.png'" in found.cause and "'images/b.png'" in found.cause


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (
            "<robndbox><cx>10</cx><cy>10</cy><w>8</w><h>4</h><angle>1.5707963</angle></robndbox>",
            (0.2, 0.3, 0.3, 0.7),
        ),
        (
            "<polygon><x1>4</x1><y1>2</y1><x2>12</x2><y2>2</y2><x3>8</x3><y3>6</y3></polygon>",
            (0.1, 0.1, 0.3, 0.3),
        ),
        (
            "<polygon><pt><x>4</x><y>2</y></pt><pt><x>12</x><y>2</y></pt>"
            "<pt><x>8</x><y>6</y></pt></polygon>",
            (0.1, 0.1, 0.3, 0.3),
        ),
    ],
)
def test_other_outlines_have_a_bounding_box(
    images: Any, shape: str, box: tuple[float, ...]
) -> None:
    result = images.put("a.xml", voc(f"<object><name>tin</name>{shape}</object>")).check()
    assert result.findings == []
    assert result.records[0].contents.grounded_phrases[0].bounds[0] == pytest.approx(box)


def test_a_document_type_is_seen_in_every_encoding() -> None:
    text = (
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b '
        '"c">]><annotation>&b;</annotation>'
    )
    with pytest.raises(XmlRejected):
        parse_xml(io.BytesIO(text.encode("utf-16")))


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"b.png": True}, "ImageAmbiguous"),
        ({"b.png": False}, "ImageAmbiguous"),
        ({"a.png": False, "b.png": True}, "ImageMissing"),
        ({"a.png": False}, "ImageMissing"),
    ],
)
def test_boxes_never_go_to_another_image_than_the_files_own(
    source_folder: Any, make_png: Any, files: dict[str, bool], code: str
) -> None:
    """``b.xml`` names ``a.png``; a rejected image counts like an accepted one."""
    for name, is_whole in ({"a.png": True} | files).items():
        source_folder.put(name, make_png(40, 20) if is_whole else make_png(40, 20)[:60])
    result = source_folder.put("b.xml", voc(make_object("tin", 4, 2, 12, 6))).check()
    assert (result.records, code in result.codes) == ([], True)


@pytest.mark.parametrize(
    ("unit", "corners"),
    [
        ("thousandth", (100, 100, 300, 300)),
        ("percent", (10, 10, 30, 30)),
        ("fraction", (0.1, 0.1, 0.3, 0.3)),
        ("pixel", (4, 2, 12, 6)),
    ],
)
def test_boxes_are_read_in_the_chosen_unit(images: Any, unit: Any, corners: Any) -> None:
    folder = images.put("a.xml", voc(make_object("tin", *corners)))
    result = folder.check(options=ReadOptions(box_unit=unit))
    assert result.findings == []
    (box,) = result.records[0].contents.grounded_phrases[0].bounds
    assert box == pytest.approx((0.1, 0.1, 0.3, 0.3))
