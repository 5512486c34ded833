"""The form of answers: one JSON object on one line, as the published client's inference reads it.

    {"vqa":{"answer":"7"}}
    {"phrase_grounding":{"sentence":"the seven",
        "groundings":[{"phrase":"the seven","grounding":[[0,171,341,512]]}]}}

Boxes are ``[left, top, right, bottom]`` in whole numbers from 0 to 1024 over the width and the
height of the image. This module writes answers, parses generated text leniently (a model may write
anything), and compares boxes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

VQA, PHRASE_GROUNDING, FREEFORM = "vqa", "phrase-grounding", "freeform"
# Metrics besides the loss, by task.
METRICS = {
    VQA: ("exactMatch", "normalizedMatch", "anls", "bleu", "rougeL", "meteor", "wellFormed"),
    PHRASE_GROUNDING: (
        "iou", "accuracyAt50", "precisionAt50", "recallAt50", "f1At50", "map", "map50",
        "wellFormed",
    ),
    FREEFORM: ("bleu", "rougeL", "meteor", "cider", "wellFormed"),
}  # fmt: skip
BOX_SCALE = 1024
# Constant pieces of answers. The tiny tokenizer encodes each of them as one token.
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
    """A phrase and its boxes in the image."""

    phrase: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Answer:
    """An answer: its text, its boxes if any, and the generated text unchanged (``raw``)."""

    text: str
    groundings: tuple[Grounding, ...] = ()
    raw: str = ""
    is_well_formed: bool = True


def write_vqa(answer: str) -> str:
    return _to_json_line({"vqa": {"answer": answer}})


def write_freeform(caption: str) -> str:
    return _to_json_line({"freeform": {"caption": caption}})


def write_grounding(sentence: str, groundings: Sequence[Grounding]) -> str:
    items = [
        {"phrase": item.phrase, "grounding": [list(box) for box in item.boxes]}
        for item in groundings
    ]
    return _to_json_line({"phrase_grounding": {"sentence": sentence, "groundings": items}})


def write_answer(task: str, truth: Answer) -> str:
    """Return the text that a model should generate for this true answer."""
    if task == PHRASE_GROUNDING:
        return write_grounding(truth.text, truth.groundings)
    return write_vqa(truth.text) if task == VQA else write_freeform(truth.text)


def scale_box(box: Sequence[float], *, width: float, height: float) -> Box:
    """Convert a box in pixels to whole numbers from 0 to ``BOX_SCALE``."""
    sides = (width, height, width, height)
    x1, y1, x2, y2 = (
        min(BOX_SCALE, max(0, round(v * BOX_SCALE / side)))
        for v, side in zip(box, sides, strict=True)
    )
    return x1, y1, x2, y2


def read_answer(raw: str) -> Answer:
    """Parse generated text. Text in no known form becomes the answer's text unchanged."""
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        return Answer(text=raw.strip(), raw=raw, is_well_formed=False)
    match parsed:
        case {"vqa": {"answer": str(text)}} | {"freeform": {"caption": str(text)}}:
            return Answer(text=_replace_surrogates(text), raw=raw)
        case {"phrase_grounding": {"sentence": str(text), "groundings": list(items)}}:
            groundings = tuple(found for item in items if (found := _read_grounding(item)))
            return Answer(
                text=_replace_surrogates(text),
                groundings=groundings,
                raw=raw,
                is_well_formed=len(groundings) == len(items),
            )
    return Answer(text=raw.strip(), raw=raw, is_well_formed=False)


def describe_form(raw: str) -> str | None:
    """Return why generated text is not a well-formed answer; None if it is one."""
    try:
        parsed = json.loads(raw)
    except ValueError:
        return "not JSON"
    except RecursionError:
        return "nested too deeply"
    match parsed:
        case {"vqa": {"answer": str()}} | {"freeform": {"caption": str()}}:
            return None
        case {"phrase_grounding": {"sentence": str(), "groundings": list(items)}}:
            broken = sum(_read_grounding(item) is None for item in items)
            return f"{broken} of {len(items)} groundings cannot be read" if broken else None
    return "JSON of another form"


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes; 0 for boxes without area."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def fold_case(text: str) -> str:
    """Return the text without surrounding space and without case."""
    return text.strip().casefold()


def is_same_text(text: str, other: str) -> bool:
    """Return whether two texts are equal, ignoring case and surrounding space."""
    return fold_case(text) == fold_case(other)


def match_boxes(predicted: Sequence[Box], truth: Sequence[Box]) -> list[float]:
    """Return the IoU of the predicted box matched to each true box; 0 for an unmatched one.

    Matching is greedy, highest IoU first; each predicted box is used once.
    """
    pairs = sorted(
        ((iou(a, b), i, j) for i, a in enumerate(predicted) for j, b in enumerate(truth)),
        reverse=True,
    )
    used: set[int] = set()
    found: dict[int, float] = {}
    for overlap, i, j in pairs:
        if i not in used and j not in found:
            used.add(i)
            found[j] = overlap
    return [found.get(j, 0.0) for j in range(len(truth))]


def grounding_ious(predicted: Sequence[Grounding], truth: Sequence[Grounding]) -> list[float]:
    """Return the IoU of the predicted box for each true box; 0 where none was predicted for its
    phrase.

    The boxes of a phrase, however often it is named, are matched by ``match_boxes``. Each surplus
    box adds a zero, also one for a phrase that the truth lacks, so that predicting the whole image
    ten times gains nothing.
    """
    by_phrase, true_by_phrase = group_by_phrase(predicted), group_by_phrase(truth)
    scores: list[float] = []
    surplus = 0
    for phrase in dict.fromkeys((*true_by_phrase, *by_phrase)):
        boxes, true = by_phrase.get(phrase, []), true_by_phrase.get(phrase, [])
        scores += match_boxes(boxes, true)
        surplus += max(0, len(boxes) - len(true))
    return scores + [0.0] * surplus


def group_by_phrase(groundings: Iterable[Grounding]) -> dict[str, list[Box]]:
    """Return all boxes of each phrase, ignoring case."""
    found: dict[str, list[Box]] = {}
    for item in groundings:
        found.setdefault(fold_case(item.phrase), []).extend(item.boxes)
    return found


def _to_json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _read_grounding(item: Any) -> Grounding | None:
    match item:
        case {"phrase": str(phrase), "grounding": list(boxes)}:
            read = tuple(box for values in boxes if (box := _read_box(values)))
            return Grounding(_replace_surrogates(phrase), read) if len(read) == len(boxes) else None
    return None


def _read_box(values: Any) -> Box | None:
    match values:
        case [int(x1), int(y1), int(x2), int(y2)]:
            return x1, y1, x2, y2
    return None


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON may contain and files cannot, with question marks."""
    return text.encode(errors="replace").decode()


def _area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
