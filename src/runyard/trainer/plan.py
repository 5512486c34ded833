"""The plan: every ``auto`` of a recipe turned into a number, with the reason, before the first step.

Made once, from the recipe, the machine and the sizes of data and model; written to the events (``status.plan`` shows
it), into the checkpoint's ``run.json``, and once to stdout. Pure: it decides and touches nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runyard.flows import ResolvedFlow
from runyard.flows.blocks import BUILT_IN_DATASETS, Every
from runyard.flows.memory import choose_micro_batch, uses_gradient_checkpointing
from runyard.trainer.answers import FREEFORM, METRICS, PHRASE_GROUNDING, VQA
from runyard.trainer.errors import InvalidFlow

# What decides where the recipe does not say. For texts at length that is the loss: it moves with every sample, while
# CIDEr depends on which other samples are held out and is 0 with one picture, and BLEU is 0 for short answers.
METRIC_OF = {VQA: "exactMatch", PHRASE_GROUNDING: "iou", FREEFORM: "loss"}
SPARE_ANSWER_TOKENS = 8
Choice = Literal["packing", "featureCache"]
FAMILY_PICTURES = "familyPictureSettings"  # looked up by whoever goes on from a checkpoint
LEAST_EPOCHS = 2
LEAST_PADDING = 0.1  # with less, nothing is to be gained by packing


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan has to know of where it will run."""

    device: str
    device_name: str
    has_good_bfloat16: bool
    threads: int
    versions: dict[str, str]
    revision: dict[str, Any] | None
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class UploadedSizes:
    """What is told of data that was uploaded: which it is, and how many pictures each part has."""

    dataset: str
    version: str
    training_pictures: int
    validation_pictures: int
    broken_pictures: int


@dataclass(frozen=True, kw_only=True)
class PictureSizes:
    """What is told of pictures' sizes and of samples that did not fit as they were.

    ``settings`` are those of the model's processor that say how large pictures are, ``family`` the same before the
    recipe limited them, None where it did not. ``context`` is in tokens, and ``context_source`` where that stands.
    """

    settings: dict[str, Any] | None
    family: dict[str, Any] | None
    context: int | None
    context_source: str
    shrunk: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the plan has to know of data and model."""

    training_samples: int
    validation_samples: int
    longest_answer: int
    cache_bytes: int
    parameters: int
    trainable_parameters: int
    padding_share: Callable[[int], float] = lambda size: 0.0  # of batches of so many samples
    unpacked: str | None = None  # why samples cannot share a row
    unfrozen: str | None = None  # why features of pictures cannot be kept
    version: str = ""  # of built-in data
    tasks: Sequence[str] = ()  # of the held-out samples, in their order, where they are not all of the recipe's
    uploaded: UploadedSizes | None = None
    pictures: PictureSizes | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers training goes by. ``document`` has each of them with its reason."""

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
    packing: bool | None  # None: to be measured
    feature_cache: bool | None
    document: dict[str, Any]


def choose_threads(recipe: ResolvedFlow, *, offered: int) -> int:
    """How many of the threads offered are used.

    The tiny model's steps are so short that two threads spend them waiting for each other: little is gained on an idle
    machine (a fifth), and on a busy one, where a thread may have to wait for its core, a step took seventeen times as
    long.
    """
    return 1 if recipe.is_tiny else max(1, offered)


def choose_precision(recipe: ResolvedFlow, machine: Machine) -> tuple[str, str]:
    """The number format of the arithmetic, and why. Asked before the model is loaded."""
    wanted = recipe.model.compute.precision_type
    if wanted == "float16" and machine.device == "cpu":
        raise InvalidFlow("precisionType 'float16' needs CUDA; use 'bfloat16', 'float32' or 'auto'")
    if wanted != "auto":
        return wanted, "recipe"
    if recipe.is_tiny:
        return "float32", "the tiny model is slower in bfloat16 (measured)"
    if machine.has_good_bfloat16:
        return "bfloat16", f"{machine.device_name} does it well"
    return "float32", f"{machine.device_name} has no fast bfloat16"


def make_plan(recipe: ResolvedFlow, machine: Machine, sizes: Sizes) -> Plan:
    """Resolve every ``auto``.

    Raises:
        InvalidFlow: two numbers do not fit together, or something cannot be done here.
    """
    model, numbers = recipe.model, recipe.model.hyperparameters
    _refuse_what_is_missing(recipe, machine)
    reasons: dict[str, dict[str, Any]] = {}

    def say(name: str, value: Any, reason: str) -> Any:
        reasons[name] = {"value": value, "reason": reason}
        return value

    say("device", machine.device, machine.device_name)
    precision, why = choose_precision(recipe, machine)
    say("precision", precision, why)
    why = "a second one would mostly wait for the first" if recipe.is_tiny else "this attempt's share of the cores"
    say("threads", machine.threads, f"{why}; changes results in the last bits")
    say("imageBackend", "pil", "needs no torchvision; serve with the same one")
    say("seed", recipe.settings.seed, "recipe")
    if model.quantization.enabled:
        say(
            "quantization", model.quantization.type, "base weights in 4 bit while training; checkpoints keep them whole"
        )
    say("parameters", sizes.parameters, "counted")
    say("trainableParameters", sizes.trainable_parameters, f"training.mode is {model.training.mode}")
    if sizes.uploaded is not None:
        _say_uploaded(sizes.uploaded, say)
    else:
        say("dataset", recipe.dataset.dataset_id, "built in")
        say("datasetVersion", sizes.version, "a hash of all its samples as the seed divides them")
    if sizes.pictures is not None:
        _say_pictures(sizes.pictures, say)
    say("trainingSamples", sizes.training_samples, f"{1 - recipe.dataset.validation_fraction:.0%} of the data")
    say("cacheBytes", sizes.cache_bytes, "pictures are decoded and processed once")

    batch_size = say("batchSize", numbers.batch_size, "samples per optimizer step")
    micro = choose_micro_batch(recipe, on_cpu=machine.device != "cuda")
    if batch_size % micro[0]:
        raise InvalidFlow(f"microBatchSize {micro[0]} does not divide batchSize {batch_size}")
    say("microBatchSize", *micro)
    say("accumulation", batch_size // micro[0], "batchSize / microBatchSize")
    steps_per_epoch = math.ceil(sizes.training_samples / batch_size)
    say(
        "stepsPerEpoch",
        steps_per_epoch,
        f"{sizes.training_samples} samples in batches of {batch_size}, the last shorter",
    )
    total = numbers.epochs * steps_per_epoch
    why = f"{numbers.epochs} epochs"
    if numbers.max_steps is not None and numbers.max_steps < total:
        total, why = numbers.max_steps, "maxSteps"
    say("totalSteps", total, why)
    share = numbers.schedule.warmup_fraction
    warmup = say("warmupSteps", math.ceil(share * total), f"{share:.0%} of the steps")
    say("learningRate", numbers.learning_rate, f"{numbers.schedule.name} to {numbers.schedule.min_factor:g} of it")
    say("optimizer", numbers.optimizer.name, "recipe")

    held_out = min(sizes.validation_samples, model.validation.max_samples or sizes.validation_samples)
    say("validationSamples", held_out, f"of {sizes.validation_samples} held out")
    answer_tokens = min(model.evaluation.max_new_tokens, sizes.longest_answer + SPARE_ANSWER_TOKENS)
    say("answerTokens", answer_tokens, "longest true answer and some more, at each evaluation")
    metric, smaller, why = _metric(recipe, set(sizes.tasks[:held_out] if held_out else sizes.tasks))
    say("metric", metric, why)
    say("mode", "min" if smaller else "max", "which values of the metric are good")
    wanted = model.compute.gradient_checkpointing
    checkpointing = uses_gradient_checkpointing(recipe, sizes.parameters)
    say("gradientCheckpointing", checkpointing, f"{sizes.parameters:,} parameters" if wanted == "auto" else "recipe")
    compiled = False if model.compute.compile == "auto" else model.compute.compile
    say("compile", compiled, "compiling takes longer than it saves" if model.compute.compile == "auto" else "recipe")
    attention = "sdpa" if model.compute.attention == "auto" else model.compute.attention
    say("attention", attention, "the library's default" if model.compute.attention == "auto" else "recipe")
    feature_cache, why = _feature_cache(recipe, sizes, total / steps_per_epoch)
    say("featureCache", feature_cache, why)
    packing, why = _packing(recipe, sizes, micro[0])
    say("packing", packing, why)
    say("versions", machine.versions, "installed")
    say("revision", machine.revision, "of Runyard's own source" if machine.revision else "not known: no git repository")
    say("hardware", machine.hardware, "found")
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
        document=reasons,
    )


def with_micro_batch(plan: Plan, size: int, reason: str) -> Plan:
    """The same plan, and so the same batch, with another micro-batch."""
    parts = math.ceil(plan.batch_size / size)
    told = {
        "microBatchSize": {"value": size, "reason": reason},
        "accumulation": {"value": parts, "reason": "batchSize / microBatchSize"},
    }
    return replace(plan, micro_batch_size=size, document=plan.document | told)


def with_choice(plan: Plan, name: Choice, value: bool, reason: str) -> Plan:
    """The same plan with one of the choices made that it left open."""
    told = plan.document | {name: {"value": value, "reason": reason}}
    if name == "packing":
        return replace(plan, packing=value, document=told)
    return replace(plan, feature_cache=value, document=told)


def with_memory(plan: Plan, value: int | None, reason: str) -> Plan:
    """The same plan with the bytes that training is predicted to take at its peak; None where that is not known."""
    return replace(plan, document=plan.document | {"memory": {"value": value, "reason": reason}})


def is_due(every: str | Every, *, step: int, steps_per_epoch: int, seconds_since_last: float) -> bool:
    """Whether it is time after ``step`` (from 1): at the end of an epoch, each n steps, or after so many minutes."""
    if isinstance(every, Every):
        if every.steps is not None:
            return step % every.steps == 0
        return every.minutes is not None and seconds_since_last >= every.minutes * 60
    return step % steps_per_epoch == 0


def plan_in_words(plan: Plan) -> str:
    """The plan as a table for stdout."""
    width = max(len(name) for name in plan.document)
    return "\n".join(f"{name:<{width}}  {item['value']}  ({item['reason']})" for name, item in plan.document.items())


def _say_uploaded(sizes: UploadedSizes, say: Callable[[str, Any, str], Any]) -> None:
    say("dataset", sizes.dataset, "recipe")
    say("datasetVersion", sizes.version, "a hash of all its pictures and records")
    say("trainingPictures", sizes.training_pictures, "split by content and seed")
    say("validationPictures", sizes.validation_pictures, "held out by content and seed")
    say("brokenPictures", sizes.broken_pictures, "cannot be decoded and are left out")


def _say_pictures(sizes: PictureSizes, say: Callable[[str, Any, str], Any]) -> None:
    if sizes.family is not None:
        say(FAMILY_PICTURES, sizes.family, "of the processor, before the recipe limited them")
        say("pictureSettings", sizes.settings, "images of the recipe; saved with the processor")
    say("contextTokens", sizes.context, sizes.context_source)
    say("shrunkSamples", sizes.shrunk, "have a smaller picture than the family would give them, to keep to limits")
    say("refusedSamples", sizes.refused, "are longer than the context whatever their picture, and are left out")


def _settled(name: str, wanted: bool | str, hindrance: str | None) -> tuple[bool, str] | None:
    """What the recipe or a hindrance decides of a choice; None where neither does."""
    if wanted is True and hindrance is not None:
        raise InvalidFlow(f"{name} true is not possible: {hindrance}; leave it auto")
    if isinstance(wanted, bool):
        return wanted, "recipe"
    return None if hindrance is None else (False, hindrance)


def _packing(recipe: ResolvedFlow, sizes: Sizes, micro_batch_size: int) -> tuple[bool | None, str]:
    """Whether samples share rows; None where that is to be measured."""
    wanted, attention = recipe.model.packing, recipe.model.compute.attention
    hindrance = sizes.unpacked
    if attention not in ("auto", "sdpa"):
        hindrance = f"attention {attention!r} works on whole rows"
    if (settled := _settled("packing", wanted, hindrance)) is not None:
        return settled
    if recipe.is_tiny:
        return False, "the tiny model's steps are too short for a gain, and so its results depend on nothing measured"
    share = sizes.padding_share(micro_batch_size)
    padding = f"{share:.0%} of the tokens would be padding"
    if share < LEAST_PADDING:
        return False, f"only {padding}"
    return None, padding


def _feature_cache(recipe: ResolvedFlow, sizes: Sizes, epochs: float) -> tuple[bool | None, str]:
    """Whether the features of pictures are kept; None where that is to be measured."""
    wanted, hindrance = recipe.model.compute.feature_cache, sizes.unfrozen
    if recipe.dataset.varies_images:
        hindrance = "dataset.augmentation varies the pictures"
    if (settled := _settled("compute.featureCache", wanted, hindrance)) is not None:
        return settled
    if epochs < LEAST_EPOCHS:
        return False, f"pictures are seen {epochs:.1f} times only"
    return None, "the vision encoder is frozen"


def _metric(recipe: ResolvedFlow, tasks: set[str]) -> tuple[str, bool, str]:
    """What decides, whether small values of it are good, and why. ``tasks`` are those of the samples measured."""
    wanted, mode = recipe.model.checkpoint.metric, recipe.model.checkpoint.mode
    own = METRIC_OF[recipe.task]
    tasks = tasks or {recipe.task}
    known = {"loss"}.union(*(METRICS[task] for task in tasks))
    metric = own if wanted == "auto" else wanted.removeprefix("validation/")
    if metric not in known:
        of = " and ".join(sorted(tasks))
        raise InvalidFlow(f"checkpoint.metric {wanted!r} is not measured for {of}; {', '.join(sorted(known))} are")
    smaller = metric == "loss" if mode == "auto" else mode == "min"
    return metric, smaller, f"the metric of {recipe.task}" if wanted == "auto" else "recipe"


def _refuse_what_is_missing(recipe: ResolvedFlow, machine: Machine) -> None:
    """Say clearly what this trainer cannot do, rather than do something else."""
    model = recipe.model
    if model.hyperparameters.optimizer.name == "adamw8bit" and machine.device != "cuda":
        raise InvalidFlow("optimizer 'adamw8bit' needs CUDA; use 'adamw'")
    if model.compute.attention == "flash_attention_2" and machine.device != "cuda":
        raise InvalidFlow("attention 'flash_attention_2' needs CUDA; use 'auto'")
    if recipe.dataset.dataset_version is not None and recipe.dataset.dataset_id in BUILT_IN_DATASETS:
        raise InvalidFlow(f"dataset {recipe.dataset.dataset_id!r} has no versions; leave datasetVersion null")
    if recipe.settings.resources.workers > 1:
        raise InvalidFlow("settings.resources.workers above 1 is not available yet")
