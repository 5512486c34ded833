"""The checks across the fields of a flow.

Each check reads the resolved flow, and runs only if every value it reads is valid by itself. A
mistake in one field must not be reported a second time as an inconsistency with another.
"""

from collections.abc import Mapping

import msgspec

from runyard.flows.blocks import BUILT_IN_DATASETS, TINY, Every
from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.mixtures import check_mixture
from runyard.flows.problems import ProblemCollector
from runyard.flows.resolved_flow import ResolvedFlow
from runyard.flows.weights import FORMS, classify_weights

# Fields of ``settings.resources``: the allowed value, the reason, and what to do instead.
UNSUPPORTED = {
    "cpus": (
        "null",
        "the cores of a machine are shared equally among its slots",
        "leave it out, and set RUNYARD_THREADS or RUNYARD_SLOTS on the machine",
    ),
    "memoryGiB": (
        "null",
        "machines do not reserve memory for runs",
        "leave it out, and set RUNYARD_SLOTS so that the machine's runs fit into its memory "
        "together",
    ),
}


def check_consistency(
    flow: ResolvedFlow,
    at: Mapping[str, str],
    invalid: ProblemCollector,
    *,
    dataset_kind: str | None = None,
) -> ProblemCollector:
    """Return every inconsistency.

    ``at`` maps each block type to the path of its settings; ``invalid`` holds the problems of
    single values.
    """
    problems = ProblemCollector()
    dataset, model = at["vi-dataset"], at["vi-model"]
    architecture, training = f"{model}/architecture", f"{model}/training"
    if invalid.has_none_at(f"{dataset}/datasetId", f"{dataset}/projectKind"):
        _check_task(flow, dataset, dataset_kind, problems)
    if invalid.has_none_at(f"{dataset}/datasetId", f"{dataset}/mixture"):
        check_mixture(flow, dataset, problems)
    if invalid.has_none_at(architecture):
        _check_architecture(flow, architecture, problems)
    if invalid.has_none_at(architecture, f"{training}/mode", f"{model}/quantization"):
        _check_quantization(flow, f"{model}/quantization", problems)
    if invalid.has_none_at(architecture, f"{training}/mode", f"{training}/freeze"):
        _check_freeze(flow, f"{training}/freeze", problems)
    if invalid.has_none_at(f"{training}/mode", f"{training}/weightsPrecision", f"{model}/compute"):
        _check_weights_precision(flow, f"{training}/weightsPrecision", problems)
    if invalid.has_none_at(training, f"{model}/quantization"):
        _check_projector(flow, f"{training}/lora/trainProjector", problems)
    if invalid.has_none_at(f"{model}/validation/earlyStopping", f"{dataset}/validationFraction"):
        _check_early_stopping(flow, f"{model}/validation/earlyStopping", problems)
    numbers = f"{model}/hyperparameters"
    if invalid.has_none_at(architecture, f"{numbers}/batchSize", f"{numbers}/microBatchSize"):
        _check_batches(flow, numbers, problems)
    if invalid.has_none_at(architecture, f"{model}/answers", f"{dataset}/projectKind"):
        _check_answers(flow, f"{model}/answers/form", problems)
    if invalid.has_none_at(f"{model}/images"):
        _check_images(flow, f"{model}/images", problems)
    for part, every in (
        ("checkpoint", flow.model.checkpoint.every),
        ("validation", flow.model.validation.every),
    ):
        if invalid.has_none_at(f"{model}/{part}/every"):
            _check_every(every, f"{model}/{part}/every", problems)
    return problems


def check_supported(flow: ResolvedFlow, at: Mapping[str, str]) -> ProblemCollector:
    """Return a problem for every setting that is not supported yet, which would otherwise be
    ignored silently, or which no machine supports.

    ``at`` maps each block type to the path of its settings.
    """
    problems = ProblemCollector()
    resources = flow.settings.resources
    for name, given in (
        ("cpus", resources.cpus),
        ("memoryGiB", resources.memory_gib),
    ):
        if given is not None:
            place = f"/settings/resources/{name}"
            allowed, reason, suggestion = UNSUPPORTED[name]
            problem = f"{place} is {given:g}, which is not supported yet: {reason}"
            problems.add(place, given, allowed, message=f"{problem}; try: {suggestion}.")
    if resources.accelerators is not None and resources.workers not in (1, resources.accelerators):
        place = "/settings/resources/workers"
        problems.add(
            place,
            resources.workers,
            f"1, or {resources.accelerators} as accelerators",
            message=f"{place} is {resources.workers}, but accelerators is "
            f"{resources.accelerators}, and each accelerator has one process; leave workers out.",
        )
    if resources.strategy == "fsdp" and resources.ranks == 1:
        place = "/settings/resources/strategy"
        problems.add(
            place,
            "fsdp",
            "auto or ddp with a single process",
            message=f"{place} is fsdp, but a single process trains, which has nothing to share; "
            "set accelerators or workers, or leave strategy out.",
        )
    compute = flow.model.compute
    if compute.attention == "flash_attention_2" and compute.precision_type == "float32":
        place = f"{at['vi-model']}/compute/attention"
        problems.add(
            place,
            compute.attention,
            "auto, sdpa or eager while precisionType is float32",
            message=f"{place} is flash_attention_2, which computes in 16 bits, but precisionType "
            "is float32; set precisionType to bfloat16, or attention to auto.",
        )
    return problems


def _check_task(
    flow: ResolvedFlow, at: str, dataset_kind: str | None, problems: ProblemCollector
) -> None:
    dataset = flow.dataset
    kind = BUILT_IN_DATASETS.get(dataset.dataset_id, dataset_kind)
    if kind is not None and dataset.project_kind != kind:
        problems.add(
            f"{at}/projectKind",
            dataset.project_kind,
            f'"{kind}"',
            message=f"{at}/projectKind is {dataset.project_kind}, but dataset {dataset.dataset_id} "
            f"is of kind {kind}.",
        )


def _check_architecture(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    given = flow.model.architecture
    if given.weights is not None:
        if classify_weights(given.weights) is None:
            problems.add(f"{at}/weights", given.weights, FORMS)
        return
    if given.name == AUTO:
        problems.add(
            f"{at}/name",
            given.name,
            "a family, while no weights are given",
            message=f"{at}/name auto takes the family from the weights; give architecture.weights "
            "or name a family.",
        )
        return
    sizes = FAMILIES[given.name].sizes
    if given.size == TINY and given.name != "idefics3":
        problems.add(
            f"{at}/size",
            given.size,
            f"one of {', '.join(sizes)}",
            message=f"{at}/size tiny is built in for the family idefics3 alone; "
            f"for {given.name} take one of {', '.join(sizes)}.",
        )
    elif given.size != TINY and given.size not in sizes:
        problems.add(
            f"{at}/size",
            given.size,
            f"one of {', '.join(sizes)}, or any with architecture.weights",
            message=f"{at}/size {given.size} is not a usual size of {given.name} "
            f"({', '.join(sizes)}); take one of these or give architecture.weights.",
        )


def _check_quantization(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    if flow.model.training.mode == "full" and flow.model.quantization.enabled:
        problems.add(
            f"{at}/enabled",
            True,
            "false while training.mode is full",
            message=f"{at}/enabled is true, but 4-bit weights cannot be trained in full; set "
            "training.mode to lora.",
        )


def _check_freeze(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    training = flow.model.training
    if training.mode == "full" and len(set(training.freeze)) == 3:
        problems.add(
            at,
            training.freeze,
            "at most two of vision, projector, language while training.mode is full",
            message=f"{at} freezes every part, so there is nothing to train; leave one out.",
        )


def _check_weights_precision(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    training, precision = flow.model.training, flow.model.compute.precision_type
    if training.weights_precision == "float32":
        return
    for applies, other, reason, fix in (
        (
            training.mode == "lora",
            "training.mode is lora",
            "which trains an adapter in float32 and keeps the base weights in 16 bits anyway",
            "leave it out",
        ),
        (
            precision not in (AUTO, "bfloat16"),
            f"compute.precisionType is {precision}",
            "a format that bfloat16 weights are not used in",
            "set precisionType to auto or bfloat16",
        ),
    ):
        if applies:
            problems.add(
                at,
                training.weights_precision,
                f"float32 while {other}",
                message=f"{at} is bfloat16, but {other}, {reason}; {fix}.",
            )


def _check_projector(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    training, quantization = flow.model.training, flow.model.quantization
    if training.mode != "lora" or not training.lora.train_projector:
        return
    is_quantized = quantization.enabled and "projector" in quantization.parts
    for applies, other, reason in (
        ("projector" in training.freeze, "training.freeze", "so it is not trained"),
        (is_quantized, "quantization.parts", "and 4-bit weights cannot be trained in full"),
    ):
        if applies:
            problems.add(
                at,
                True,
                f"false while {other} names the projector",
                message=f"{at} is true, but {other} names the projector, {reason}; leave "
                "projector out there.",
            )


def _check_early_stopping(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    if flow.model.validation.early_stopping is not None and not flow.dataset.holds_out:
        problems.add(
            at,
            {},
            "null while validationFraction is 0",
            message=f"{at} needs held-out data, but validationFraction is 0; raise it or leave "
            "earlyStopping out.",
        )


def _check_batches(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    batch, micro = (
        flow.model.hyperparameters.batch_size,
        flow.model.hyperparameters.micro_batch_size,
    )
    if isinstance(micro, int) and batch % micro:
        problems.add(
            f"{at}/microBatchSize",
            micro,
            f"a divisor of batchSize {batch}",
            message=f"{at}/microBatchSize is {micro}, which does not divide batchSize {batch}.",
        )


def _check_answers(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    form, family = flow.model.answers.form, FAMILIES.get(flow.model.architecture.name)
    if form == "text" and flow.task == "phrase-grounding":
        problems.add(
            at,
            form,
            "json or native while projectKind is phrase-grounding",
            message=f"{at} is text, but plain words have no boxes; take json, or native with a "
            "family that has a form of its own.",
        )
    if form == "native" and family is not None and not family.has_native_form:
        names = ", ".join(key for key, each in FAMILIES.items() if each.has_native_form)
        problems.add(
            at,
            form,
            f"json or text with architecture.name {family.key}",
            message=f"{at} is native, but {family.key} has no form of its own that is known here; "
            f"take json or text, or one of the families {names}.",
        )


def _check_images(flow: ResolvedFlow, at: str, problems: ProblemCollector) -> None:
    low, high = flow.model.images.min_pixels, flow.model.images.max_pixels
    if isinstance(low, int) and isinstance(high, int) and low > high:
        problems.add(f"{at}/minPixels", low, f"at most maxPixels {high}")


def _check_every(every: object, at: str, problems: ProblemCollector) -> None:
    if isinstance(every, Every) and (every.steps is None) == (every.minutes is None):
        problems.add(
            at,
            msgspec.to_builtins(every),
            "epoch, or an object with exactly one of steps and minutes",
        )
