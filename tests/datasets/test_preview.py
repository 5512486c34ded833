import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image, PngImagePlugin

from runyard.datasets.preview import (
    CELL,
    COLUMNS,
    GAP,
    LINES,
    MAX_IMAGES,
    choose_items,
    render_contact_sheet,
    wrap_texts,
)
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    Conversation,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Turn,
    Vqa,
)
from runyard.datasets.writers.base import ExportedImage

SCRIPTS = (
    "Straße αβγ Привет שלום مرحبا नमस्ते สวัสดี 你好 안녕 👩‍👩‍👧 \u202etxt.exe \x00\x1b[31m \ud800 "
    "e\u0301\u0302\u0303"
)


def make_record(contents: Contents) -> Record:
    return Record(id="1", asset=AssetRef(filename="a.png", width=40, height=20), contents=contents)


def make_boxed_record(phrase: str, box: Box) -> Record:
    found = GroundedPhrase(phrase=phrase, start_token_index=0, end_token_index=1, bounds=[box])
    return make_record(PhraseGrounding(caption=phrase, grounded_phrases=[found]))


def open_png(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png), formats=["PNG"])


def test_a_box_is_drawn_where_it_is(item: Callable[..., ExportedImage]) -> None:
    box = (0.25, 0.5, 0.75, 1.0)
    plain, with_box = (
        open_png(render_contact_sheet([item("a.png")])),
        open_png(render_contact_sheet([item("a.png", make_boxed_record("tin", box))])),
    )
    left, top = GAP, GAP + (CELL - CELL // 2) // 2  # an image of 2 to 1 in the middle of a square
    x, y = left + CELL // 4, top + CELL // 2 // 2
    assert plain.getpixel((x, y + 40)) != with_box.getpixel((x, y + 40))  # the left edge
    assert plain.getpixel((x + CELL // 2, y + 40)) != with_box.getpixel((x + CELL // 2, y + 40))
    # Within.
    assert plain.getpixel((x + CELL // 4, y + 40)) == with_box.getpixel((x + CELL // 4, y + 40))
    assert plain.getpixel((x - 20, y + 40)) == with_box.getpixel((x - 20, y + 40))  # next to it


def test_an_image_is_drawn_as_training_sees_it(item: Callable[..., ExportedImage]) -> None:
    """An orientation in XMP, and transparency, which is white."""
    image, file = Image.new("RGBA", (400, 200), (255, 0, 0, 255)), io.BytesIO()
    image.paste((0, 0, 255, 0), (0, 0, 200, 200))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<a tiff:Orientation="6"/>')
    image.save(file, "PNG", pnginfo=text)
    shown = replace(item("a.png"), read=file.getvalue)
    with open_png(render_contact_sheet([shown])) as sheet:
        middle = GAP + CELL // 2
        assert sheet.getpixel((middle, GAP + CELL // 4)) == (255, 255, 255)
        assert sheet.getpixel((middle, GAP + 3 * CELL // 4)) == (255, 0, 0)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    item: Callable[..., ExportedImage],
) -> None:
    items = [item(f"{n}.png", make_record(Freeform(text=f"text {n}"))) for n in range(30)]
    sheets = [render_contact_sheet(choose_items(items, count=6, seed=seed)) for seed in (1, 1, 2)]
    assert sheets[0] == sheets[1] != sheets[2]


def test_images_with_records_are_shown_first(item: Callable[..., ExportedImage]) -> None:
    items = [
        item(f"{n}.png", *([make_record(Freeform(text="red"))] if n % 5 == 0 else []))
        for n in range(20)
    ]
    assert [it.asset.filename for it in choose_items(items, count=4, seed=3)] == [
        "0.png",
        "5.png",
        "10.png",
        "15.png",
    ]
    assert len(choose_items(items, count=1000, seed=3)) == 20
    assert choose_items([], count=5, seed=3) == []


def test_the_sheet_has_a_bounded_size(item: Callable[..., ExportedImage]) -> None:
    sheet = open_png(render_contact_sheet([item("a.png")] * (MAX_IMAGES + 50)))
    assert sheet.width == GAP + COLUMNS * (CELL + GAP)
    assert sheet.height < (MAX_IMAGES // COLUMNS) * 500
    assert open_png(render_contact_sheet([])).width > 0


def test_no_text_breaks_the_sheet(item: Callable[..., ExportedImage]) -> None:
    for text in (SCRIPTS, SCRIPTS * 500, "x" * 100_000, "\n" * 5000, ""):
        asked = [Interaction(order=1, question=text, answer=text)]
        records = [
            make_record(Vqa(interactions=asked)),
            make_record(Freeform(text=text, prompt=text)),
            make_boxed_record(text, (0, 0, 1, 1)),
        ]
        sheet = open_png(
            render_contact_sheet(
                [
                    ExportedImage(
                        AssetRef(filename=text, width=1, height=1), "", records, item("a").read
                    )
                ]
            )
        )
        sheet.load()
        lines = wrap_texts(records)
        assert len(lines) <= LINES
        assert all(line.isprintable() for line in lines)


def test_long_texts_are_wrapped_and_cut() -> None:
    lines = wrap_texts([make_record(Freeform(text="word " * 300))])
    assert len(lines) == LINES
    assert lines[-1].endswith("…")
    assert wrap_texts(
        [make_record(Vqa(interactions=[Interaction(order=1, question="Who?", answer="She.")]))]
    ) == [
        "Q: Who?",
        "A: She.",
    ]


def test_turns_are_shown_with_the_name_of_each_image_where_it_is_referred_to() -> None:
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "<image>Same as <image>?"),
        Turn("assistant", "No <image>."),
    ]
    assert wrap_texts([make_record(Conversation(images=["a.jpg", "b.jpg"], turns=turns))]) == [
        "System: Be brief.",
        "Q: [image 1: a.jpg] Same as [image 2: b.jpg] ?",
        "A: No <image>.",
    ]
    assert wrap_texts([make_record(Conversation(turns=turns[1:]))])[0] == (
        "Q: [image] Same as [image] ?"
    )


def test_invalid_boxes_and_unreadable_images_do_not_end_the_preview(
    item: Callable[..., ExportedImage],
) -> None:
    nan = float("nan")
    boxes: list[Any] = [
        (-5, -5, 9, 9),
        (0.9, 0.9, 0.1, 0.1),
        (nan, 0, 1, nan),
        (0.5, 0.5, 0.5, 0.5),
        (1, 1, 1, 1),
    ]
    broken = ExportedImage(
        AssetRef(filename="b.png", width=1, height=1), "", [], lambda: b"\x89PNG\r\n\x1a\nno"
    )

    def read_missing() -> bytes:
        raise OSError("the disk is gone")

    missing = ExportedImage(AssetRef(filename="c.png", width=1, height=1), "", [], read_missing)
    sheet = open_png(
        render_contact_sheet(
            [item("a.png", *(make_boxed_record("tin", box) for box in boxes)), broken, missing]
        )
    )
    assert sheet.getpixel((GAP + CELL + GAP + 100, GAP + 200)) == (0xD5, 0xD8, 0xDC)
