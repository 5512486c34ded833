"""Each check: its findings, its repairs, and whether the row is kept under each policy."""

import io
import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from PIL import Image, ImageOps

from runyard.datasets.checks import Checker, OnError, rotate_box
from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.naming.image_names import ImageFacts, ImageNames, Resolution
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    make_grounding,
)

FACTS = ImageFacts(
    path="a.png", sha256="0" * 64, size_bytes=9, width=640, height=480, mime="image/png"
)
TURNED = ImageFacts("t.jpg", "1" * 64, 9, 480, 640, "image/jpeg", is_turned=True, orientation=6)
BOX: Box = (0.1, 0.2, 0.5, 0.6)


class FewImages:
    """Two images, and two that share a name."""

    def __init__(self) -> None:
        self._names = ImageNames()
        for facts in (FACTS, TURNED, replace(FACTS, path="x/twice.png")):
            self._names.add(facts)
        self._names.add(replace(FACTS, path="y/twice.png"))

    def resolve_image(self, name: str, *, relative_to: str = "") -> Resolution:
        return self._names.resolve(name, relative_to)


def grounding(
    *boxes: Box, caption: str = "a red tin", phrase: str = "red tin", span: tuple[int, int] = (1, 3)
) -> Any:
    phrases = [
        GroundedPhrase(
            phrase=phrase,
            start_token_index=span[0],
            end_token_index=span[1],
            bounds=list(boxes or [BOX]),
        )
    ]
    return PhraseGrounding(caption=caption, grounded_phrases=phrases)


def vqa(*pairs: tuple[int, str, str]) -> Vqa:
    return Vqa(
        interactions=[Interaction(order=order, question=q, answer=a) for order, q, a in pairs]
    )


def row(
    contents: Contents, *, name: str = "a.png", line: int | None = 7, id: str = "1", **more: Any
) -> Row:
    record = Record(id=id, asset=AssetRef(filename=name, width=0, height=0), contents=contents)
    return Row(record, "rows.jsonl", line, **more)


def check(
    *rows: Row,
    task: DatasetType = "phrase-grounding",
    on_error: OnError = "RejectRow",
    options: ReadOptions = DEFAULT_OPTIONS,
) -> tuple[list[Record | None], list[Finding]]:
    findings: list[Finding] = []
    checker = Checker(
        FewImages(),  # type: ignore[arg-type]
        task,
        on_error,
        findings.append,
        options,
    )
    return [checker.check(one) for one in rows], findings


def get_only_record(kept: list[Record | None]) -> Any:
    (record,) = kept
    return record


@pytest.mark.parametrize(
    "strange",
    [
        row(vqa((1, "What?\ud800", "tin"))),
        row(vqa((1, "What?", "tin")), name="\udfff.png"),
        row(Freeform("\ud800"), id="x"),
    ],
)
def test_a_lone_surrogate_leaves_its_row_out(strange: Row) -> None:
    kept, (found,) = check(strange, task="vqa")
    assert (kept, found.code, found.action) == ([None], "EncodingWrong", "RowRejected")
    msgspec.json.encode(found)


def test_a_finding_can_be_written_whatever_it_quotes() -> None:
    found = make_finding("RowInvalid", file="a", cause="no \ud800", field="a\udfff", value="\ud800")
    assert msgspec.json.decode(msgspec.json.encode(found))["cause"] == r"no \ud800"


def test_a_valid_row_is_kept_with_the_size_of_its_image() -> None:
    kept, findings = check(row(grounding(), frame=(640, 480)))
    assert findings == []
    assert get_only_record(kept).asset == AssetRef(filename="a.png", width=640, height=480)
    assert get_only_record(kept).contents == grounding()


# code, contents, other fields of the row, field
DEFECTS: list[tuple[str, Contents, dict[str, Any], str]] = [
    ("BoxOutside", grounding((1.1, 0.1, 1.3, 0.2)), {}, "contents.groundedPhrases[0].bounds[0]"),
    ("BoxOutside", grounding((0.1, -0.5, 0.2, -0.1)), {}, "contents.groundedPhrases[0].bounds[0]"),
    (
        "BoxCornersSwapped",
        grounding((0.5, 0.2, 0.1, 0.6)),
        {},
        "contents.groundedPhrases[0].bounds[0]",
    ),
    ("BoxEmpty", grounding((0.5, 0.2, 0.5, 0.6)), {}, "contents.groundedPhrases[0].bounds[0]"),
    (
        "BoxNotFinite",
        grounding((0.5, math.nan, 0.5, 0.6)),
        {},
        "contents.groundedPhrases[0].bounds[0]",
    ),
    (
        "BoxNotFinite",
        grounding(BOX, (0.0, 0.0, math.inf, 0.6)),
        {},
        "contents.groundedPhrases[0].bounds[1]",
    ),
    ("BoxOtherFrame", grounding((100, 200, 300, 400)), {}, "contents.groundedPhrases[0].bounds[0]"),
    ("SizeMismatch", grounding(), {"frame": (100, 100)}, "asset.width"),
    ("SizeMismatch", grounding(), {"frame": (320, 240)}, "asset.width"),
    ("PhraseNotInCaption", grounding(phrase="Red tin"), {}, "contents.groundedPhrases[0].phrase"),
    ("PhraseEmpty", grounding(phrase=" "), {}, "contents.groundedPhrases[0].phrase"),
    ("CaptionEmpty", grounding(caption=" "), {}, "contents.caption"),
    ("ContentsUnfit", Freeform(text="x"), {}, "contents"),
    ("ImageMissing", grounding(), {"name": "b.png"}, "asset.filename"),
    ("ImageAmbiguous", grounding(), {"name": "twice.png"}, "asset.filename"),
]


@pytest.mark.parametrize(("code", "contents", "more", "field"), DEFECTS)
def test_an_error_leaves_out_only_its_row(
    code: str, contents: Contents, more: dict[str, Any], field: str
) -> None:
    kept, findings = check(
        row(grounding(), line=1), row(contents, id="2", **more), row(Freeform(text=""), line=9)
    )
    assert [record is not None for record in kept] == [True, False, False]
    (found, _) = findings  # the last row is of another type
    assert (found.code, found.file, found.line, found.field) == (code, "rows.jsonl", 7, field)
    assert (found.severity, found.action) == ("error", "RowRejected")


@pytest.mark.parametrize(
    ("box", "fits"),
    [
        ((10, 20, 80, 90), "pixels of 640 x 480 or percent"),
        ((100, 200, 600, 400), "pixels of 640 x 480 or 0-1000"),
        ((100, 200, 900, 950), "0-1000 or 0-1024"),
        ((100, 200, 1010, 950), "0-1024"),
    ],
)
def test_another_coordinate_frame_is_guessed_and_reported(box: Box, fits: str) -> None:
    _, (found,) = check(row(grounding(box)))
    assert (
        found.cause
        == f"the numbers fit the frame {fits}, but this format uses fractions from 0 to 1"
    )


def test_coordinates_of_no_known_frame_are_reported() -> None:
    _, (found,) = check(row(grounding((0, 0, 5000, 9000))))
    assert "fit no known frame" in found.cause


@pytest.mark.parametrize(
    ("box", "fits"), [((0.1, 0.2, 0.9, 0.8), "0-1"), ((100, 100, 990, 600), "0-1000")]
)
def test_formats_in_pixels_have_other_coordinate_frames(box: Box, fits: str) -> None:
    share = (box[0] / 640, box[1] / 480, box[2] / 640, box[3] / 480)
    _, (found,) = check(row(grounding(share), unit="pixel"))
    assert found.code == "BoxOtherFrame"
    assert f"the frame {fits}" in found.cause
    assert found.value == repr([float(number) for number in box])


def test_a_box_past_the_edge_is_clipped_and_reported() -> None:
    kept, (found,) = check(row(grounding((-0.1, 0.2, 0.5, 1.25))))
    assert get_only_record(kept).contents.grounded_phrases[0].bounds == [(0.0, 0.2, 0.5, 1.0)]
    assert (found.code, found.action) == ("BoxClipped", "Mended")
    assert "120 pixels past the edge" in found.cause


def test_rounding_at_the_edge_is_not_reported() -> None:
    kept, findings = check(row(grounding((0.0, 0.2, 1.0000005, 1.0))))
    assert (get_only_record(kept).contents.grounded_phrases[0].bounds, findings) == (
        [(0.0, 0.2, 1.0, 1.0)],
        [],
    )


def pixels(left: float, top: float, right: float, bottom: float) -> Box:
    return (left / 640, top / 480, right / 640, bottom / 480)


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        (pixels(100, 100, 100.5, 140), "0.5 x 40"),
        (pixels(100, 100, 120, 100.98), "20 x 0.98"),
        (pixels(639.5, 100, 700, 140), "0.5 x 40"),
        (pixels(-20, -20, 0.25, 0.25), "0.25 x 0.25"),
        (pixels(120, 100, 119.9, 140), "0.1 x 40"),
    ],
)
def test_a_box_below_one_pixel_is_rejected_with_its_size(box: Box, shown: str) -> None:
    _, (found,) = check(row(grounding(box)))
    assert (found.code, found.action) == ("BoxEmpty", "RowRejected")
    assert f"covers {shown} pixels" in found.cause


@pytest.mark.parametrize(
    "box",
    [
        pixels(100, 100, 101, 101),
        (0.156250, 0.208333, 0.157812, 0.210416),  # one pixel, rounded to six digits
        pixels(639, 479, 640, 480),
    ],
)
def test_a_box_of_one_pixel_is_kept(box: Box) -> None:
    kept, findings = check(row(grounding(box)))
    assert (len([record for record in kept if record]), findings) == (1, [])


@pytest.mark.parametrize(
    ("boxes", "kept_boxes"),
    [
        ([BOX, BOX], [BOX]),
        ([BOX, (0.1, 0.2, 0.3, 0.3), (0.100001, 0.2, 0.5, 0.6), BOX], [BOX, (0.1, 0.2, 0.3, 0.3)]),
        ([(0.5, 0.5, 1.0, 1.0), (0.5, 0.5, 1.000001, 1.0)], [(0.5, 0.5, 1.0, 1.0)]),
    ],
)
def test_a_repeated_box_is_kept_once_and_reported_once(
    boxes: list[Box], kept_boxes: list[Box]
) -> None:
    kept, (found,) = check(row(grounding(*boxes)))
    assert get_only_record(kept).contents == grounding(*kept_boxes)
    assert (found.code, found.severity, found.action) == ("BoxDuplicate", "warning", "Mended")
    assert found.value == str(len(boxes) - len(kept_boxes))


def test_two_classes_with_the_same_box_are_no_duplicates() -> None:
    kept, findings = check(row(make_grounding([("tin", BOX), ("can", BOX)])))
    assert (len(get_only_record(kept).contents.grounded_phrases), findings) == (2, [])


INVALID: list[tuple[Box, str]] = [
    ((0.5, 0.2, 0.5, 0.6), "BoxEmpty"),
    ((1.1, 0.1, 1.3, 0.2), "BoxOutside"),
    ((0.5, 0.2, 0.1, 0.6), "BoxCornersSwapped"),
    ((0.5, math.nan, 0.5, 0.6), "BoxNotFinite"),
]


@pytest.mark.parametrize(("box", "code"), INVALID)
def test_a_rejected_row_reports_the_valid_boxes_lost_with_it(box: Box, code: str) -> None:
    good: list[Box] = [(n / 10, 0.2, n / 10 + 0.1, 0.6) for n in range(9)]
    kept, (found,) = check(row(grounding(*good, box)))
    assert (get_only_record(kept), found.code, found.action) == (None, code, "RowRejected")
    assert "its 9 other boxes are left out with it (--on-bad-box drop" in found.cause


@pytest.mark.parametrize(("box", "code"), INVALID)
def test_an_invalid_box_can_be_left_out_alone(box: Box, code: str) -> None:
    drop = ReadOptions(on_bad_box="drop")
    kept, (found,) = check(row(grounding(BOX, box)), options=drop)
    assert get_only_record(kept).contents == grounding(BOX)
    assert (found.code, found.severity, found.action) == (code, "error", "Mended")
    kept, (found,) = check(row(grounding(box)), options=drop)
    assert (get_only_record(kept), found.code, found.action) == (None, code, "RowRejected")


def test_unreadable_boxes_can_be_left_out_alone() -> None:
    drop = ReadOptions(on_bad_box="drop")
    finding = make_finding("ClassUnknown", file="rows.jsonl", line=4, cause="no such class")
    kept, (found,) = check(row(grounding(), findings=[finding]), options=drop)
    assert get_only_record(kept).contents == grounding()
    assert (found.code, found.action) == ("ClassUnknown", "Mended")


def test_a_caption_of_names_loses_the_name_of_a_dropped_box() -> None:
    named = make_grounding([("tin", BOX), ("jar", (0.5, 0.2, 0.5, 0.6)), ("cup", BOX)])
    kept, _ = check(row(named), options=ReadOptions(on_bad_box="drop"))
    assert get_only_record(kept).contents == make_grounding([("tin", BOX), ("cup", BOX)])


def test_the_unit_that_the_user_chose_is_not_questioned() -> None:
    tiny = (0.1 / 640, 0.2 / 480, 1 / 640, 1 / 480)
    _, (found,) = check(row(grounding(tiny), unit="pixel"))
    assert (found.code, "--box-unit fraction" in found.fix) == ("BoxOtherFrame", True)
    chosen = ReadOptions(box_unit="pixel")
    _, (found,) = check(row(grounding(tiny), unit="pixel"), options=chosen)
    assert found.code == "BoxEmpty"


LENIENT: list[tuple[str, Contents, dict[str, Any], Contents]] = [
    ("BoxCornersSwapped", grounding((0.5, 0.6, 0.1, 0.2)), {}, grounding(BOX)),
    ("BoxEmpty", grounding((0.5, 0.2, 0.5, 0.6), BOX), {}, grounding(BOX)),
    ("BoxOutside", grounding(BOX, (1.1, 0.1, 1.3, 0.2)), {}, grounding(BOX)),
    ("BoxNotFinite", grounding(BOX, (math.nan, 0.1, 1.3, 0.2)), {}, grounding(BOX)),
    ("SizeMismatch", grounding(), {"frame": (320, 240)}, grounding()),
]


@pytest.mark.parametrize(("code", "contents", "more", "mended"), LENIENT)
def test_leniency_repairs_what_can_be_repaired_and_reports_it(
    code: str, contents: Contents, more: dict[str, Any], mended: Contents
) -> None:
    kept, (found,) = check(row(contents, **more), on_error="Warn")
    assert get_only_record(kept).contents == mended
    assert (found.code, found.severity, found.action) == (code, "error", "Mended")


@pytest.mark.parametrize(
    "contents",
    [grounding((0.5, 0.2, 0.5, 0.6)), grounding(phrase="blue"), grounding((100, 200, 300, 400))],
)
def test_leniency_keeps_no_row_without_remaining_content(contents: Contents) -> None:
    kept, findings = check(row(contents), on_error="Warn")
    assert (get_only_record(kept), len(findings)) == (None, 1)


def test_a_size_of_another_shape_is_not_repaired() -> None:
    kept, (found,) = check(row(grounding(), frame=(640, 640)), on_error="Warn")
    assert (get_only_record(kept), found.code) == (None, "SizeMismatch")


def test_boxes_are_rotated_with_an_image_that_exif_rotates() -> None:
    kept, (found,) = check(row(grounding((0.1, 0.2, 0.3, 0.6)), name="t.jpg", frame=(640, 480)))
    assert (found.code, found.action) == ("SizeTurned", "Mended")
    assert get_only_record(kept).contents.grounded_phrases[0].bounds == [
        pytest.approx((0.4, 0.1, 0.8, 0.3))
    ]
    assert (get_only_record(kept).asset.width, get_only_record(kept).asset.height) == (480, 640)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_rotate_as_pillow_rotates_pixels(orientation: int) -> None:
    image = Image.new("L", (40, 20))
    image.paste(255, (4, 2, 12, 18))
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    with Image.open(file) as stored:
        format_value = ImageOps.exif_transpose(stored)
    box = rotate_box((4 / 40, 2 / 20, 12 / 40, 18 / 20), orientation)
    bounds = [number * side for number, side in zip(box, format_value.size * 2, strict=True)]
    assert bounds == pytest.approx(format_value.getbbox())


@pytest.mark.parametrize(
    ("contents", "code", "field"),
    [
        (vqa((1, " ", "a")), "QuestionEmpty", "contents.interactions[0].question"),
        (vqa((1, "q", "a"), (2, "q", "")), "AnswerEmpty", "contents.interactions[1].answer"),
        (vqa(), "QuestionEmpty", "contents.interactions"),
    ],
)
def test_empty_questions_and_answers_are_reported(contents: Vqa, code: str, field: str) -> None:
    kept, (found,) = check(row(contents), task="vqa")
    assert (get_only_record(kept), found.code, found.field) == (None, code, field)


def test_leniency_leaves_out_the_empty_answer_and_renumbers() -> None:
    kept, (found,) = check(row(vqa((1, "q", ""), (2, "r", "b"))), task="vqa", on_error="Warn")
    assert get_only_record(kept).contents == vqa((1, "r", "b"))
    assert (found.code, found.action) == ("AnswerEmpty", "Mended")


def test_interactions_out_of_order_are_renumbered_in_place() -> None:
    kept, (found,) = check(row(vqa((0, "q", "a"), (5, "r", "b"))), task="vqa")
    assert get_only_record(kept).contents == vqa((1, "q", "a"), (2, "r", "b"))
    assert (found.code, found.action, found.value) == ("OrderInvalid", "Mended", "[0, 5]")


def test_an_empty_text_is_reported() -> None:
    kept, (found,) = check(row(Freeform(text="\n")), task="freeform")
    assert (get_only_record(kept), found.code, found.field) == (None, "TextEmpty", "contents.text")


def test_word_indexes_are_corrected_from_the_caption() -> None:
    kept, (found,) = check(row(grounding(span=(2, 9))))
    assert (found.code, found.action) == ("SpanWrong", "Mended")
    assert get_only_record(kept).contents == grounding()


def test_a_repeated_id_is_replaced() -> None:
    kept, findings = check(
        *(
            row(grounding(caption=f"a red tin {n}"), id=id)
            for n, id in enumerate(["1", "1", "1-2", "1"])
        )
    )
    assert [record.id for record in kept if record] == ["1", "1-2", "1-2-2", "1-3"]
    assert [found.code for found in findings] == ["IdDuplicate"] * 3


def test_a_repeated_row_is_kept_and_reported_with_the_line_of_the_first() -> None:
    kept, (found,) = check(row(grounding(), line=3), row(grounding(), line=8, id="2"))
    assert len([record for record in kept if record]) == 2
    assert (found.code, found.line, found.action) == ("RowDuplicate", 8, "Kept")
    assert "line 3 of rows.jsonl" in found.cause


def test_the_same_words_about_another_image_are_no_duplicate() -> None:
    _, findings = check(row(grounding()), row(grounding(), name="t.jpg", id="2"))
    assert findings == []


def test_findings_locate_single_boxes_where_the_format_allows() -> None:
    box_locations = [[BoxLocation(21, "xmin"), BoxLocation(22, "xmin")]]
    _, (found,) = check(row(grounding(BOX, (1.2, 0.1, 1.3, 0.2)), box_locations=box_locations))
    assert (found.line, found.field) == (22, "xmin")


@pytest.mark.parametrize(("on_error", "is_kept"), [("RejectRow", False), ("Warn", True)])
def test_what_the_reader_could_not_read_counts_as_part_of_the_row(
    on_error: OnError, is_kept: bool
) -> None:
    finding = make_finding("ClassUnknown", file="rows.jsonl", line=4, cause="no such class")
    kept, (found,) = check(row(grounding(), findings=[finding]), on_error=on_error)
    assert (get_only_record(kept) is not None, found.line) == (is_kept, 4)
    assert found.action == ("Mended" if is_kept else "RowRejected")


def test_images_of_rows_that_are_left_out_are_not_unused() -> None:
    checker = Checker(FewImages(), "vqa", "RejectRow", lambda _: None)  # type: ignore[arg-type]
    assert checker.check(row(vqa((1, "", "")))) is None
    assert checker.used == {"a.png"}
