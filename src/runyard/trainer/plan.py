"""The plan: every ``auto`` of a flow resolved to a value, with the reason, before the first step.

It is made once, from the flow, the machine and the sizes of data and model. It is written to the
events (``status.plan`` shows it), to the checkpoint's ``run.json``, and once to stdout. Everything
here is pure.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runyard.datasets.splits import Split
from runyard.flows import ResolvedFlow
from runyard.flows.blocks import BUILT_IN_DATASETS, Every
from runyard.flows.memory import choose_micro_batch, uses_gradient_checkpointing
from runyard.flows.tiny import describe_tiny_images, get_image_size
from runyard.trainer.answers import FREEFORM, METRICS, PHRASE_GROUNDING, VQA
from runyard.trainer.data.image_resolution import MaxPixels
from runyard.trainer.data.mixtures import DatasetShare
from runyard.trainer.errors import InvalidFlow

# The metric that decides which checkpoint is best, unless the flow names one. For long texts it is
# the loss, which every sample affects. CIDEr depends on the other held-out samples and is 0 with
# one image, and BLEU is 0 for short answers.
DEFAULT_METRICS = {VQA: "exactMatch", PHRASE_GROUNDING: "iou", FREEFORM: "loss"}
SPARE_ANSWER_TOKENS = 8
Choice = Literal["packing", "featureCache"]
FAMILY_IMAGE_SETTINGS = "familyPictureSettings"  # read again when resuming from a checkpoint
MAX_PIXELS = "maxPixels"  # likewise
MIN_EPOCHS_FOR_FEATURE_CACHE = 2
SCALED_DEVICES = ("cuda", "xpu")  # where float16 with a scaled loss is faster than float32
MIN_PADDING_FOR_PACKING = 0.1  # with less padding, packing gains nothing


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The properties of this machine that the plan depends on."""

    device: str
    device_name: str
    has_good_bfloat16: bool
    threads: int
    versions: dict[str, str]
    revision: dict[str, Any] | None
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class UploadedSizes:
    """Which uploaded data is used, and how many images each part has.

    ``held_out_split``, ``unused_images`` and ``overlapping_samples`` are as in ``Dataset``.
    ``mixture`` has the share of each dataset, if there are several.
    """

    dataset: str
    version: str
    training_images: int
    validation_images: int
    broken_images: int
    held_out_split: Split | None = None
    unused_images: int = 0
    mixture: Sequence[DatasetShare] = ()
    overlapping_samples: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """The sizes of images, and how many samples did not fit unchanged.

    ``settings`` are the processor's settings of image size. ``family`` is the same before the flow
    limited them, or None if it did not. ``context`` is in tokens, and ``context_source`` says where
    it comes from. ``max_pixels`` is the limit on pixels, None for the tiny model.
    """

    settings: dict[str, Any] | None
    family: dict[str, Any] | None
    context: int | None
    context_source: str
    shrunk: int
    refused: int
    max_pixels: MaxPixels | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of data and model that the plan depends on."""

    training_samples: int
    validation_samples: int
    longest_answer: int
    cache_bytes: int
    parameters: int
    trainable_parameters: int
    padding_share: Callable[[int], float] = lambda size: 0.0  # by number of samples in a batch
    unpacked: str | None = None  # why samples cannot share a row
    unfrozen: str | None = None  # why image features cannot be cached
    attention: str = "sdpa"  # that the library takes by default
    version: str = ""  # of built-in data
    tasks: Sequence[
        str
    ] = ()  # of the held-out samples, in order; empty where all have the flow's task
    uploaded: UploadedSizes | None = None
    images: ImageSizes | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers that training uses. ``document`` has each of them with its reason."""

    device: str
    precision: str
    threads: int
    batch_size: int
    micro_batch_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    metric: str
    is_smaller_better: bool
    validation_samples: int
    answer_tokens: int
    gradient_checkpointing: bool
    compile: bool
    packing: bool | None  # None: measured before the first step
    feature_cache: bool | None
    document: dict[str, Any]


def choose_threads(flow: ResolvedFlow, *, offered: int) -> int:
    """Return how many of the offered threads are used.

    The tiny model's steps are so short that two threads mostly wait for each other. On an idle
    machine a second thread saves a fifth. On a busy one, where a thread may have to wait for its
    core, a step took seventeen times as long.
    """
    return 1 if flow.is_tiny else max(1, offered)


def choose_precision(flow: ResolvedFlow, machine: Hardware) -> tuple[str, str]:
    """Return the number format of the arithmetic, and why. Called before the model is loaded."""
    requested = flow.model.compute.precision_type
    if requested == "auto" and flow.model.training.weights_precision == "bfloat16":
        requested, reason = "bfloat16", "training.weightsPrecision is bfloat16"
    else:
        reason = "flow"
    if requested == "float16" and machine.device == "cpu":
        raise InvalidFlow(
            "precisionType 'float16' needs an accelerator; try: 'bfloat16', 'float32' or 'auto'"
        )
    if (
        requested == "bfloat16"
        and machine.device in SCALED_DEVICES
        and not machine.has_good_bfloat16
    ):
        raise InvalidFlow(
            f"precisionType 'bfloat16' is not supported by {machine.device_name}, which only "
            "emulates it; try: 'float16', 'float32' or 'auto'"
        )
    if requested != "auto":
        return requested, reason
    if flow.is_tiny:
        return "float32", "the tiny model is slower in bfloat16 (measured)"
    if machine.has_good_bfloat16:
        return "bfloat16", f"{machine.device_name} is fast at it"
    if machine.device in SCALED_DEVICES:
        return "float16", f"{machine.device_name} has no bfloat16; the loss is scaled"
    return "float32", f"{machine.device_name} has no fast bfloat16"


def make_plan(flow: ResolvedFlow, machine: Hardware, sizes: Sizes) -> Plan:
    """Resolve every ``auto``.

    Raises:
        InvalidFlow: two values contradict each other, or this machine cannot do something.
    """
    model, numbers = flow.model, flow.model.hyperparameters
    check_machine(flow, machine)
    document: dict[str, dict[str, Any]] = {}

    def note(name: str, value: Any, reason: str) -> Any:
        document[name] = {"value": value, "reason": reason}
        return value

    note("device", machine.device, machine.device_name)
    precision, why = choose_precision(flow, machine)
    note("precision", precision, why)
    note_weights_precision(flow, note)
    why = (
        "a second thread would mostly wait for the first"
        if flow.is_tiny
        else "this attempt's share of the cores"
    )
    note("threads", machine.threads, f"{why}; changes results in the last bits")
    if flow.settings.resources.ranks > 1:
        why = "flow; each computes a share of every batch"
        note("workers", flow.settings.resources.ranks, why)
    note("imageBackend", "pil", "needs no torchvision; use the same one for inference")
    note("seed", flow.settings.seed, "flow")
    if model.quantization.enabled:
        note(
            "quantization",
            model.quantization.type,
            f"base weights of {' and '.join(model.quantization.parts)} in 4 bits while training; "
            "checkpoints keep full precision",
        )
    note("parameters", sizes.parameters, "counted")
    note(
        "trainableParameters", sizes.trainable_parameters, f"training.mode is {model.training.mode}"
    )
    if sizes.uploaded is not None:
        note_uploaded(sizes.uploaded, note)
    else:
        note("dataset", flow.dataset.dataset_id, "built in")
        note("datasetVersion", sizes.version, "a hash of all its samples as the seed divides them")
    if flow.is_tiny:
        note("images", get_image_size(flow.task), describe_tiny_images(flow.task))
    if sizes.images is not None:
        note_image_sizes(sizes.images, note)
    note("trainingSamples", sizes.training_samples, explain_share(flow, sizes.uploaded))
    note("cacheBytes", sizes.cache_bytes, "images are decoded and processed once")

    batch_size = note("batchSize", numbers.batch_size, "samples per optimizer step")
    micro = choose_micro_batch(flow, on_cpu=machine.device == "cpu")
    if batch_size % micro[0]:
        raise InvalidFlow(
            f"microBatchSize {micro[0]} does not divide batchSize {batch_size}; try: a divisor"
        )
    note("microBatchSize", *micro)
    note("accumulation", batch_size // micro[0], "batchSize / microBatchSize")
    steps_per_epoch = math.ceil(sizes.training_samples / batch_size)
    note(
        "stepsPerEpoch",
        steps_per_epoch,
        f"{sizes.training_samples} samples in batches of {batch_size}, the last shorter",
    )
    total = numbers.epochs * steps_per_epoch
    why = f"{numbers.epochs} epochs"
    if numbers.max_steps is not None and numbers.max_steps < total:
        total, why = numbers.max_steps, "maxSteps"
    note("totalSteps", total, why)
    share = numbers.schedule.warmup_fraction
    warmup = note("warmupSteps", math.ceil(share * total), f"{share:.0%} of the steps")
    note(
        "learningRate",
        numbers.learning_rate,
        f"{numbers.schedule.name} to {numbers.schedule.min_factor:g} of it",
    )
    note("optimizer", numbers.optimizer.name, "flow")

    held_out = min(
        sizes.validation_samples, model.validation.max_samples or sizes.validation_samples
    )
    note("validationSamples", held_out, f"of {sizes.validation_samples} held out")
    answer_tokens = min(model.evaluation.max_new_tokens, sizes.longest_answer + SPARE_ANSWER_TOKENS)
    note("answerTokens", answer_tokens, "longest true answer plus a margin, at each evaluation")
    metric, smaller, why = choose_metric(
        flow, set(sizes.tasks[:held_out] if held_out else sizes.tasks)
    )
    note("metric", metric, why)
    note(
        "mode", "min" if smaller else "max", "whether small or large values of the metric are good"
    )
    requested = model.compute.gradient_checkpointing
    checkpointing = uses_gradient_checkpointing(flow, sizes.parameters)
    note(
        "gradientCheckpointing",
        checkpointing,
        f"{sizes.parameters:,} parameters" if requested == "auto" else "flow",
    )
    compiled = False if model.compute.compile == "auto" else model.compute.compile
    note(
        "compile",
        compiled,
        "compiling takes longer than it saves" if model.compute.compile == "auto" else "flow",
    )
    is_default = model.compute.attention == "auto"
    attention: str = sizes.attention if is_default else model.compute.attention
    note(
        "attention",
        attention,
        "the library's default" if is_default else "flow",
    )
    if model.answers.form != "json":
        note("answerForm", model.answers.form, "flow")
    feature_cache, why = choose_feature_cache(flow, sizes, total / steps_per_epoch)
    note("featureCache", feature_cache, why)
    packing, why = choose_packing(flow, sizes, micro[0])
    note("packing", packing, why)
    note("versions", machine.versions, "installed")
    note(
        "revision",
        machine.revision,
        "of Runyard's own source" if machine.revision else "unknown: no git repository",
    )
    note("hardware", machine.hardware, "detected")
    return Plan(
        device=machine.device,
        precision=precision,
        threads=machine.threads,
        batch_size=batch_size,
        micro_batch_size=micro[0],
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        metric=metric,
        is_smaller_better=smaller,
        validation_samples=held_out,
        answer_tokens=answer_tokens,
        gradient_checkpointing=checkpointing,
        compile=compiled,
        packing=packing,
        feature_cache=feature_cache,
        document=document,
    )


def with_micro_batch(plan: Plan, size: int, reason: str) -> Plan:
    """Return the same plan, and so the same batch, with another micro-batch."""
    parts = math.ceil(plan.batch_size / size)
    changed = {
        "microBatchSize": {"value": size, "reason": reason},
        "accumulation": {"value": parts, "reason": "batchSize / microBatchSize"},
    }
    return replace(plan, micro_batch_size=size, document=plan.document | changed)


def with_choice(plan: Plan, name: Choice, value: bool, reason: str) -> Plan:
    """Return the same plan with one of its open choices made."""
    document = plan.document | {name: {"value": value, "reason": reason}}
    if name == "packing":
        return replace(plan, packing=value, document=document)
    return replace(plan, feature_cache=value, document=document)


def with_memory(plan: Plan, value: int | None, reason: str) -> Plan:
    """Return the plan with the predicted peak of memory in bytes; None if it is not predicted."""
    return replace(plan, document=plan.document | {"memory": {"value": value, "reason": reason}})


def with_strategy(plan: Plan, strategy: str, reason: str) -> Plan:
    """Return the plan with how several ranks train."""
    note = {"strategy": {"value": strategy, "reason": reason}}
    return replace(plan, document=plan.document | note)


def is_due(
    every: str | Every, *, step: int, steps_per_epoch: int, seconds_since_last: float
) -> bool:
    """Return whether an interval ends at ``step`` (from 1): an epoch, n steps, or n minutes."""
    if isinstance(every, Every):
        if every.steps is not None:
            return step % every.steps == 0
        return every.minutes is not None and seconds_since_last >= every.minutes * 60
    return step % steps_per_epoch == 0


def format_plan(plan: Plan) -> str:
    """Return the plan as a table for stdout."""
    width = max(len(name) for name in plan.document)
    return "\n".join(
        f"{name:<{width}}  {item['value']}  ({item['reason']})"
        for name, item in plan.document.items()
    )


def explain_share(flow: ResolvedFlow, sizes: UploadedSizes | None) -> str:
    """Return why the training part has this many samples."""
    if sizes is not None and sizes.mixture:
        return "of all datasets that are trained on"
    if sizes is not None and sizes.held_out_split is not None:
        return "those of the dataset's own split"
    return f"{1 - flow.dataset.validation_fraction:.0%} of the data"


def note_weights_precision(flow: ResolvedFlow, note: Callable[[str, Any, str], Any]) -> None:
    if flow.model.training.weights_precision != "float32":
        why = "flow; steps are computed in float32 and rounded at random"
        note("weightsPrecision", flow.model.training.weights_precision, why)


def note_uploaded(sizes: UploadedSizes, note: Callable[[str, Any, str], Any]) -> None:
    note("dataset", sizes.dataset, "flow")
    note("datasetVersion", sizes.version, "a hash of all its images and records")
    split = sizes.held_out_split
    if sizes.mixture:
        note_mixture(sizes, note)
    elif split is None:
        note("trainingPictures", sizes.training_images, "split by content and seed")
        note("validationPictures", sizes.validation_images, "held out by content and seed")
    else:
        own = "the dataset's own split; validationFraction does not change it"
        note("trainingPictures", sizes.training_images, own)
        note(
            "validationPictures",
            sizes.validation_images,
            f"its {split} split, held out unless validationFraction is 0",
        )
        note("unusedImages", sizes.unused_images, "of its test split, in neither part")
    note("brokenPictures", sizes.broken_images, "cannot be decoded and are left out")


def note_mixture(sizes: UploadedSizes, note: Callable[[str, Any, str], Any]) -> None:
    for index, share in enumerate(sizes.mixture):
        if share.is_validation_dataset:
            note("validationDataset", share.dataset, f"{share.validation_samples:,} samples")
            continue
        why = f"{share.training_samples:,} samples to train on"
        if share.samples_per_epoch != share.training_samples:
            why += f", {share.samples_per_epoch:,} drawn per epoch by weight"
        why += f"; {share.validation_samples:,} held out"
        note(f"mixedDataset{index}" if index else "dataset", share.dataset, why)
    note("trainingPictures", sizes.training_images, "of all datasets that are trained on")
    note("validationPictures", sizes.validation_images, "of all datasets that are held out from")
    note("unusedImages", sizes.unused_images, "of their own validation and test splits")
    note(
        "overlappingSamples",
        sizes.overlapping_samples,
        "have an image that a dataset holds out, and are not trained on",
    )


def note_image_sizes(sizes: ImageSizes, note: Callable[[str, Any, str], Any]) -> None:
    if sizes.max_pixels is not None:
        note(MAX_PIXELS, sizes.max_pixels.value, sizes.max_pixels.reason)
    if sizes.family is not None:
        note(FAMILY_IMAGE_SETTINGS, sizes.family, "of the processor, before the flow limited them")
        note("pictureSettings", sizes.settings, "images of the flow; saved with the processor")
    note("contextTokens", sizes.context, sizes.context_source)
    note(
        "shrunkSamples",
        sizes.shrunk,
        "have a smaller image than the family's default, to fit into the limits",
    )
    note(
        "refusedSamples",
        sizes.refused,
        "are longer than the context even with the smallest image, and are left out",
    )


def resolve_choice(
    name: str, requested: bool | str, obstacle: str | None
) -> tuple[bool, str] | None:
    """Return what the flow or an obstacle decides; None where neither does."""
    if requested is True and obstacle is not None:
        raise InvalidFlow(f"{name} true is not possible: {obstacle}; try: leave it auto")
    if isinstance(requested, bool):
        return requested, "flow"
    return None if obstacle is None else (False, obstacle)


def choose_packing(
    flow: ResolvedFlow, sizes: Sizes, micro_batch_size: int
) -> tuple[bool | None, str]:
    """Return whether samples share rows; None where that is measured."""
    requested, attention = flow.model.packing, flow.model.compute.attention
    obstacle = sizes.unpacked
    if attention == "eager":
        obstacle = f"attention {attention!r} cannot mask samples within a row"
    if (resolved := resolve_choice("packing", requested, obstacle)) is not None:
        return resolved
    if flow.is_tiny:
        return (
            False,
            "the tiny model's steps are too short for a gain; its results depend on no measurement",
        )
    share = sizes.padding_share(micro_batch_size)
    padding = f"{share:.0%} of the tokens would be padding"
    if share < MIN_PADDING_FOR_PACKING:
        return False, f"only {padding}"
    return None, padding


def choose_feature_cache(
    flow: ResolvedFlow, sizes: Sizes, epochs: float
) -> tuple[bool | None, str]:
    """Return whether image features are cached; None where that is measured."""
    requested, obstacle = flow.model.compute.feature_cache, sizes.unfrozen
    if flow.dataset.varies_images:
        obstacle = "dataset.augmentation changes the images"
    if (resolved := resolve_choice("compute.featureCache", requested, obstacle)) is not None:
        return resolved
    if epochs < MIN_EPOCHS_FOR_FEATURE_CACHE:
        return False, f"images are seen only {epochs:.1f} times"
    return None, "the vision encoder is frozen"


def choose_metric(flow: ResolvedFlow, tasks: set[str]) -> tuple[str, bool, str]:
    """Return the deciding metric, whether small values are good, and why.

    ``tasks`` are those of the evaluated samples.
    """
    requested, mode = flow.model.checkpoint.metric, flow.model.checkpoint.mode
    own = DEFAULT_METRICS[flow.task]
    tasks = tasks or {flow.task}
    known = {"loss"}.union(*(METRICS[task] for task in tasks))
    metric = own if requested == "auto" else requested.removeprefix("validation/")
    if metric not in known:
        raise InvalidFlow(
            f"checkpoint.metric {requested!r} is not measured for {' and '.join(sorted(tasks))}; "
            f"try: {', '.join(sorted(known))}"
        )
    smaller = metric == "loss" if mode == "auto" else mode == "min"
    return metric, smaller, f"the metric of {flow.task}" if requested == "auto" else "flow"


def check_machine(flow: ResolvedFlow, machine: Hardware) -> None:
    """Raise ``InvalidFlow`` for settings that this machine or trainer does not support."""
    if flow.dataset.dataset_version is not None and flow.dataset.dataset_id in BUILT_IN_DATASETS:
        raise InvalidFlow(
            f"dataset {flow.dataset.dataset_id!r} has no versions; try: datasetVersion null"
        )
