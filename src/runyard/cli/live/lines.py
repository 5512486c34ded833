"""Lines of a screen: text with one style, and the words both screens share. Pure functions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from runyard.cli.output import format_duration, format_size

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import Run

_STYLES = {
    "Succeeded": "green",
    "Running": "cyan",
    "Failed": "red",
    "Error": "red",
    "Cancelled": "yellow",
}
_PLAIN_SHAPES = {
    "Pending": "o",
    "Running": ">",
    "Succeeded": "+",
    "Failed": "x",
    "Error": "!",
    "Cancelled": "-",
}


class Line(NamedTuple):
    """Text of one line, and its style."""

    text: str
    style: str = ""


def choose_shape(condition: str, *, is_plain: bool) -> str:
    """Return the shape of a condition, so that color never stands alone."""
    from vi.api._display import CONDITION_SHAPES

    return (_PLAIN_SHAPES if is_plain else CONDITION_SHAPES).get(condition, "?")


def style_condition(condition: str) -> str:
    """Return the style of a condition."""
    return _STYLES.get(condition, "")


def describe_left(run: "Run") -> str:
    """Return the time left; empty if it is unknown or the run has ended."""
    progress = run.status.progress
    if progress is None or progress.seconds_left is None:
        return ""
    if run.condition is not None and run.condition.is_final:
        return ""
    return f"{format_duration(progress.seconds_left)} left"


def describe_usage(usage: Mapping[str, float]) -> str:
    """Return processors, memory and accelerators in use, as far as they were measured."""
    facts = []
    if "cpuPercent" in usage:
        facts.append(f"CPU {usage['cpuPercent']:.0f} %")
    if "memoryBytes" in usage:
        facts.append(f"memory {format_size(int(usage['memoryBytes']))}")
    for name, value in sorted(usage.items()):
        if name.startswith("acceleratorPercent"):
            facts.append(
                f"GPU{name.removeprefix('acceleratorPercent').replace('/', ' ')} {value:.0f} %"
            )
    return "   ".join(facts)


def fit_lines(lines: list[Line], footer: Line, *, height: int) -> list[Line]:
    """Return exactly ``height`` lines: as many of ``lines`` as fit, and the footer last."""
    shown = lines[: max(0, height - 1)]
    return [*shown, *[Line("")] * (height - 1 - len(shown)), footer]
