"""Check a flow without saving it: every problem, or what a run of it would do.

The problems are those that the creation of a run reports. The plan has what the server knows before
a machine has opened data and model, in the form of the run's own plan. Nothing is written.
"""

import math
from collections.abc import Sequence
from typing import Any

from runyard.flows import FlowProblems, Problem, ResolvedFlow, resolve
from runyard.flows.memory import choose_micro_batch, count_parameters, uses_gradient_checkpointing
from runyard.flows.tiny import describe_tiny_images, find_tiny_images, get_image_size
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import accelerators, references
from runyard.server.services.runs.dataset_references import (
    UsedDataset,
    check_datasets,
    fill_in_dataset,
)
from vi.api.resources.flows.responses import Flow, FlowCheck, FlowProblem

# Samples that a model trains on, by built-in dataset, before any are held out.
BUILT_IN_SAMPLES = {"digits": 1797}


async def check(
    services: Services, *, org: str, flow: object, training_project: str | None = None
) -> FlowCheck:
    """Return the problems of a flow; if there are none, its plan and whether it fits in memory."""
    try:
        spec = references.check_flow(services, org, flow, training_project=training_project)
        await references.check_base_model(services, spec)
        project = training_project or spec.training_project
        spec = fill_in_dataset(spec, references.find_dataset(services, org, project))
        used = check_datasets(services, org, spec)
        resolved = resolve(spec, dataset_kind=used[0].row.type if used else None)
    except (FlowProblems, Refusal) as error:
        if isinstance(error, Refusal) and error.code != "InvalidFlow":
            raise
        return FlowCheck(problems=[_to_document(problem) for problem in error.problems])
    memory = await accelerators.list_for_resolved(services, org, resolved, Flow(spec=spec))
    finding = find_tiny_images(resolved, is_uploaded=bool(used))
    return FlowCheck(
        plan=build_plan(resolved, used),
        memory=memory,
        findings=[] if finding is None else [finding],
    )


def build_plan(flow: ResolvedFlow, used: Sequence[UsedDataset]) -> dict[str, dict[str, Any]]:
    """Return what a run would do, each number with its reason.

    ``used`` are the uploaded datasets, the flow's own first.
    """
    plan: dict[str, dict[str, Any]] = {}
    numbers = flow.model.hyperparameters

    def note(name: str, value: Any, reason: str) -> None:
        plan[name] = {"value": value, "reason": reason}

    if not used:
        note("dataset", flow.dataset.dataset_id, "built in")
    for index, each in enumerate(used):
        name = "validationDataset" if each.is_held_out else f"mixedDataset{index}"
        note(name if index else "dataset", each.row.name, _describe_share(flow, used, index))
    note("task", flow.task, "of the dataset" if used else "of the built-in dataset")
    weights = flow.model.architecture.weights
    note("weights", weights or ("tiny" if flow.is_tiny else "the family's usual weights"), "flow")
    if flow.is_tiny:
        note("images", get_image_size(flow.task), describe_tiny_images(flow.task))
    note("trainingMode", flow.model.training.mode, "flow")
    parameters = count_parameters(flow)
    if parameters is not None:
        note("parameters", parameters, "by the name or size of the model")
        note(
            "gradientCheckpointing",
            uses_gradient_checkpointing(flow, parameters),
            f"{parameters:,} parameters",
        )
    note("epochs", numbers.epochs, "flow")
    note("batchSize", numbers.batch_size, "samples per optimizer step")
    note("microBatchSize", *choose_micro_batch(flow, on_cpu=False))
    samples = _count_training_samples(flow, used)
    if samples is not None:
        note("trainingSamples", samples, f"about {1 - _get_held_out_share(flow):.0%} of all")
        steps = math.ceil(samples / numbers.batch_size) * numbers.epochs
        reason = f"about: {numbers.epochs} epochs of {samples:,} samples"
        if numbers.max_steps is not None and numbers.max_steps < steps:
            steps, reason = numbers.max_steps, "maxSteps"
        note("totalSteps", steps, reason)
    schedule = numbers.schedule
    note("learningRate", numbers.learning_rate, f"{schedule.name} to {schedule.min_factor:g} of it")
    note("optimizer", numbers.optimizer.name, "flow")
    note("seed", flow.settings.seed, "flow")
    return plan


def _describe_share(flow: ResolvedFlow, used: Sequence[UsedDataset], index: int) -> str:
    """Return the images of a dataset, and its share of the samples in an epoch if it has weight."""
    images = f"{used[index].row.asset_count:,} images"
    weights = [flow.dataset.weight, *(each.weight for each in flow.dataset.mixture)]
    if used[index].is_held_out:
        return f"{images}, held out"
    if (weight := weights[index]) is None:
        return images
    return f"{images}, {weight / sum(filter(None, weights)):.1%} of the samples"


def _get_held_out_share(flow: ResolvedFlow) -> float:
    """Return the share of the training datasets that is held out."""
    return 0 if flow.dataset.validation_dataset is not None else flow.dataset.validation_fraction


def _count_training_samples(flow: ResolvedFlow, used: Sequence[UsedDataset]) -> int | None:
    total = sum(int(each.row.record_count) for each in used if not each.is_held_out)
    if not used:
        total = BUILT_IN_SAMPLES.get(flow.dataset.dataset_id, 0)
    return round(total * (1 - _get_held_out_share(flow))) or None


def _to_document(problem: Problem) -> FlowProblem:
    return FlowProblem(
        path=problem.path, given=problem.given, allowed=problem.allowed, message=problem.message
    )
