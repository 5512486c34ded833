"""The finding of a run that has learned nothing: when there is one, and what it says."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runyard.flows import ResolvedFlow, resolve, validate
from runyard.rundir import read_json
from runyard.trainer.evaluation.findings import (
    Comparison,
    explain_nothing_learned,
    list_suggestions,
    summarize,
)
from runyard.trainer.main import train_attempt
from runyard.trainer.plan import Plan
from vi.api.responses import RunFinding

EventsOf = Callable[[Path, str], list[dict[str, Any]]]


def compare(
    best: float, reference: float, *, metric: str = "exactMatch", **more: Any
) -> Comparison:
    return Comparison(metric=metric, best=best, reference=reference, **{"samples": 200} | more)


def resolve_flow(flow: dict[str, Any]) -> ResolvedFlow:
    return resolve(validate(flow))


def explain(
    found: Comparison, *, model: dict[str, Any] | None = None, steps: int = 5000, **values: Any
) -> RunFinding:
    """Return the finding of a flow with these settings, on uploaded data."""
    flow = resolve_flow(
        {"name": "Receipts", "blocks": [{"block": "vi-model", "settings": model or {}}]}
    )
    document = {
        name: {"value": value, "reason": "built in" if value == "digits" else "flow"}
        for name, value in values.items()
    }
    plan = SimpleNamespace(
        total_steps=steps, document={"trainingSamples": {"value": 1800}, **document}
    )
    return explain_nothing_learned(found, flow, cast(Plan, plan))


@pytest.mark.parametrize(
    ("found", "has_learned"),
    [
        (compare(0.5, 0.5), False),
        (compare(0.4, 0.5), False),
        (compare(0.02, 0.01), False),  # the best of many evaluations has two answers more by luck
        (compare(0.06, 0.01), True),
        (compare(1.0, 0.99, samples=20), True),
        (compare(0.0, 0.0), False),
        (compare(0.31, 0.3, metric="iou"), True),
        (compare(2.0, 3.0, metric="loss", is_smaller_better=True), True),
        (compare(2.99, 3.0, metric="loss", is_smaller_better=True), False),
        (compare(3.5, 3.0, metric="loss", is_smaller_better=True), False),
    ],
)
def test_a_metric_must_beat_what_needs_no_learning(found: Comparison, has_learned: bool) -> None:
    assert found.has_learned is has_learned


def test_the_finding_has_both_numbers_a_cause_and_three_settings_to_change() -> None:
    found = compare(0.02, 0.015)
    finding = explain(found)
    assert finding.code == "NothingLearned"
    for words in ("nothing was learned", "0.02", "0.015", "chance", "200", "become 32 x 32"):
        assert words in finding.message
    settings = [suggestion.setting for suggestion in finding.suggestions]
    assert settings[0] == "vi-model.architecture.weights"
    assert len(set(settings)) == 3
    assert summarize(found) == "nothing was learned (best exactMatch 0.02, constant answers 0.015)"


def test_the_loss_is_compared_with_that_before_the_first_step() -> None:
    found = compare(3.5, 3.0, metric="loss", is_smaller_better=True)
    assert "before the first step it was 3" in explain(found).message
    assert "before the first step 3" in summarize(found)


@pytest.mark.parametrize(
    ("settings", "more", "cause"),
    [
        ({"architecture": {"weights": "base:a"}}, {}, "vision encoder is frozen"),
        (
            {"hyperparameters": {"learningRate": 1e-9}},
            {"dataset": "digits"},
            "learning rate of 1e-09",
        ),
        ({"architecture": {"weights": "base:a"}}, {"steps": 10}, "only 10 steps"),
        (
            {"architecture": {"weights": "base:a"}},
            {"trainingSamples": 9},
            "only 9 training samples",
        ),
        (
            {"architecture": {"weights": "base:a"}, "training": {"mode": "full"}},
            {"maxPixels": 100},
            "does not show",
        ),
    ],
)
def test_a_real_model_has_other_causes_and_suggestions(
    settings: dict[str, Any], more: dict[str, Any], cause: str
) -> None:
    finding = explain(compare(0.1, 0.1), model=settings, **more)
    assert cause in finding.message
    assert "32 x 32" not in finding.message
    assert len({each.setting for each in finding.suggestions}) == 3


def test_every_suggested_value_is_one_that_a_flow_accepts() -> None:
    for model in ({}, {"architecture": {"weights": "base:a"}, "hyperparameters": {"maxSteps": 7}}):
        blocks = [
            {"block": "vi-dataset", "settings": {"maxSamples": 50}},
            {"block": "vi-model", "settings": model},
        ]
        flow = resolve_flow({"name": "a", "blocks": blocks})
        plan = SimpleNamespace(total_steps=7, document={"maxPixels": {"value": 1000}})
        for suggestion in list_suggestions(flow, cast(Plan, plan)):
            block, *names = str(suggestion.setting).split(".")
            value: Any = suggestion.value
            for name in reversed(names):
                value = {name: value}
            resolve_flow({"name": "b", "blocks": [{"block": block, "settings": value}]})


def write_blocks(*, steps: int, **model: Any) -> dict[str, dict[str, Any]]:
    numbers = {"maxSteps": steps, "learningRate": 1e-9}
    validation = {"maxSamples": 16, "beforeTraining": True}
    model = {"hyperparameters": numbers, "validation": validation} | model
    return {"vi-dataset": {"maxSamples": 64}, "vi-model": model}


@pytest.mark.train
@pytest.mark.parametrize("metric", ["exactMatch", "loss"])
def test_a_run_that_learns_nothing_succeeds_and_says_so(
    metric: str, make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    folder = make_attempt(write_blocks(steps=2, checkpoint={"metric": metric}))
    assert train_attempt(folder) == 0
    result = read_json(folder / "result.json")
    assert result is not None
    assert result["outcome"] == "Succeeded"
    assert result["message"].startswith("2 steps; nothing was learned (best ")
    [finding] = result["findings"]
    [event] = events_of(folder, "finding")
    assert {name: event[name] for name in finding} == finding
    assert len(finding["suggestions"]) == 3
    known = events_of(folder, "evaluation")[0]["values"]
    reference = known["validation/loss" if metric == "loss" else "baseline/exactMatch"]
    assert f"{reference:.4g}" in finding["message"]


@pytest.mark.train
def test_without_an_evaluation_before_training_the_baseline_is_scored_at_the_end(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    validation = {"maxSamples": 16, "beforeTraining": False}
    folder = make_attempt(write_blocks(steps=2, validation=validation))
    assert train_attempt(folder) == 0
    [event] = events_of(folder, "finding")
    assert "constant answers" in event["message"]
    plain = make_attempt(
        write_blocks(steps=2, validation=validation, checkpoint={"metric": "loss"}), run="plain"
    )
    assert train_attempt(plain) == 0
    assert events_of(plain, "finding") == []  # there is nothing to compare with
    assert "findings" not in json.loads((plain / "result.json").read_text())
