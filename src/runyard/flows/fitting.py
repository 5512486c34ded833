"""What must fit together across the fields of a recipe.

Each rule looks at the complete recipe and speaks only if every value it reads was sound by itself: a mistake in one
field must not be told a second time as a misfit with another.
"""

from collections.abc import Mapping

import msgspec

from runyard.flows.blocks import BUILT_IN_DATASETS, TINY, Every
from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.problems import Findings
from runyard.flows.recipe import Recipe
from runyard.flows.weights import FORMS, form_of

# Fields of ``settings.resources``: what may stand there, why no more, and what to do instead.
UNSUPPORTED = {
    "accelerators": (
        "null",
        "a run gets the accelerator of its slot, or the processor where the machine has none",
        'leave it out, and choose machines by kind with tolerations, such as {"accelerator": ["h100"]}',
    ),
    "cpus": (
        "null",
        "the cores of a machine are shared equally among its slots",
        "leave it out, and set RUNYARD_THREADS or RUNYARD_SLOTS on the machine",
    ),
    "memoryGiB": (
        "null",
        "machines do not reserve memory for runs",
        "leave it out, and set RUNYARD_SLOTS so that the machine's runs fit into its memory together",
    ),
    "workers": ("1", "one process trains a run", "leave it out or set it to 1"),
}


def check_across(
    recipe: Recipe, at: Mapping[str, str], faults: Findings, *, dataset_kind: str | None = None
) -> Findings:
    """Every misfit. ``at`` tells where the settings of each block type stand, ``faults`` what is wrong by itself."""
    findings = Findings()
    dataset, model = at["vi-dataset"], at["vi-model"]
    architecture, training = f"{model}/architecture", f"{model}/training"
    if faults.has_none_at(f"{dataset}/datasetId", f"{dataset}/projectKind"):
        _check_task(recipe, dataset, dataset_kind, findings)
    if faults.has_none_at(architecture):
        _check_architecture(recipe, architecture, findings)
    if faults.has_none_at(architecture, f"{training}/mode", f"{model}/quantization"):
        _check_quantization(recipe, f"{model}/quantization", findings)
    if faults.has_none_at(architecture, f"{training}/mode", f"{training}/freeze"):
        _check_freeze(recipe, f"{training}/freeze", findings)
    if faults.has_none_at(f"{model}/validation/earlyStopping", f"{dataset}/validationFraction"):
        _check_early_stopping(recipe, f"{model}/validation/earlyStopping", findings)
    numbers = f"{model}/hyperparameters"
    if faults.has_none_at(architecture, f"{numbers}/batchSize", f"{numbers}/microBatchSize"):
        _check_batches(recipe, numbers, findings)
    if faults.has_none_at(f"{model}/images"):
        _check_images(recipe, f"{model}/images", findings)
    for part, every in (("checkpoint", recipe.model.checkpoint.every), ("validation", recipe.model.validation.every)):
        if faults.has_none_at(f"{model}/{part}/every"):
            _check_every(every, f"{model}/{part}/every", findings)
    return findings


def check_supported(recipe: Recipe) -> Findings:
    """Every known field that asks for what no part of Runyard does yet: rejected, since ignoring it would be silent."""
    findings = Findings()
    resources = recipe.settings.resources
    for name, given in (
        ("accelerators", resources.accelerators),
        ("cpus", resources.cpus),
        ("memoryGiB", resources.memory_gib),
        ("workers", resources.workers if resources.workers > 1 else None),
    ):
        if given is not None:
            at = f"/settings/resources/{name}"
            allowed, reason, remedy = UNSUPPORTED[name]
            message = f"{at} is {given:g}, which is not supported yet: {reason}; try: {remedy}."
            findings.add(at, given, allowed, message=message)
    return findings


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
    if given.weights is not None:
        if form_of(given.weights) is None:
            findings.add(f"{at}/weights", given.weights, FORMS)
        return
    if given.name == AUTO:
        findings.add(
            f"{at}/name",
            given.name,
            "a family, while no weights are given",
            message=f"{at}/name auto takes the family from the weights; give architecture.weights or name a family.",
        )
        return
    sizes = FAMILIES[given.name].sizes
    if given.size == TINY and given.name != "idefics3":
        findings.add(
            f"{at}/size",
            given.size,
            f"one of {', '.join(sizes)}",
            message=f"{at}/size tiny is built in for the family idefics3 alone; "
            f"for {given.name} take one of {', '.join(sizes)}.",
        )
    elif given.size != TINY and given.size not in sizes:
        findings.add(
            f"{at}/size",
            given.size,
            f"one of {', '.join(sizes)}, or any with architecture.weights",
            message=f"{at}/size {given.size} is not a usual size of {given.name} ({', '.join(sizes)}); "
            "take one of these or give architecture.weights.",
        )


def _check_quantization(recipe: Recipe, at: str, findings: Findings) -> None:
    if recipe.model.training.mode == "full" and recipe.model.quantization.enabled:
        findings.add(
            f"{at}/enabled",
            True,
            "false while training.mode is full",
            message=f"{at}/enabled is true, but 4-bit weights cannot be trained in full; set training.mode to lora.",
        )


def _check_freeze(recipe: Recipe, at: str, findings: Findings) -> None:
    training = recipe.model.training
    if training.mode == "full" and len(set(training.freeze)) == 3:
        findings.add(
            at,
            training.freeze,
            "at most two of vision, projector, language while training.mode is full",
            message=f"{at} freezes every part, so there is nothing to train; leave one out.",
        )


def _check_early_stopping(recipe: Recipe, at: str, findings: Findings) -> None:
    if recipe.model.validation.early_stopping is not None and recipe.dataset.validation_fraction == 0:
        findings.add(
            at,
            {},
            "null while validationFraction is 0",
            message=f"{at} needs held-out data, but validationFraction is 0; raise it or leave earlyStopping out.",
        )


def _check_batches(recipe: Recipe, at: str, findings: Findings) -> None:
    batch, micro = recipe.model.hyperparameters.batch_size, recipe.model.hyperparameters.micro_batch_size
    if isinstance(micro, int) and batch % micro:
        findings.add(
            f"{at}/microBatchSize",
            micro,
            f"a divisor of batchSize {batch}",
            message=f"{at}/microBatchSize is {micro}, which does not divide batchSize {batch}.",
        )


def _check_images(recipe: Recipe, at: str, findings: Findings) -> None:
    low, high = recipe.model.images.min_pixels, recipe.model.images.max_pixels
    if isinstance(low, int) and isinstance(high, int) and low > high:
        findings.add(f"{at}/minPixels", low, f"at most maxPixels {high}")


def _check_every(every: object, at: str, findings: Findings) -> None:
    if isinstance(every, Every) and (every.steps is None) == (every.minutes is None):
        findings.add(at, msgspec.to_builtins(every), "epoch, or an object with exactly one of steps and minutes")
