"""Checks of a run that has ended, whatever faults it had. Each check yields problems as text."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import vi
from runyard.rundir import sha256_of
from tests.chaos.instance import ChaosInstance, read_events, retry_until_answered
from vi.api.resources.runs.responses import MetricPoint, Run

EXIT_TIMEOUT_S = 10.0
LEGAL_TRANSITIONS = {
    "Pending": {"Running", "Cancelled", "Failed", "Error"},
    "Running": {"Pending", "Succeeded", "Failed", "Error", "Cancelled"},
}


@dataclass(frozen=True)
class Reference:
    """The metrics and weights of an undisturbed run of the same flow."""

    losses: dict[int, float]
    evaluations: dict[int, dict[str, float]]
    sha256: str


def measure_reference(client: vi.Client, run: Run) -> Reference:
    points = fetch_metrics(client, run.run_id)
    return Reference(get_losses(points), get_evaluations(points), hash_weights(client, run.run_id))


def find_problems(
    instance: ChaosInstance,
    client: vi.Client,
    run: Run,
    reference: Reference,
    *,
    was_killed: bool,
    was_out_of_memory: bool,
) -> list[str]:
    """Return the problems of a run that has ended; ``was_out_of_memory``: the kernel killed its
    trainer.
    """
    found = [
        *_check_end(run, was_killed=was_killed, was_out_of_memory=was_out_of_memory),
        *_check_history(run),
        *_check_overlaps(instance, run),
    ]
    is_whole = run.condition is not None and run.condition.value == "Succeeded"
    found += _check_metrics(fetch_metrics(client, run.run_id), reference, is_whole=is_whole)
    if is_whole and hash_weights(client, run.run_id) != reference.sha256:
        found.append("the final weights differ from those of the undisturbed run")
    if run.condition is not None and run.condition.value == "Cancelled":
        found += [
            f"Cancelled while {mark} lives"
            for _, mark in instance.list_trainers()
            if run.run_id in mark
        ]
    return [*found, *_check_leftovers(instance, run)]


def fetch_metrics(client: vi.Client, run_id: str) -> list[MetricPoint]:
    points: list[MetricPoint] = retry_until_answered(lambda: client.runs.metrics(run_id))
    return points


def get_losses(points: list[MetricPoint]) -> dict[int, float]:
    return {point.step: point.values["loss"] for point in points if "loss" in point.values}


def get_evaluations(points: list[MetricPoint]) -> dict[int, dict[str, float]]:
    return {point.step: point.values for point in points if "loss" not in point.values}


def hash_weights(client: vi.Client, run_id: str) -> str:
    """Return the hash of the newest checkpoint's weights after a download."""
    with tempfile.TemporaryDirectory() as folder:
        model = retry_until_answered(
            lambda: client.models.download(run_id, save_dir=folder, show_progress=False)
        )
        return "+".join(sha256_of(path) for path in sorted(model.model_path.rglob("*.safetensors")))


def _check_end(run: Run, *, was_killed: bool, was_out_of_memory: bool) -> Iterator[str]:
    """Check the final condition. A run that the kernel killed must be Failed with OutOfMemory."""
    last = run.status.conditions[-1]
    right = {"Cancelled", "Succeeded"} if was_killed else {"Succeeded"}
    is_out_of_memory = was_out_of_memory and (last.condition.value, last.reason) == (
        "Failed",
        "OutOfMemory",
    )
    if last.condition.value not in right and not is_out_of_memory:
        yield f"ended as {last.condition.value} ({last.reason}): {last.message}"


def _check_history(run: Run) -> Iterator[str]:
    names = [entry.condition.value for entry in run.status.conditions]
    for before, after in pairwise(names):
        if after not in LEGAL_TRANSITIONS.get(before, set()):
            yield f"{before} was followed by {after}"


def _check_overlaps(instance: ChaosInstance, run: Run) -> Iterator[str]:
    """Check that no two attempts wrote events at the same time; faults never change their clock."""
    spans = []
    for folder in instance.locate_attempts(run.run_id).glob("*"):
        times = [event["t"] for event in read_events(folder / "events.jsonl") if "t" in event]
        if times:
            spans.append((min(times), max(times), folder.name))
    spans.sort()
    for (_, end, one), (begin, _, other) in pairwise(spans):
        if begin < end:
            yield f"attempts {one} and {other} trained at the same time"


def _check_metrics(
    points: list[MetricPoint], reference: Reference, *, is_whole: bool
) -> Iterator[str]:
    """Check that each attempt has each step once, without gaps between attempts, and with equal
    values.

    A run that ended early (``is_whole`` is False) has fewer points, but no different ones.
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
                missing = f"steps {last_step + 1} to {point.step - 1}"
                yield f"{missing} are missing (before attempt {point.attempt})"
            last_step = point.step
    for what, found, expected in (
        ("losses", get_losses(points), reference.losses),
        ("evaluations", get_evaluations(points), reference.evaluations),
    ):
        wrong = [step for step in sorted(found) if found[step] != expected.get(step)]
        wrong += [step for step in sorted(expected) if is_whole and step not in found]
        if wrong:
            yield f"{what} differ from the undisturbed run's, first at step {wrong[0]}"


def _check_leftovers(instance: ChaosInstance, run: Run) -> Iterator[str]:
    deadline_s = time.monotonic() + EXIT_TIMEOUT_S
    while True:
        left = [
            mark
            for _, mark in (*instance.list_trainers(), *instance.list_supervisors())
            if f"/{run.run_id}/" in mark
        ]
        if not left or time.monotonic() > deadline_s:
            break
        time.sleep(0.1)
    yield from (f"a process of {mark} was left over" for mark in left)
