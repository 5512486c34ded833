"""What can be wrong with a record, once its picture is known; and what of it can be mended.

Oddities of severity ``warning`` are mended wherever that is possible (a box cut at the edge, interactions numbered
anew), and the finding says so. With ``onError: Warn`` errors are, too, as long as something of the row remains: corners
are put in order, and boxes, phrases and interactions that cannot be used are left out. With every other policy a row
with an error is left out as a whole: half an annotation teaches a model that the other half is not there.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from runyard.datasets.findings import Action, Say, finding
from runyard.datasets.readers import Row, Spot
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    DatasetType,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    encode,
    word_span,
)
from runyard.datasets.sources import ImageFacts, Source

OnError = Literal["Warn", "RejectRow", "RejectFile", "RejectAll"]

# Formats print shares with six digits; what reaches over the edge by less is rounding and cut without a word.
ROUNDING = 2e-6
# Beyond this share of the picture a number is not over the edge, but of another frame.
OTHER_FRAME = 1.5
# The same where the file counts in pixels: boxes drawn on a picture seldom reach over its edge by half.
_FRAMES = ((1.0, "0-1"), (100.0, "percent"), (1000.0, "0-1000"), (1024.0, "0-1024"))


class Unusable(Exception):
    """The row is left out; what is wrong has been told."""


def _is_writable(record: Record) -> bool:
    """Whether its texts can be written as UTF-8; escapes of JSON can say what cannot."""
    try:
        encode(record)
    except UnicodeEncodeError:
        return False
    return True


class Checker:
    """Checks rows one after another; remembers ids and contents to find those that come twice."""

    def __init__(self, source: Source, task: DatasetType, on_error: OnError, say: Say) -> None:
        self.used: set[str] = set()  # paths of pictures that rows are about, usable or not
        self._source = source
        self._task = task
        self._is_lenient = on_error == "Warn"
        self._say = say
        self._ids: set[int] = set()
        self._contents: dict[int, int] = {}
        self._files: list[str] = []
        self._last_of: dict[str, int] = {}

    def check(self, row: Row) -> Record | None:
        """The record to keep, mended where that is possible; None when the row is left out."""
        try:
            return self._checked(row)
        except Unusable:
            return None

    def _checked(self, row: Row) -> Record:
        look = _Look(row, self._say, is_lenient=self._is_lenient)
        look.pass_on_defects()
        if not _is_writable(row.record):
            look.refuse("EncodingWrong", "a text holds half of a character, such as \\ud800 alone", field=row.field)
            raise Unusable
        facts = self._facts(look)
        if row.record.dataset_type != self._task:
            look.refuse(
                "ContentsUnfit",
                f"the row is for {row.record.dataset_type}, the dataset for {self._task}",
                field=row.field or "contents",
            )
            raise Unusable
        contents = _checked_contents(row.record.contents, look, facts)
        if look.is_refused:
            raise Unusable
        asset = AssetRef(filename=facts.path, width=facts.width, height=facts.height)
        self._tell_if_repeated(look, facts.path, contents)
        return Record(
            id=self._own_id(look, row.record.id), asset=asset, contents=contents, category=row.record.category
        )

    def _facts(self, look: "_Look") -> ImageFacts:
        row = look.row
        name = row.record.asset.filename
        facts = self._source.image(name, beside=row.file)
        if facts is not None:
            self.used.add(facts.path)
            return facts
        code = "ImageAmbiguous" if self._source.is_ambiguous(name, beside=row.file) else "ImageMissing"
        look.refuse(code, self._source.why_not(name, beside=row.file), field="asset.filename", value=name)
        raise Unusable

    def _own_id(self, look: "_Look", wanted: str) -> str:
        """The id of the row; another one where it is taken, or empty."""
        own = wanted
        if hash(wanted) in self._ids or not wanted:
            number = self._last_of.get(wanted, 1) + 1
            while hash(own := f"{wanted}-{number}") in self._ids:
                number += 1
            self._last_of[wanted] = number
            cause = f"another row has this id; it is {own!r} from now on" if wanted else "the id is empty"
            look.mended("IdDuplicate", cause, field="id", value=wanted)
        self._ids.add(hash(own))
        return own

    def _tell_if_repeated(self, look: "_Look", path: str, contents: Contents) -> None:
        row = look.row
        if not self._files or self._files[-1] != row.file:
            self._files.append(row.file)
        content = hash((path, encode(Record(id="", asset=AssetRef(filename="", width=0, height=0), contents=contents))))
        here = len(self._files) - 1 << 32 | (row.line or 0)
        first = self._contents.get(content)
        if first is None:
            self._contents[content] = here
        else:
            file, line = self._files[first >> 32], first & 0xFFFFFFFF
            where = f"line {line} of {file}" if line else f"a row of {file}"
            look.tell("RowDuplicate", f"it says of the same picture what {where} says", field=None)


class _Look:
    """One row being looked at."""

    def __init__(self, row: Row, say: Say, *, is_lenient: bool) -> None:
        self.row = row
        self.is_refused = False
        self.is_lenient = is_lenient
        self._say = say

    def pass_on_defects(self) -> None:
        """Tell what the reader could not read of this row."""
        for found in self.row.defects:
            if self.is_lenient and found.severity == "error":
                cause = f"{found.cause}; this part of the row is left out"
                found = msgspec.structs.replace(found, action="Mended", cause=cause)
            elif found.severity == "error":
                self.is_refused = True
            self._say(found)

    def refuse(
        self, code: str, cause: str, *, field: str | None, value: object = None, spot: Spot | None = None
    ) -> None:
        """The row is left out because of this."""
        self.is_refused = True
        self.tell(code, cause, field=field, value=value, spot=spot)

    def drop(self, code: str, cause: str, *, field: str, value: object = None, spot: Spot | None = None) -> None:
        """A part of the row cannot be used: with leniency the part is left out, else the row."""
        if self.is_lenient:
            self.mended(code, f"{cause}; this part of the row is left out", field=field, value=value, spot=spot)
        else:
            self.refuse(code, cause, field=field, value=value, spot=spot)

    def mend(self, code: str, cause: str, *, field: str, value: object = None, spot: Spot | None = None) -> None:
        """Something wrong that can be put right: with leniency it is, else the row is left out."""
        if self.is_lenient:
            self.mended(code, f"{cause}; it was put right", field=field, value=value, spot=spot)
        else:
            self.refuse(code, cause, field=field, value=value, spot=spot)

    def mended(self, code: str, cause: str, *, field: str, value: object = None, spot: Spot | None = None) -> None:
        """Something odd that was put right."""
        self.tell(code, cause, field=field, value=value, spot=spot, action="Mended")

    def tell(
        self,
        code: str,
        cause: str,
        *,
        field: str | None,
        value: object = None,
        spot: Spot | None = None,
        action: Action | None = None,
    ) -> None:
        line, place = spot if spot is not None else (self.row.line, None)
        if place is None:
            # One JSON document has no lines, and only the row's own place tells where to look.
            place = field if line is not None or self.row.field is None else self.row.field
        self._say(finding(code, file=self.row.file, line=line, field=place, cause=cause, value=value, action=action))

    def spot(self, phrase: int, box: int) -> Spot | None:
        return None if self.row.spots is None else self.row.spots[phrase][box]


def _checked_contents(contents: Contents, look: _Look, facts: ImageFacts) -> Contents:
    if isinstance(contents, PhraseGrounding):
        return _checked_grounding(contents, look, facts)
    _check_frame(look, facts)
    if isinstance(contents, Vqa):
        return _checked_vqa(contents, look)
    if not contents.text.strip():
        look.refuse("TextEmpty", "the text is empty", field="contents.text")
    return contents


# Questions and answers -----------------------------------------------------------------------------------------------


def _checked_vqa(contents: Vqa, look: _Look) -> Vqa:
    kept = []
    if not contents.interactions:
        look.refuse("QuestionEmpty", "the row has no interactions", field="contents.interactions")
    for number, one in enumerate(contents.interactions):
        field = f"contents.interactions[{number}]"
        if not one.question.strip():
            look.drop("QuestionEmpty", "the question is empty", field=f"{field}.question")
        elif not one.answer.strip():
            look.drop("AnswerEmpty", "the answer is empty", field=f"{field}.answer", value=one.question)
        else:
            kept.append(one)
    if contents.interactions and not kept:
        look.is_refused = True
    orders = [one.order for one in contents.interactions]
    if orders != list(range(1, len(orders) + 1)) and not look.is_refused:
        look.mended(
            "OrderInvalid", "the interactions are not numbered 1, 2, 3", field="contents.interactions", value=orders
        )
    if [one.order for one in kept] == list(range(1, len(kept) + 1)):
        return contents if len(kept) == len(contents.interactions) else Vqa(interactions=kept)
    renumbered = [
        Interaction(order=order, question=one.question, answer=one.answer) for order, one in enumerate(kept, start=1)
    ]
    return Vqa(interactions=renumbered)


# Captions and boxes --------------------------------------------------------------------------------------------------


def _check_frame(look: _Look, facts: ImageFacts) -> int:
    """Compare the size that the row claims with the picture's; returns the orientation that boxes must be turned by."""
    claimed, shown = look.row.frame, (facts.width, facts.height)
    if claimed is None or claimed == shown:
        return 1
    if facts.is_turned and claimed == shown[::-1]:
        cause = f"the row says {claimed[0]} x {claimed[1]}, and EXIF turns the picture to {shown[0]} x {shown[1]}"
        look.mended("SizeTurned", cause, field="asset.width", value=claimed)
        return facts.orientation
    cause = f"the row says {claimed[0]} x {claimed[1]}, the picture has {shown[0]} x {shown[1]}"
    if _has_boxes(look.row.record.contents) and claimed[0] * shown[1] != claimed[1] * shown[0]:
        look.refuse("SizeMismatch", cause, field="asset.width", value=claimed)
    else:
        # Shares stay what they are when a picture was only scaled, and rows without boxes do not depend on its size.
        look.mend("SizeMismatch", cause, field="asset.width", value=claimed)
    return 1


def _has_boxes(contents: Contents) -> bool:
    return isinstance(contents, PhraseGrounding) and any(phrase.bounds for phrase in contents.grounded_phrases)


def _checked_grounding(contents: PhraseGrounding, look: _Look, facts: ImageFacts) -> PhraseGrounding:
    if look.row.defects and not contents.grounded_phrases:
        raise Unusable  # nothing of it could be read, which has been told
    if not contents.caption.strip():
        look.refuse("CaptionEmpty", "the caption is empty", field="contents.caption")
    orientation = _check_frame(look, facts)
    if other := _other_frame(contents.grounded_phrases, look.row, facts):
        which, box, cause, value = other
        field = f"contents.groundedPhrases[{which}].bounds[{box}]"
        look.refuse("BoxOtherFrame", cause, field=field, value=value, spot=look.spot(which, box))
        raise Unusable
    kept = []
    is_untold = True
    for number, phrase in enumerate(contents.grounded_phrases):
        field = f"contents.groundedPhrases[{number}]"
        checked = _checked_phrase(phrase, number, contents.caption, look, facts, orientation)
        if checked is None:
            continue
        span = word_span(contents.caption, phrase.phrase, near=max(phrase.start_token_index, 0))
        if span is None:
            if contents.caption.strip():
                cause = f"the caption does not hold it: {contents.caption!r}"
                look.drop("PhraseNotInCaption", cause, field=f"{field}.phrase", value=phrase.phrase)
            continue
        if span != (phrase.start_token_index, phrase.end_token_index):
            said = (phrase.start_token_index, phrase.end_token_index)
            checked = GroundedPhrase(
                phrase=phrase.phrase, start_token_index=span[0], end_token_index=span[1], bounds=checked.bounds
            )
            if is_untold and not look.is_refused:
                is_untold = False
                cause = f"counted in words the phrase is {span[0]} to {span[1]}; written so"
                look.mended("SpanWrong", cause, field=f"{field}.startTokenIndex", value=said)
        kept.append(checked)
    if contents.grounded_phrases and not kept:
        look.is_refused = True
    if look.is_refused:
        raise Unusable
    is_same = len(kept) == len(contents.grounded_phrases) and all(
        a is b for a, b in zip(kept, contents.grounded_phrases, strict=True)
    )
    return contents if is_same else PhraseGrounding(caption=contents.caption, grounded_phrases=kept)


def _checked_phrase(
    phrase: GroundedPhrase, number: int, caption: str, look: _Look, facts: ImageFacts, orientation: int
) -> GroundedPhrase | None:
    """The phrase with its usable boxes; None when it is left out."""
    field = f"contents.groundedPhrases[{number}]"
    if not phrase.phrase.strip():
        spot = look.spot(number, 0) if phrase.bounds else None
        look.drop("PhraseEmpty", "the phrase is empty", field=f"{field}.phrase", spot=spot)
        return None
    bounds: list[Box] = []
    is_same = True
    for place, box in enumerate(phrase.bounds):
        checked = _checked_box(box, f"{field}.bounds[{place}]", look.spot(number, place), look, facts)
        if checked is None:
            is_same = False
            continue
        if orientation != 1:
            checked = turned(checked, orientation)
        is_same = is_same and checked is box
        bounds.append(checked)
    if phrase.bounds and not bounds:
        return None
    if is_same:
        return phrase
    return GroundedPhrase(
        phrase=phrase.phrase,
        start_token_index=phrase.start_token_index,
        end_token_index=phrase.end_token_index,
        bounds=bounds,
    )


def _checked_box(box: Box, field: str, spot: Spot | None, look: _Look, facts: ImageFacts) -> Box | None:
    """The box to keep: the same object where nothing had to be changed, None where it cannot be used."""
    xmin, ymin, xmax, ymax = box
    if 0.0 <= xmin < xmax <= 1.0 and 0.0 <= ymin < ymax <= 1.0:
        return box
    value = _as_written(box, look.row, facts)
    if not all(map(math.isfinite, box)):
        look.drop("BoxNotFinite", "a corner is not a finite number", field=field, value=value, spot=spot)
        return None
    if xmin > xmax or ymin > ymax:
        which = " and ".join(name for name, swapped in (("x", xmin > xmax), ("y", ymin > ymax)) if swapped)
        cause = f"the larger {which} comes first"
        look.mend("BoxCornersSwapped", cause, field=field, value=value, spot=spot)
        xmin, xmax, ymin, ymax = min(xmin, xmax), max(xmin, xmax), min(ymin, ymax), max(ymin, ymax)
    if xmin == xmax or ymin == ymax:
        cause = f"it is {'no wider' if xmin == xmax else 'no higher'} than a line"
        look.drop("BoxEmpty", cause, field=field, value=value, spot=spot)
        return None
    if xmax <= 0 or ymax <= 0 or xmin >= 1 or ymin >= 1:
        cause = f"all of it lies outside of the picture of {facts.width} x {facts.height}"
        look.drop("BoxOutside", cause, field=field, value=value, spot=spot)
        return None
    over = max(-xmin, -ymin, xmax - 1, ymax - 1)
    if over > ROUNDING:
        beyond = max(-xmin * facts.width, -ymin * facts.height, (xmax - 1) * facts.width, (ymax - 1) * facts.height)
        cause = f"it reaches {beyond:.4g} pixels over the edge of the picture and was cut there"
        look.mended("BoxClipped", cause, field=field, value=value, spot=spot)
    return max(xmin, 0.0), max(ymin, 0.0), min(xmax, 1.0), min(ymax, 1.0)


def turned(box: Box, orientation: int) -> Box:
    """A box of the stored pixels, in the frame in which the picture is shown."""
    xmin, ymin, xmax, ymax = box
    if orientation in (5, 6, 7, 8):  # rows become columns
        xmin, ymin, xmax, ymax = ymin, xmin, ymax, xmax
    if orientation in (2, 3, 6, 7):
        xmin, xmax = 1 - xmax, 1 - xmin
    if orientation in (3, 4, 7, 8):
        ymin, ymax = 1 - ymax, 1 - ymin
    return xmin, ymin, xmax, ymax


# Frames --------------------------------------------------------------------------------------------------------------


def _other_frame(
    phrases: Sequence[GroundedPhrase], row: Row, facts: ImageFacts
) -> tuple[int, int, str, list[float]] | None:
    """Whether the boxes are counted in something else than they should be: which box shows it, and the cause."""
    far, place = 0.0, (0, 0)
    for number, phrase in enumerate(phrases):
        for which, box in enumerate(phrase.bounds):
            reach = max(box[2], box[3], box[0], box[1])
            if far < reach < math.inf:
                far, place = reach, (number, which)
    width, height = row.frame or (facts.width, facts.height)
    if row.unit == "pixel":
        return _shares_as_pixels(phrases, row, facts) or (
            _guess(phrases, place, row, facts, width, height) if far > OTHER_FRAME else None
        )
    return _guess(phrases, place, row, facts, width, height) if far > OTHER_FRAME else None


def _shares_as_pixels(
    phrases: Sequence[GroundedPhrase], row: Row, facts: ImageFacts
) -> tuple[int, int, str, list[float]] | None:
    """Whether all boxes of a row that counts in pixels lie within the first pixel: then they are shares."""
    written = [_as_written(box, row, facts) for phrase in phrases for box in phrase.bounds]
    numbers = [number for box in written for number in box]
    if not numbers or not all(0 <= number <= 1 for number in numbers) or max(numbers) == 0:
        return None
    if all(number in (0, 1) for number in numbers) and min(facts.width, facts.height) <= 2:
        return None
    return 0, 0, "the numbers fit the frame 0-1, and this format counts in pixels", written[0]


def _guess(
    phrases: Sequence[GroundedPhrase], place: tuple[int, int], row: Row, facts: ImageFacts, width: int, height: int
) -> tuple[int, int, str, list[float]] | None:
    written = [_as_written(box, row, facts) for phrase in phrases for box in phrase.bounds]
    numbers = [[number for number in box if math.isfinite(number)] for box in written]
    most = max(max(box) for box in numbers if box)
    fits = [name for limit, name in _FRAMES[1:] if most <= limit]
    within = all(max(box[0::2], default=0) <= width and max(box[1::2], default=0) <= height for box in numbers)
    if row.unit == "share" and within:
        fits.insert(0, f"pixels of {width} x {height}")
    if row.unit == "pixel" and not fits:
        return None  # boxes far outside, which is told box by box
    # The tightest two are enough to recognise the tool that wrote them.
    expected = "shares from 0 to 1" if row.unit == "share" else f"pixels of {width} x {height}"
    fit = f"the numbers fit the frame {' or '.join(fits[:2])}" if fits else "the numbers fit no frame known here"
    index = sum(len(phrase.bounds) for phrase in phrases[: place[0]]) + place[1]
    return *place, f"{fit}, and this format wants {expected}", written[index]


def _as_written(box: Box, row: Row, facts: ImageFacts) -> list[float]:
    """The corners in what the file counts in."""
    if row.unit == "share":
        return list(box)
    width, height = row.frame or (facts.width, facts.height)
    return [round(number * side, 4) for number, side in zip(box, (width, height, width, height), strict=True)]
