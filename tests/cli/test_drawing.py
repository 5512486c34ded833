"""Drawings of answers and boxes."""

from pathlib import Path

from PIL import Image

from runyard.cli.drawing import (
    RIGHT,
    WRONG,
    AnsweredQuestion,
    draw_answers,
    draw_boxes,
    select_evenly,
)


def make_answers(count: int, *, is_right: bool = True) -> list[AnsweredQuestion]:
    image = Image.new("RGB", (8, 8), "#000000")
    given = "7" if is_right else "1"
    return [
        AnsweredQuestion(
            image=image, question="Which digit is this?", truth="7", given=given, is_right=is_right
        )
        for _ in range(count)
    ]


def colours_in(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as opened:
        return {color for _, color in opened.convert("RGB").getcolors(1 << 20) or []}  # type: ignore[misc]


def rgb(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text[1:]))


def test_right_and_wrong_answers_are_marked_differently(tmp_path: Path) -> None:
    draw_answers(make_answers(7), title="all right", path=tmp_path / "right.png")
    draw_answers(make_answers(7, is_right=False), title="all wrong", path=tmp_path / "wrong.png")
    assert rgb(RIGHT) in colours_in(tmp_path / "right.png") and rgb(WRONG) not in colours_in(
        tmp_path / "right.png"
    )
    assert rgb(WRONG) in colours_in(tmp_path / "wrong.png") and rgb(RIGHT) not in colours_in(
        tmp_path / "wrong.png"
    )


def test_the_grid_grows_by_rows(tmp_path: Path) -> None:
    draw_answers(make_answers(6), title="", path=tmp_path / "one.png")
    draw_answers(make_answers(7), title="", path=tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width == two.width and one.height < two.height


def test_images_are_selected_evenly() -> None:
    items = make_answers(100)
    chosen = select_evenly(items, 4)
    assert [next(i for i, item in enumerate(items) if item is each) for each in chosen] == [
        0,
        25,
        50,
        75,
    ]


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "#ffffff")
    draw_boxes(image, [("seven", (512, 512, 1024, 1024))], path=tmp_path / "boxes.png")
    with Image.open(tmp_path / "boxes.png") as drawn:
        assert drawn.size == (512, 512)
        assert drawn.getpixel((255, 400)) == rgb("#cf222e")
        assert drawn.getpixel((100, 100)) == rgb("#ffffff")


def test_invalid_boxes_of_a_model_do_not_end_the_drawing(tmp_path: Path) -> None:
    draw_boxes(Image.new("L", (48, 48)), [("x", (900, -5, 20, 99999))], path=tmp_path / "boxes.png")
    assert (tmp_path / "boxes.png").stat().st_size > 0
