"""What must hold for a run that has ended, whatever was done to it. Each check answers what is wrong, in words."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from world import World, patiently, read_events

import vi
from runyard.rundir import sha256_of
from vi.api.resources.runs.responses import MetricPoint, Run

GONE_WITHIN_S = 10.0
LEGAL = {
    "Pending": {"Running", "Cancelled", "Failed", "Error"},
    "Running": {"Pending", "Succeeded", "Failed", "Error", "Cancelled"},
}


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run of the same recipe measured and ended with."""

    losses: dict[int, float]
    evaluations: dict[int, dict[str, float]]
    sha256: str


def reference_of(client: vi.Client, run: Run) -> Reference:
    points = metrics(client, run.run_id)
    return Reference(losses(points), evaluations(points), weights(client, run.run_id))


def problems(
    world: World, client: vi.Client, run: Run, reference: Reference, *, was_killed: bool, was_out_of_memory: bool
) -> list[str]:
    """Everything that is wrong with a run that has ended; ``was_out_of_memory``: the kernel ended its trainer."""
    found = [
        *_wrong_end(run, was_killed=was_killed, was_out_of_memory=was_out_of_memory),
        *_wrong_history(run),
        *_overlaps(world, run),
    ]
    is_whole = run.condition is not None and run.condition.value == "Succeeded"
    found += _wrong_metrics(metrics(client, run.run_id), reference, is_whole=is_whole)
    if is_whole and weights(client, run.run_id) != reference.sha256:
        found.append("the final weights differ from those of the undisturbed run")
    if run.condition is not None and run.condition.value == "Cancelled":
        found += [f"Cancelled while {mark} lives" for _, mark in world.trainers() if run.run_id in mark]
    return [*found, *_leftovers(world, run)]


def metrics(client: vi.Client, run_id: str) -> list[MetricPoint]:
    points: list[MetricPoint] = patiently(lambda: client.runs.metrics(run_id))
    return points


def losses(points: list[MetricPoint]) -> dict[int, float]:
    return {point.step: point.values["loss"] for point in points if "loss" in point.values}


def evaluations(points: list[MetricPoint]) -> dict[int, dict[str, float]]:
    return {point.step: point.values for point in points if "loss" not in point.values}


def weights(client: vi.Client, run_id: str) -> str:
    """The hash of the newest checkpoint's weights, as somebody who downloads it gets them."""
    with tempfile.TemporaryDirectory() as folder:
        model = patiently(lambda: client.models.download(run_id, save_dir=folder, show_progress=False))
        return "+".join(sha256_of(path) for path in sorted(model.model_path.rglob("*.safetensors")))


def _wrong_end(run: Run, *, was_killed: bool, was_out_of_memory: bool) -> Iterator[str]:
    """A run that the kernel ended for want of memory is Failed for exactly that, as its recipe wants it."""
    last = run.status.conditions[-1]
    right = {"Cancelled", "Succeeded"} if was_killed else {"Succeeded"}
    is_out_of_memory = was_out_of_memory and (last.condition.value, last.reason) == ("Failed", "OutOfMemory")
    if last.condition.value not in right and not is_out_of_memory:
        yield f"ended as {last.condition.value} ({last.reason}): {last.message}"


def _wrong_history(run: Run) -> Iterator[str]:
    names = [entry.condition.value for entry in run.status.conditions]
    for before, after in pairwise(names):
        if after not in LEGAL.get(before, set()):
            yield f"{before} was followed by {after}"


def _overlaps(world: World, run: Run) -> Iterator[str]:
    """No two attempts may have written in the same span of time; their own clock was never touched."""
    spans = []
    for folder in world.attempts_folder(run.run_id).glob("*"):
        times = [event["t"] for event in read_events(folder / "events.jsonl") if "t" in event]
        if times:
            spans.append((min(times), max(times), folder.name))
    spans.sort()
    for (_, end, one), (begin, _, other) in pairwise(spans):
        if begin < end:
            yield f"attempts {one} and {other} trained at the same time"


def _wrong_metrics(points: list[MetricPoint], reference: Reference, *, is_whole: bool) -> Iterator[str]:
    """Each step and evaluation once an attempt, no gap where one attempt follows another, every value as it should.

    A run that was ended early (``is_whole`` is False) has measured less, but nothing else.
    """
    seen: set[tuple[int, int, bool]] = set()
    last_step = 0
    for point in points:
        is_step = "loss" in point.values
        if (key := (point.attempt, point.step, is_step)) in seen:
            yield f"step {point.step} of attempt {point.attempt} was measured twice"
        seen.add(key)
        if is_step:
            if point.step > last_step + 1:
                yield f"steps {last_step + 1} to {point.step - 1} are missing (before attempt {point.attempt})"
            last_step = point.step
    for what, found, wanted in (
        ("losses", losses(points), reference.losses),
        ("evaluations", evaluations(points), reference.evaluations),
    ):
        wrong = [step for step in sorted(found) if found[step] != wanted.get(step)]
        wrong += [step for step in sorted(wanted) if is_whole and step not in found]
        if wrong:
            yield f"{what} differ from the undisturbed run's, first at step {wrong[0]}"


def _leftovers(world: World, run: Run) -> Iterator[str]:
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while True:
        left = [mark for _, mark in (*world.trainers(), *world.supervisors()) if f"/{run.run_id}/" in mark]
        if not left or time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    yield from (f"a process of {mark} was left over" for mark in left)
