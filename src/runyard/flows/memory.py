"""Prediction whether a flow fits into an accelerator's memory, before any machine has opened the
model.

This is an estimate. Weights, gradients and optimizer state follow from the number of parameters in
the size's name; names round, and most leave out the vision encoder, by up to a quarter. Activations
follow a rule of thumb: a language model of P parameters has about P^(1/3) / 48 layers of width 2
P^(1/3), and the bytes a layer keeps per token were measured on small models (``LAYER_BYTES``). So
an estimate is trusted up to 70 % of the memory; above that it gives a warning. If an earlier run of
the same flow has predicted its peak from the real data and model, that number is used, and other
settings are scaled in proportion.

The trainer's plan uses ``choose_micro_batch`` and ``uses_gradient_checkpointing`` too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from runyard.flows.families import AUTO, FAMILIES
from runyard.flows.resolved_flow import ResolvedFlow

Action = Literal["Allow", "Warn", "Deny"]
GIB = 1 << 30
CPU = "cpu"

# The fraction of the memory up to which a run is allowed. Above it is a warning, above the whole
# memory a denial.
SAFE_FRACTION = 0.85
SAFE_FRACTION_OF_ESTIMATE = 0.7

TINY_PARAMETERS = 200_000
LARGE_MODEL_PARAMETERS = 1_000_000_000  # from here on, auto recomputes activations
LARGEST_AUTO_MICRO_BATCH = {True: 4, False: 8}  # on the CPU; on an accelerator

# The fraction of the parameters in each part, so that a frozen part of a full training is not
# counted as trained.
PART_FRACTIONS = {"vision": 0.12, "projector": 0.01, "language": 0.87}
# Per trained parameter, without weight and gradient; muon keeps one number for matrices and two for
# embedding tables.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "muon": 5.0, "adafactor": 0.1, "sgd": 4.0}
FLOAT_BYTES, BFLOAT16_BYTES = 4, 2
# On average: matrices in 4 bits and a little for their scales, embeddings and the output layer in
# float32.
QUANTIZED_BYTES = 1.0

TOKENS_OF_IMAGE = 1024
TOKENS_OF_TEXT = 256
TOKENS_OF_TINY = 128
PIXELS_OF_TOKEN = 28 * 28
# Bytes that a layer keeps per token for the backward pass, per unit of the model's width, by mode
# and bytes per number. Measured on decoders of 512 units with and without grouped attention: 57 to
# 77, 85 to 122, 82 to 110 and 124 to 169. An adapter's dropout keeps more than the weights' own
# gradients need.
LAYER_BYTES = {("full", 2): 70, ("full", 4): 110, ("lora", 2): 100, ("lora", 4): 155}
LAYERS_OF_ROOT = 48
WIDTH_OF_ROOT = 2

START_BYTES = 768 << 20  # the libraries' code, the device's context
# One chunk of the output layer's numbers, their gradient and intermediate values.
LOGITS_BYTES = 768 << 20


@dataclass(frozen=True, kw_only=True)
class RunAccelerator:
    """The accelerator of a run: ``cpu``, or a short name such as ``h100``.

    Memory is None if unknown.
    """

    name: str
    memory_bytes: int | None

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


@dataclass(frozen=True, kw_only=True)
class MeasuredPeak:
    """Peak memory that an earlier run of the same flow predicted from its own data and model."""

    peak_bytes: int
    run_id: str
    is_cpu: bool
    micro_batch_size: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The bytes at the peak of a step, by purpose."""

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
class MemoryFit:
    """The prediction and its reason; ``needed_bytes`` is None if it cannot be estimated."""

    action: Action
    reason: str
    needed_bytes: int | None = None


def count_parameters(flow: ResolvedFlow) -> int | None:
    """Return the number of parameters from the model's size or weights name; None if unknown."""
    architecture = flow.model.architecture
    if flow.is_tiny:
        return TINY_PARAMETERS
    if architecture.size != AUTO:
        return _parse_size(architecture.size)
    hub_id = re.fullmatch(r"(?:base:)?[\w-]+/([\w.-]+)", architecture.weights or "")
    words = re.split(r"[-_]", hub_id[1]) if hub_id else []
    return next((found for word in words if (found := _parse_size(word)) is not None), None)


def estimate(flow: ResolvedFlow, *, parameters: int, accelerator: RunAccelerator) -> Estimate:
    """Estimate the memory of a training with ``parameters`` parameters on an accelerator."""
    model = flow.model
    number_bytes = _choose_number_bytes(flow, accelerator)
    trained = _count_trained(flow, parameters)
    gradient_bytes = FLOAT_BYTES
    if model.training.mode == "full" and model.training.weights_precision == "bfloat16":
        gradient_bytes = number_bytes = BFLOAT16_BYTES
        weights = float(BFLOAT16_BYTES * parameters)
    # float32 at any precision, and a copy in the format of the arithmetic.
    elif model.training.mode == "full":
        weights = FLOAT_BYTES * parameters + (
            number_bytes * trained if number_bytes < FLOAT_BYTES else 0
        )
    else:
        quantized = model.quantization.parts if model.quantization.enabled else ()
        fraction = sum(PART_FRACTIONS[part] for part in set(quantized))
        weight_bytes = QUANTIZED_BYTES * fraction + number_bytes * (1 - fraction)
        weights = weight_bytes * parameters + FLOAT_BYTES * trained
    optimizer = model.hyperparameters.optimizer
    kept = (
        0.0
        if optimizer.name == "sgd" and optimizer.betas[0] == 0
        else OPTIMIZER_BYTES[optimizer.name]
    )
    return Estimate(
        weights=weights,
        gradients=gradient_bytes * trained,
        optimizer=kept * trained,
        activations=_estimate_activations(flow, parameters, accelerator, number_bytes),
        rest=START_BYTES + (0 if flow.is_tiny else LOGITS_BYTES),
    )


def predict_fit(
    flow: ResolvedFlow,
    accelerator: RunAccelerator,
    *,
    parameters: int | None = None,
    measured: MeasuredPeak | None = None,
) -> MemoryFit:
    """Predict whether a run of the flow fits, and if not, suggest the smallest change with which it
    would.

    ``parameters`` is a counted number, which overrides the model's name. ``measured`` is used only
    for the kind of device it was measured on, since number formats differ.
    """
    if measured is not None:
        parameters = measured.parameters
        if measured.is_cpu is not accelerator.is_cpu:
            measured = None
    parameters = parameters or count_parameters(flow)
    if parameters is None:
        return MemoryFit(
            action="Warn",
            reason=f"how much memory {_describe_model(flow)} needs is not known before a machine "
            "has opened it",
        )
    needs = _MemoryNeeds(flow, accelerator, parameters, measured)
    needed = needs.estimate_bytes(flow, parameters)
    summary = f"{_format_gib(needed)} needed, {needs.source}"
    if accelerator.memory_bytes is None:
        reason = f"{summary}; how much memory {accelerator.name} has could not be determined"
        return MemoryFit(action="Warn", reason=reason, needed_bytes=needed)
    share = needed / accelerator.memory_bytes
    summary = (
        f"{summary}; {_format_gib(accelerator.memory_bytes)} available, "
        f"{_describe_memory(accelerator)}"
    )
    if share <= needs.safe_fraction:
        return MemoryFit(action="Allow", reason=summary, needed_bytes=needed)
    action: Action = "Deny" if share > 1 else "Warn"
    return MemoryFit(
        action=action,
        reason=f"{summary}; {_suggest_change(needs, accelerator.memory_bytes)}",
        needed_bytes=needed,
    )


def choose_micro_batch(flow: ResolvedFlow, *, on_cpu: bool) -> tuple[int, str]:
    """Return the number of samples per forward pass, and the reason."""
    numbers = flow.model.hyperparameters
    if numbers.micro_batch_size != "auto":
        return numbers.micro_batch_size, "flow"
    if flow.is_tiny:
        return numbers.batch_size, "the tiny model fits in memory with all samples of a step"
    largest = LARGEST_AUTO_MICRO_BATCH[on_cpu]
    found = max(
        size
        for size in range(1, min(largest, numbers.batch_size) + 1)
        if numbers.batch_size % size == 0
    )
    return found, f"the largest divisor of batchSize up to {largest}, careful with memory"


def uses_gradient_checkpointing(flow: ResolvedFlow, parameters: int) -> bool:
    """Return whether activations are recomputed instead of kept."""
    requested = flow.model.compute.gradient_checkpointing
    return parameters >= LARGE_MODEL_PARAMETERS if requested == "auto" else requested


class _MemoryNeeds:
    """The memory that flows need on one accelerator: estimated, or scaled from a measured peak."""

    def __init__(
        self,
        flow: ResolvedFlow,
        accelerator: RunAccelerator,
        parameters: int,
        measured: MeasuredPeak | None,
    ) -> None:
        self.flow, self.accelerator, self.parameters, self._scale = (
            flow,
            accelerator,
            parameters,
            1.0,
        )
        if measured is None:
            self.source = (
                f"estimated from {_format_count(parameters)} parameters (GiB: "
                f"{estimate(flow, parameters=parameters, accelerator=accelerator)})"
            )
            self.safe_fraction = SAFE_FRACTION_OF_ESTIMATE
        else:
            self.source = (
                f"predicted by run {measured.run_id} with the same flow from its own data and model"
            )
            self.safe_fraction = SAFE_FRACTION
            as_measured = _with_micro_batch(flow, measured.micro_batch_size)
            self._scale = measured.peak_bytes / self.estimate_bytes(as_measured, parameters)

    def estimate_bytes(self, flow: ResolvedFlow, parameters: int) -> int:
        return round(
            self._scale * estimate(flow, parameters=parameters, accelerator=self.accelerator).total
        )

    def choose_micro_batch(self, flow: ResolvedFlow) -> int:
        return choose_micro_batch(flow, on_cpu=self.accelerator.is_cpu)[0]


def _suggest_change(needs: _MemoryNeeds, memory_bytes: int) -> str:
    """Describe the first change that makes the flow fit, or that none does."""
    least: tuple[int, str] | None = None
    for words, flow, parameters in _iter_changes(needs):
        needed = needs.estimate_bytes(flow, parameters)
        if needed <= needs.safe_fraction * memory_bytes:
            return f"{words} would fit, with {_format_gib(needed)}"
        if least is None or needed < least[0]:
            least = needed, words
    if least is None:
        return "no setting needs less"
    limit = f"{needs.safe_fraction:.0%} of that"
    return f"no setting keeps it below {limit}: even {least[1]} would need {_format_gib(least[0])}"


def _iter_changes(needs: _MemoryNeeds) -> Iterator[tuple[str, ResolvedFlow, int]]:
    """Yield settings that need less memory: first without effect on results, then other modes and
    models.
    """
    for size, parameters in (
        ("", needs.parameters),
        *_list_smaller_sizes(needs.flow, needs.parameters),
    ):
        for way, flow in _iter_training_modes(needs.flow):
            words = [word for word in (f"size {size}" if size else "", way) if word]
            if words:
                yield " and ".join(words), flow, parameters
            for gentle, changed in _iter_neutral_changes(needs, flow, parameters):
                yield " and ".join([*words, gentle]), changed, parameters


def _iter_training_modes(flow: ResolvedFlow) -> Iterator[tuple[str, ResolvedFlow]]:
    """Yield the flow's training mode, and those that need less memory."""
    yield "", flow
    if flow.is_tiny:
        return
    words = []
    if flow.model.training.mode == "full":
        words.append("training.mode lora")
        flow = _with_lora(flow)
        yield words[0], flow
    if not flow.model.quantization.enabled:
        yield " and ".join([*words, "quantization.enabled true"]), _with_quantization(flow)


def _iter_neutral_changes(
    needs: _MemoryNeeds, flow: ResolvedFlow, parameters: int
) -> Iterator[tuple[str, ResolvedFlow]]:
    """Yield changes without effect on results: a smaller micro-batch, gradient checkpointing, and
    both.
    """
    batch_size, size = flow.model.hyperparameters.batch_size, needs.choose_micro_batch(flow)
    smaller = [part for part in range(size - 1, 0, -1) if batch_size % part == 0]
    for part in smaller:
        yield f"microBatchSize {part}", _with_micro_batch(flow, part)
    if uses_gradient_checkpointing(flow, parameters):
        return
    frugal = _with_checkpointing(flow)
    yield "compute.gradientCheckpointing true", frugal
    for part in smaller:
        yield (
            f"compute.gradientCheckpointing true and microBatchSize {part}",
            _with_micro_batch(frugal, part),
        )


def _list_smaller_sizes(flow: ResolvedFlow, parameters: int) -> list[tuple[str, int]]:
    """List smaller sizes of the family, the largest first; none if weights are given."""
    architecture = flow.model.architecture
    family = FAMILIES.get(architecture.name)
    if family is None or architecture.weights is not None:
        return []
    known = [(size, found) for size in family.sizes if (found := _parse_size(size)) is not None]
    return sorted(
        ((size, found) for size, found in known if found < parameters), key=lambda item: -item[1]
    )


def _with_micro_batch(flow: ResolvedFlow, size: int) -> ResolvedFlow:
    numbers = msgspec.structs.replace(flow.model.hyperparameters, micro_batch_size=size)
    return msgspec.structs.replace(
        flow, model=msgspec.structs.replace(flow.model, hyperparameters=numbers)
    )


def _with_checkpointing(flow: ResolvedFlow) -> ResolvedFlow:
    compute = msgspec.structs.replace(flow.model.compute, gradient_checkpointing=True)
    return msgspec.structs.replace(flow, model=msgspec.structs.replace(flow.model, compute=compute))


def _with_lora(flow: ResolvedFlow) -> ResolvedFlow:
    training = msgspec.structs.replace(flow.model.training, mode="lora")
    return msgspec.structs.replace(
        flow, model=msgspec.structs.replace(flow.model, training=training)
    )


def _with_quantization(flow: ResolvedFlow) -> ResolvedFlow:
    quantization = msgspec.structs.replace(flow.model.quantization, enabled=True)
    return msgspec.structs.replace(
        flow, model=msgspec.structs.replace(flow.model, quantization=quantization)
    )


def _parse_size(size: str) -> int | None:
    """Parse sizes such as 7B or 500M.

    E2B is no such size: it has more parameters in memory than its name says.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([BM])", size, re.IGNORECASE)
    return (
        round(float(found[1]) * {"B": 1e9, "M": 1e6}[found[2].upper()]) or None if found else None
    )


def _choose_number_bytes(flow: ResolvedFlow, accelerator: RunAccelerator) -> int:
    """Return the bytes per number of the arithmetic."""
    requested = flow.model.compute.precision_type
    if requested == AUTO:
        return FLOAT_BYTES if flow.is_tiny or accelerator.is_cpu else 2
    return FLOAT_BYTES if requested == "float32" else 2


def _count_trained(flow: ResolvedFlow, parameters: int) -> float:
    """Return the number of trained parameters: of the parts not frozen, or of an adapter on each
    linear layer and the projector.
    """
    training = flow.model.training
    if training.mode == "full":
        return parameters * (1 - sum(PART_FRACTIONS[part] for part in set(training.freeze)))
    # A layer of 12 w^2 weights has seven linear maps, whose two ends together are about 19 w.
    adapter = parameters * training.lora.rank * 19 / (12 * _estimate_width(parameters))
    return adapter + training.lora.train_projector * PART_FRACTIONS["projector"] * parameters


def _estimate_activations(
    flow: ResolvedFlow, parameters: int, accelerator: RunAccelerator, number_bytes: int
) -> float:
    size, _ = choose_micro_batch(flow, on_cpu=accelerator.is_cpu)
    width, layers = _estimate_width(parameters), max(1.0, parameters ** (1 / 3) / LAYERS_OF_ROOT)
    mode = flow.model.training.mode
    of_layer = LAYER_BYTES[mode, number_bytes]
    # Each layer's input, and one whole layer during its backward pass.
    if uses_gradient_checkpointing(flow, parameters):
        of_token = of_layer + layers * (FLOAT_BYTES if mode == "full" else number_bytes)
    else:
        of_token = of_layer * layers
    return float(size * _count_tokens(flow) * width * of_token)


def _estimate_width(parameters: int) -> float:
    return WIDTH_OF_ROOT * float(parameters ** (1 / 3))


def _count_tokens(flow: ResolvedFlow) -> int:
    """Estimate the tokens of one sample."""
    if flow.is_tiny:
        return TOKENS_OF_TINY
    images = flow.model.images
    if images.patch_budget is not None:
        return images.patch_budget + TOKENS_OF_TEXT
    if isinstance(images.max_pixels, int):
        return images.max_pixels // PIXELS_OF_TOKEN + TOKENS_OF_TEXT
    return TOKENS_OF_IMAGE + TOKENS_OF_TEXT


def _describe_model(flow: ResolvedFlow) -> str:
    architecture = flow.model.architecture
    if architecture.weights is not None:
        return f"a model from weights {architecture.weights!r}"
    return f"{architecture.name} of size {architecture.size}"


def _describe_memory(accelerator: RunAccelerator) -> str:
    return (
        "the memory of the machine or its cgroup"
        if accelerator.is_cpu
        else f"the memory of one {accelerator.name}"
    )


def _format_gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _format_count(parameters: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)
