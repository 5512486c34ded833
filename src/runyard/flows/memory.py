"""Whether a training fits into an accelerator's memory, judged from the recipe before any machine has opened the model.

An estimate, not a measurement. Bytes of weights, gradients and optimizer state follow from the number of parameters,
which is what the size's name says: names round, and most leave the vision encoder out, by up to a quarter. Activations
follow a rule of thumb: a language model of P parameters has about P^(1/3) / 48 layers of width 2 P^(1/3), and what a
layer keeps for each token was measured on small ones (``LAYER_BYTES``). Because of all that an estimate is trusted up
to 70 % of the memory, and beyond it warned of. Where an earlier run of the same recipe has predicted its peak from the
real data and model, its number is the base, and what other settings would take is in proportion.

``micro_batch`` and ``checkpoints_gradients`` are the trainer's own choices, which its plan asks here for too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.recipe import Recipe

Action = Literal["Allow", "Warn", "Deny"]
GIB = 1 << 30
CPU = "cpu"

# The share of the memory up to which all is well. Above it people are warned, above the whole it is denied.
SURE_SHARE = 0.85
SURE_SHARE_OF_ESTIMATE = 0.7

TINY_PARAMETERS = 200_000
LARGE_MODEL_PARAMETERS = 1_000_000_000  # from here on, auto recomputes activations
LARGEST_AUTO_MICRO_BATCH = {True: 4, False: 8}  # on the CPU; on an accelerator

# Of a full training: which share of the parameters a part has, so that a frozen one is not counted as trained.
PART_SHARES = {"vision": 0.12, "projector": 0.01, "language": 0.87}
# For each trained parameter, beside weight and gradient; muon keeps one number of a matrix and two of what is a table.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 5.0, "adafactor": 0.1, "sgd": 4.0}
FLOAT_BYTES = 4
# On average: matrices in 4 bits and a little for their scales, embeddings and the output layer in float32.
QUANTIZED_BYTES = 1.0

TOKENS_OF_PICTURE = 1024
TOKENS_OF_TEXT = 256
TOKENS_OF_TINY = 128
PIXELS_OF_TOKEN = 28 * 28
# What a layer keeps of one token for the backward pass, for each unit of the model's width, by mode and bytes of a
# number: measured on decoders of 512 units with and without grouped attention, 57 to 77, 85 to 122, 82 to 110 and 124
# to 169. An adapter's dropout keeps more than the weights' own gradients need.
LAYER_BYTES = {("full", 2): 70, ("full", 4): 110, ("lora", 2): 100, ("lora", 4): 155}
LAYERS_OF_ROOT = 48
WIDTH_OF_ROOT = 2

START_BYTES = 768 << 20  # the libraries' code, the device's context
LOGITS_BYTES = 768 << 20  # one chunk of the output layer's numbers, their gradient and what lies between
# Accelerators for which auto is float32; all newer ones do bfloat16 well.
WITHOUT_BFLOAT16 = frozenset({"m60", "p4", "p40", "p100", "v100", "t4"})


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What a run would hold: ``cpu``, or a short name such as ``h100``. Of memory unknown where the machine could not
    find out."""

    name: str
    memory_bytes: int | None

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an earlier run of the same recipe predicted from its own data and model, in bytes at the peak."""

    peak_bytes: int
    run_id: str
    is_cpu: bool
    micro_batch_size: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes at the peak of a step, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    rest: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.rest

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations", "rest")
        return ", ".join(f"{part} {getattr(self, part) / GIB:.1f}" for part in parts)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The verdict and why; ``needed_bytes`` is None where nobody can know yet."""

    action: Action
    reason: str
    needed_bytes: int | None = None


def parameters_of(recipe: Recipe) -> int | None:
    """How many parameters the model has, as far as its names say; None where they do not."""
    architecture = recipe.model.architecture
    if recipe.is_tiny:
        return TINY_PARAMETERS
    if architecture.size != AUTO:
        return _parameters_of_size(architecture.size)
    hub_id = re.fullmatch(r"(?:base:)?[\w-]+/([\w.-]+)", architecture.weights or "")
    words = re.split(r"[-_]", hub_id[1]) if hub_id else []
    return next((found for word in words if (found := _parameters_of_size(word)) is not None), None)


def estimate(recipe: Recipe, *, parameters: int, accelerator: Accelerator) -> Estimate:
    """What a training of ``parameters`` parameters takes there."""
    model = recipe.model
    number_bytes = _number_bytes(recipe, accelerator)
    trained = _trained(recipe, parameters)
    if model.training.mode == "full":  # float32 whatever the arithmetic, and a copy in the arithmetic's own format
        weights = FLOAT_BYTES * parameters + (number_bytes * trained if number_bytes < FLOAT_BYTES else 0)
    else:
        weights = (QUANTIZED_BYTES if model.quantization.enabled else number_bytes) * parameters + FLOAT_BYTES * trained
    optimizer = model.hyperparameters.optimizer
    kept = 0.0 if optimizer.name == "sgd" and optimizer.betas[0] == 0 else OPTIMIZER_BYTES[optimizer.name]
    return Estimate(
        weights=weights,
        gradients=FLOAT_BYTES * trained,
        optimizer=kept * trained,
        activations=_activations(recipe, parameters, accelerator, number_bytes),
        rest=START_BYTES + (0 if recipe.is_tiny else LOGITS_BYTES),
    )


def judge(
    recipe: Recipe, accelerator: Accelerator, *, parameters: int | None = None, measured: Measured | None = None
) -> Outlook:
    """Whether a run of the recipe fits there, and for one that may not, the least change by which it would.

    ``parameters`` is what somebody has counted, and comes before what names say. ``measured`` counts only on the kind
    of device it was measured on: number formats differ between them.
    """
    if measured is not None:
        parameters = measured.parameters
        if measured.is_cpu is not accelerator.is_cpu:
            measured = None
    parameters = parameters or parameters_of(recipe)
    if parameters is None:
        return Outlook(
            action="Warn",
            reason=f"how much memory {_model_in_words(recipe)} takes is not known before a machine has opened it",
        )
    needs = _Needs(recipe, accelerator, parameters, measured)
    needed = needs.of(recipe, parameters)
    told = f"{_gib(needed)} needed, {needs.source}"
    if accelerator.memory_bytes is None:
        reason = f"{told}; how much memory {accelerator.name} has could not be found out there"
        return Outlook(action="Warn", reason=reason, needed_bytes=needed)
    share = needed / accelerator.memory_bytes
    told = f"{told}; {_gib(accelerator.memory_bytes)} available, {_available_from(accelerator)}"
    if share <= needs.sure_share:
        return Outlook(action="Allow", reason=told, needed_bytes=needed)
    action: Action = "Deny" if share > 1 else "Warn"
    return Outlook(action=action, reason=f"{told}; {_advice(needs, accelerator.memory_bytes)}", needed_bytes=needed)


def micro_batch(recipe: Recipe, *, on_cpu: bool) -> tuple[int, str]:
    """How many samples go forwards at once, and why."""
    numbers = recipe.model.hyperparameters
    if numbers.micro_batch_size != "auto":
        return numbers.micro_batch_size, "recipe"
    if recipe.is_tiny:
        return numbers.batch_size, "the tiny model fits in memory with all samples of a step"
    largest = LARGEST_AUTO_MICRO_BATCH[on_cpu]
    found = max(size for size in range(1, min(largest, numbers.batch_size) + 1) if numbers.batch_size % size == 0)
    return found, f"the largest divisor of batchSize up to {largest}, careful with memory"


def checkpoints_gradients(recipe: Recipe, parameters: int) -> bool:
    """Whether activations are computed a second time rather than kept."""
    wanted = recipe.model.compute.gradient_checkpointing
    return parameters >= LARGE_MODEL_PARAMETERS if wanted == "auto" else wanted


class _Needs:
    """What recipes take on one accelerator: estimated, or in proportion to what was measured."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, parameters: int, measured: Measured | None) -> None:
        self.recipe, self.accelerator, self.parameters, self._scale = recipe, accelerator, parameters, 1.0
        if measured is None:
            self.source = (
                f"estimated from {_count(parameters)} parameters (GiB: "
                f"{estimate(recipe, parameters=parameters, accelerator=accelerator)})"
            )
            self.sure_share = SURE_SHARE_OF_ESTIMATE
        else:
            self.source = f"predicted by run {measured.run_id} with the same recipe from its own data and model"
            self.sure_share = SURE_SHARE
            as_measured = _with_micro_batch(recipe, measured.micro_batch_size)
            self._scale = measured.peak_bytes / self.of(as_measured, parameters)

    def of(self, recipe: Recipe, parameters: int) -> int:
        return round(self._scale * estimate(recipe, parameters=parameters, accelerator=self.accelerator).total)

    def micro_batch(self, recipe: Recipe) -> int:
        return micro_batch(recipe, on_cpu=self.accelerator.is_cpu)[0]


def _advice(needs: _Needs, memory_bytes: int) -> str:
    """The first change that makes the recipe fit, or that none does."""
    least: tuple[int, str] | None = None
    for words, recipe, parameters in _changes(needs):
        needed = needs.of(recipe, parameters)
        if needed <= needs.sure_share * memory_bytes:
            return f"{words} would fit, with {_gib(needed)}"
        if least is None or needed < least[0]:
            least = needed, words
    if least is None:
        return "no setting takes less"
    return f"no setting keeps it below {needs.sure_share:.0%} of that: even {least[1]} would need {_gib(least[0])}"


def _changes(needs: _Needs) -> Iterator[tuple[str, Recipe, int]]:
    """Settings that ask for less: those that change no result first, then other ways to train, then other models."""
    for size, parameters in (("", needs.parameters), *_smaller_sizes(needs.recipe, needs.parameters)):
        for way, recipe in _ways(needs.recipe):
            words = [word for word in (f"size {size}" if size else "", way) if word]
            if words:
                yield " and ".join(words), recipe, parameters
            for gentle, changed in _gentle_changes(needs, recipe, parameters):
                yield " and ".join([*words, gentle]), changed, parameters


def _ways(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The way the recipe trains, and those that ask for less."""
    yield "", recipe
    if recipe.is_tiny:
        return
    words = []
    if recipe.model.training.mode == "full":
        words.append("training.mode lora")
        recipe = _with_lora(recipe)
        yield words[0], recipe
    if not recipe.model.quantization.enabled:
        yield " and ".join([*words, "quantization.enabled true"]), _with_quantization(recipe)


def _gentle_changes(needs: _Needs, recipe: Recipe, parameters: int) -> Iterator[tuple[str, Recipe]]:
    """Changes that leave the result as it is: fewer samples at once, activations computed twice, and both."""
    batch_size, size = recipe.model.hyperparameters.batch_size, needs.micro_batch(recipe)
    smaller = [part for part in range(size - 1, 0, -1) if batch_size % part == 0]
    for part in smaller:
        yield f"microBatchSize {part}", _with_micro_batch(recipe, part)
    if checkpoints_gradients(recipe, parameters):
        return
    frugal = _with_checkpointing(recipe)
    yield "compute.gradientCheckpointing true", frugal
    for part in smaller:
        yield f"compute.gradientCheckpointing true and microBatchSize {part}", _with_micro_batch(frugal, part)


def _smaller_sizes(recipe: Recipe, parameters: int) -> list[tuple[str, int]]:
    """Smaller models of the family, the largest first; of own weights there are none."""
    architecture = recipe.model.architecture
    family = FAMILIES.get(architecture.name)
    if family is None or architecture.weights is not None:
        return []
    known = [(size, found) for size in family.sizes if (found := _parameters_of_size(size)) is not None]
    return sorted(((size, found) for size, found in known if found < parameters), key=lambda item: -item[1])


def _with_micro_batch(recipe: Recipe, size: int) -> Recipe:
    numbers = msgspec.structs.replace(recipe.model.hyperparameters, micro_batch_size=size)
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, hyperparameters=numbers))


def _with_checkpointing(recipe: Recipe) -> Recipe:
    compute = msgspec.structs.replace(recipe.model.compute, gradient_checkpointing=True)
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, compute=compute))


def _with_lora(recipe: Recipe) -> Recipe:
    training = msgspec.structs.replace(recipe.model.training, mode="lora")
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, training=training))


def _with_quantization(recipe: Recipe) -> Recipe:
    quantization = msgspec.structs.replace(recipe.model.quantization, enabled=True)
    return msgspec.structs.replace(recipe, model=msgspec.structs.replace(recipe.model, quantization=quantization))


def _parameters_of_size(size: str) -> int | None:
    """Sizes such as 7B or 500M; not E2B, of which more lies in memory than its name says, nor base."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([BM])", size, re.IGNORECASE)
    return round(float(found[1]) * {"B": 1e9, "M": 1e6}[found[2].upper()]) or None if found else None


def _number_bytes(recipe: Recipe, accelerator: Accelerator) -> int:
    """Of one number of the arithmetic."""
    wanted = recipe.model.compute.precision_type
    if wanted == AUTO:
        is_whole = recipe.is_tiny or accelerator.is_cpu or accelerator.name in WITHOUT_BFLOAT16
        return FLOAT_BYTES if is_whole else 2
    return FLOAT_BYTES if wanted == "float32" else 2


def _trained(recipe: Recipe, parameters: int) -> float:
    """How many parameters are trained: those of the parts that are not frozen, or an adapter's on each linear layer."""
    training = recipe.model.training
    if training.mode == "full":
        return parameters * (1 - sum(PART_SHARES[part] for part in set(training.freeze)))
    # A layer of 12 w^2 weights has seven linear maps, whose two ends together are about 19 w.
    return parameters * training.lora.rank * 19 / (12 * _width(parameters))


def _activations(recipe: Recipe, parameters: int, accelerator: Accelerator, number_bytes: int) -> float:
    size, _ = micro_batch(recipe, on_cpu=accelerator.is_cpu)
    width, layers = _width(parameters), max(1.0, parameters ** (1 / 3) / LAYERS_OF_ROOT)
    mode = recipe.model.training.mode
    of_layer = LAYER_BYTES[mode, number_bytes]
    if checkpoints_gradients(recipe, parameters):  # each layer's input, and one layer whole while it goes backwards
        of_token = of_layer + layers * (FLOAT_BYTES if mode == "full" else number_bytes)
    else:
        of_token = of_layer * layers
    return float(size * _tokens(recipe) * width * of_token)


def _width(parameters: int) -> float:
    return WIDTH_OF_ROOT * float(parameters ** (1 / 3))


def _tokens(recipe: Recipe) -> int:
    """Of one sample."""
    if recipe.is_tiny:
        return TOKENS_OF_TINY
    images = recipe.model.images
    if images.patch_budget is not None:
        return images.patch_budget + TOKENS_OF_TEXT
    if images.max_pixels != "auto":
        return int(images.max_pixels) // PIXELS_OF_TOKEN + TOKENS_OF_TEXT
    return TOKENS_OF_PICTURE + TOKENS_OF_TEXT


def _model_in_words(recipe: Recipe) -> str:
    architecture = recipe.model.architecture
    if architecture.weights is not None:
        return f"a model from weights {architecture.weights!r}"
    return f"{architecture.name} of size {architecture.size}"


def _available_from(accelerator: Accelerator) -> str:
    return "the memory of the machine or its cgroup" if accelerator.is_cpu else f"the memory of one {accelerator.name}"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)
