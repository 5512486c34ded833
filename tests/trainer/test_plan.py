"""The plan's decisions, without a training."""

from typing import Any

import pytest

from runyard.flows import resolve
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.plan import Hardware, Plan, Sizes, make_plan
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

MACHINE = Hardware(
    device="cpu",
    device_name="CPU",
    has_good_bfloat16=False,
    threads=1,
    versions={},
    revision=None,
    hardware={},
)


def make_metric_plan(
    metric: str, *, dataset: str, tasks: list[str], measured: int | None = None
) -> Plan:
    settings: dict[str, Any] = {
        "checkpoint": {"metric": metric},
        "validation": {"maxSamples": measured},
    }
    blocks = [FlowBlock("vi-dataset", {"datasetId": dataset}), FlowBlock("vi-model", settings)]
    sizes = Sizes(
        training_samples=64,
        validation_samples=len(tasks),
        longest_answer=8,
        cache_bytes=0,
        parameters=1,
        trainable_parameters=1,
        tasks=tasks,
    )
    return make_plan(resolve(FlowSpec(blocks=blocks)), MACHINE, sizes)


@pytest.mark.parametrize(
    "metric", ["exactMatch", "validation/anls", "accuracyAt50", "iou", "wellFormed", "loss"]
)
def test_any_metric_that_is_measured_may_decide(metric: str) -> None:
    plan = make_metric_plan(metric, dataset="digits-both", tasks=["phrase-grounding", "vqa"])
    assert plan.metric == metric.removeprefix("validation/")


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are() -> None:
    both = ["phrase-grounding", "vqa"]
    with pytest.raises(
        InvalidFlow,
        match=r"'cider' is not measured for phrase-grounding and vqa; .*exactMatch.*iou",
    ):
        make_metric_plan("cider", dataset="digits-both", tasks=both)
    with pytest.raises(
        InvalidFlow, match="'exactMatch' is not measured for phrase-grounding; try: accuracyAt50"
    ):
        make_metric_plan("exactMatch", dataset="digits-both", tasks=both, measured=1)
    with pytest.raises(InvalidFlow, match="'iou' is not measured for vqa"):
        make_metric_plan("iou", dataset="digits", tasks=["vqa", "vqa"])
