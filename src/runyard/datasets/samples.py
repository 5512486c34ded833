"""The built-in samples: handwritten digits, and digits on a canvas, made from the 1,797 scans in
scikit-learn.

The trainer builds its built-in datasets from the same functions in memory. Here they are written as
a folder to be imported like any other: images in ``pictures/``, and ``annotations.jsonl``. The
held-out split is made after that import, by image content, so nothing is split here and all
canvases are drawn from all scans.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    encode,
    word_span,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_QUESTION = "Which digit is this?"
# Half of the training questions use other wordings, so that the model also answers questions worded
# freely.
DIGIT_WORDINGS = (
    "What number is this?",
    "What digit can you see?",
    "which number does the picture show",
    "Tell me the digit.",
    "What is written here?",
    "Read the number in this image.",
    "Which digit is it?",
    "what is this?",
)
SCAN_SIDE = 32
UNNAMED = 0.4
CANVAS_SIDE, CANVAS_DIGIT, CANVAS_GRID = 48, 16, 8
CANVAS_SHIFT, CANVAS_ZOOM = 1.0, 0.1
CANVASES = 12000

Scan = tuple["np.ndarray[Any, Any]", int]


@dataclass(frozen=True)
class Canvas:
    """Digits on black, with their words and pixel boxes.

    Digits of an unnamed canvas are in reading order.
    """

    image: "Image.Image"
    digits: list[tuple[str, tuple[int, int, int, int]]]
    is_unnamed: bool

    @property
    def sentence(self) -> str:
        return " and ".join(word for word, _ in self.digits)


def write(name: str, folder: Path, *, count: int | None = None) -> None:
    """Write a sample into an empty folder, or only its first ``count`` images.

    Raises KeyError for a name that is not in ``SAMPLES``.
    """
    (folder / "pictures").mkdir()
    with open(folder / "annotations.jsonl", "wb") as lines:
        for number, (image, contents) in enumerate(SAMPLES[name](count), start=1):
            filename = f"pictures/{number:05d}.png"
            image.save(folder / filename, "PNG")
            asset = AssetRef(filename=filename, width=image.width, height=image.height)
            lines.write(encode(Record(id=str(number), asset=asset, contents=contents)) + b"\n")


def load_scans() -> list[Scan]:
    """Load the 1,797 scans as 8 x 8 gray images with their labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    gray = (data.images / 16 * 255).astype(np.uint8)
    return [(scan, int(label)) for scan, label in zip(gray, data.target, strict=True)]


def enlarge_scan(scan: "np.ndarray[Any, Any]") -> "Image.Image":
    """Enlarge a scan to an image of 32 x 32."""
    from PIL import Image

    return (
        Image.fromarray(scan)
        .resize((SCAN_SIDE, SCAN_SIDE), Image.Resampling.BILINEAR)
        .convert("RGB")
    )


def choose_digit_question(index: int) -> str:
    """Return the question of the training sample at this index."""
    return DIGIT_WORDINGS[index // 2 % len(DIGIT_WORDINGS)] if index % 2 else DIGIT_QUESTION


def draw_canvases(
    scans: list[Scan],
    count: int,
    random: "np.random.Generator",
    *,
    share_unnamed: float,
    fewest: int = 1,
    most: int = 3,
    is_varied: bool = False,
) -> Iterator[Canvas]:
    """Draw ``count`` canvases of ``fewest`` to ``most`` different digits, using scans from this
    list only.

    A fraction ``share_unnamed`` of them is unnamed. A canvas never has more digits than the list
    has labels. Varied scans are each shifted and zoomed a little within their box.
    """
    from PIL import Image

    by_label: dict[int, list[Any]] = {}
    for scan, label in scans:
        small = Image.fromarray(scan).resize(
            (CANVAS_DIGIT, CANVAS_DIGIT), Image.Resampling.BILINEAR
        )
        by_label.setdefault(label, []).append(small)
    for _ in range(count if by_label else 0):
        how_many = int(random.integers(min(fewest, len(by_label)), min(most, len(by_label)) + 1))
        labels = [int(label) for label in random.choice(sorted(by_label), how_many, replace=False)]
        canvas = Image.new("L", (CANVAS_SIDE, CANVAS_SIDE))
        found = []
        for label, (x, y) in zip(labels, _pick_corners(how_many, random), strict=True):
            images = by_label[label]
            image = images[int(random.integers(len(images)))]
            canvas.paste(_vary(image, random) if is_varied else image, (x, y))
            found.append((WORDS[label], (x, y, x + CANVAS_DIGIT, y + CANVAS_DIGIT)))
        is_unnamed = random.random() < share_unnamed
        if is_unnamed:
            found.sort(key=lambda item: (item[1][1], item[1][0]))
        yield Canvas(canvas.convert("RGB"), found, is_unnamed)


def _vary(image: "Image.Image", random: "np.random.Generator") -> "Image.Image":
    """Shift the image by up to ``CANVAS_SHIFT`` pixels and zoom it by up to ``CANVAS_ZOOM``, about
    its center.
    """
    from PIL import Image

    zoom = 1 + float(random.uniform(-CANVAS_ZOOM, CANVAS_ZOOM))
    x, y = (float(value) for value in random.uniform(-CANVAS_SHIFT, CANVAS_SHIFT, 2))
    edge = CANVAS_DIGIT / 2 * (1 - zoom)
    matrix = (zoom, 0.0, edge + x, 0.0, zoom, edge + y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _pick_corners(count: int, random: "np.random.Generator") -> list[tuple[int, int]]:
    """Pick upper left corners on the grid so that no two digits overlap."""
    while True:
        steps = (CANVAS_SIDE - CANVAS_DIGIT) // CANVAS_GRID + 1
        corners = [
            (int(x) * CANVAS_GRID, int(y) * CANVAS_GRID)
            for x, y in random.integers(steps, size=(count, 2))
        ]
        if all(
            abs(a[0] - b[0]) >= CANVAS_DIGIT or abs(a[1] - b[1]) >= CANVAS_DIGIT
            for i, a in enumerate(corners)
            for b in corners[:i]
        ):
            return corners


def _make_digits(count: int | None) -> Iterator[tuple["Image.Image", Contents]]:
    for index, (scan, label) in enumerate(load_scans()[:count]):
        asked = Interaction(order=1, question=choose_digit_question(index), answer=str(label))
        yield enlarge_scan(scan), Vqa(interactions=[asked])


def _make_digits_grounding(count: int | None) -> Iterator[tuple["Image.Image", Contents]]:
    import numpy as np

    canvas_count = CANVASES if count is None else min(count, CANVASES)
    for canvas in draw_canvases(
        load_scans(), canvas_count, np.random.default_rng([1, 1]), share_unnamed=UNNAMED
    ):
        yield (
            canvas.image,
            PhraseGrounding(caption=canvas.sentence, grounded_phrases=list(_make_phrases(canvas))),
        )


def _make_phrases(canvas: Canvas) -> Iterable[GroundedPhrase]:
    for word, pixels in canvas.digits:
        start, end = word_span(canvas.sentence, word) or (0, 1)
        x1, y1, x2, y2 = (value / CANVAS_SIDE for value in pixels)
        bounds: list[Box] = [(x1, y1, x2, y2)]
        yield GroundedPhrase(
            phrase=word, start_token_index=start, end_token_index=end, bounds=bounds
        )


SAMPLES: dict[str, Callable[[int | None], Iterator[tuple["Image.Image", Contents]]]] = {
    "digits": _make_digits,
    "digits-grounding": _make_digits_grounding,
}
