"""Values pinned for a second training, and the comparison of two runs."""

from typing import Any

import pytest

from runyard.cli.resources.reproduce import (
    Comparison,
    Evidence,
    Weights,
    build_rows,
    compare,
    differences,
    list_notes,
    pin_flow,
)
from runyard.flows import validate
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import MetricPoint, Run, RunAttempt, RunSpec, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition

PLAN = {
    "batchSize": 32,
    "microBatchSize": 8,
    "learningRate": 0.003,
    "packing": True,
    "featureCache": False,
    "precision": "float32",
    "gradientCheckpointing": False,
    "compile": False,
    "seed": 3,
    "totalSteps": 3,
    "threads": 1,
    "device": "cpu",
    "versions": {"torch": "2.13.0", "numpy": "2.4"},
    "hardware": {"processor": "A", "cores": 2},
    "revision": {"commit": "c" * 40, "isDirty": False},
}
LOSSES = [2.0, 1.5, 1.25]
WEIGHTS = Weights(checkpoint="epoch-1", step=3, files={"model_full/model.safetensors": "a" * 64})


def plan_of(**changed: Any) -> dict[str, Any]:
    return {name: {"value": value, "reason": "because"} for name, value in (PLAN | changed).items()}


def run_of(
    *,
    run_id: str = "first",
    flow: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    kind: ConditionKind = ConditionKind.SUCCEEDED,
    reason: str = "Completed",
    attempts: int = 1,
) -> Run:
    return Run(
        run_id=run_id,
        spec=RunSpec(flow=validate(flow or {})),
        status=RunStatus(
            conditions=[ResourceCondition(condition=kind, reason=reason)],
            plan=plan_of() if plan is None else plan,
            attempts=[RunAttempt(attempt=number + 1) for number in range(attempts)],
        ),
    )


def evidence_of(
    run: Run | None = None,
    *,
    losses: list[float] = LOSSES,
    validation: dict[str, float] | None = None,
    weights: Weights | None = WEIGHTS,
) -> Evidence:
    def point(step: int, values: dict[str, float]) -> MetricPoint:
        return MetricPoint(step=step, epoch=0.0, time=0, attempt=1, values=values)

    points = [
        point(step, {"loss": loss, "learningRate": 0.1}) for step, loss in enumerate(losses, 1)
    ]
    measured = (
        {"validation/loss": 1.0, "validation/exactMatch": 0.5} if validation is None else validation
    )
    return Evidence(
        run=run or run_of(), points=[*points, point(len(losses), measured)], weights=weights
    )


def against(other: Evidence, *, tolerance: float | None = None) -> Comparison:
    return compare(evidence_of(), other, tolerance=tolerance)


def model_settings(flow: dict[str, Any], name: str = "vi-model") -> dict[str, Any]:
    settings: dict[str, Any]
    (settings,) = [block["settings"] for block in flow["blocks"] if block["block"] == name]
    return settings


def test_every_resolved_value_of_the_plan_is_pinned_in_the_flow() -> None:
    flow, pinned = pin_flow(run_of())
    assert model_settings(flow) == {
        "hyperparameters": {"batchSize": 32, "microBatchSize": 8, "learningRate": 0.003},
        "packing": True,
        "compute": {
            "precisionType": "float32",
            "featureCache": False,
            "gradientCheckpointing": False,
            "compile": False,
        },
        "images": {"maxPixels": None},
    }
    assert flow["settings"]["seed"] == 3
    assert {name: PLAN[name] for name in pinned} == pinned
    assert validate(flow)


def test_the_rest_of_the_flow_stays_frozen() -> None:
    given = {
        "name": "mine",
        "settings": {"priority": 5},
        "blocks": [
            {
                "block": "my-dataset",
                "settings": {"datasetVersion": "0123456789ab", "datasetId": "shelves"},
            },
            {
                "block": "my-model-7",
                "settings": {"hyperparameters": {"epochs": 2, "microBatchSize": "auto"}},
            },
        ],
    }
    run = run_of(flow=given)
    flow, _ = pin_flow(run)
    assert (flow["name"], flow["settings"]["priority"], len(flow["blocks"])) == ("mine", 5, 2)
    assert flow["blocks"][0]["settings"] == given["blocks"][0]["settings"]  # type: ignore[index]
    numbers = model_settings(flow, "my-model-7")["hyperparameters"]
    assert (numbers["epochs"], numbers["microBatchSize"]) == (2, 8)
    before = run.spec.flow.blocks[1].settings["hyperparameters"]
    assert before == {"epochs": 2, "microBatchSize": "auto"}  # the run itself is not changed


def test_a_micro_batch_that_does_not_divide_the_batch_cannot_be_pinned() -> None:
    _, pinned = pin_flow(run_of(plan=plan_of(batchSize=15, microBatchSize=2)))
    assert "microBatchSize" not in pinned
    assert pinned["batchSize"] == 15


@pytest.mark.parametrize(
    ("given", "planned", "expected"),
    [
        (None, {}, None),  # auto set no limit then
        ("auto", {"maxPixels": 1_200_000}, 1_200_000),
        ("auto", {"maxPixels": None}, None),
        (500_000, {"maxPixels": 500_000}, 500_000),
        (500_000, {}, 500_000),
    ],
)
def test_a_limit_on_pixels_is_the_one_of_the_plan(
    given: Any, planned: dict[str, Any], expected: int | None
) -> None:
    images = {} if given is None else {"maxPixels": given}
    flow, _ = pin_flow(
        run_of(
            flow={"blocks": [{"block": "vi-model", "settings": {"images": images}}]},
            plan=plan_of(**planned),
        )
    )
    assert model_settings(flow)["images"]["maxPixels"] == expected
    assert validate(flow)


def test_notes_list_obstacles_to_reproducing_a_run() -> None:
    assert list_notes(run_of()) == []
    cut = plan_of(device="cuda", revision={"commit": "c" * 40, "isDirty": True})
    cut["microBatchSize"]["reason"] = "8 was too much for the memory before"
    notes = list_notes(
        run_of(
            flow={"settings": {"timeLimitMinutes": 3}},
            plan=cut,
            kind=ConditionKind.CANCELLED,
            reason="KilledByUser",
            attempts=3,
        )
    )
    expected = (
        "Cancelled, KilledByUser",
        "3 attempts",
        "lack of memory",
        "uncommitted changes",
        "timeLimitMinutes",
        "--tolerance",
    )
    assert len(notes) == len(expected)
    assert all(word in note for word, note in zip(expected, notes, strict=True))
    assert "did not record" in list_notes(run_of(plan={"seed": {"value": 3, "reason": "flow"}}))[0]


def test_differences_of_plans_are_named_to_the_part() -> None:
    other = plan_of(versions={"torch": "2.14.0", "numpy": "2.4"}, threads=2, revision=None)
    found = [
        (item.name, item.original, item.reproduction) for item in differences(plan_of(), other)
    ]
    assert (
        found
        == [
            ("threads", 1, 2),
            ("versions.torch", "2.13.0", "2.14.0"),
            ("revision.commit", "c" * 40, None),
            ("revision.isDirty", False, None),
            ("revision", None, None),
        ][:-1]
    )
    assert differences(plan_of(), plan_of()) == []


def test_runs_that_agree_in_everything_are_identical() -> None:
    found = against(evidence_of(run_of(run_id="second", attempts=3)))
    assert (found.verdict, found.words, found.are_weights_same) == ("identical", "identical", True)
    assert (found.first_different, found.differences, found.steps) == (None, [], (3, 3))
    assert {row[3] for row in build_rows(found)} == {"", "same"}


def test_the_first_and_the_largest_difference_are_reported() -> None:
    found = against(evidence_of(losses=[2.0, 1.5625, 1.5]))
    assert found.verdict == "different"
    assert found.first_different is not None and found.largest is not None
    assert (found.first_different.step, found.first_different.original) == (2, 1.5)
    assert (found.largest.step, found.largest.size) == (3, 0.25)
    assert (
        "losses",
        "1.5",
        "1.5625",
        "differ from step 2 on, by up to 0.25 at step 3",
    ) in build_rows(found)


@pytest.mark.parametrize(
    ("tolerance", "verdict", "words"),
    [
        (None, "different", "different"),
        (0.125, "different", "different"),
        (0.25, "equal", "equal within 0.25"),
    ],
)
def test_losses_within_a_stated_tolerance_are_equal(
    tolerance: float | None, verdict: str, words: str
) -> None:
    other = Weights(checkpoint="epoch-1", step=3, files={"model_full/model.safetensors": "b" * 64})
    measured = {"validation/loss": 1.25, "validation/exactMatch": 0.25}
    found = against(
        evidence_of(losses=[2.0, 1.5, 1.125], validation=measured, weights=other),
        tolerance=tolerance,
    )
    assert (found.verdict, found.words, found.are_weights_same) == (verdict, words, False)


@pytest.mark.parametrize(
    "other",
    [
        evidence_of(
            weights=Weights(
                checkpoint="epoch-1", step=3, files={"model_full/model.safetensors": "b" * 64}
            )
        ),
        evidence_of(weights=Weights(checkpoint="epoch-1", step=2, files=WEIGHTS.files)),
        evidence_of(weights=None),
        evidence_of(validation={"validation/loss": 1.0, "validation/exactMatch": 0.25}),
        evidence_of(run_of(kind=ConditionKind.FAILED, reason="OutOfMemory")),
        evidence_of(losses=LOSSES[:2]),
        evidence_of(losses=[]),
    ],
    ids=[
        "weights",
        "step of the weights",
        "no weights",
        "evaluation",
        "ending",
        "fewer steps",
        "no steps",
    ],
)
def test_a_difference_in_any_part_is_reported(other: Evidence) -> None:
    found = against(other)
    assert found.verdict == "different"
    assert not {row[3] for row in build_rows(found)} <= {"", "same"}


def test_fewer_steps_are_not_equal_at_any_tolerance() -> None:
    assert against(evidence_of(losses=LOSSES[:2]), tolerance=100.0).verdict == "different"


def test_runs_without_a_checkpoint_are_identical_when_all_else_agrees() -> None:
    diverged = run_of(kind=ConditionKind.FAILED, reason="Diverged")
    assert (
        compare(evidence_of(diverged, weights=None), evidence_of(diverged, weights=None)).verdict
        == "identical"
    )


def test_a_step_taken_again_by_a_later_attempt_counts_as_that_one_took_it() -> None:
    points = [
        MetricPoint(step=step, epoch=0.0, time=0, attempt=attempt, values={"loss": loss})
        for step, attempt, loss in [(1, 1, 2.0), (2, 1, 9.0), (2, 2, 1.5)]
    ]
    assert Evidence(run=run_of(), points=points, weights=None).losses == {1: 2.0, 2: 1.5}


def test_an_empty_flow_is_valid() -> None:
    flow, _ = pin_flow(Run(spec=RunSpec(flow=FlowSpec()), status=RunStatus(plan=plan_of())))
    assert [block["block"] for block in flow["blocks"]] == ["vi-model"]
