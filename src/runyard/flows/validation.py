"""The two doors of the recipe language: ``validate`` at the server, ``resolve`` before training.

A flow is checked in two passes: first each value by itself, all of them, then, if every value is sound, the ones that
must fit together. Whether a dataset, project or registered model exists is for those who have a database.
"""

import re
from typing import Any

import msgspec

from runyard.flows.blocks import (
    BLOCKS,
    BUILT_IN_DATASETS,
    FRAGMENTS,
    TASKS,
    TINY,
    Every,
    FlowShape,
)
from runyard.flows.checks import check_is_json, check_of, nearest
from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.problems import Findings, in_words
from runyard.flows.recipe import Recipe, complete
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

RUN_WEIGHTS = re.compile(r"run:[A-Za-z0-9][A-Za-z0-9._-]{0,127}/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def validate(flow: object) -> FlowSpec:
    """Check a flow as it came from outside and fill what the wire may not lack: name, schema, settings, styles.

    Raises:
        FlowProblems: the flow cannot run; it holds every problem found.
    """
    findings = Findings()
    checked, kinds = _checked(flow, findings)
    findings.raise_if_any()
    _recipe(checked, kinds, findings)
    findings.raise_if_any()
    return FlowSpec(
        name=checked["name"],
        schema=checked["schema"],
        blocks=[FlowBlock(**block) for block in checked["blocks"]],
        settings=checked["settings"],
        tolerations=checked["tolerations"],
        training_project=checked.get("trainingProject"),
    )


def resolve(flow: FlowSpec, *, dataset_kind: str | None = None, dataset_id: str | None = None) -> Recipe:
    """The complete recipe of a flow.

    ``dataset_id`` is the training project's dataset, taken when the flow names none; ``dataset_kind`` is the task that
    the dataset was made for, where somebody knows it.

    Raises:
        FlowProblems: the flow cannot run, or not with a dataset of that kind.
    """
    findings = Findings()
    checked, kinds = _checked(flow, findings)
    findings.raise_if_any()
    recipe = _recipe(checked, kinds, findings, dataset_kind=dataset_kind, dataset_id=dataset_id)
    findings.raise_if_any()
    return recipe


def _checked(flow: object, findings: Findings) -> tuple[dict[str, Any], dict[str, int]]:
    """The flow with gaps filled, and where each block type stands; worthless if there are findings."""
    if isinstance(flow, FlowSpec):
        flow = msgspec.to_builtins(flow)
    check_is_json(flow, findings)
    if isinstance(flow, dict) and "training_project" in flow and "trainingProject" not in flow:
        # The published client sends a dict as it was written, and its own help writes this one in snake_case.
        flow = {("trainingProject" if name == "training_project" else name): value for name, value in flow.items()}
    checked = check_of(FlowShape).walk(flow, "", findings)
    if not isinstance(checked, dict):
        return {}, {}
    checked = {"name": "Untitled", "schema": "v1", "tolerations": {}, "settings": {}, "blocks": []} | checked
    kinds = _check_blocks(checked["blocks"], findings) if isinstance(checked["blocks"], list) else {}
    return checked, kinds


def _check_blocks(blocks: list[Any], findings: Findings) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for index, block in enumerate(blocks):
        path = f"/blocks/{index}"
        if not isinstance(block, dict):
            continue
        block.setdefault("settings", {})
        block.setdefault("style", {})
        kind = _kind_of(block.get("block"), f"{path}/block", findings)
        if kind is None:
            continue
        if kind in kinds:
            findings.add(
                f"{path}/block",
                block["block"],
                "each type of block at most once",
                message=f"{path}/block is a second {kind}; the first is /blocks/{kinds[kind]}. Remove one of them.",
            )
            continue
        kinds[kind] = index
        if isinstance(block["settings"], dict):
            block["settings"] = check_of(BLOCKS[kind]).walk(block["settings"], f"{path}/settings", findings)
    return kinds


def _kind_of(name: object, path: str, findings: Findings) -> str | None:
    """The block type that a name contains; the published client finds blocks in the same way."""
    known = ", ".join(BLOCKS)
    if name is None:
        findings.add(path, None, f"one of {known}", message=f"{path} is missing; name the block one of {known}.")
        return None
    if not isinstance(name, str):
        return None
    found = [kind for fragment, kind in FRAGMENTS.items() if fragment in name]
    if len(found) == 1:
        return found[0]
    if found:
        hint = f"could be {' or '.join(found)}; write one of them."
    elif suggestion := nearest(name, BLOCKS):
        hint = f"is not a known block; did you mean {suggestion}?"
    else:
        hint = f"is not a known block; known are {known}."
    findings.add(path, name, f"one of {known}", message=f"{path} {in_words(name)} {hint}")
    return None


def _recipe(
    checked: dict[str, Any],
    kinds: dict[str, int],
    findings: Findings,
    *,
    dataset_kind: str | None = None,
    dataset_id: str | None = None,
) -> Recipe:
    blocks = checked["blocks"]
    settings_of = {kind: blocks[index]["settings"] for kind, index in kinds.items()}
    if dataset_kind is not None and dataset_kind not in TASKS:
        findings.add("/blocks", dataset_kind, f"a dataset of kind {', '.join(TASKS)}")
        dataset_kind = None
    recipe = complete(checked, settings_of, dataset_kind=dataset_kind, dataset_id=dataset_id)
    at = {kind: f"/blocks/{kinds[kind]}/settings" if kind in kinds else "/blocks" for kind in BLOCKS}
    _check_task(recipe, at["vi-dataset"], dataset_kind, findings)
    _check_architecture(recipe, at["vi-model"], findings)
    _check_training(recipe, at["vi-model"], findings)
    _check_numbers(recipe, at["vi-model"], findings)
    return recipe


def _check_task(recipe: Recipe, at: str, dataset_kind: str | None, findings: Findings) -> None:
    dataset = recipe.dataset
    kind = BUILT_IN_DATASETS.get(dataset.dataset_id, dataset_kind)
    if kind is not None and dataset.project_kind != kind:
        findings.add(
            f"{at}/projectKind",
            dataset.project_kind,
            f'"{kind}"',
            message=f"{at}/projectKind is {dataset.project_kind}, but dataset {dataset.dataset_id} is of kind {kind}.",
        )


def _check_architecture(recipe: Recipe, at: str, findings: Findings) -> None:
    given = recipe.model.architecture
    at = f"{at}/architecture"
    family = FAMILIES.get(given.name)
    if family is None and given.name != AUTO:
        suggestion = nearest(given.name, FAMILIES)
        findings.add(
            f"{at}/name",
            given.name,
            f"auto or one of {', '.join(FAMILIES)}",
            message=f"{at}/name {given.name} is not a known family"
            + (f"; did you mean {suggestion}?" if suggestion else f"; known are {', '.join(FAMILIES)}."),
        )
    elif given.weights is not None:
        if given.weights.startswith("run:") and not RUN_WEIGHTS.fullmatch(given.weights):
            findings.add(f"{at}/weights", given.weights, "run:RUN_ID/CHECKPOINT, such as run:RUN_ID/best")
    elif given.size == TINY:
        if given.name != "idefics3":
            findings.add(
                f"{at}/size",
                given.size,
                "a size of the family",
                message=f"{at}/size tiny is built in for the family idefics3 alone; "
                f"for {given.name} take one of {', '.join(family.sizes if family else ())}.",
            )
    elif family is None:
        findings.add(
            f"{at}/name",
            given.name,
            "a family, while no weights are given",
            message=f"{at}/name auto takes the family from the weights; give architecture.weights or name a family.",
        )
    elif given.size not in family.sizes:
        findings.add(
            f"{at}/size",
            given.size,
            f"one of {', '.join(family.sizes)}, or any size with architecture.weights",
            message=f"{at}/size {given.size} is not a usual size of {given.name} ({', '.join(family.sizes)}); "
            "take one of these or give architecture.weights.",
        )


def _check_training(recipe: Recipe, at: str, findings: Findings) -> None:
    model = recipe.model
    if model.training.mode == "full" and model.quantization.enabled:
        findings.add(
            f"{at}/quantization/enabled",
            True,
            "false while training.mode is full",
            message=f"{at}/quantization/enabled is true, but 4-bit weights cannot be trained in full; "
            "set training.mode to lora.",
        )
    if model.training.mode == "full" and len(set(model.training.freeze)) == 3:
        findings.add(
            f"{at}/training/freeze",
            model.training.freeze,
            "at most two of vision, projector, language while training.mode is full",
            message=f"{at}/training/freeze freezes every part, so there is nothing to train; leave one out.",
        )
    if model.validation.early_stopping is not None and recipe.dataset.validation_fraction == 0:
        findings.add(
            f"{at}/validation/earlyStopping",
            {},
            "null while validationFraction is 0",
            message=f"{at}/validation/earlyStopping needs held-out data, but validationFraction is 0.",
        )


def _check_numbers(recipe: Recipe, at: str, findings: Findings) -> None:
    model = recipe.model
    micro, batch = model.hyperparameters.micro_batch_size, model.hyperparameters.batch_size
    if isinstance(micro, int) and batch % micro:
        findings.add(
            f"{at}/hyperparameters/microBatchSize",
            micro,
            f"a divisor of batchSize {batch}",
            message=f"{at}/hyperparameters/microBatchSize is {micro}, which does not divide batchSize {batch}.",
        )
    low, high = model.images.min_pixels, model.images.max_pixels
    if isinstance(low, int) and isinstance(high, int) and low > high:
        findings.add(f"{at}/images/minPixels", low, f"at most maxPixels {high}")
    for part, every in (("checkpoint", model.checkpoint.every), ("validation", model.validation.every)):
        if isinstance(every, Every) and (every.steps is None) == (every.minutes is None):
            findings.add(f"{at}/{part}/every", msgspec.to_builtins(every), "exactly one of steps and minutes")
