"""Measurements in the lines that a supervisor ships: values by key, at a step or a time.

A trainer's line is decoded as a ``Measurement`` at once, which takes two microseconds. Only what
does not fit (NaN, texts among the values, huge numbers) takes the slow way, which keeps whatever is
usable.
"""

import json
import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from runyard import limits
from runyard.limits import clean_text
from runyard.store.telemetry.metrics import SYSTEM_PREFIX

MOST_INTEGER = 2**53
KINDS = ("step", "evaluation")
# Before a trainer's own key that begins like those that are measured by time.
TRAINER_PREFIX = "trainer/"


class Measurement(msgspec.Struct, rename="camel"):
    """The event ``step`` or ``evaluation``; see ``rundir.EVENTS``."""

    ev: str
    t: int = 0
    step: int = 0
    epoch: float = 0.0
    total_steps: int | None = None
    seconds_left: float | None = None
    metric_name: str | None = None
    values: dict[str, float] = {}


class SystemSample(msgspec.Struct):
    """A line of the stream ``system``: values of ``system/`` keys at a time."""

    t: int
    values: dict[str, float]


_MEASUREMENT, _SYSTEM = msgspec.json.Decoder(Measurement), msgspec.json.Decoder(SystemSample)


def parse_measurement(line: str) -> Measurement | None:
    """Return the measurement in a line; None if it is not one, or not a well-formed one."""
    try:
        found = _MEASUREMENT.decode(line)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    is_plain = (
        found.ev in KINDS
        and abs(found.step) <= MOST_INTEGER
        and abs(found.t) <= MOST_INTEGER
        and abs(found.total_steps or 0) <= MOST_INTEGER
        and len(found.values) <= limits.METRICS.value
    )
    return found if is_plain else None


def parse_event(line: str) -> dict[str, Any] | None:
    """Return the event in a line; None when the line is plain text."""
    try:
        value = json.loads(line)  # accepts NaN (a diverged loss), unlike the strict decoder
        # Lone surrogates and huge integers fit in no row and no response.
        msgspec.json.encode(value)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("ev"), str) else None


def to_measurement(event: Mapping[str, Any]) -> Measurement:
    """Return what is usable of an event as a measurement."""
    name = event.get("metricName")
    return Measurement(
        ev=str(event.get("ev")),
        t=parse_integer(event.get("t")),
        step=parse_integer(event.get("step")),
        epoch=_parse_number(event.get("epoch")) or 0.0,
        total_steps=parse_integer(event.get("totalSteps")),
        seconds_left=_parse_number(event.get("secondsLeft")),
        metric_name=name if isinstance(name, str) else None,
        values=_parse_values(event.get("values")),
    )


def list_left_out(event: Mapping[str, Any], found: Measurement) -> str:
    """Return the keys of an event whose values are not in its measurement, as text."""
    given = event.get("values")
    names = list(given) if isinstance(given, dict) else []
    return ", ".join(name for name in names if name not in found.values)


def parse_system_sample(line: str) -> SystemSample | None:
    """Return the sample in a line of the stream ``system``; None when the line is not one."""
    try:
        sample = _SYSTEM.decode(line)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return None
    is_plain = (
        0 <= sample.t <= MOST_INTEGER
        and len(sample.values) <= limits.METRICS.value
        and all(key.startswith(SYSTEM_PREFIX) for key in sample.values)
    )
    return sample if is_plain else None


class KeyCleaner(dict[str, str]):
    """Maps the key that a trainer names to the one that is stored."""

    def __missing__(self, key: str) -> str:
        stored = f"{TRAINER_PREFIX}{key}" if key.startswith(SYSTEM_PREFIX) else key
        stored = self[key] = clean_text(stored, limits.METRIC_NAME)
        return stored


def parse_integer(value: Any) -> int:
    is_plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER
    return value if is_plain else 0


def _parse_values(given: Any) -> dict[str, float]:
    if not isinstance(given, dict):
        return {}
    numbers = (
        (str(name), number)
        for name, value in given.items()
        if (number := _parse_number(value)) is not None
    )
    return dict(islice(numbers, limits.METRICS.value))


def _parse_number(value: Any) -> float | None:
    """Return a finite number; JSON has no others."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
