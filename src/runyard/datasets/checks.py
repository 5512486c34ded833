"""The checks of a record, once its image is known, and the repairs that are possible.

Data with a ``warning`` is repaired if possible (a box clipped at the edge, interactions
renumbered), and the finding says so. With ``onError: Warn`` errors are repaired too, as long as
something of the row remains: corners are sorted, and unusable boxes, phrases and interactions are
left out. With every other policy a row with an error is left out as a whole, because half an
annotation teaches a model that the other half does not exist; ``on_bad_box="drop"`` leaves out
invalid boxes alone.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from runyard.datasets.findings import Action, Finding, ReportFinding, make_finding
from runyard.datasets.naming.image_claims import ImageClaims
from runyard.datasets.naming.image_names import ImageFacts
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    Conversation,
    DatasetType,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    encode,
    find_mark_problem,
    find_turn_problem,
    make_caption,
    make_grounding,
    word_span,
)
from runyard.datasets.sources import Source

OnError = Literal["Warn", "RejectRow", "RejectFile", "RejectAll"]

# Formats print fractions with six digits; a smaller excess is rounding, and clipped without a
# finding.
ROUNDING = 2e-6
# Boxes of one phrase that agree in this many digits, as fractions of the image, are duplicates.
DUPLICATE_DIGITS = 5
# A number beyond this fraction of the image is not past the edge, but in another frame.
OTHER_FRAME = 1.5
# The frames that the numbers of a file may be in: the largest number, the name, the option.
_FRAMES = (
    (100.0, "percent", "percent"),
    (1000.0, "0-1000", "thousandth"),
    (1024.0, "0-1024", None),
)


class RowUnusable(Exception):
    """The row is left out; the reason has been reported."""


def _is_writable(record: Record) -> bool:
    """Return whether its texts can be encoded as UTF-8.

    JSON escapes can contain lone surrogates.
    """
    try:
        encode(record)
    except UnicodeEncodeError:
        return False
    return True


class Checker:
    """A checker of rows, one after another, that remembers ids and contents to find duplicates."""

    def __init__(
        self,
        source: Source,
        task: DatasetType,
        on_error: OnError,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.used: set[str] = set()  # paths of images that rows refer to, usable or not
        self.claims = ImageClaims(report)
        self._source = source
        self._task = task
        self._is_lenient = on_error == "Warn"
        self._report = report
        self._options = options
        self._ids: set[int] = set()
        self._contents: dict[int, int] = {}
        self._files: list[str] = []
        self._last_suffixes: dict[str, int] = {}

    def check(self, row: Row) -> Record | None:
        """Return the record to keep, repaired if possible; None if the row is left out."""
        check = _RowCheck(row, self._options, is_lenient=self._is_lenient)
        try:
            return self._check(row, check)
        except RowUnusable:
            check.is_rejected = True
            return None
        finally:
            for found in check.finish():
                self._report(found)

    def _check(self, row: Row, check: "_RowCheck") -> Record:
        check.report_findings()
        if not _is_writable(row.record):
            check.reject_row(
                "EncodingWrong",
                "a text contains a lone surrogate, such as \\ud800",
                field=row.field,
            )
            raise RowUnusable
        self.claims.begin_row()
        further = self._find_further_images(check)
        facts = self._find_image(check)
        if len(further) < len(row.record.further_images):
            raise RowUnusable
        if self._task not in row.record.dataset_types:
            types = " or ".join(row.record.dataset_types)
            check.reject_row(
                "ContentsUnfit",
                f"the row is for {types}, but the dataset is for {self._task}",
                field=row.field or "contents",
            )
            raise RowUnusable
        self._check_first_image(check, facts)
        contents = _check_contents(row.record.contents, check, facts, further)
        if check.is_rejected:
            raise RowUnusable
        asset = AssetRef(filename=facts.path, width=facts.width, height=facts.height)
        self._report_duplicate(check, facts.path, contents)
        return Record(
            id=self._assign_id(check, row.record.id),
            asset=asset,
            contents=contents,
            category=row.record.category,
            split=row.record.split,
        )

    def _find_image(self, check: "_RowCheck") -> ImageFacts:
        facts = self._resolve_image(check, check.row.record.asset.filename, "asset.filename")
        if facts is None:
            raise RowUnusable
        return facts

    def _find_further_images(self, check: "_RowCheck") -> list[str]:
        """Return the paths of the images after the first; reject the row for each missing one."""
        names = check.row.record.further_images
        found = [
            self._resolve_image(check, name, f"contents.images[{number}]")
            for number, name in enumerate(names, start=1)
        ]
        return [facts.path for facts in found if facts is not None]

    def _check_first_image(self, check: "_RowCheck", facts: ImageFacts) -> None:
        """Reject a row whose list of images does not begin with its own image."""
        contents = check.row.record.contents
        if not isinstance(contents, Conversation) or not contents.images:
            return
        name = contents.images[0]
        first = self._source.find_image(name, relative_to=check.row.file)
        if first is None or first.path != facts.path:
            cause = f"the first of the images is not the image of the row, {facts.path!r}"
            check.reject_row("ConversationInvalid", cause, field="contents.images[0]", value=name)

    def _resolve_image(self, check: "_RowCheck", name: str, field: str) -> ImageFacts | None:
        """Return the image of this name; if there is none, reject the row."""
        row = check.row
        found = self._source.resolve_image(name, relative_to=row.file)
        if found.image is None:
            check.reject_row(found.code, found.why, field=field, value=name)
            return None
        self.used.add(found.image.path)
        conflict = self.claims.claim(found, name, file=row.file, line=row.line)
        if conflict is not None:
            check.reject_row("ImageAmbiguous", conflict, field=field, value=name)
            return None
        return found.image

    def _assign_id(self, check: "_RowCheck", requested: str) -> str:
        """Return the row's id, or a new one if it is empty or already used."""
        own = requested
        if hash(requested) in self._ids or not requested:
            number = self._last_suffixes.get(requested, 1) + 1
            while hash(own := f"{requested}-{number}") in self._ids:
                number += 1
            self._last_suffixes[requested] = number
            cause = (
                f"another row has this id; it becomes {own!r}" if requested else "the id is empty"
            )
            check.report_repaired("IdDuplicate", cause, field="id", value=requested)
        self._ids.add(hash(own))
        return own

    def _report_duplicate(self, check: "_RowCheck", path: str, contents: Contents) -> None:
        row = check.row
        if not self._files or self._files[-1] != row.file:
            self._files.append(row.file)
        content = hash(
            (
                path,
                encode(
                    Record(id="", asset=AssetRef(filename="", width=0, height=0), contents=contents)
                ),
            )
        )
        here = len(self._files) - 1 << 32 | (row.line or 0)
        first = self._contents.get(content)
        if first is None:
            self._contents[content] = here
        else:
            file, line = self._files[first >> 32], first & 0xFFFFFFFF
            where = f"line {line} of {file}" if line else f"a row of {file}"
            check.report(
                "RowDuplicate", f"it has the same image and contents as {where}", field=None
            )


class _RowCheck:
    """The check of one row. Its findings are kept until it is known whether the row is."""

    def __init__(self, row: Row, options: ReadOptions, *, is_lenient: bool) -> None:
        self.row = row
        self.is_rejected = False
        self.is_lenient = is_lenient
        self.valid_boxes = 0
        self.duplicate_boxes = 0
        self.first_duplicate: tuple[str, BoxLocation | None] | None = None
        self.box_unit = options.box_unit
        self._drops_parts = is_lenient or (
            options.on_bad_box == "drop" and isinstance(row.record.contents, PhraseGrounding)
        )
        self._findings: list[Finding] = []
        self._partial: set[int] = set()  # indexes of the findings about a part, such as one box

    def report_findings(self) -> None:
        """Report the parts of this row that the reader could not read."""
        for found in self.row.findings:
            if found.severity == "error":
                self._partial.add(len(self._findings))
                self.is_rejected = self.is_rejected or not self._drops_parts
            self._findings.append(found)

    def finish(self) -> list[Finding]:
        """Return the findings, with what they cost: a part of the row, or all of it."""
        is_whole = any(
            found.action == "RowRejected" and index not in self._partial
            for index, found in enumerate(self._findings)
        )
        lost = "" if is_whole else self._count_lost_boxes()
        for index in sorted(self._partial):
            found = self._findings[index]
            if self.is_rejected:
                cause, action = f"{found.cause}{lost}", found.action
                lost = ""
            else:
                cause, action = f"{found.cause}; this part of the row is left out", "Mended"
            self._findings[index] = msgspec.structs.replace(found, cause=cause, action=action)
        return self._findings

    def _count_lost_boxes(self) -> str:
        if self.valid_boxes == 0:
            return ""
        boxes = "other box is" if self.valid_boxes == 1 else f"{self.valid_boxes} other boxes are"
        return f"; its {boxes} left out with it (--on-bad-box drop keeps what is valid)"

    def reject_row(
        self,
        code: str,
        cause: str,
        *,
        field: str | None,
        value: object = None,
        location: BoxLocation | None = None,
        fix: str | None = None,
    ) -> None:
        """Report a finding that leaves the row out."""
        self.is_rejected = True
        self.report(code, cause, field=field, value=value, location=location, fix=fix)

    def drop_part(
        self,
        code: str,
        cause: str,
        *,
        field: str,
        value: object = None,
        location: BoxLocation | None = None,
    ) -> None:
        """Report an unusable part of the row: leave out the part if possible, else the row."""
        self._partial.add(len(self._findings))
        self.is_rejected = self.is_rejected or not self._drops_parts
        self.report(code, cause, field=field, value=value, location=location)

    def repair(
        self,
        code: str,
        cause: str,
        *,
        field: str,
        value: object = None,
        location: BoxLocation | None = None,
    ) -> None:
        """Report an error that can be repaired: repair it if lenient, else leave out the row."""
        if self.is_lenient:
            self.report_repaired(
                code, f"{cause}; it was corrected", field=field, value=value, location=location
            )
        else:
            self.reject_row(code, cause, field=field, value=value, location=location)

    def report_repaired(
        self,
        code: str,
        cause: str,
        *,
        field: str,
        value: object = None,
        location: BoxLocation | None = None,
    ) -> None:
        """Report a finding about something that was repaired."""
        self.report(code, cause, field=field, value=value, location=location, action="Mended")

    def report(
        self,
        code: str,
        cause: str,
        *,
        field: str | None,
        value: object = None,
        location: BoxLocation | None = None,
        action: Action | None = None,
        fix: str | None = None,
    ) -> None:
        line, path = location if location is not None else (self.row.line, None)
        if path is None:
            # One JSON document has no lines; only the row's own path locates the finding.
            path = field if line is not None or self.row.field is None else self.row.field
        self._findings.append(
            make_finding(
                code,
                file=self.row.file,
                line=line,
                field=path,
                cause=cause,
                value=value,
                action=action,
                fix=fix,
            )
        )

    def location(self, phrase: int, box: int) -> BoxLocation | None:
        return None if self.row.box_locations is None else self.row.box_locations[phrase][box]


def _check_contents(
    contents: Contents, check: _RowCheck, facts: ImageFacts, further: list[str]
) -> Contents:
    if isinstance(contents, PhraseGrounding):
        return _check_grounding(contents, check, facts)
    _check_frame(check, facts)
    if isinstance(contents, Vqa):
        return _check_vqa(contents, check)
    if isinstance(contents, Conversation):
        return _check_conversation(contents, check, [facts.path, *further])
    if not contents.text.strip():
        check.reject_row("TextEmpty", "the text is empty", field="contents.text")
    return contents


# Questions and answers ----------------------------------------------------------------------------


def _check_vqa(contents: Vqa, check: _RowCheck) -> Vqa:
    kept = []
    if not contents.interactions:
        check.reject_row(
            "QuestionEmpty", "the row has no interactions", field="contents.interactions"
        )
    for number, one in enumerate(contents.interactions):
        field = f"contents.interactions[{number}]"
        if not one.question.strip():
            check.drop_part("QuestionEmpty", "the question is empty", field=f"{field}.question")
        elif not one.answer.strip():
            check.drop_part(
                "AnswerEmpty", "the answer is empty", field=f"{field}.answer", value=one.question
            )
        else:
            kept.append(one)
    if contents.interactions and not kept:
        check.is_rejected = True
    orders = [one.order for one in contents.interactions]
    if orders != list(range(1, len(orders) + 1)) and not check.is_rejected:
        check.report_repaired(
            "OrderInvalid",
            "the interactions are not numbered 1, 2, 3",
            field="contents.interactions",
            value=orders,
        )
    if [one.order for one in kept] == list(range(1, len(kept) + 1)):
        return contents if len(kept) == len(contents.interactions) else Vqa(interactions=kept)
    renumbered = [
        Interaction(order=order, question=one.question, answer=one.answer)
        for order, one in enumerate(kept, start=1)
    ]
    return Vqa(interactions=renumbered)


def _check_conversation(contents: Conversation, check: _RowCheck, paths: list[str]) -> Conversation:
    """Check the turns; ``paths`` are the accepted images in order.

    A conversation is kept or left out as a whole: later turns refer to the earlier ones.
    """
    if problem := find_turn_problem(contents):
        cause, index = problem
        check.reject_row("ConversationInvalid", cause, field=f"contents.turns[{index}]")
    elif marks := find_mark_problem(contents):
        check.reject_row("ConversationInvalid", marks, field="contents.turns")
    for number, turn in enumerate(contents.turns):
        if not turn.content.strip():
            is_answer = turn.role == "assistant"
            code, what = ("AnswerEmpty", "answer") if is_answer else ("QuestionEmpty", turn.role)
            cause = f"the {what}{'' if is_answer else ' turn'} is empty"
            check.reject_row(code, cause, field=f"contents.turns[{number}].content")
    images = paths if len(paths) > 1 else []
    return msgspec.structs.replace(contents, images=images)


# Captions and boxes -------------------------------------------------------------------------------


def _check_frame(check: _RowCheck, facts: ImageFacts) -> int:
    """Compare the row's size with the image's; return the orientation to rotate boxes by."""
    claimed, shown = check.row.frame, (facts.width, facts.height)
    if claimed is None or claimed == shown:
        return 1
    if facts.is_turned and claimed == shown[::-1]:
        cause = (
            f"the row says {claimed[0]} x {claimed[1]}, but EXIF rotates the image to {shown[0]} x "
            f"{shown[1]}"
        )
        check.report_repaired("SizeTurned", cause, field="asset.width", value=claimed)
        return facts.orientation
    cause = f"the row says {claimed[0]} x {claimed[1]}, but the image is {shown[0]} x {shown[1]}"
    if _has_boxes(check.row.record.contents) and claimed[0] * shown[1] != claimed[1] * shown[0]:
        check.reject_row("SizeMismatch", cause, field="asset.width", value=claimed)
    else:
        # Fractions stay valid if the image was only scaled, and rows without boxes do not depend on
        # its size.
        check.repair("SizeMismatch", cause, field="asset.width", value=claimed)
    return 1


def _has_boxes(contents: Contents) -> bool:
    return isinstance(contents, PhraseGrounding) and any(
        phrase.bounds for phrase in contents.grounded_phrases
    )


def _check_grounding(
    contents: PhraseGrounding, check: _RowCheck, facts: ImageFacts
) -> PhraseGrounding:
    if check.row.findings and not contents.grounded_phrases:
        raise RowUnusable  # nothing of it could be read, which has been reported
    if not contents.caption.strip():
        check.reject_row("CaptionEmpty", "the caption is empty", field="contents.caption")
    orientation = _check_frame(check, facts)
    if check.box_unit == "auto":
        _reject_other_frame(contents.grounded_phrases, check, facts)
    elif not check.row.is_unit_chosen:
        contents = _convert_boxes(contents, check, facts)
    kept = []
    reports_span = True
    for number, phrase in enumerate(contents.grounded_phrases):
        field = f"contents.groundedPhrases[{number}]"
        checked = _check_phrase(phrase, number, check, facts, orientation)
        if checked is None:
            continue
        span = word_span(contents.caption, phrase.phrase, near=max(phrase.start_token_index, 0))
        if span is None:
            if contents.caption.strip():
                cause = f"the caption does not contain it: {contents.caption!r}"
                check.drop_part(
                    "PhraseNotInCaption", cause, field=f"{field}.phrase", value=phrase.phrase
                )
            continue
        if span != (phrase.start_token_index, phrase.end_token_index):
            written = (phrase.start_token_index, phrase.end_token_index)
            checked = GroundedPhrase(
                phrase=phrase.phrase,
                start_token_index=span[0],
                end_token_index=span[1],
                bounds=checked.bounds,
            )
            if reports_span and not check.is_rejected:
                reports_span = False
                cause = (
                    f"the phrase covers words {span[0]} to {span[1]}; the indexes were corrected"
                )
                check.report_repaired(
                    "SpanWrong", cause, field=f"{field}.startTokenIndex", value=written
                )
        kept.append(checked)
    if contents.grounded_phrases and not kept:
        check.is_rejected = True
    if check.is_rejected:
        raise RowUnusable
    _report_duplicate_boxes(check)
    if len(kept) < len(contents.grounded_phrases) and _is_caption_of_names(contents):
        return make_grounding([(phrase.phrase, box) for phrase in kept for box in phrase.bounds])
    is_same = len(kept) == len(contents.grounded_phrases) and all(
        a is b for a, b in zip(kept, contents.grounded_phrases, strict=True)
    )
    return contents if is_same else PhraseGrounding(caption=contents.caption, grounded_phrases=kept)


def _convert_boxes(
    contents: PhraseGrounding, check: _RowCheck, facts: ImageFacts
) -> PhraseGrounding:
    """Read the numbers of all boxes in the unit that the user chose."""
    size = check.row.frame or (facts.width, facts.height)
    written = size if check.row.unit == "pixel" else (1, 1)
    unit = {"pixel": size, "fraction": (1, 1), "percent": (100, 100), "thousandth": (1000, 1000)}
    scales = [a / b for a, b in zip(written, unit[check.box_unit], strict=True)] * 2
    phrases = [
        msgspec.structs.replace(
            phrase,
            bounds=[
                tuple(number * scale for number, scale in zip(box, scales, strict=True))
                for box in phrase.bounds
            ],
        )
        for phrase in contents.grounded_phrases
    ]
    return PhraseGrounding(caption=contents.caption, grounded_phrases=phrases)


def _is_caption_of_names(contents: PhraseGrounding) -> bool:
    """Return whether the caption names the phrases and says nothing else."""
    return contents.caption == make_caption([phrase.phrase for phrase in contents.grounded_phrases])


def _report_duplicate_boxes(check: _RowCheck) -> None:
    if check.first_duplicate is None:
        return
    field, location = check.first_duplicate
    count = check.duplicate_boxes
    cause = (
        "another box of this phrase has the same numbers; it is kept once"
        if count == 1
        else f"{count} boxes repeat another one of their phrase; each is kept once"
    )
    check.report_repaired("BoxDuplicate", cause, field=field, value=count, location=location)


def _check_phrase(
    phrase: GroundedPhrase, number: int, check: _RowCheck, facts: ImageFacts, orientation: int
) -> GroundedPhrase | None:
    """Return the phrase with its usable boxes; None if it is left out."""
    field = f"contents.groundedPhrases[{number}]"
    if not phrase.phrase.strip():
        location = check.location(number, 0) if phrase.bounds else None
        check.drop_part(
            "PhraseEmpty", "the phrase is empty", field=f"{field}.phrase", location=location
        )
        return None
    bounds: list[Box] = []
    seen: set[tuple[float, ...]] = set()
    is_same = True
    for index, box in enumerate(phrase.bounds):
        location = check.location(number, index)
        checked = _check_box(box, f"{field}.bounds[{index}]", location, check, facts, orientation)
        if checked is None:
            is_same = False
            continue
        rounded = tuple(round(value, DUPLICATE_DIGITS) for value in checked)
        if rounded in seen:
            check.duplicate_boxes += 1
            check.first_duplicate = check.first_duplicate or (f"{field}.bounds[{index}]", location)
            is_same = False
            continue
        seen.add(rounded)
        check.valid_boxes += 1
        if orientation != 1:
            checked = rotate_box(checked, orientation)
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


def _check_box(
    box: Box,
    field: str,
    location: BoxLocation | None,
    check: _RowCheck,
    facts: ImageFacts,
    orientation: int,
) -> Box | None:
    """Return the box to keep: the same object if unchanged, None if it cannot be used.

    It is still in the frame of the stored pixels if these are to be rotated by ``orientation``.
    """
    xmin, ymin, xmax, ymax = box
    size = (facts.height, facts.width) if orientation >= 5 else (facts.width, facts.height)
    # The numbers may be rounded: a box of one pixel is one.
    min_width, min_height = (1 / side - ROUNDING for side in size)
    is_large = xmax - xmin >= min_width and ymax - ymin >= min_height
    if is_large and min(xmin, ymin) >= 0.0 and max(xmax, ymax) <= 1.0:
        return box
    value = _to_file_units(box, check.row, facts)
    if problem := _find_problem(box, size):
        code, cause = problem
        check.drop_part(code, cause, field=field, value=value, location=location)
        return None
    if xmin > xmax or ymin > ymax:
        which = " and ".join(
            name for name, swapped in (("x", xmin > xmax), ("y", ymin > ymax)) if swapped
        )
        cause = f"the larger {which} comes first"
        if not check.is_lenient:
            check.drop_part("BoxCornersSwapped", cause, field=field, value=value, location=location)
            return None
        check.repair("BoxCornersSwapped", cause, field=field, value=value, location=location)
        xmin, xmax, ymin, ymax = min(xmin, xmax), max(xmin, xmax), min(ymin, ymax), max(ymin, ymax)
    over = max(-xmin, -ymin, xmax - 1, ymax - 1)
    if over > ROUNDING:
        width, height = size
        beyond = max(-xmin * width, -ymin * height, (xmax - 1) * width, (ymax - 1) * height)
        cause = f"it extends {beyond:.4g} pixels past the edge of the image and was clipped"
        check.report_repaired("BoxClipped", cause, field=field, value=value, location=location)
    return max(xmin, 0.0), max(ymin, 0.0), min(xmax, 1.0), min(ymax, 1.0)


def _find_problem(box: Box, size: tuple[int, int]) -> tuple[str, str] | None:
    """Return the code and the cause of the finding about an unusable box; None if it has none.

    The order of its corners does not matter here.
    """
    if not all(map(math.isfinite, box)):
        return "BoxNotFinite", "a corner is not a finite number"
    xmin, xmax = sorted(box[0::2])
    ymin, ymax = sorted(box[1::2])
    for name, extent in (("width", xmax - xmin), ("height", ymax - ymin)):
        if extent == 0:
            return "BoxEmpty", f"its {name} is zero"
    if xmax <= 0 or ymax <= 0 or xmin >= 1 or ymin >= 1:
        return "BoxOutside", f"it is completely outside the image of {size[0]} x {size[1]}"
    width = min(xmax, 1.0) - max(xmin, 0.0)
    height = min(ymax, 1.0) - max(ymin, 0.0)
    if width < 1 / size[0] - ROUNDING or height < 1 / size[1] - ROUNDING:
        shown = f"{width * size[0]:.3g} x {height * size[1]:.3g}"
        return "BoxEmpty", f"it covers {shown} pixels of the image; at least 1 x 1 is needed"
    return None


def rotate_box(box: Box, orientation: int) -> Box:
    """Rotate a box of the stored pixels into the frame of the displayed image."""
    xmin, ymin, xmax, ymax = box
    if orientation in (5, 6, 7, 8):  # rows become columns
        xmin, ymin, xmax, ymax = ymin, xmin, ymax, xmax
    if orientation in (2, 3, 6, 7):
        xmin, xmax = 1 - xmax, 1 - xmin
    if orientation in (3, 4, 7, 8):
        ymin, ymax = 1 - ymax, 1 - ymin
    return xmin, ymin, xmax, ymax


# Frames -------------------------------------------------------------------------------------------


class _OtherFrame(NamedTuple):
    """The evidence that the boxes of a row use another frame.

    ``phrase`` and ``box`` are the indexes of the box that shows it. ``units`` are the values of
    ``--box-unit`` that would fit.
    """

    phrase: int
    box: int
    cause: str
    value: list[float]
    units: list[str]


def _reject_other_frame(
    phrases: Sequence[GroundedPhrase], check: _RowCheck, facts: ImageFacts
) -> None:
    """Report that the boxes use another frame than expected, and raise RowUnusable."""
    far, farthest = 0.0, (0, 0)
    for number, phrase in enumerate(phrases):
        for which, box in enumerate(phrase.bounds):
            reach = max(box[2], box[3], box[0], box[1])
            if far < reach < math.inf:
                far, farthest = reach, (number, which)
    other = None
    if check.row.unit == "pixel":
        other = _detect_fractions(phrases, check.row, facts)
    if other is None and far > OTHER_FRAME:
        other = _guess_frame(phrases, farthest, check.row, facts)
    if other is None:
        return
    check.reject_row(
        "BoxOtherFrame",
        other.cause,
        field=f"contents.groundedPhrases[{other.phrase}].bounds[{other.box}]",
        value=other.value,
        location=check.location(other.phrase, other.box),
        fix=_suggest_units(other.units, check.row.unit),
    )
    raise RowUnusable


def _suggest_units(units: list[str], expected: str) -> str:
    keep = f"if they are right as they are, use --box-unit {expected}"
    if not units:
        return f"convert the numbers; {keep}"
    chosen = " or ".join(f"--box-unit {unit}" for unit in units)
    return f"convert the numbers, or read all files with {chosen}; {keep}"


def _detect_fractions(
    phrases: Sequence[GroundedPhrase], row: Row, facts: ImageFacts
) -> _OtherFrame | None:
    """Detect fractions in a row that should be in pixels: all boxes are within the first pixel."""
    written = [_to_file_units(box, row, facts) for phrase in phrases for box in phrase.bounds]
    numbers = [number for box in written for number in box]
    if not numbers or not all(0 <= number <= 1 for number in numbers) or max(numbers) == 0:
        return None
    if all(number in (0, 1) for number in numbers) and min(facts.width, facts.height) <= 2:
        return None
    cause = "the numbers fit the frame 0-1, but this format uses pixels"
    return _OtherFrame(0, 0, cause, written[0], ["fraction"])


def _guess_frame(
    phrases: Sequence[GroundedPhrase], farthest: tuple[int, int], row: Row, facts: ImageFacts
) -> _OtherFrame | None:
    """Name the frames that the numbers fit.

    ``farthest`` are the indexes of the box that exceeds the image most.
    """
    width, height = row.frame or (facts.width, facts.height)
    written = [_to_file_units(box, row, facts) for phrase in phrases for box in phrase.bounds]
    numbers = [[number for number in box if math.isfinite(number)] for box in written]
    most = max(max(box) for box in numbers if box)
    fits = [(name, unit) for limit, name, unit in _FRAMES if most <= limit]
    within = all(
        max(box[0::2], default=0) <= width and max(box[1::2], default=0) <= height
        for box in numbers
    )
    if row.unit == "fraction" and within:
        fits.insert(0, (f"pixels of {width} x {height}", "pixel"))
    if row.unit == "pixel" and not fits:
        return None  # boxes far outside, which are reported one by one
    # The tightest two are enough to recognize the tool that wrote them.
    fits = fits[:2]
    expected = (
        "fractions from 0 to 1" if row.unit == "fraction" else f"pixels of {width} x {height}"
    )
    fit = (
        f"the numbers fit the frame {' or '.join(name for name, _ in fits)}"
        if fits
        else "the numbers fit no known frame"
    )
    cause = f"{fit}, but this format uses {expected}"
    index = sum(len(phrase.bounds) for phrase in phrases[: farthest[0]]) + farthest[1]
    return _OtherFrame(*farthest, cause, written[index], [unit for _, unit in fits if unit])


def _to_file_units(box: Box, row: Row, facts: ImageFacts) -> list[float]:
    """Convert the corners to the unit of the file."""
    if row.unit == "fraction":
        return list(box)
    width, height = row.frame or (facts.width, facts.height)
    return [
        round(number * side, 4)
        for number, side in zip(box, (width, height, width, height), strict=True)
    ]
