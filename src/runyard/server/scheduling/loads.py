"""Loads for the simulator: synthetic ones from a seed, and traces in CSV or JSON Lines.

A trace has one run per line, in any order. Times are seconds; ``limit_s``, ``priority``,
``accelerators``, ``members`` and ``preemptible`` may be left out or empty.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from runyard.server.scheduling.view import MachineCapacity, Share, count_units

REQUIRED = ("submit_s", "project", "duration_s")
OPTIONAL = ("priority", "accelerators", "limit_s", "members", "preemptible")
MAX_COUNT = 1_000_000
MAX_SECONDS = 10 * 365 * 86400
SYNTHETIC_PROJECTS = 10
SLOTS_PER_ACCELERATOR = 2  # runs without accelerators take the other slots

_MEAN_DURATION_S, _MEAN_UNITS = 2830.0, 2.28  # of the synthetic load below, before its limits


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """A run of a load. It ends by itself after ``duration_s``, which no decision knows."""

    submit_s: float
    project: str
    duration_s: float
    priority: int = 0
    accelerators: int = 0
    members: int = 1
    limit_s: float | None = None
    preemptible: bool = False


class InvalidTrace(ValueError):
    """A line of a trace that cannot be read."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


def build_machines(count: int, *, accelerators: int) -> list[MachineCapacity]:
    """Return equal machines."""
    slots = max(1, accelerators * SLOTS_PER_ACCELERATOR)
    return [
        MachineCapacity(id=f"node-{number:05}", slots=slots, accelerators=accelerators)
        for number in range(count)
    ]


def build_shares() -> list[Share]:
    """Return the projects of the synthetic load: weights 1, 2 and 3 in turn."""
    return [
        Share(org="simulated", project=f"project-{number}", weight=1 + number % 3)
        for number in range(SYNTHETIC_PROJECTS)
    ]


def generate_runs(
    count: int, *, seed: int, capacity: int, accelerators: int, load: float
) -> Iterator[SimulatedRun]:
    """Yield runs of many sizes and durations, by time of submission.

    They arrive so fast that they would use ``load`` of the capacity, in units, on average.
    """
    random = Random(seed)  # noqa: S311
    sizes = [size for size in (0, 1, 2, 4, 8) if size <= accelerators]
    chances = [10, 50, 17, 15, 8][: len(sizes)]
    mean_units = sum(
        max(1, size) * chance for size, chance in zip(sizes, chances, strict=True)
    ) / sum(chances)
    gap_s = mean_units * _MEAN_DURATION_S / (capacity * load)
    submit_s = 0.0
    for _ in range(count):
        submit_s += random.expovariate(1 / gap_s)
        duration_s = min(86400.0, random.lognormvariate(7.45, 1.0))
        limit_s = duration_s * random.uniform(1.05, 3) if random.random() < 0.6 else None
        yield SimulatedRun(
            submit_s=submit_s,
            project=f"project-{random.randrange(SYNTHETIC_PROJECTS)}",
            duration_s=duration_s,
            priority=random.choices((0, 1, 2), (90, 9, 1))[0],
            accelerators=random.choices(sizes, chances)[0],
            limit_s=limit_s,
            preemptible=random.random() < 0.2,
        )


def read_trace(path: Path) -> list[SimulatedRun]:
    """Return the runs of a trace, by time of submission.

    Raises:
        InvalidTrace: a line or a value that cannot be read, with its number.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _read_json_lines(path, file) if _is_json(path) else _read_csv(path, file)
        runs = [_parse_row(path, line, row) for line, row in rows]
    if not runs:
        raise InvalidTrace(path, 1, "no run found; try: one run per line after the header")
    return sorted(runs, key=lambda run: run.submit_s)


def count_run_units(run: SimulatedRun) -> int:
    """Return the units of a run."""
    return count_units(run.accelerators, run.members)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson", ".json")


def _read_csv(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(file, restkey="", strict=True)
    try:
        columns = reader.fieldnames or ()
        _check_columns(path, 1, columns)
        for row in reader:
            if "" in row:
                raise InvalidTrace(path, reader.line_num, "it has more values than the header")
            yield reader.line_num, {name: text for name, text in row.items() if text}
    except csv.Error as error:
        raise InvalidTrace(path, reader.line_num, f"not valid CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidTrace(path, reader.line_num + 1, "not valid UTF-8") from error


def _read_json_lines(path: Path, file: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    line = 0
    try:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise InvalidTrace(path, line, "not a JSON object; try: one object per line")
            _check_columns(path, line, row)
            yield line, {name: value for name, value in row.items() if value is not None}
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidTrace(path, line, f"not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidTrace(path, line + 1, "not valid UTF-8") from error


def _check_columns(path: Path, line: int, columns: Iterable[str]) -> None:
    names = list(columns)
    for name in names:
        if name not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise InvalidTrace(path, line, f"unknown column {name!r}; try: one of {known}")
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InvalidTrace(path, line, f"column {missing[0]} is missing; try: add it")


def _parse_row(path: Path, line: int, row: Mapping[str, Any]) -> SimulatedRun:
    def number(name: str, *, default: float | None = None, least: float = 0.0) -> float:
        value = row.get(name, default)
        try:
            found = float(value) if not isinstance(value, bool) and value is not None else None
        except (TypeError, ValueError):
            found = None
        if found is None or not least <= found <= MAX_SECONDS:
            text = "missing" if value is None else f"{value!r}"
            expected = f"a number from {least:g} to {MAX_SECONDS:g}"
            raise InvalidTrace(path, line, f"{name} is {text}; try: {expected}")
        return found

    def count(name: str, *, default: int, least: int = 0, most: int = MAX_COUNT) -> int:
        found = number(name, default=default, least=least)
        if not found.is_integer() or found > most:
            expected = f"a whole number from {least} to {most}"
            raise InvalidTrace(path, line, f"{name} is {row[name]!r}; try: {expected}")
        return int(found)

    return SimulatedRun(
        submit_s=number("submit_s"),
        project=_parse_project(path, line, row.get("project")),
        duration_s=number("duration_s"),
        priority=count("priority", default=0, least=-MAX_COUNT),
        accelerators=count("accelerators", default=0),
        members=count("members", default=1, least=1, most=10_000),
        limit_s=number("limit_s", least=1) if "limit_s" in row else None,
        preemptible=_parse_bool(path, line, "preemptible", row.get("preemptible", False)),
    )


def _parse_project(path: Path, line: int, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidTrace(path, line, f"project is {value!r}; try: the name of a project")
    return value.strip()


def _parse_bool(path: Path, line: int, name: str, value: object) -> bool:
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if found is None:
        raise InvalidTrace(path, line, f"{name} is {value!r}; try: true or false")
    return found
