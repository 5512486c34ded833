"""The filter text of runs: ``condition:Failed flow:detect metric.iou>0.6 owner=kim text``.

The server alone parses it, for HTTP, SDK, command line and pages; docs/filters.md documents it. A
text is split at blanks into terms, all of which a run must match. Everything in double quotes is
taken literally. An error names the term, its position, and what is allowed there.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from runyard import limits
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.runs.conditions import REASONS
from runyard.store.lists.run_filter import Field, Operator, RunFilter, Term

CONDITIONS = tuple(kind.value for kind in REASONS)
FIELDS = ("condition", "flow", "project", "name", "id", "tag", "created", "duration", "metric.NAME")
METRIC = "metric."
MAX_TERMS = limits.FILTER_TERMS.value
_OPERATORS = ("!=", "<=", ">=", ":", "=", "<", ">")
_COMPARISONS = ("<", "<=", ">", ">=")
_TEXT_FIELDS: tuple[Field, ...] = ("flow", "project", "name", "id")
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,3})?(?:ms|s|m|h|d|w))+")
_DURATION_PART = re.compile(r"([\d.]+)([a-z]+)")
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


@dataclass(frozen=True)
class _Word:
    """One term as given: its characters, which of them are quoted, and where it begins."""

    text: str
    quoted: Sequence[bool]
    position: int  # of the first character, from 1

    def cut(self, start: int, end: int | None = None) -> "_Word":
        return _Word(self.text[start:end], self.quoted[start:end], self.position + start)

    def find_operator(self) -> tuple[int, str] | None:
        """Return the first operator outside of quotes, and where it is."""
        for index, is_quoted in enumerate(self.quoted):
            found = next((sign for sign in _OPERATORS if self.text.startswith(sign, index)), None)
            if found is not None and not is_quoted:
                return index, found
        return None


def parse_filter(text: str) -> RunFilter:
    """Return the filter that a text describes; an empty text matches every run.

    Raises:
        Refusal: InvalidFilter, with the position of the term and what is allowed.
    """
    if problem := limits.QUERY_TEXT.find_problem(text):
        raise _invalid_filter(_Word(text, [], 1), "shorter text without NUL", f"it {problem}")
    words = _split_words(text)
    if len(words) > MAX_TERMS:
        raise _invalid_filter(words[MAX_TERMS], f"at most {MAX_TERMS} terms")
    return RunFilter(terms=tuple(_parse_word(word) for word in words))


def _split_words(text: str) -> list[_Word]:
    words: list[_Word] = []
    characters: list[str] = []
    quoted: list[bool] = []
    start, quote, index = 0, 0, 0
    while index < len(text):
        character = text[index]
        if character == '"':
            quote = 0 if quote else index + 1
            quoted.append(True)  # an empty pair of quotes is a word too
            characters.append("")
        elif character == "\\" and quote and text[index + 1 : index + 2] in ('"', "\\"):
            index += 1
            characters.append(text[index])
            quoted.append(True)
        elif character.isspace() and not quote:
            _add_word(words, characters, quoted, start)
            characters, quoted, start = [], [], index + 1
        else:
            characters.append(character)
            quoted.append(bool(quote))
        index += 1
    if quote:
        rest = text[quote - 1 :]
        word = _Word(rest, [False] * len(rest), quote)
        raise _invalid_filter(word, "quoted text", "it has no closing quote")
    _add_word(words, characters, quoted, start)
    return words


def _add_word(words: list[_Word], characters: list[str], quoted: list[bool], start: int) -> None:
    if characters:
        flags = [is_quoted for text, is_quoted in zip(characters, quoted, strict=True) if text]
        words.append(_Word("".join(characters), flags, start + 1))


def _parse_word(word: _Word) -> Term:
    is_negated = word.text.startswith("-") and not word.quoted[0]
    body = word.cut(1) if is_negated else word
    found = body.find_operator()
    if found is None:
        if not body.text:
            raise _invalid_filter(word, "a text, or a term such as condition:Failed")
        return Term(field="text", value=body.text, is_negated=is_negated)
    index, operator = found
    name, value = body.cut(0, index), body.cut(index + len(operator))
    if operator == "!=":
        is_negated, operator = not is_negated, "="
    term = _parse_term(word, name, operator, value)
    return _negate(term) if is_negated else term


def _parse_term(word: _Word, name: _Word, operator: str, value: _Word) -> Term:
    """Return a term that is not negated."""
    field = name.text
    if field.startswith(METRIC):
        return _parse_metric(word, field.removeprefix(METRIC), operator, value)
    if field in ("created", "duration"):
        return _parse_time(word, cast(Field, field), operator, value)
    if operator in _COMPARISONS:
        hint = f"; try: {METRIC}{field}{operator}{value.text}" if field else ""
        raise _invalid_filter(
            word, "a comparison of metric.NAME, created or duration", f"{_suggest(field)}{hint}"
        )
    if field in (*_TEXT_FIELDS, "condition", "tag"):
        if not value.text:
            raise _invalid_filter(word, f"{field}:VALUE", "the value is missing")
        return _parse_field(word, field, value)
    if operator == ":":
        names = ", ".join(f"{each}:" for each in FIELDS[:6])
        hint = f'{_suggest(field)}; for a text that contains ":", use quotes'
        raise _invalid_filter(word, f"one of {names}", hint)
    if problem := limits.ATTRIBUTE_KEY.find_problem(field) if field else "is empty":
        raise _invalid_filter(word, "KEY=VALUE", f"the key {problem}")
    return Term(field="attribute", key=field, value=value.text)


def _parse_field(word: _Word, field: str, value: _Word) -> Term:
    if field == "condition":
        return Term(field="condition", value=_parse_conditions(word, value))
    if field == "tag":
        index = value.find_operator()
        if index is None or index[1] != "=":
            return Term(field="attribute", key=value.text, value=None)
        return Term(field="attribute", key=value.text[: index[0]], value=value.text[index[0] + 1 :])
    return Term(field=cast(Field, field), value=value.text)


def _parse_conditions(word: _Word, value: _Word) -> tuple[str, ...]:
    by_name = {name.lower(): name for name in CONDITIONS}
    found = []
    for given in value.text.split(","):
        if given.lower() not in by_name:
            close = difflib.get_close_matches(given.lower(), by_name, n=1)
            hint = f"did you mean {by_name[close[0]]}?" if close else ""
            raise _invalid_filter(word, f"one of {', '.join(CONDITIONS)}", hint)
        found.append(by_name[given.lower()])
    return tuple(dict.fromkeys(found))


def _parse_metric(word: _Word, key: str, operator: str, value: _Word) -> Term:
    try:
        number = float(value.text)
    except ValueError:
        number = math.nan
    if not key or not math.isfinite(number):
        raise _invalid_filter(word, "a comparison with a number, such as metric.loss<=0.2")
    return Term(field="metric", key=key, operator=_get_operator(operator), value=number)


def _parse_time(word: _Word, field: Field, operator: str, value: _Word) -> Term:
    if operator not in _COMPARISONS:
        raise _invalid_filter(word, f"a comparison: {field}<VALUE or {field}>VALUE")
    duration_ms = parse_duration(value.text)
    if field == "duration":
        if duration_ms is None:
            raise _invalid_filter(word, "a duration such as 90s, 45m, 1h30m or 2d")
        return Term(field=field, operator=_get_operator(operator), value=duration_ms)
    if duration_ms is not None:
        # "created>7d": later than seven days ago
        return Term(field=field, operator=_get_operator(operator), value=duration_ms, is_age=True)
    try:
        time = datetime.fromisoformat(value.text)
        time_ms = round(time.replace(tzinfo=time.tzinfo or UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        time_ms = -1
    if not 0 <= time_ms <= limits.MAX_INTEGER:
        raise _invalid_filter(
            word, "a date such as 2026-11-01 or 2026-11-01T12:00 (UTC), or an age such as 7d"
        )
    return Term(field=field, operator=_get_operator(operator), value=time_ms)


def parse_duration(text: str) -> int | None:
    """Return the milliseconds of a duration such as ``1h30m``; None if it is none."""
    if not _DURATION.fullmatch(text):
        return None
    parts = _DURATION_PART.findall(text)
    try:
        total_ms = round(sum(float(number) * _UNIT_MS[unit] for number, unit in parts))
    except (KeyError, ValueError):
        return None
    return min(total_ms, limits.MAX_INTEGER)


def _get_operator(operator: str) -> Operator:
    return "=" if operator == ":" else cast(Operator, operator)


def _negate(term: Term) -> Term:
    operator = term.operator
    if term.field in ("created", "duration") and operator in _OPPOSITE:
        operator, is_negated = cast(Operator, _OPPOSITE[operator]), False
    else:
        is_negated = True
    return Term(
        field=term.field,
        key=term.key,
        operator=operator,
        value=term.value,
        is_age=term.is_age,
        is_negated=is_negated,
    )


def _suggest(field: str) -> str:
    close = difflib.get_close_matches(field.lower(), FIELDS[:8], n=1)
    return f"did you mean {close[0]}?" if close else f"there is no field {field[:40]!r}"


def _invalid_filter(word: _Word, allowed: str, hint: str = "") -> Refusal:
    given = word.text[:80]
    message = f"filter, character {word.position}: {given!r} must be {allowed}"
    if hint:
        message += f"; {hint}"
    problem = Problem(
        path=f"?filter/{word.position}", given=given, allowed=allowed, message=message
    )
    return Refusal("InvalidFilter", message, problems=[problem])
