"""What is wrong with a flow, told all at once.

A person who sends a recipe with five mistakes should hear of five, each with the place, what stands there, what may
stand there, and a sentence. The server turns these into a 400 answer without looking inside.
"""

import json
import math
from typing import Any

import msgspec

# Enough for a person; a hostile flow with a hundred thousand mistakes must not get an answer of many megabytes.
MOST_PROBLEMS = 100
LONGEST_SHOWN = 80
LONGEST_NAME = 200


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake. ``path`` is a JSON pointer into the flow; ``given`` is short enough to show."""

    path: str
    given: Any
    allowed: str
    message: str


class FlowProblems(ValueError):
    """A flow cannot run; ``problems`` holds every mistake that was found, at most ``MOST_PROBLEMS``."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"The flow has {count}: " + "; ".join(problem.message for problem in problems))


class Findings:
    """Collects problems while a flow is walked; a second problem at the same place is left out."""

    def __init__(self) -> None:
        self._by_path: dict[str, Problem] = {}
        self._told = 0

    def add(self, path: str, given: Any, allowed: str, *, message: str | None = None, hint: str | None = None) -> None:
        """Note one problem; without ``message`` the sentence says what stands there and what may, then the hint."""
        self._told += 1
        if path in self._by_path or self.is_full:
            return
        if message is None:
            message = f"{path or 'The flow'} is {in_words(given)}; it must be {allowed}."
            message += f" {hint}" if hint else ""
        self._by_path[path] = Problem(path=path, given=shown(given), allowed=allowed, message=message)

    def has_none_at(self, *paths: str) -> bool:
        """Whether the values at these places are sound: no problem there, above or below."""
        return not any(_is_within(found, path) or _is_within(path, found) for found in self._by_path for path in paths)

    @property
    def is_full(self) -> bool:
        """Whether further problems are left out."""
        return len(self._by_path) >= MOST_PROBLEMS or self._told >= 10 * MOST_PROBLEMS

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def found(self) -> list[Problem]:
        """The problems, in the order they were found."""
        return list(self._by_path.values())


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")


def shown(value: Any) -> Any:
    """A value as a problem may carry it: plain JSON and short, whatever was sent."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value, LONGEST_SHOWN)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} fields" if len(value) != 1 else "an object with 1 field"
    return f"a Python {type(value).__name__}"


def in_words(value: Any) -> str:
    """A value inside a sentence: texts quoted, containers described."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(shown(value), ensure_ascii=False) if isinstance(value, str) else str(shown(value))


def _text(text: str, longest: int) -> str:
    short = text if len(text) <= longest else text[:longest] + "…"
    return short.encode(errors="replace").decode()


def step(path: str, name: object) -> str:
    """The JSON pointer one step below ``path``; a name that no recipe has is cut short."""
    text = _text(name, LONGEST_NAME) if isinstance(name, str) else str(shown(name))
    return f"{path}/{text.replace('~', '~0').replace('/', '~1')}"
