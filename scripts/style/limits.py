"""The limits in style-limits.toml, which may fall and never rise.

A limit that is not met yet is the figure of the day, next to its target.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from style.figures import COMPLEXITY, ROOT, TITLES, SourceLine
from style.sources import Function, Report

LIMITS = ROOT / "scripts/style-limits.toml"
MOST_LISTED = 50


@dataclass(frozen=True)
class Limit:
    """One row of ``style-limits.toml``. ``limit`` may fall to ``target`` and never rises."""

    metric: str
    limit: float
    target: float
    reason: str


@dataclass(frozen=True)
class Limits:
    """The whole of ``style-limits.toml``."""

    rows: list[Limit]
    complexity_exceptions: dict[str, int]
    allowed_identifiers: dict[str, str]


def read_limits(text: str) -> Limits:
    document: dict[str, Any] = tomllib.loads(text)
    return Limits(
        [
            Limit(metric, row["limit"], row["target"], row["reason"])
            for metric, row in document["limits"].items()
        ],
        document["complexity_exceptions"],
        document["allowed_identifiers"],
    )


def shorten_path(file: str) -> str:
    return file.removeprefix("src/")


def make_complexity_key(function: Function) -> str:
    return f"{shorten_path(function.file)}:{function.name}"


def remove_allowed(report: Report, allowed: Mapping[str, str]) -> Report:
    """Return the report without the identifiers that the wire or the disk fixes."""
    banned = [
        entry
        for entry in report.banned
        if f"{shorten_path(entry.file)}:{entry.text}" not in allowed
    ]
    return replace(report, banned=banned)


def find_violations(
    figures: Mapping[str, float],
    offenders: Mapping[str, list[SourceLine]],
    functions: Sequence[Function],
    limits: Limits,
) -> list[str]:
    """Return a message for each limit that is exceeded, followed by its offenders."""
    messages: list[str] = []
    for row in limits.rows:
        value = figures[row.metric]
        if value > row.limit:
            messages.append(
                f"{TITLES[row.metric]}: {value:g}, the limit is {row.limit:g} ({row.reason})"
            )
            listed = offenders[row.metric][:MOST_LISTED]
            messages += [f"  {entry}" for entry in listed]
            if len(listed) < len(offenders[row.metric]):
                messages.append(f"  all of them: scripts/style-report --list {row.metric}")
    for function in functions:
        bound = limits.complexity_exceptions.get(make_complexity_key(function), COMPLEXITY)
        if function.complexity > bound:
            text = f"{function.name} has complexity {function.complexity}, the limit is {bound:g}"
            messages.append(str(function.make_entry(text)))
    return messages


def lower_limits(text: str, figures: Mapping[str, float], functions: Sequence[Function]) -> str:
    """Return the limits file with each limit lowered to the figure, but not below its target.

    Exceptions from the complexity limit are lowered too, and removed once they are not needed.
    """
    limits = read_limits(text)
    for row in limits.rows:
        lowered = min(row.limit, max(figures[row.metric], row.target))
        text = re.sub(rf"(?m)^({row.metric} = {{ limit = )[\d.]+", rf"\g<1>{lowered:g}", text)
    complexities = {make_complexity_key(each): each.complexity for each in functions}
    for key, bound in limits.complexity_exceptions.items():
        value = min(bound, complexities.get(key, 0))
        line = f'"{key}" = {bound}\n'
        text = text.replace(line, f'"{key}" = {value}\n' if value > COMPLEXITY else "")
    return text
