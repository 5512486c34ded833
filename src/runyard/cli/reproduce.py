"""Whether two runs are the same training: what to pin for a second one, and what the two of them ended with. Pure.

The same recipe, data, versions and hardware give the same weights bit for bit on the CPU. So when two runs differ, the
first thing to look at is what differed before their first step: that stands in their plans.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import MetricPoint, Run

ATTRIBUTE = "reproduces"  # of a run that was made to reproduce another; its value is that one's id
MODEL_BLOCK = "vi-model"
VALIDATION = "validation/"
CUT_BY_MEMORY = "too much for the memory"  # in the plan's reason
Verdict = Literal["identical", "equal", "different"]

# What the plan resolved, and where a recipe says it. Pinned, so that nothing is measured or chosen a second time.
PINNED = {
    "batchSize": ("hyperparameters", "batchSize"),
    "microBatchSize": ("hyperparameters", "microBatchSize"),
    "learningRate": ("hyperparameters", "learningRate"),
    "packing": ("packing",),
    "precision": ("compute", "precisionType"),
    "featureCache": ("compute", "featureCache"),
    "gradientCheckpointing": ("compute", "gradientCheckpointing"),
    "compile": ("compute", "compile"),
}


class Difference(msgspec.Struct, frozen=True):
    """A value of the plan that two runs do not share; a name such as ``versions.torch``, None where one has none."""

    name: str
    original: Any
    reproduction: Any


class StepDifference(msgspec.Struct, frozen=True, rename="camel"):
    """The loss of one optimizer step in both runs."""

    step: int
    original: float
    reproduction: float

    @property
    def size(self) -> float:
        return abs(self.original - self.reproduction)


class Weights(msgspec.Struct, frozen=True, rename="camel"):
    """The weights of a run's last checkpoint: SHA-256 by file."""

    checkpoint: str
    step: int | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run left behind: the run itself, what was measured, and its last weights, if there are any."""

    run: Run
    points: Sequence[MetricPoint]
    weights: Weights | None

    @property
    def plan(self) -> dict[str, Any]:
        return self.run.status.plan or {}

    @property
    def losses(self) -> dict[int, float]:
        """By step. A step that a later attempt took again counts as that one took it."""
        return {point.step: point.values["loss"] for point in self.points if "loss" in point.values}

    @property
    def evaluation(self) -> dict[str, float]:
        """The last one's metrics, by name."""
        measured = [point for point in self.points if any(name.startswith(VALIDATION) for name in point.values)]
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
        """Condition and reason in words."""
        last = self.run.status.conditions[-1] if self.run.status.conditions else None
        return "Unknown" if last is None else ", ".join(filter(None, [last.condition.value, last.reason]))

    @property
    def total_steps(self) -> int | None:
        total: int | None = value_of(self.plan, "totalSteps")
        return total


class Comparison(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything two runs were compared by; ``original`` and ``reproduction`` are in this order wherever two stand.

    ``largest`` is None where no step has two losses, and ``are_weights_same`` where not both have a last checkpoint of
    the same step.
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
    differences: list[Difference]
    notes: list[str]


def in_words(value: Any) -> str:
    """A value of a plan, or something measured, in a table."""
    return "none" if value is None or value == [] else str(value)


def value_of(plan: Mapping[str, Any], name: str) -> Any:
    """A value of a plan, without its reason; None where the plan does not have it."""
    item = plan.get(name)
    return item.get("value") if isinstance(item, Mapping) else None


def pinned_flow(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's frozen recipe with everything pinned that its plan resolved, and what that is, by the plan's names.

    A micro-batch that memory cut to what does not divide the batch cannot be asked for, and is left as the recipe has
    it.
    """
    plan, flow = run.status.plan or {}, _plain(run.spec.flow)
    settings = _settings_of_model(flow)
    pinned: dict[str, Any] = {}
    for name, path in PINNED.items():
        value = value_of(plan, name)
        if value is None or (name == "microBatchSize" and (value_of(plan, "batchSize") or 0) % value):
            continue
        place = settings
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = pinned[name] = value
    if (seed := value_of(plan, "seed")) is not None:
        flow["settings"]["seed"] = pinned["seed"] = seed
    return flow, pinned


def notes_on(run: Run) -> list[str]:
    """What there is to know about a run before it is trained again, a sentence each."""
    plan, notes = run.status.plan or {}, []
    ending = Evidence(run=run, points=[], weights=None).ending
    if run.condition is None or run.condition.value != "Succeeded":
        notes.append(f"it ended as {ending}, so only what it got to can be compared")
    if len(run.status.attempts) > 1:
        notes.append(
            f"it took {len(run.status.attempts)} attempts; a resume is exact, so one that takes a single attempt ends "
            "with the same weights"
        )
    if CUT_BY_MEMORY in str((plan.get("microBatchSize") or {}).get("reason")):
        notes.append("memory cut its micro-batch while it trained; the steps before that summed up otherwise")
    if (value_of(plan, "revision") or {}).get("isDirty"):
        notes.append("it was trained by source code with changes that no commit has")
    if run.spec.flow.settings.get("timeLimitMinutes") is not None:
        notes.append("settings.timeLimitMinutes ends it by the clock, which may come at another step")
    if value_of(plan, "device") not in (None, "cpu"):
        notes.append("it trained on an accelerator, which sums in no fixed order; state a --tolerance")
    if plan and "hardware" not in plan:
        notes.append("it was trained by a Runyard that did not write down hardware and source revision")
    return notes


def differences(original: Mapping[str, Any], reproduction: Mapping[str, Any]) -> list[Difference]:
    """Where two plans differ: versions, revision, hardware, threads, data, and every number that was resolved."""
    one, other = _flat(original), _flat(reproduction)
    names = [*one, *(name for name in other if name not in one)]
    return [Difference(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def compare(original: Evidence, reproduction: Evidence, *, tolerance: float | None = None) -> Comparison:
    """Everything that tells whether the second run is the first one again.

    ``identical`` are runs with the same ending, the same loss at every step, the same last evaluation and the same last
    weights, bit for bit (none in both is the same); ``equal`` are those that took the same steps with losses, of
    training and validation, that are at most ``tolerance`` apart.
    """
    losses, others = original.losses, reproduction.losses
    both = [StepDifference(step, losses[step], others[step]) for step in sorted(losses.keys() & others.keys())]
    unequal = [item for item in both if not _is_same(item.original, item.reproduction)]
    before, after = original.evaluation, reproduction.evaluation
    evaluation = {name: (before.get(name), after.get(name)) for name in [*before, *(after.keys() - before.keys())]}
    largest = max(unequal, key=lambda item: item.size, default=both[0] if both else None)
    same_weights = _are_same_weights(original.weights, reproduction.weights)
    is_same_course = losses.keys() == others.keys() and original.ending == reproduction.ending
    is_same_course = is_same_course and bool(both)
    has_weights = original.weights is not None or reproduction.weights is not None
    is_identical = is_same_course and not unequal and before == after and (same_weights is True or not has_weights)
    apart = _apart(largest, evaluation)
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
        notes=notes_on(original.run),
    )


def table_of(found: Comparison) -> list[tuple[str, str, str, str]]:
    """What was compared, a row each: the name, both values, and what they make."""
    rows = [
        ("run", found.original, found.reproduction, ""),
        ("ended as", found.endings[0], found.endings[1], _same(found.endings[0] == found.endings[1])),
        ("steps", _steps(found, 0), _steps(found, 1), _same(found.steps == (found.compared_steps,) * 2)),
        ("losses", *_losses(found)),
    ]
    for name, (one, other) in found.evaluation.items():
        rows.append((name, in_words(one), in_words(other), _same(one == other)))
    made = "not comparable" if found.are_weights_same is None else _same(found.are_weights_same)
    return [*rows, ("weights", _weights(found.weights[0]), _weights(found.weights[1]), made)]


def _losses(found: Comparison) -> tuple[str, str, str]:
    """Both losses where they first differ, or at the last step that both took."""
    first, largest = found.first_different, found.largest
    if largest is None:
        return "", "", "no step in both"
    if first is None:
        return f"{found.compared_steps} steps", f"{found.compared_steps} steps", "same"
    told = f"differ from step {first.step} on, by up to {largest.size:.3g} at step {largest.step}"
    return in_words(first.original), in_words(first.reproduction), told


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


def _apart(largest: StepDifference | None, evaluation: Mapping[str, tuple[float | None, float | None]]) -> float:
    """The largest distance of two losses, of training or of validation; infinite where one is missing."""
    one, other = evaluation.get(f"{VALIDATION}loss", (0.0, 0.0))
    if one is None or other is None or largest is None:
        return math.inf
    return max(largest.size, abs(one - other))


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _plain(flow: FlowSpec) -> dict[str, Any]:
    """A copy that may be changed."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(flow))
    return document


def _settings_of_model(flow: dict[str, Any]) -> dict[str, Any]:
    """The settings of the block that describes the model, which is added where the recipe leaves all to the defaults.

    A block's name contains its type.
    """
    for block in flow["blocks"]:
        if "model" in block["block"]:
            settings: dict[str, Any] = block["settings"]
            return settings
    flow["blocks"].append({"block": MODEL_BLOCK, "settings": {}, "style": {}})
    return _settings_of_model(flow)


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a plan by name, what is in them by ``name.part``."""
    found: dict[str, Any] = {}
    for name in plan:
        value = value_of(plan, name)
        if isinstance(value, Mapping):
            found |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            found[name] = value
    return found


def _same(is_same: bool) -> str:
    return "same" if is_same else "differs"
