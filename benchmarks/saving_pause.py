"""How long training pauses for a checkpoint, written asynchronously and synchronously.

The trainer, started as a supervisor does, trains a case of ``train_case.py`` and saves every few
steps: asynchronously, and synchronously as where memory does not suffice for copies, in turns, each
in a process of its own.

The *pause* of a save is the time its loop spends on it: copying, waiting for the copies before the
optimizer update, polling, reporting, waiting for the previous save. It is reported with the median
of the steps without a save. *Cost* is
everything: how much longer the steps from one save to the next took on average than that many
undisturbed ones, including what the writer takes from the computing threads. The first save of each
process, which allocates memory, is reported separately.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from train_case import CASES, Shape, forget_attempt, write_case
from train_speed import (
    RESULTS,
    VOCABULARY,
    machine,
    own_threads,
    prepare_environment,
    say,
    write_results,
)

MARK = "saving_pause"
WAYS = ("asynchronous", "synchronous")
STEPS_BETWEEN = {"tiny": 20, "medium": 5}
SAVES = {"tiny": 12, "medium": 5}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over the saves of all rounds but each process' first; milliseconds."""

    case: str
    way: str
    megabytes: float
    step_ms: float
    first_ms: float
    pause_ms: float
    longest_ms: float
    cost_ms: float

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (self.step_ms, self.first_ms, self.pause_ms, self.longest_ms, self.cost_ms)
        share = f"{self.pause_ms / self.step_ms:.1%}"
        return (
            self.case,
            self.way,
            f"{self.megabytes:.1f}",
            *(f"{number:,.1f}" for number in numbers),
            share,
        )


HEADS = (
    "case",
    "way",
    "MB",
    "ms/step",
    "first pause ms",
    "pause ms",
    "longest ms",
    "cost ms",
    "pause of a step",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cases", nargs="+", choices=list(STEPS_BETWEEN), default=list(STEPS_BETWEEN)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/RESULTS.md"
    )
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="runyard-saving-pause-") as name:
        prepare_environment(Path(name))
        for case in given.cases:
            shape = replace(
                CASES[case], steps=STEPS_BETWEEN[case] * SAVES[case] + STEPS_BETWEEN[case] - 1
            )
            rows += measured(Path(name) / case, shape, given.rounds)
    text = "\n".join(
        "| " + " | ".join(cells) + " |"
        for cells in (HEADS, ["---"] * len(HEADS), *(r.cells for r in rows))
    )
    print(text)
    if given.write:
        write_results(RESULTS, section(text), mark=MARK)


def measured(folder: Path, shape: Shape, rounds: int) -> list[Row]:
    write_case(
        folder,
        shape,
        vocabulary=VOCABULARY,
        threads=own_threads(shape),
        micro_batch=shape.batch_size,
    )
    attempt = Path(json.loads((folder / "case.json").read_text())["attempt"])
    save_every(attempt, STEPS_BETWEEN[shape.name])
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        ways = list(WAYS)
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            forget_attempt(folder)
            output = folder / "report.json"
            process = get_context("fork").Process(
                target=run, args=(attempt, output, way, own_threads(shape))
            )
            process.start()
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"the trainer ended with code {process.exitcode}")
            found[way].append(json.loads(output.read_text()))
            say(f"{shape.name} round {number + 1} {way}: {summary(found[way][-1])}\n")
    return [row(shape, way, report) for way, report in found.items()]


def save_every(attempt: Path, steps: int) -> None:
    config = json.loads((attempt / "run.json").read_text())
    for block in config["run"]["spec"]["flow"]["blocks"]:
        if block["block"] == "vi-model":
            block["settings"]["checkpoint"] = {"every": {"steps": steps}, "keep": 2}
    (attempt / "run.json").write_text(json.dumps(config))


def run(attempt: Path, output: Path, way: str, threads: int) -> None:
    """In a process of its own, which it changes."""
    import torch

    from runyard.trainer import main as trainer
    from runyard.trainer import train
    from runyard.trainer.checkpoints import async_checkpoint

    torch.set_num_threads(threads)
    if way == "synchronous":
        async_checkpoint.available_bytes = lambda _: 0
    clock = Pauses()
    train.TrainLoop.save = clock.over(train.TrainLoop.save)
    for name in ("poll", "wait", "wait_for_copies"):
        setattr(
            async_checkpoint.AsyncCheckpointer,
            name,
            clock.over(getattr(async_checkpoint.AsyncCheckpointer, name)),
        )
    stamps: list[float] = []

    def now_ms() -> int:
        stamps.append(time.perf_counter())
        return time.time_ns() // 1_000_000

    trainer._now_ms = now_ms
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    code = trainer.train_attempt(attempt)
    events = [json.loads(line) for line in (attempt / "events.jsonl").read_text().splitlines()]
    ends = [at for event, at in zip(events, stamps, strict=True) if event["ev"] == "step"]
    folder = next(
        Path(event["folder"]) for event in reversed(events) if event["ev"] == "checkpoint"
    )
    size = sum(
        file["sizeBytes"] for file in json.loads((folder / "manifest.json").read_text())["files"]
    )
    output.write_text(json.dumps({"ends": ends, "pauses": clock.spans, "bytes": size}))
    raise SystemExit(code)


class Pauses:
    """When the loop was in one of some functions, the outermost alone."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        self._depth = 0

    def over(self, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self._span():
                return function(*arguments, **named)

        return timed

    @contextlib.contextmanager
    def _span(self) -> Iterator[None]:
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.spans.append((began, time.perf_counter()))


def by_save(report: dict[str, Any], between: int) -> list[tuple[float, float]]:
    """Return, per save but the last, the seconds of its pauses and of the steps after it."""
    ends, found = report["ends"], []
    for at in range(between - 1, len(ends) - between, between):
        begin, end = ends[at], ends[at + between]
        found.append(
            (
                sum(after - before for before, after in report["pauses"] if begin <= before < end),
                end - begin,
            )
        )
    return found


def quiet_s(report: dict[str, Any], between: int) -> float:
    """A step that no save touches: the last before each save."""
    ends = report["ends"]
    return statistics.median(
        ends[at] - ends[at - 1] for at in range(between - 1, len(ends), between)
    )


def summary(report: dict[str, Any]) -> str:
    return (
        f"{len(report['ends'])} steps, "
        f"{sum(after - before for before, after in report['pauses']):.2f} s of pauses"
    )


def row(shape: Shape, way: str, rounds: list[dict[str, Any]]) -> Row:
    between = STEPS_BETWEEN[shape.name]
    saves = [by_save(report, between) for report in rounds]
    quiet = [quiet_s(report, between) for report in rounds]
    later = [pause for found in saves for pause, _ in found[1:]]
    costs = [
        taken - between * step
        for found, step in zip(saves, quiet, strict=True)
        for _, taken in found[1:]
    ]
    return Row(
        case=shape.name,
        way=way,
        megabytes=rounds[0]["bytes"] / 1e6,
        step_ms=1000 * statistics.median(quiet),
        first_ms=1000 * statistics.median(found[0][0] for found in saves),
        pause_ms=1000 * statistics.median(later),
        longest_ms=1000 * max(later),
        cost_ms=1000 * statistics.median(costs),
    )


def section(table: str) -> str:
    on = ", ".join(f"{name} {value}" for name, value in machine().items())
    return "\n".join(
        [
            "## The pause for a checkpoint",
            "",
            f"`make bench-saving`, {datetime.now(UTC):%Y-%m-%d}. {on}.",
            "",
            "Medians over saves. *pause*: how long the loop pauses for a save, with the median of "
            "a step without a save. *first*: that of a process, which takes the memory for the "
            "copies. *cost*: how much longer training takes for a save all in all.",
            "",
            table,
        ]
    )


if __name__ == "__main__":
    main()
