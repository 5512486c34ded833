"""Flows that name several datasets."""

from typing import Any

import pytest

from runyard.flows import FlowProblems, resolve, validate


def make_flow(**settings: Any) -> dict[str, Any]:
    return {"blocks": [{"block": "vi-dataset", "settings": settings}]}


def test_a_mixture_and_a_validation_dataset_resolve() -> None:
    flow = make_flow(
        datasetId="shelves",
        weight=3,
        mixture=[{"datasetId": "receipts", "weight": 1, "datasetVersion": "v1"}],
        validationDataset={"datasetId": "held"},
        validationFraction=0,
    )
    dataset = resolve(validate(flow)).dataset
    assert (dataset.weight, dataset.mixture[0].weight) == (3, 1)
    assert dataset.mixture[0].dataset_version == "v1"
    assert dataset.validation_dataset is not None
    assert dataset.validation_dataset.dataset_id == "held"
    assert dataset.holds_out


@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        ({"weight": 2}, "/weight", "mixture names no other dataset"),
        ({"mixture": [{"datasetId": "b", "weight": 1}]}, "/weight", "each of them one, or none"),
        (
            {"weight": 1, "mixture": [{"datasetId": "b"}]},
            "/mixture/0/weight",
            "each of them one, or none",
        ),
        ({"mixture": [{"datasetId": "a"}]}, "/mixture/0/datasetId", "may occur once"),
        (
            {"mixture": [{"datasetId": "b"}, {"datasetId": "b"}]},
            "/mixture/1/datasetId",
            "may occur once",
        ),
        (
            {"mixture": [{"datasetId": "b"}], "validationDataset": {"datasetId": "b"}},
            "/validationDataset/datasetId",
            "may occur once",
        ),
        ({"mixture": [{"datasetId": "digits"}]}, "/mixture/0/datasetId", "built in"),
        ({"datasetId": "digits", "mixture": [{"datasetId": "b"}]}, "/datasetId", "built in"),
        ({"mixture": [{"weight": 1}]}, "/mixture/0/datasetId", "is missing"),
        ({"mixture": [{"datasetId": "b", "weight": 0}]}, "/mixture/0/weight", "above 0"),
        ({"mixture": [{"datasetId": "b", "wieght": 1}]}, "/mixture/0/wieght", "weight"),
        ({"mixture": [{"datasetId": str(n)} for n in range(16)]}, "/mixture", "15"),
        ({"validationDataset": "b"}, "/validationDataset", "object"),
    ],
)
def test_a_mistake_in_a_mixture_is_reported_at_its_path(
    settings: dict[str, Any], place: str, words: str
) -> None:
    with pytest.raises(FlowProblems) as found:
        resolve(validate(make_flow(**({"datasetId": "a"} | settings))))
    problem = found.value.problems[0]
    assert problem.path == f"/blocks/0/settings{place}"
    assert words in problem.message


def test_the_dataset_of_a_training_project_may_be_mixed() -> None:
    flow = make_flow(mixture=[{"datasetId": "receipts"}]) | {"trainingProject": "p1"}
    assert resolve(validate(flow)).dataset.mixture[0].dataset_id == "receipts"
