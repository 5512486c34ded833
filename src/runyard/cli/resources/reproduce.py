"""Reproduction of runs: what to pin for a second run, and the comparison of two runs. Pure
functions.

The same flow, data, versions and hardware give bit-identical weights on the CPU. When two runs
differ, their plans show what differed before the first step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import MetricPoint, Run

ATTRIBUTE = "reproduces"  # attribute of a reproduction; its value is the id of the original run
MODEL_BLOCK = "vi-model"
VALIDATION = "validation/"
CUT_BY_MEMORY = "too much for the memory"  # in the plan's reason
Verdict = Literal["identical", "equal", "different"]

MAX_PIXELS = ("images", "maxPixels")
# Values of the plan, and their paths in a flow. They are pinned, so that nothing is measured again.
PINNED = {
    "batchSize": ("hyperparameters", "batchSize"),
    "microBatchSize": ("hyperparameters", "microBatchSize"),
    "learningRate": ("hyperparameters", "learningRate"),
    "packing": ("packing",),
    "precision": ("compute", "precisionType"),
    "featureCache": ("compute", "featureCache"),
    "gradientCheckpointing": ("compute", "gradientCheckpointing"),
    "compile": ("compute", "compile"),
    "maxPixels": MAX_PIXELS,
}


class PlanDifference(msgspec.Struct, frozen=True):
    """Value of the plan that differs between two runs, such as ``versions.torch``.

    None if missing.
    """

    name: str
    original: Any
    reproduction: Any


class StepDifference(msgspec.Struct, frozen=True, rename="camel"):
    """Loss of one optimizer step in both runs."""

    step: int
    original: float
    reproduction: float

    @property
    def size(self) -> float:
        return abs(self.original - self.reproduction)


class Weights(msgspec.Struct, frozen=True, rename="camel"):
    """Weights of the last checkpoint of a run: SHA-256 by file."""

    checkpoint: str
    step: int | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Results of a run: the run, its metrics, and the weights of its last checkpoint, if any."""

    run: Run
    points: Sequence[MetricPoint]
    weights: Weights | None

    @property
    def plan(self) -> dict[str, Any]:
        return self.run.status.plan or {}

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by step.

        A step repeated by a later attempt has the loss of that attempt.
        """
        return {point.step: point.values["loss"] for point in self.points if "loss" in point.values}

    @property
    def evaluation(self) -> dict[str, float]:
        """Metrics of the last evaluation, by name."""
        measured = [
            point
            for point in self.points
            if any(name.startswith(VALIDATION) for name in point.values)
        ]
        last = max((point.step for point in measured), default=0)
        return {
            name: value
            for point in measured
            if point.step == last
            for name, value in point.values.items()
            if name.startswith(VALIDATION)
        }

    @property
    def ending(self) -> str:
        """Final condition and its reason."""
        last = self.run.status.conditions[-1] if self.run.status.conditions else None
        return (
            "Unknown"
            if last is None
            else ", ".join(filter(None, [last.condition.value, last.reason]))
        )

    @property
    def total_steps(self) -> int | None:
        total: int | None = get_plan_value(self.plan, "totalSteps")
        return total


class Comparison(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Result of comparing two runs; pairs are in the order original, reproduction.

    ``largest`` is None if no step has two losses; ``are_weights_same`` is None unless both runs
    have a last checkpoint of the same step.
    """

    original: str
    reproduction: str
    verdict: Verdict
    words: str
    tolerance: float | None
    endings: tuple[str, str]
    total_steps: tuple[int | None, int | None]
    steps: tuple[int, int]
    compared_steps: int
    first_different: StepDifference | None
    largest: StepDifference | None
    evaluation: dict[str, tuple[float | None, float | None]]
    weights: tuple[Weights | None, Weights | None]
    are_weights_same: bool | None
    differences: list[PlanDifference]
    notes: list[str]


def format_value(value: Any) -> str:
    """Return a value of a plan or a metric as text for a table."""
    return "none" if value is None or value == [] else str(value)


def get_plan_value(plan: Mapping[str, Any], name: str) -> Any:
    """Return a value of a plan without its reason; None if the plan lacks it."""
    item = plan.get(name)
    return item.get("value") if isinstance(item, Mapping) else None


def pin_flow(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the frozen flow of a run with the values of its plan pinned, and the pinned values by
    name.

    Where the plan has no limit on pixels, auto set none, but might set one today. A micro-batch
    size that was reduced for lack of memory and does not divide the batch size is not a valid
    setting, so it is not pinned.
    """
    plan, flow = run.status.plan or {}, _copy_flow(run.spec.flow)
    settings = _settings_of_model(flow)
    pinned: dict[str, Any] = {}
    for name, path in PINNED.items():
        value = get_plan_value(plan, name)
        if value is None or (
            name == "microBatchSize" and (get_plan_value(plan, "batchSize") or 0) % value
        ):
            continue
        _set_value(settings, path, value)
        pinned[name] = value
    requested = settings.get("images", {}).get("maxPixels", "auto")
    if plan and "maxPixels" not in pinned and requested == "auto":
        _set_value(settings, MAX_PIXELS, None)
    if (seed := get_plan_value(plan, "seed")) is not None:
        flow["settings"]["seed"] = pinned["seed"] = seed
    return flow, pinned


def _set_value(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        settings = settings.setdefault(part, {})
    settings[path[-1]] = value


def list_notes(run: Run) -> list[str]:
    """Return notes on a run that affect its reproduction, one sentence each."""
    plan, notes = run.status.plan or {}, []
    ending = Evidence(run=run, points=[], weights=None).ending
    if run.condition is None or run.condition.value != "Succeeded":
        notes.append(f"it ended as {ending}, so only its completed steps can be compared")
    if len(run.status.attempts) > 1:
        notes.append(
            f"it had {len(run.status.attempts)} attempts; resuming is exact, so a single attempt "
            "gives the same weights"
        )
    if CUT_BY_MEMORY in str((plan.get("microBatchSize") or {}).get("reason")):
        notes.append(
            "its micro-batch was reduced during training for lack of memory; earlier steps summed "
            "differently"
        )
    if (get_plan_value(plan, "revision") or {}).get("isDirty"):
        notes.append("it was trained with uncommitted changes of the source code")
    if run.spec.flow.settings.get("timeLimitMinutes") is not None:
        notes.append("settings.timeLimitMinutes ends it by time, possibly at another step")
    if get_plan_value(plan, "device") not in (None, "cpu"):
        notes.append(
            "it trained on an accelerator, where sums have no fixed order; try: --tolerance"
        )
    if plan and "hardware" not in plan:
        notes.append("it was trained by a version that did not record hardware and source revision")
    return notes


def differences(
    original: Mapping[str, Any], reproduction: Mapping[str, Any]
) -> list[PlanDifference]:
    """Return the values that differ between two plans: versions, hardware, data, settings."""
    one, other = _flatten(original), _flatten(reproduction)
    names = [*one, *(name for name in other if name not in one)]
    return [
        PlanDifference(name, one.get(name), other.get(name))
        for name in names
        if one.get(name) != other.get(name)
    ]


def compare(
    original: Evidence, reproduction: Evidence, *, tolerance: float | None = None
) -> Comparison:
    """Compare two runs.

    Runs are ``identical`` if ending, loss of every step, last evaluation and last weights are the
    same, bit for bit (or both have no weights). They are ``equal`` if they took the same steps and
    their training and validation losses differ by at most ``tolerance``.
    """
    losses, others = original.losses, reproduction.losses
    both = [
        StepDifference(step, losses[step], others[step])
        for step in sorted(losses.keys() & others.keys())
    ]
    unequal = [item for item in both if not _is_same(item.original, item.reproduction)]
    before, after = original.evaluation, reproduction.evaluation
    evaluation = {
        name: (before.get(name), after.get(name))
        for name in [*before, *(after.keys() - before.keys())]
    }
    largest = max(unequal, key=lambda item: item.size, default=both[0] if both else None)
    same_weights = _are_same_weights(original.weights, reproduction.weights)
    is_same_course = losses.keys() == others.keys() and original.ending == reproduction.ending
    is_same_course = is_same_course and bool(both)
    has_weights = original.weights is not None or reproduction.weights is not None
    is_identical = (
        is_same_course
        and not unequal
        and before == after
        and (same_weights is True or not has_weights)
    )
    apart = _max_distance(largest, evaluation)
    is_equal = is_same_course and tolerance is not None and apart <= tolerance
    verdict: Verdict = "identical" if is_identical else "equal" if is_equal else "different"
    return Comparison(
        original=original.run.run_id,
        reproduction=reproduction.run.run_id,
        verdict=verdict,
        words=f"equal within {apart:.3g}" if verdict == "equal" else verdict,
        tolerance=tolerance,
        endings=(original.ending, reproduction.ending),
        total_steps=(original.total_steps, reproduction.total_steps),
        steps=(len(losses), len(others)),
        compared_steps=len(both),
        first_different=unequal[0] if unequal else None,
        largest=largest,
        evaluation=evaluation,
        weights=(original.weights, reproduction.weights),
        are_weights_same=same_weights,
        differences=differences(original.plan, reproduction.plan),
        notes=list_notes(original.run),
    )


def build_rows(found: Comparison) -> list[tuple[str, str, str, str]]:
    """Return one row per comparison: name, both values, and the result."""
    rows = [
        ("run", found.original, found.reproduction, ""),
        (
            "ended as",
            found.endings[0],
            found.endings[1],
            _describe_equality(found.endings[0] == found.endings[1]),
        ),
        (
            "steps",
            _steps(found, 0),
            _steps(found, 1),
            _describe_equality(found.steps == (found.compared_steps,) * 2),
        ),
        ("losses", *_losses(found)),
    ]
    for name, (one, other) in found.evaluation.items():
        rows.append(
            (name, format_value(one), format_value(other), _describe_equality(one == other))
        )
    made = (
        "not comparable"
        if found.are_weights_same is None
        else _describe_equality(found.are_weights_same)
    )
    return [*rows, ("weights", _weights(found.weights[0]), _weights(found.weights[1]), made)]


def _losses(found: Comparison) -> tuple[str, str, str]:
    """Return both losses at the first difference, or at the last common step, and the result."""
    first, largest = found.first_different, found.largest
    if largest is None:
        return "", "", "no step in both"
    if first is None:
        return f"{found.compared_steps} steps", f"{found.compared_steps} steps", "same"
    result = f"differ from step {first.step} on, by up to {largest.size:.3g} at step {largest.step}"
    return format_value(first.original), format_value(first.reproduction), result


def _steps(found: Comparison, place: Literal[0, 1]) -> str:
    total = found.total_steps[place]
    return f"{found.steps[place]}" if total is None else f"{found.steps[place]} of {total}"


def _weights(weights: Weights | None) -> str:
    if weights is None:
        return "none"
    one = next(iter(weights.files.values()), "")
    more = f" and {len(weights.files) - 1} more" if len(weights.files) > 1 else ""
    return f"{weights.checkpoint} {one[:12]}{more}"


def _are_same_weights(one: Weights | None, other: Weights | None) -> bool | None:
    if one is None or other is None or one.step != other.step or not one.files:
        return None
    return one.files == other.files


def _max_distance(
    largest: StepDifference | None, evaluation: Mapping[str, tuple[float | None, float | None]]
) -> float:
    """Return the largest difference of training or validation losses.

    Infinite if one is missing.
    """
    one, other = evaluation.get(f"{VALIDATION}loss", (0.0, 0.0))
    if one is None or other is None or largest is None:
        return math.inf
    return max(largest.size, abs(one - other))


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _copy_flow(flow: FlowSpec) -> dict[str, Any]:
    """Return a mutable copy."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(flow))
    return document


def _settings_of_model(flow: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the model block, which is added if it is missing.

    The name of a block contains its type.
    """
    for block in flow["blocks"]:
        if "model" in block["block"]:
            settings: dict[str, Any] = block["settings"]
            return settings
    flow["blocks"].append({"block": MODEL_BLOCK, "settings": {}, "style": {}})
    return _settings_of_model(flow)


def _flatten(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a plan by name, nested ones as ``name.part``."""
    found: dict[str, Any] = {}
    for name in plan:
        value = get_plan_value(plan, name)
        if isinstance(value, Mapping):
            found |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            found[name] = value
    return found


def _describe_equality(is_same: bool) -> str:
    return "same" if is_same else "differs"
