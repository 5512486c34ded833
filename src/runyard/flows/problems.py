"""The problems of a flow, reported all at once.

A flow with five mistakes gets five problems, each with its path, the given value, the allowed
values, and a message. The server returns them in a 400 response unchanged.
"""

import json
import math
from typing import Any

import msgspec

# Enough for a person; a hostile flow with a hundred thousand mistakes must not get a response of
# many megabytes.
MAX_PROBLEMS = 100
MAX_VALUE_CHARACTERS = 80
MAX_NAME_CHARACTERS = 200


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a body: where it is, what was given, and what is allowed.

    ``path`` is a JSON pointer into the body; ``given`` is short enough to print.
    """

    path: str
    given: Any
    allowed: str
    message: str


class FlowProblems(ValueError):
    """A flow that cannot run. ``problems`` holds every problem found, at most ``MAX_PROBLEMS``."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"The flow has {count}: " + "; ".join(problem.message for problem in problems)
        )


class ProblemCollector:
    """The problems found while a flow is validated.

    A second problem at the same path is left out.
    """

    def __init__(self) -> None:
        self._by_path: dict[str, Problem] = {}
        self._added = 0

    def add(
        self,
        path: str,
        given: Any,
        allowed: str,
        *,
        message: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Add one problem.

        The default message names the given and the allowed value, then the hint.
        """
        self._added += 1
        if path in self._by_path or self.is_full:
            return
        if message is None:
            message = f"{path or 'The flow'} is {describe_value(given)}; it must be {allowed}."
            message += f" {hint}" if hint else ""
        self._by_path[path] = Problem(
            path=path, given=shorten(given), allowed=allowed, message=message
        )

    def has_none_at(self, *paths: str) -> bool:
        """Return whether the values at these paths are valid: no problem there, above or below."""
        return not any(
            _is_within(found, path) or _is_within(path, found)
            for found in self._by_path
            for path in paths
        )

    @property
    def is_full(self) -> bool:
        """Whether further problems are left out."""
        return len(self._by_path) >= MAX_PROBLEMS or self._added >= 10 * MAX_PROBLEMS

    def __bool__(self) -> bool:
        return bool(self._by_path)

    def to_list(self) -> list[Problem]:
        """Return the problems in the order in which they were found."""
        return list(self._by_path.values())


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")


def shorten(value: Any) -> Any:
    """Shorten a value for a problem: plain JSON, whatever was sent."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 64 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _truncate(value, MAX_VALUE_CHARACTERS)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return (
            f"an object with {len(value)} fields" if len(value) != 1 else "an object with 1 field"
        )
    return f"a Python {type(value).__name__}"


def describe_value(value: Any) -> str:
    """Describe a value for a message: strings quoted, containers summarized."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        json.dumps(shorten(value), ensure_ascii=False)
        if isinstance(value, str)
        else str(shorten(value))
    )


def _truncate(text: str, longest: int) -> str:
    short = text if len(text) <= longest else text[:longest] + "…"
    return short.encode(errors="replace").decode()


def join_pointer(path: str, name: object) -> str:
    """Append a name to a JSON pointer; an overlong name is shortened."""
    text = _truncate(name, MAX_NAME_CHARACTERS) if isinstance(name, str) else str(shorten(name))
    return f"{path}/{text.replace('~', '~0').replace('/', '~1')}"
