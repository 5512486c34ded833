"""What is wrong with a flow, told all at once.

A person who sends a recipe with five mistakes should hear of five, each with the place, what stands there, what may
stand there, and a sentence. The server turns these into a 400 answer without looking inside.
"""

import math
from typing import Any

import msgspec

# Enough for a person; a hostile flow with a hundred thousand mistakes must not get an answer of many megabytes.
MOST_PROBLEMS = 100
LONGEST_SHOWN = 80


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

    def add(self, path: str, given: Any, allowed: str, *, message: str | None = None) -> None:
        """Note one problem; without ``message`` the sentence says what stands there and what may."""
        if path in self._by_path or len(self._by_path) >= MOST_PROBLEMS:
            return
        place = path or "The flow"
        self._by_path[path] = Problem(
            path=path,
            given=shown(given),
            allowed=allowed,
            message=message or f"{place} is {in_words(given)}; it must be {allowed}.",
        )

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def raise_if_any(self) -> None:
        """Raise FlowProblems if there is something to tell."""
        if self._by_path:
            raise FlowProblems(list(self._by_path.values()))


def shown(value: Any) -> Any:
    """A value as a problem may carry it: plain JSON and short, whatever was sent."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        short = value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "…"
        return short.encode(errors="replace").decode()
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
    return f'"{shown(value)}"' if isinstance(value, str) else str(shown(value))


def step(path: str, name: object) -> str:
    """The JSON pointer one step below ``path``."""
    text = shown(name) if isinstance(name, str) else str(name)
    return f"{path}/{text.replace('~', '~0').replace('/', '~1')}"
