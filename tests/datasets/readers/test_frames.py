"""Frames of boxes: what evidence rejects a file, and which small, correct files are kept."""

from random import Random

import pytest

from runyard.datasets.findings import Finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.frames import Frame, FrameEvidence, Numbers, choose_frame

PIXEL_SIZES = Frame("pixel", "size")
PIXEL_CORNERS = Frame("pixel", "corners")
FRACTION_CORNERS = Frame("fraction", "corners")
SMALL, LARGE = (200, 100), (1600, 1200)


def find(
    boxes: list[Numbers],
    size: tuple[int, int],
    frame: Frame,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Finding | None:
    evidence = FrameEvidence()
    for box in boxes:
        evidence.add(box, size)
    return evidence.find_other_frame(frame, options, file="a.json", rows=7)


def draw(count: int, frame: Frame, size: tuple[int, int] = (1, 1), seed: int = 1) -> list[Numbers]:
    """Draw boxes anywhere in the image, written in this frame."""
    random = Random(seed)  # noqa: S311 - repeatable, not secret
    limit = {"fraction": 1, "percent": 100, "thousandth": 1000}.get(frame.unit)
    width, height = (limit, limit) if limit else size
    boxes = []
    for _ in range(count):
        left, right = sorted(random.uniform(0, width) for _ in range(2))
        top, bottom = sorted(random.uniform(0, height) for _ in range(2))
        end = (right, bottom) if frame.form == "corners" else (right - left, bottom - top)
        boxes.append((left, top, *end))
    return boxes


@pytest.mark.parametrize(
    ("boxes", "size", "frame", "expected"),
    [
        ([(0.1, 0.1, 0.4, 0.5)], SMALL, PIXEL_SIZES, "--box-unit fraction"),
        (draw(9, FRACTION_CORNERS), LARGE, PIXEL_CORNERS, "--box-unit fraction"),
        ([(0, 0, 1, 1)], SMALL, PIXEL_CORNERS, "--box-unit fraction"),
        (draw(20, Frame("percent", "size")), LARGE, PIXEL_SIZES, "--box-unit percent"),
        (draw(20, Frame("percent", "corners")), LARGE, PIXEL_CORNERS, "--box-unit percent"),
        (draw(20, Frame("percent", "size")), (60, 40), PIXEL_SIZES, "--box-unit percent"),
        ([(10.0, 20, 50, 60)], LARGE, FRACTION_CORNERS, "--box-unit pixel or --box-unit percent"),
        (
            [(100, 100, 400, 500), (600, 400, 300, 500)],
            SMALL,
            PIXEL_SIZES,
            "--box-unit thousandth",
        ),
        (draw(20, Frame("thousandth", "corners")), (640, 480), PIXEL_CORNERS, "thousandth"),
        (
            draw(20, Frame("thousandth", "corners")),
            (640, 480),
            PIXEL_SIZES,
            "--box-unit thousandth --box-form corners",
        ),
        (draw(30, Frame("thousandth", "size")), (4000, 3000), PIXEL_SIZES, "thousandth"),
        (draw(60, Frame("thousandth", "corners")), (1920, 1080), PIXEL_CORNERS, "thousandth"),
        (draw(60, Frame("thousandth", "size")), (1080, 1920), PIXEL_SIZES, "thousandth"),
        (draw(30, Frame("thousandth", "size")), (1600, 1500), PIXEL_SIZES, "thousandth"),
        (draw(9, Frame("thousandth", "corners")), LARGE, FRACTION_CORNERS, "--box-unit pixel"),
        ([(900, 0, 1022, 800)] * 3, (640, 480), PIXEL_CORNERS, "convert the boxes"),
        (draw(12, PIXEL_CORNERS, SMALL), SMALL, PIXEL_SIZES, "--box-form corners"),
        (
            [
                (20, 10, 100, 60),
                (120, 40, 180, 90),
                (5, 5, 60, 50),
                (90, 20, 190, 95),
                (10, 10, 50, 40),
            ],
            SMALL,
            PIXEL_SIZES,
            "--box-form corners",
        ),
        ([(20, 10, 60, 50), (120, 40, 180, 90)], SMALL, PIXEL_SIZES, "--box-form corners"),
        (draw(12, PIXEL_SIZES, SMALL), SMALL, PIXEL_CORNERS, "--box-form size"),
        (draw(12, Frame("fraction", "size")), SMALL, FRACTION_CORNERS, "--box-form size"),
        (draw(12, PIXEL_CORNERS, LARGE), (640, 480), PIXEL_CORNERS, "images were resized"),
    ],
)
def test_another_frame_is_found_with_its_option(
    boxes: list[Numbers], size: tuple[int, int], frame: Frame, expected: str
) -> None:
    found = find(boxes, size, frame)
    assert found is not None
    assert (found.code, found.action) == ("BoxOtherFrame", "FileRejected")
    assert expected in found.fix
    assert f"smallest image {size[0]} x {size[1]}" in found.cause
    assert "7 rows are left out" in found.cause


@pytest.mark.parametrize(
    ("boxes", "size", "frame"),
    [
        ([], LARGE, PIXEL_SIZES),
        ([(3, 4, 20, 20), (10, 10, 60, 70)], LARGE, PIXEL_SIZES),
        ([(10 + n % 3, 8, 70, 24) for n in range(50)], LARGE, PIXEL_SIZES),  # a logo
        ([(5 * n, 4 * n, 200, 180) for n in range(60)], (1920, 1080), PIXEL_SIZES),
        (draw(60, PIXEL_SIZES, (960, 1080)), (1920, 1080), PIXEL_SIZES),  # the left half
        (draw(60, PIXEL_CORNERS, (1000, 1000)), (1000, 1000), PIXEL_CORNERS),
        ([(0, 0, 2, 2)], LARGE, PIXEL_CORNERS),
        ([(0, 0, 1, 1)], (2, 2), PIXEL_CORNERS),
        ([(0, 0, 1, 1)], (1, 1), PIXEL_CORNERS),
        ([(100, 50, 150, 40)], SMALL, PIXEL_SIZES),  # one box past the edge
        ([(1900, 400, 200, 500), (1850, 300, 180, 700)], (1920, 1080), PIXEL_SIZES),
        ([(100, 60, 20, 10), (10, 10, 90, 90), (20, 20, 190, 95)], SMALL, PIXEL_CORNERS),
        ([(0.1, 0.1, 0.5, 0.6)] * 3 + [(0.1, 0.1, 0.5, 1.02)], SMALL, FRACTION_CORNERS),
        ([(0.1, 0.1, 0.5, 0.6)] * 3 + [(0.1, 0.1, 0.5, 3.0)], SMALL, FRACTION_CORNERS),
        ([(float("nan"), 1, 2, 3), (float("inf"), 1, 2, 3)], SMALL, PIXEL_SIZES),
        *((draw(20, frame, SMALL), SMALL, frame) for frame in (PIXEL_SIZES, PIXEL_CORNERS)),
        *((draw(20, frame, LARGE), LARGE, frame) for frame in (PIXEL_SIZES, PIXEL_CORNERS)),
        (draw(20, FRACTION_CORNERS), SMALL, FRACTION_CORNERS),
    ],
)
def test_correct_boxes_are_no_evidence_for_another_frame(
    boxes: list[Numbers], size: tuple[int, int], frame: Frame
) -> None:
    assert find(boxes, size, frame) is None


@pytest.mark.parametrize("frame", [PIXEL_SIZES, PIXEL_CORNERS, FRACTION_CORNERS])
def test_no_random_dataset_is_rejected(frame: Frame) -> None:
    for seed in range(300):
        count, size = 1 + seed % 12, [SMALL, LARGE, (640, 480)][seed // 12 % 3]
        assert find(draw(count, frame, size, seed), size, frame) is None


def test_a_frame_that_the_user_chose_is_not_questioned() -> None:
    percent = draw(20, Frame("percent", "size"))
    assert find(percent, LARGE, PIXEL_SIZES, ReadOptions(box_unit="pixel")) is None
    corners = draw(12, PIXEL_CORNERS, SMALL)
    chosen = ReadOptions(box_unit="pixel", box_form="corners")
    assert find(corners, SMALL, choose_frame(chosen, "pixel", "size"), chosen) is None


@pytest.mark.parametrize(
    ("frame", "numbers"),
    [
        (PIXEL_CORNERS, (20, 10, 100, 60)),
        (PIXEL_SIZES, (20, 10, 80, 50)),
        (FRACTION_CORNERS, (0.1, 0.1, 0.5, 0.6)),
        (Frame("percent", "size"), (10, 10, 40, 50)),
        (Frame("thousandth", "corners"), (100, 100, 500, 600)),
    ],
)
def test_boxes_of_every_frame_become_fractions(frame: Frame, numbers: Numbers) -> None:
    assert frame.to_fractions(numbers, SMALL) == pytest.approx((0.1, 0.1, 0.5, 0.6))
