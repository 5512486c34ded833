"""How models answer: one JSON object on one line, in the form the published client's inference reads.

    {"vqa":{"answer":"7"}}
    {"phrase_grounding":{"sentence":"the seven","groundings":[{"phrase":"the seven","grounding":[[0,171,341,512]]}]}}

Boxes are whole numbers from 0 to 1024 over the width and the height of the picture, left, top, right, bottom. This page
writes answers, reads them back (leniently: a model may say anything) and scores them against the truth.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VQA, PHRASE_GROUNDING, FREEFORM = "vqa", "phrase-grounding", "freeform"
# The metrics besides the loss, by task.
METRICS = {
    VQA: ("exactMatch", "normalizedMatch", "anls", "bleu", "rougeL", "meteor", "wellFormed"),
    PHRASE_GROUNDING: (
        "iou", "accuracyAt50", "precisionAt50", "recallAt50", "f1At50", "map", "map50", "wellFormed",
    ),
    FREEFORM: ("bleu", "rougeL", "meteor", "cider", "wellFormed"),
}  # fmt: skip
BOX_SCALE = 1024
# The parts of answers that never change. The tiny tokenizer makes each of them one token.
SCAFFOLDING = (
    '{"vqa":{"answer":"',
    '"}}',
    '{"freeform":{"caption":"',
    '{"phrase_grounding":{"sentence":"',
    '","groundings":[{"phrase":"',
    '","grounding":[[',
    "],[",
    ']]},{"phrase":"',
    "]]}]}}",
)

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grounding:
    """A phrase and where it is in the picture."""

    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Answer:
    """What a model said: the text for people, the boxes if any, and the words as they came (``raw``)."""

    text: str
    groundings: tuple[Grounding, ...] = ()
    raw: str = ""
    is_well_formed: bool = True


def write_vqa(answer: str) -> str:
    return _one_line({"vqa": {"answer": answer}})


def write_freeform(caption: str) -> str:
    return _one_line({"freeform": {"caption": caption}})


def write_grounding(sentence: str, groundings: Sequence[Grounding]) -> str:
    items = [{"phrase": item.phrase, "grounding": [list(box) for box in item.boxes]} for item in groundings]
    return _one_line({"phrase_grounding": {"sentence": sentence, "groundings": items}})


def write_answer(task: str, truth: Answer) -> str:
    """The words a model shall say for this truth."""
    if task == PHRASE_GROUNDING:
        return write_grounding(truth.text, truth.groundings)
    return write_vqa(truth.text) if task == VQA else write_freeform(truth.text)


def scale_box(box: Sequence[float], *, width: float, height: float) -> Box:
    """A box in pixels as whole numbers from 0 to ``BOX_SCALE``."""
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (min(BOX_SCALE, max(0, round(v * BOX_SCALE / side))) for v, side in zip(box, sides, strict=True))
    return x1, y1, x2, y2


def read_answer(raw: str) -> Answer:
    """Read what a model said. Words that are not one of the forms become the text as they stand."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return Answer(text=raw.strip(), raw=raw, is_well_formed=False)
    match said:
        case {"vqa": {"answer": str(text)}} | {"freeform": {"caption": str(text)}}:
            return Answer(text=_whole(text), raw=raw)
        case {"phrase_grounding": {"sentence": str(text), "groundings": list(items)}}:
            groundings = tuple(found for item in items if (found := _read_grounding(item)))
            return Answer(
                text=_whole(text), groundings=groundings, raw=raw, is_well_formed=len(groundings) == len(items)
            )
    return Answer(text=raw.strip(), raw=raw, is_well_formed=False)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for boxes without area."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def folded(text: str) -> str:
    """What is left when case and surrounding space do not count."""
    return text.strip().casefold()


def is_same_text(given: str, truth: str) -> bool:
    """Equal but for case and surrounding space."""
    return folded(given) == folded(truth)


def pair_boxes(offered: Sequence[Box], wanted: Sequence[Box]) -> list[float]:
    """For every box wanted the overlap of the one it gets: greedily, best overlap first, each offered box once."""
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(offered) for j, b in enumerate(wanted)), reverse=True)
    used: set[int] = set()
    found: dict[int, float] = {}
    for overlap, i, j in pairs:
        if i not in used and j not in found:
            used.add(i)
            found[j] = overlap
    return [found.get(j, 0.0) for j in range(len(wanted))]


def grounding_ious(given: Sequence[Grounding], truth: Sequence[Grounding]) -> list[float]:
    """For every true box the overlap of the box given for its phrase; 0 where none was given.

    Boxes of one phrase are paired as by ``pair_boxes``. Boxes too many cost nothing here but count as extra zeros, so
    that naming the whole picture ten times does not pay.
    """
    scores: list[float] = []
    for item in truth:
        offered = [box for other in given if is_same_text(other.phrase, item.phrase) for box in other.boxes]
        scores += pair_boxes(offered, item.boxes)
        scores += [0.0] * max(0, len(offered) - len(item.boxes))
    return scores


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _read_grounding(item: Any) -> Grounding | None:
    match item:
        case {"phrase": str(phrase), "grounding": list(boxes)}:
            read = tuple(box for values in boxes if (box := _read_box(values)))
            return Grounding(_whole(phrase), read) if len(read) == len(boxes) else None
    return None


def _read_box(values: Any) -> Box | None:
    match values:
        case [int(x1), int(y1), int(x2), int(y2)]:
            return x1, y1, x2, y2
    return None


def _whole(text: str) -> str:
    """JSON may name half a character, which no file takes; it becomes a question mark."""
    return text.encode(errors="replace").decode()


def _area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
