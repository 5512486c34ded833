"""The forms of answers that a flow may choose: JSON, plain words, or the family's own.

``json`` is the form of ``answers.py``, which the published client's inference reads. ``text`` is
the answer alone. ``native`` is the answer alone too, and boxes as the family was pretrained to
write them, so that training does not have to teach it another notation. Outside of the texts that a
model reads and writes, boxes are always whole numbers from 0 to ``BOX_SCALE``.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runyard.flows.blocks import AnswerFormName
from runyard.flows.families import FAMILIES
from runyard.trainer.answers import (
    BOX_SCALE,
    PHRASE_GROUNDING,
    Answer,
    Box,
    Grounding,
    describe_form,
    read_answer,
    write_answer,
)
from runyard.trainer.errors import InvalidFlow

Size = tuple[int, int]
"""Width and height of an image as the model sees it, in pixels."""
MAX_COORDINATE = 1 << 20  # a model may write any number
NO_BOXES = "text without a box in the family's form"
NOT_FOUR_NUMBERS = "a box without exactly four numbers"


class BoxNotation(ABC):
    """How a family writes the boxes of phrases. A phrase without boxes is not written.

    ``sample_token`` is a token that the tokenizer must have, None where boxes are plain text.
    ``is_token`` recognizes those tokens, which must survive decoding.
    """

    sample_token: str | None = None
    has_pixels = False

    @abstractmethod
    def write(self, groundings: Sequence[Grounding], size: Size | None) -> str:
        """Return the text of these boxes; ``size`` is needed if ``has_pixels``."""

    @abstractmethod
    def read(self, raw: str, size: Size | None) -> tuple[tuple[Grounding, ...], str | None]:
        """Return the boxes in a text, and a problem if not all of it could be read."""

    def is_token(self, token: str) -> bool:
        return False


class JsonBoxes(BoxNotation):
    """``[{"bbox_2d": [left, top, right, bottom], "label": "..."}]`` in a fenced block (Qwen).

    Coordinates are relative to ``scale``, or pixels of the processed image without it.
    """

    _FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*(?:```)?$", re.DOTALL)

    def __init__(self, scale: int | None):
        self._scale, self.has_pixels = scale, scale is None

    def write(self, groundings: Sequence[Grounding], size: Size | None) -> str:
        lines = [
            f'\t{{"bbox_2d": {self._convert(box, size)}, '
            f'"label": {json.dumps(phrase, ensure_ascii=False)}}}'
            for phrase, box in _list_boxes(groundings)
        ]
        body = "[\n" + ",\n".join(lines) + "\n]" if lines else "[]"
        return f"```json\n{body}\n```"

    def read(self, raw: str, size: Size | None) -> tuple[tuple[Grounding, ...], str | None]:
        text = raw.strip()
        fenced = self._FENCE.match(text)
        try:
            items = json.loads(fenced[1] if fenced else text)
        except ValueError:
            return (), "not JSON"
        except RecursionError:
            return (), "nested too deeply"
        items = [items] if isinstance(items, dict) else items
        if not isinstance(items, list):
            return (), "JSON of another form"
        found = [box for item in items if (box := self._read_item(item, size)) is not None]
        broken = len(items) - len(found)
        problem = f"{broken} of {len(items)} boxes cannot be read" if broken else None
        return _group(found), problem

    def _read_item(self, item: Any, size: Size | None) -> tuple[str, Box] | None:
        match item:
            case {"bbox_2d": [left, top, right, bottom], "label": str(phrase)}:
                numbers = (left, top, right, bottom)
            case _:
                return None
        if not all(_is_number(number) for number in numbers):
            return None
        clipped = [max(-MAX_COORDINATE, min(MAX_COORDINATE, number)) for number in numbers]
        sides = self._list_sides(size)
        x1, y1, x2, y2 = (
            round(number * BOX_SCALE / side) for number, side in zip(clipped, sides, strict=True)
        )
        return phrase.encode(errors="replace").decode(), (x1, y1, x2, y2)

    def _convert(self, box: Box, size: Size | None) -> list[int]:
        return [
            round(value * side / BOX_SCALE)
            for value, side in zip(box, self._list_sides(size), strict=True)
        ]

    def _list_sides(self, size: Size | None) -> tuple[int, int, int, int]:
        if self._scale is not None:
            size = (self._scale, self._scale)
        if size is None:
            raise ValueError("boxes in pixels need the size of the processed image")
        return (*size, *size)


class PaliGemmaBoxes(BoxNotation):
    """``<locTTTT><locLLLL><locBBBB><locRRRR> phrase``, joined by `` ; ``, in 1,024 bins.

    Top, left, bottom, right, as in PaliGemma's detection tasks.
    """

    sample_token = "<loc0000>"  # noqa: S105 - an entry of the vocabulary
    _BINS = 1024
    _RUN = re.compile(r"((?:<loc\d{4}>)+)")
    _TOKEN = re.compile(r"<loc(\d{4})>")

    def write(self, groundings: Sequence[Grounding], size: Size | None) -> str:
        return " ; ".join(
            f"{self._write_box(box)} {phrase}" for phrase, box in _list_boxes(groundings)
        )

    def read(self, raw: str, size: Size | None) -> tuple[tuple[Grounding, ...], str | None]:
        before, *parts = self._RUN.split(raw)
        found: list[tuple[str, Box]] = []
        problem = NO_BOXES if before.strip() else None
        for start in range(0, len(parts), 2):
            bins = [int(number) for number in self._TOKEN.findall(parts[start])]
            phrase = parts[start + 1].strip()
            if start + 2 < len(parts):
                phrase = phrase.removesuffix(";").rstrip()
            if len(bins) == 4:
                top, left, bottom, right = bins
                found.append((phrase, (left, top, right, bottom)))
            else:
                problem = NOT_FOUR_NUMBERS
        return _group(found), problem

    def is_token(self, token: str) -> bool:
        return self._TOKEN.fullmatch(token) is not None

    def _write_box(self, box: Box) -> str:
        left, top, right, bottom = (min(self._BINS - 1, max(0, side)) for side in box)
        return "".join(f"<loc{side:04d}>" for side in (top, left, bottom, right))


class FlorenceBoxes(BoxNotation):
    """``phrase<loc_L><loc_T><loc_R><loc_B>``, several boxes after one phrase, in 1,000 bins.

    A bin stands for its middle, as in the family's own post-processing.
    """

    sample_token = "<loc_0>"  # noqa: S105 - an entry of the vocabulary
    _BINS = 1000
    _RUN = re.compile(r"((?:<loc_\d{1,3}>)+)")
    _TOKEN = re.compile(r"<loc_(\d{1,3})>")

    def write(self, groundings: Sequence[Grounding], size: Size | None) -> str:
        return "".join(
            item.phrase + "".join(map(self._write_box, item.boxes))
            for item in groundings
            if item.boxes
        )

    def read(self, raw: str, size: Size | None) -> tuple[tuple[Grounding, ...], str | None]:
        *parts, after = self._RUN.split(raw)
        found: list[tuple[str, Box]] = []
        problem = NO_BOXES if after.strip() else None
        for start in range(0, len(parts), 2):
            phrase = parts[start].strip()
            bins = [int(number) for number in self._TOKEN.findall(parts[start + 1])]
            if len(bins) % 4:
                problem = NOT_FOUR_NUMBERS
            for at in range(0, len(bins) - 3, 4):
                x1, y1, x2, y2 = (
                    int((number + 0.5) * BOX_SCALE / self._BINS) for number in bins[at : at + 4]
                )
                found.append((phrase, (x1, y1, x2, y2)))
        return _group(found), problem

    def is_token(self, token: str) -> bool:
        return self._TOKEN.fullmatch(token) is not None

    def _write_box(self, box: Box) -> str:
        bins = (min(self._BINS - 1, max(0, side * self._BINS // BOX_SCALE)) for side in box)
        return "".join(f"<loc_{number}>" for number in bins)


BOX_NOTATIONS: Mapping[str, BoxNotation] = {
    "qwen2_5_vl": JsonBoxes(scale=None),
    "qwen3_vl": JsonBoxes(scale=1000),
    "paligemma": PaliGemmaBoxes(),
    "florence2": FlorenceBoxes(),
}
"""The notation of each family that was pretrained with boxes, by ``model_type``."""


@dataclass(frozen=True)
class AnswerForm:
    """The form in which a model writes its answers; ``boxes`` is the notation of ``native``.

    ``patch_size`` is the side of the image patches that a notation in pixels counts.
    """

    name: AnswerFormName = "json"
    boxes: BoxNotation | None = None
    patch_size: int = 1

    def write(self, task: str, truth: Answer, size: Size | None = None) -> str:
        """Return the text that a model should generate for this true answer."""
        if self.name == "json":
            return write_answer(task, truth)
        if task != PHRASE_GROUNDING:
            return truth.text
        return self._get_boxes().write(truth.groundings, size)

    def read(self, task: str, raw: str, size: Size | None = None) -> Answer:
        """Parse generated text. Text in another form becomes the answer's text unchanged."""
        if self.name == "json":
            return read_answer(raw)
        if task != PHRASE_GROUNDING:
            return Answer(raw.strip(), raw=raw)
        groundings, problem = self._get_boxes().read(raw, size)
        if problem is not None and not groundings:
            return Answer(raw.strip(), raw=raw, is_well_formed=False)
        phrases = dict.fromkeys(item.phrase for item in groundings)
        return Answer(", ".join(phrases), groundings, raw, is_well_formed=problem is None)

    def explain_problem(self, task: str, raw: str) -> str | None:
        """Return why generated text is not a well-formed answer; None if it is one."""
        if self.name == "json":
            return describe_form(raw)
        if task != PHRASE_GROUNDING:
            return None
        return self._get_boxes().read(raw, (BOX_SCALE, BOX_SCALE))[1]

    def needs_size(self, task: str) -> bool:
        """Return whether answers depend on the size of the processed image."""
        return task == PHRASE_GROUNDING and self.boxes is not None and self.boxes.has_pixels

    def read_size(self, images: Mapping[str, Any]) -> Size | None:
        """Return the size of the first image among a processor's results, if boxes need it."""
        has_pixels = self.boxes is not None and self.boxes.has_pixels
        if not has_pixels or "image_grid_thw" not in images:  # a question without an image
            return None
        _, rows, columns = (int(count) for count in images["image_grid_thw"][0])
        return columns * self.patch_size, rows * self.patch_size

    def decode(self, tokenizer: Any, tokens: Any) -> list[str]:
        """Return the texts of generated tokens (B, G), with those of boxes and no other special
        ones.
        """
        if self.boxes is None or self.boxes.sample_token is None:
            texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            return texts
        special = {
            number: str(token)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        left_out = {number for number, token in special.items() if not self.boxes.is_token(token)}
        rows = [[number for number in row if number not in left_out] for row in tokens.tolist()]
        return [tokenizer.decode(row, skip_special_tokens=False) for row in rows]

    def _get_boxes(self) -> BoxNotation:
        if self.boxes is None:
            raise ValueError(f"the form {self.name!r} has no boxes")
        return self.boxes


JSON_FORM = AnswerForm()


def check_native_form(name: AnswerFormName, model_type: str) -> None:
    """Check that a family has this form.

    Raises:
        InvalidFlow: it has no native form.
    """
    if name == "native" and model_type not in BOX_NOTATIONS:
        families = [key for key, each in FAMILIES.items() if each.model_type in BOX_NOTATIONS]
        raise InvalidFlow(
            f"answers.form 'native' is not possible: model type {model_type!r} was not pretrained "
            "with a form of its own that is known here; it has the forms 'json' and 'text'; try: "
            f"one of them, or another architecture: {', '.join(families)}"
        )


def make_form(name: AnswerFormName, model_type: str, processor: Any) -> AnswerForm:
    """Return the form of answers of a loaded model.

    Raises:
        InvalidFlow: the family has no native form, or the tokenizer lacks its tokens.
    """
    if name != "native":
        return AnswerForm(name)
    check_native_form(name, model_type)
    boxes, tokenizer = BOX_NOTATIONS[model_type], processor.tokenizer
    token = boxes.sample_token
    if token is not None and tokenizer.tokenize(token) != [token]:
        raise InvalidFlow(
            f"answers.form 'native' is not possible: the tokenizer of these weights has no token "
            f"{token!r}; try: the family's usual weights, or 'json'"
        )
    return AnswerForm(name, boxes, int(getattr(processor.image_processor, "patch_size", 1) or 1))


def _list_boxes(groundings: Iterable[Grounding]) -> Iterator[tuple[str, Box]]:
    return ((item.phrase, box) for item in groundings for box in item.boxes)


def _group(found: Iterable[tuple[str, Box]]) -> tuple[Grounding, ...]:
    """Return boxes by phrase, in the order in which phrases occur first."""
    by_phrase: dict[str, list[Box]] = {}
    for phrase, box in found:
        by_phrase.setdefault(phrase, []).append(box)
    return tuple(Grounding(phrase, tuple(boxes)) for phrase, boxes in by_phrase.items())


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
