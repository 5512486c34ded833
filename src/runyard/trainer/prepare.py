"""Everything that the loop works with, made in the order flow, data, model, plan, optimizers.

When resuming, weights, optimizer state, counters and random states come from the checkpoint.
Everything else is made as the first time, from the flow and its seed, and so comes out the same.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from runyard.base_models import ModelParts, split_checkpoint
from runyard.flows import ResolvedFlow, build_flow_document
from runyard.flows.blocks import ModelSettings, Quantization
from runyard.ids import resolve_folder
from runyard.model_folders import ModelFolders
from runyard.rundir import AttemptDir, CheckpointDir, read_json
from runyard.trainer.answer_forms import JSON_FORM, AnswerForm, check_native_form, make_form
from runyard.trainer.checkpoints.checkpoint import (
    TrainingProgress,
    load_optimizers,
    load_state,
    read_state,
    restore_counters,
)
from runyard.trainer.checkpoints.warm_start import check_fits, restore_progress
from runyard.trainer.data.cache import CacheDir, Hooks, encode_all
from runyard.trainer.data.datasets import Dataset, Sample, hash_samples, load_dataset
from runyard.trainer.data.encode import (
    Encoder,
    Encodings,
    InMemoryEncodings,
    Layout,
    pack_images,
)
from runyard.trainer.data.image_resolution import (
    MaxPixels,
    ResolutionLimits,
    TokenBudget,
    TooLong,
    apply_resolution,
    choose_max_pixels,
    get_context_length,
    get_resolution_settings,
    limit_resolution,
)
from runyard.trainer.data.mixtures import (
    FetchedVersion,
    check_mixture,
    describe_mixture,
    load_mixture,
)
from runyard.trainer.data.uploaded import SampleSelection, check_split, load_uploaded
from runyard.trainer.data.workers import SampleSource
from runyard.trainer.errors import InvalidData, InvalidFlow
from runyard.trainer.models.adapters import add_adapter, check_adapter_settings, merge_adapter
from runyard.trainer.models.attention import check_attention
from runyard.trainer.models.model import (
    DTYPES,
    LoadedModel,
    build_tiny,
    check_family,
    freeze_parts,
    get_pad_id,
    load_model,
    read_quantization,
)
from runyard.trainer.models.model_folder import read_inside
from runyard.trainer.models.weights import find_weights
from runyard.trainer.plan import (
    FAMILY_IMAGE_SETTINGS,
    MAX_PIXELS,
    Hardware,
    ImageSizes,
    Plan,
    Sizes,
    UploadedSizes,
    choose_precision,
    make_plan,
    with_memory,
    with_micro_batch,
    with_strategy,
)
from runyard.trainer.ranks import World
from runyard.trainer.sharding import (
    count_largest_block_bytes,
    explain_unshardable,
    shard_losses,
    shard_model,
    shard_state,
    whole_weights,
)
from runyard.trainer.steps.autotune import BuildBatch
from runyard.trainer.steps.batching import BatchBuilder, estimate_padding_share
from runyard.trainer.steps.features import explain_not_frozen
from runyard.trainer.steps.growth import MIN_SPEEDUP, ROUNDS, measure_growth
from runyard.trainer.steps.loading import BatchLoader
from runyard.trainer.steps.losses import TokenLosses, get_base_model
from runyard.trainer.steps.memory import (
    MemoryEstimate,
    Sharding,
    StepMemory,
    compare_with_available,
    estimate_memory,
    measure_step_memory,
    read_host_memory,
    retain_freed_memory,
    return_freed_memory,
)
from runyard.trainer.steps.optim import make_optimizers
from runyard.trainer.steps.rounding import RoundedSteps
from runyard.trainer.steps.trial_budget import TrialBudget
from vi.api.resources.runs.responses import Run

BASE = "base"  # below the attempt's folder: base weights of an adapter that came from no folder
SAMPLES_BETWEEN_CHECKS = 16  # reading stop.json and the permit takes 54 µs (measured, busy core)
# Of a checkpoint whose plan names no limit, because auto set none then.
NO_MAX_PIXELS = {"value": None, "reason": "none when this training started"}
SLOW_PASS_S = 1.0  # from which a bound on memory is preferred to an estimate
FIXED_DEVICES = ("cpu",)  # where no larger micro-batch is tried
PROCESS_BYTES = 512 << 20  # most of what one encodes large images with
MAX_LISTED_REFUSALS = 5  # samples that a warning names


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt: its folder, the run, its flow, where weights are, and a proven checkpoint.

    ``models`` maps other runs' weights to their folders; ``folders`` are the other places that
    weights may be read from. ``origin_run`` is the run of the checkpoint, if that is another one.
    Encoded samples of uploaded data are cached below ``cache``, up to ``cache_bytes``, as long as
    ``spare_bytes`` of the disk stay free.
    ``world`` has the processes that train together. Samples are encoded on ``cores``.
    """

    folder: Path
    run: Run
    flow: ResolvedFlow
    models: dict[str, str]
    folders: ModelFolders = ModelFolders((), Path("/"))
    resume: Path | None = None
    origin_run: str | None = None
    cache: Path | None = None
    cache_bytes: int = 0
    spare_bytes: int = 0
    world: World = World()
    cores: int = 1

    @property
    def start_message(self) -> str:
        """The message of the attempt's first phase."""
        origin = self.run.spec.resume_from
        if self.origin_run is None or origin is None:
            return "Reading data and model"
        return (
            f"Resuming from run {origin.run_id}, checkpoint {origin.checkpoint}, step {origin.step}"
        )


@dataclass(kw_only=True)
class TrainState:
    """What the loop works with."""

    plan: Plan
    model: LoadedModel
    data: Dataset
    lengths: Any  # (samples,) tokens of each training sample
    build_batch: BuildBatch
    validation: Encodings
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    losses: TokenLosses
    validation_losses: TokenLosses  # without label smoothing
    generation: dict[str, Any]
    progress: TrainingProgress
    device: torch.device
    rounded_steps: RoundedSteps | None = None  # of weights in bfloat16
    world: World = World()
    run_document: dict[str, Any] = field(default_factory=dict)
    memory_estimate: MemoryEstimate | None = None  # None where memory is not estimated
    is_sharded: bool = False  # whether each rank has a part of every weight
    answer_form: AnswerForm = JSON_FORM
    has_memory_trial: bool = False  # whether the largest micro-batch is tried before the first step
    loader: BatchLoader = field(init=False)  # builds the batches of steps
    next_batch: tuple[int, list[int]] | None = None  # epoch and samples of the step to prepare
    parameters: list[torch.nn.Parameter] = field(init=False)  # all that the optimizers change
    longest_index: int = field(init=False)  # of the training sample with the most tokens

    def __post_init__(self) -> None:
        self.parameters = [parameter for _, parameter in self.model.trainable_parameters()]
        self.longest_index = int(np.argmax(self.lengths))
        self.loader = BatchLoader(self.build_batch, may_prepare=False)

    def count_samples_left(self) -> float:
        """Return the samples still to train on, each counted by its share of the longest one."""
        steps = max(0, self.plan.total_steps - self.progress.step)
        return steps * self.plan.batch_size * float(self.lengths.mean() / self.lengths.max())

    def shard(self, flow: ResolvedFlow) -> None:
        """Keep this rank's part of every weight, with new optimizers."""
        module = self.model.module
        shard_model(module, self.device, self.world.size)
        shard_losses(module, self.losses, self.validation_losses)
        self.optimizers = build_optimizers(flow, self.model)
        self.parameters = [parameter for _, parameter in self.model.trainable_parameters()]
        self.is_sharded = True

    def gather_weights(self) -> AbstractContextManager[None]:
        """Return a context in which this rank has all weights."""
        return whole_weights(self.model.module) if self.is_sharded else nullcontext()

    @property
    def predicted_host_bytes(self) -> int:
        """The estimated peak of the process's host memory; 0 where it is not known."""
        if self.memory_estimate is None or self.device.type != "cpu":
            return 0
        return self.memory_estimate.peak_bytes


@dataclass(kw_only=True)
class FitReport:
    """How many samples got a smaller image, and a description of each sample that was refused."""

    shrunk: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EncodedData:
    """Both parts of the data, encoded for the model. ``uploaded`` is None for built-in data, and
    ``max_pixels`` for the tiny model.
    """

    data: Dataset
    encoder: Encoder
    layout: Layout
    fitting: TokenBudget
    train: Encodings
    validation: Encodings
    fit: FitReport
    form: AnswerForm = JSON_FORM
    uploaded: UploadedSizes | None = None
    max_pixels: MaxPixels | None = None


def prepare(job: Job, machine: Hardware, *, hooks: Hooks) -> TrainState:
    """Read data and model, make the plan, and restore the checkpoint if there is one.

    Raises:
        StopRequested: ``hooks`` canceled it.
        TrainingFailed: the flow or the data cannot be trained.
    """
    flow, device = job.flow, torch.device(machine.device)
    check_origin(job)
    configure_heap(flow, device)
    precision, _ = choose_precision(flow, machine)
    check_attention(
        flow.model.compute.attention,
        precision=precision,
        device=machine.device,
        device_name=machine.device_name,
    )
    hooks.on_activity("Reading the dataset")
    data = load_data(job, hooks.check_cancelled)
    hooks.check_cancelled()
    hooks.on_activity("Loading weights")
    model = build_model(job, data, DTYPES[precision], device)
    hooks.on_activity("Encoding samples")
    encoded = encode(job, data, model, hooks)
    hooks.on_activity("Making the plan")
    plan = make_plan(flow, machine, measure_sizes(flow, model, encoded))
    hooks.on_activity(f"Placing the model on {plan.device}")
    place_model(model, plan, device)
    optimizers = build_optimizers(flow, model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    if job.resume is not None:
        hooks.on_activity(f"Reading checkpoint {job.resume.name}")
    obstacle = find_shard_obstacle(flow, data, precision)
    check_strategy(flow, obstacle)
    # Sharded, each rank keeps only a part of what the checkpoint has for the optimizers.
    may_shard = obstacle is None and flow.settings.resources.strategy != "ddp"
    progress = restore(job, plan, model, [] if may_shard else optimizers, scaler)
    plan = keep_micro_batch(plan, progress, flow)
    plan = limit_micro_batch(plan, progress, job.run.status.micro_batch_limit)
    make_losses = partial(TokenLosses, model.module, precision=precision, device=device)
    losses = make_losses(label_smoothing=flow.model.hyperparameters.loss.label_smoothing)
    batching = make_batching(job, encoded, model, losses, device, hooks)
    decisions = None if job.world.is_leader else job.world.share(None)  # waits for rank 0
    if decisions is not None:
        progress.choices = decisions["choices"]
    plan = batching.resolve_choices(plan, progress.choices)
    validation_losses = make_losses(label_smoothing=0.0)
    validation_losses.expand_features = losses.expand_features
    hooks.check_cancelled()
    state = TrainState(
        plan=plan,
        model=model,
        data=encoded.data,
        lengths=encoded.train.lengths,
        build_batch=batching.build,
        validation=batching.validation,
        optimizers=optimizers,
        scaler=scaler,
        losses=losses,
        validation_losses=validation_losses,
        generation=build_generation_settings(flow, model, plan.answer_tokens),
        progress=progress,
        device=device,
        rounded_steps=make_rounded_steps(flow),
        world=job.world,
        answer_form=encoded.form,
    )
    if decisions is None:
        fit_plan_to_memory(state, flow, hooks, may_grow=may_grow(job, progress, device))
        strategy = choose_strategy(state, flow, obstacle)
        decisions = job.world.share(describe_decisions(state) | {"strategy": strategy})
    else:
        follow_decisions(state, decisions)
    job.world.share_weights(state.parameters)
    apply_strategy(job, state, decisions["strategy"], is_restored=not may_shard)
    state.loader = BatchLoader(
        state.build_batch,
        may_prepare=batching.may_prepare and may_prepare_batches(state, flow),
        ahead=batching.ahead,
    )
    state.run_document = build_run_document(job, model, state.plan)
    return state


def find_shard_obstacle(flow: ResolvedFlow, data: Dataset, precision: str) -> str | None:
    """Return why weights cannot be sharded; None if they can."""
    obstacle = explain_unshardable(flow, precision)
    if obstacle is None and data.has_text_only:
        # All ranks gather the same blocks in the same order.
        return "a batch of text only would run fewer blocks of the model than others"
    return obstacle


def may_prepare_batches(state: TrainState, flow: ResolvedFlow) -> bool:
    """Return whether batches may be prepared ahead: they take memory, and time of short steps."""
    estimate = state.memory_estimate
    has_memory = state.device.type != "cpu" or (estimate is not None and estimate.is_ample)
    return has_memory and not flow.is_tiny


def check_strategy(flow: ResolvedFlow, obstacle: str | None) -> None:
    """Raise ``InvalidFlow`` if the flow wants its weights sharded, and they cannot be."""
    if flow.settings.resources.strategy == "fsdp" and obstacle is not None:
        raise InvalidFlow(
            f"resources.strategy 'fsdp' is not possible: {obstacle}; try: leave it auto"
        )


def choose_strategy(state: TrainState, flow: ResolvedFlow, obstacle: str | None) -> tuple[str, str]:
    """Return how several ranks train, and why."""
    requested, estimate = flow.settings.resources.strategy, state.memory_estimate
    if requested != "auto":
        return requested, "flow"
    if obstacle is not None:
        return "ddp", f"not fsdp: {obstacle}"
    if estimate is not None and estimate.fits_sharded:
        return "fsdp", "the whole model does not fit into the memory of each process"
    return "ddp", "the whole model fits into the memory of each process"


def apply_strategy(
    job: Job, state: TrainState, strategy: Sequence[str], *, is_restored: bool
) -> None:
    """Shard the weights if that is decided, and complete what restoring has left out."""
    if state.world.is_single:
        return
    name, reason = strategy
    state.plan = with_strategy(state.plan, name, reason)
    if name == "fsdp":
        state.shard(job.flow)
    if job.resume is not None and not is_restored:
        place = shard_state if state.is_sharded else None
        load_optimizers(job.resume, state.model, state.optimizers, place=place)


def check_origin(job: Job) -> None:
    """Check that the flow fits the checkpoint, if that is of another run."""
    if job.resume is not None and job.origin_run is not None:
        check_fits(job.flow, job.resume)


def make_rounded_steps(flow: ResolvedFlow) -> RoundedSteps | None:
    """Return what takes steps with weights in bfloat16; None where weights are float32."""
    is_float32 = flow.model.training.weights_precision == "float32"
    return None if is_float32 else RoundedSteps(flow.settings.seed)


def configure_heap(flow: ResolvedFlow, device: torch.device) -> None:
    """Let the C library keep freed memory for the tiny model, and otherwise return it at once."""
    adjust_heap(device, is_ample=flow.is_tiny)


def adjust_heap(device: torch.device, *, is_ample: bool) -> None:
    """Let the C library keep freed memory where memory is ample, and otherwise return it."""
    if device.type == "cpu":
        (retain_freed_memory if is_ample else return_freed_memory)()


def load_data(job: Job, check_cancelled: Callable[[], None]) -> Dataset:
    """Return the uploaded datasets that the supervisor has fetched, or a built-in one."""
    flow = job.flow
    fetched = read_json(AttemptDir(job.folder).dataset)
    if fetched is not None:
        if fetched.get("problem"):
            raise InvalidData(str(fetched["problem"]))
        if others := fetched.get("others"):
            versions = [
                FetchedVersion(
                    Path(str(each["folder"])), str(each["dataset"]), str(each["version"])
                )
                for each in (fetched, *others)
            ]
            return load_mixture(flow, versions, check_cancelled)
        return load_uploaded(
            Path(str(fetched["folder"])),
            name=str(fetched["dataset"]),
            version=str(fetched["version"]),
            task=flow.task,
            seed=flow.settings.seed,
            validation_fraction=flow.dataset.validation_fraction,
            max_samples=flow.dataset.max_samples,
            check_cancelled=check_cancelled,
        )
    data = load_dataset(
        flow.dataset.dataset_id,
        seed=flow.settings.seed,
        validation_fraction=flow.dataset.validation_fraction,
        max_samples=flow.dataset.max_samples,
    )
    if data.task != flow.task:
        raise InvalidFlow(
            f"dataset {data.name!r} is for {data.task}, but projectKind is {flow.task!r}; "
            f"try: projectKind {data.task!r}, or another dataset"
        )
    return data


def build_model(job: Job, data: Dataset, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Return the model as it is before the first step of this attempt."""
    training = job.flow.model.training
    source = find_source(job)
    if training.mode == "lora":
        model = load_weights(job, data, dtype, source, device)
        return build_adapter(job, model, dtype, source, device)
    # By default float32: small updates vanish in 16 bits, unless they are rounded at random.
    weights_dtype = DTYPES[training.weights_precision]
    model = load_weights(job, data, weights_dtype, source, device)
    for parameter in model.module.parameters():  # the tiny model is built in float32
        parameter.data = parameter.data.to(weights_dtype)
    freeze_parts(model, training.freeze)
    if not model.trainable_parameters():
        raise InvalidFlow(
            f"training.freeze {training.freeze} leaves nothing to train; try: freeze fewer parts"
        )
    return model


def find_source(job: Job) -> ModelParts | None:
    """Return the weights to start from, after a check that the flow fits an adapter among them.

    None stands for the built-in tiny model.
    """
    if job.resume is not None:
        return split_checkpoint(job.resume)
    settings = job.flow.model
    source = find_weights(settings.architecture, job.models, job.folders)
    if source is not None and source.adapter is not None and settings.training.mode == "lora":
        weights = str(settings.architecture.weights)
        check_adapter_settings(source.adapter, settings.training.lora, weights)
    return source


def load_weights(
    job: Job, data: Dataset, dtype: torch.dtype, source: ModelParts | None, device: torch.device
) -> LoadedModel:
    """Load the weights in ``source``, or build the tiny model.

    For a full training an adapter is merged into them.
    """
    flow, settings = job.flow, job.flow.model
    if source is not None:
        model = load_model(
            source.base,
            dtype=dtype,
            attention=get_attention(settings),
            quantization=get_quantization(job),
            folders=get_folders(job, source.base),
            device=device,
            check_type=partial(check_native_form, settings.answers.form),
        )
        if source.adapter is not None and settings.training.mode == "full":
            with read_inside(source.adapter, get_folders(job, source.adapter)):
                model.module = merge_adapter(model.module, source.adapter)
            model.module.requires_grad_(True)  # peft froze the layers it adapted
    else:
        model = build_tiny(
            task=flow.task,
            phrases=[flow.system_prompt.system_prompt, *data.phrases],
            samples=data.train if data.version is None else None,
            seed=flow.settings.seed,
        )
    check_family(settings.architecture, model.model_type)
    return model


def build_adapter(
    job: Job,
    model: LoadedModel,
    dtype: torch.dtype,
    source: ModelParts | None,
    device: torch.device,
) -> LoadedModel:
    """Add a new adapter, or that of ``source``, to a base model that is a folder of its own."""
    settings = job.flow.model
    base, adapter = (job.folder / BASE, None) if source is None else (source.base, source.adapter)
    if source is None:
        if job.world.is_leader:
            model.module.save_pretrained(base)
            model.processor.save_pretrained(base)
        job.world.share(None)  # no rank reads them before they are complete
        quantization = get_quantization(job)
        if quantization is not None:
            model = load_model(
                base,
                dtype=dtype,
                attention=get_attention(settings),
                quantization=quantization,
                device=device,
            )
    torch.manual_seed(job.flow.settings.seed)  # a new adapter is initialized at random
    if adapter is None:
        return add_adapter(model, settings.training, base=base)
    with read_inside(adapter, get_folders(job, adapter)):
        return add_adapter(model, settings.training, base=base, adapter=adapter)


def get_folders(job: Job, folder: Path) -> ModelFolders | None:
    """Return the model folders that a folder of weights must stay inside.

    None for those of checkpoints, which are elsewhere.
    """
    return job.folders if job.folders.resolve(folder) is not None else None


def get_attention(settings: ModelSettings) -> str | None:
    attention = settings.compute.attention
    return None if attention == "auto" else attention


def get_quantization(job: Job) -> Quantization | None:
    """Return how base weights are quantized: as in the checkpoint that the run resumes from."""
    settings = job.flow.model.quantization
    if not settings.enabled:
        return None
    if job.resume is not None and job.origin_run is None:
        return read_quantization(read_json(CheckpointDir(job.resume).run) or {}) or settings
    return settings


def encode(job: Job, data: Dataset, model: LoadedModel, hooks: Hooks) -> EncodedData:
    """Encode both parts of the data with the model's processor."""
    flow = job.flow
    fitting, max_pixels = limit_images(job, model)
    layout = Layout(
        pad_id=get_pad_id(model.processor.tokenizer),
        image_token_id=model.image_token_id,
        answer_token_type=model.parts.answer_token_type,
        answers_only=flow.model.hyperparameters.loss.answers_only,
        decoder_start_id=model.decoder_start_id,
    )
    if layout.decoder_start_id is not None and not layout.answers_only:
        raise InvalidFlow(
            f"loss.answersOnly false is not possible: {model.parts.packing_obstacle}; try: leave "
            "it true"
        )
    form = make_form(flow.model.answers.form, model.model_type, model.processor)
    encoder = Encoder(
        model.processor,
        model.parts,
        system_prompt=flow.system_prompt.system_prompt,
        task=flow.task,
        budget=fitting,
        renderer=model.renderer,
        form=form,
    )
    train, validation = data.train, data.validation
    if isinstance(train, SampleSelection) and isinstance(validation, SampleSelection):
        parts = train, validation
        encoded = encode_uploaded(job, data, parts, encoder, layout, fitting, hooks)
    else:
        processes = count_processes(job)
        encoded = encode_in_memory(flow, data, encoder, layout, fitting, hooks, processes)
    return replace(encoded, max_pixels=max_pixels, form=form)


def limit_images(job: Job, model: LoadedModel) -> tuple[TokenBudget, MaxPixels | None]:
    """Apply the flow's image limits to the processor; return what samples have to fit into, and the
    limit on pixels.

    When resuming, the checkpoint's processor has the limits of its own flow. The family's settings
    are in its plan, and are restored first. ``maxPixels`` auto keeps the limit in that plan.
    """
    module, images = get_base_model(model.module), job.flow.model.images
    recorded = max_pixels = None
    if job.resume is not None:
        run = read_json(CheckpointDir(job.resume).run) or {}
        plan = run.get("status", {}).get("plan") or {}
        family = plan.get(FAMILY_IMAGE_SETTINGS)
        if family is not None:
            apply_resolution(module, model.processor, family["value"])
        recorded = MaxPixels(**plan.get(MAX_PIXELS, NO_MAX_PIXELS))
    family = get_resolution_settings(model.processor, model.model_type)
    if not job.flow.is_tiny:
        max_pixels = choose_max_pixels(model.processor, model.model_type, images, recorded=recorded)
        images = msgspec.structs.replace(images, max_pixels=max_pixels.value)
    limit_resolution(module, model.processor, model.model_type, images, is_tiny=job.flow.is_tiny)
    budget = TokenBudget(
        context=get_context_length(module, model.processor.tokenizer)[0],
        image_token_id=model.image_token_id,
        model_type=model.model_type,
        image_budget=images.patch_budget,
        is_encoder_decoder=model.decoder_start_id is not None,
        family_settings=None
        if ResolutionLimits.from_images(images) == ResolutionLimits()
        else family,
    )
    return budget, max_pixels


def encode_uploaded(
    job: Job,
    data: Dataset,
    parts: tuple[SampleSelection, SampleSelection],
    encoder: Encoder,
    layout: Layout,
    fitting: TokenBudget,
    hooks: Hooks,
) -> EncodedData:
    """Encode uploaded data through the cache. Broken and oversized samples are left out."""
    train, validation = parts
    place, processes = choose_cache_place(job, data.name), count_processes(job)
    cached = encode_all([train, validation], encoder, place, hooks, processes=processes)
    fit = FitReport(
        shrunk=len(cached.shrunk),
        refused=[f"{cached.samples.filename(n)!r} ({why})" for n, why in cached.refused.items()],
    )
    left_out = np.asarray(sorted({*cached.broken, *cached.refused}), np.int64)  # (left out,)
    train, validation = train.without(left_out), validation.without(left_out)
    kept = replace(data, train=train, validation=validation)
    warn_about_refused(data, kept, fit, fitting, hooks)
    shares = describe_mixture(job.flow, kept)
    if shares:
        check_mixture(job.flow, kept)
    else:
        check_split(kept, job.flow.dataset.validation_fraction)
    return EncodedData(
        data=kept,
        encoder=encoder,
        layout=layout,
        fitting=fitting,
        train=cached.select(train, layout),
        validation=cached.select(validation, layout),
        fit=fit,
        uploaded=UploadedSizes(
            dataset=data.name,
            version=data.version or "",
            training_images=train.image_count,
            validation_images=validation.image_count,
            broken_images=cached.broken_image_count,
            held_out_split=data.held_out_split,
            unused_images=data.unused_images,
            mixture=shares,
            overlapping_samples=data.overlapping_samples,
        ),
    )


def encode_in_memory(
    flow: ResolvedFlow,
    data: Dataset,
    encoder: Encoder,
    layout: Layout,
    fitting: TokenBudget,
    hooks: Hooks,
    processes: int,
) -> EncodedData:
    """Encode built-in data. Oversized samples are left out."""
    fit = FitReport()

    def encode_part(
        samples: Sequence[Sample], name: str, *, with_images: bool = True
    ) -> tuple[list[Sample], InMemoryEncodings]:
        kept, encoded = [], []
        source = SampleSource(
            lambda number: pack_images(
                encoder.encode(samples[number], with_image=with_images), encoder.codec
            ),
            total=len(samples),
            processes=processes if with_images else 1,
            check=hooks.check_cancelled,
        )
        with contextlib.closing(source):
            source.expect(range(len(samples)))
            for number, sample in enumerate(samples):
                if number % SAMPLES_BETWEEN_CHECKS == 0:
                    hooks.check_cancelled()
                    hooks.on_activity(
                        f"Encoding images: {number:,} of {len(samples):,} {name} samples"
                    )
                try:
                    item = source.read(number)
                except TooLong as error:
                    fit.refused.append(f"{sample.filename or sample.question!r} ({error})")
                    continue
                kept.append(sample)
                encoded.append(item)
        fit.shrunk += sum(item.is_shrunk for item in encoded)
        return kept, InMemoryEncodings(encoded, layout, encoder.codec)

    # Augmented images are encoded again for every batch.
    kept_train, train = encode_part(
        data.train, "training", with_images=not flow.dataset.varies_images
    )
    kept_validation, validation = encode_part(data.validation, "validation")
    kept = replace(data, train=kept_train, validation=kept_validation) if fit.refused else data
    warn_about_refused(data, kept, fit, fitting, hooks)
    return EncodedData(
        data=kept,
        encoder=encoder,
        layout=layout,
        fitting=fitting,
        train=train,
        validation=validation,
        fit=fit,
    )


def count_processes(job: Job) -> int:
    """Return how many processes may encode samples: one for each core, as far as memory allows."""
    available = read_host_memory(Path("/")).free // job.world.size
    return max(1, min(job.cores, available // PROCESS_BYTES))


def warn_about_refused(
    data: Dataset, kept: Dataset, fit: FitReport, fitting: TokenBudget, hooks: Hooks
) -> None:
    """Warn about samples that are too long, naming the first of them.

    Raises:
        InvalidData: no sample of a part is left.
    """
    if not fit.refused:
        return
    total = len(data.train) + len(data.validation)
    first = "; ".join(fit.refused[:MAX_LISTED_REFUSALS])
    samples = f"{len(fit.refused):,} of {total:,} samples of dataset {data.name!r}"
    found = f"{samples} do not fit into {fitting.description}"
    for part, before, after in (
        ("training", data.train, kept.train),
        ("validation", data.validation, kept.validation),
    ):
        if before and not after:
            raise InvalidData(
                f"no {part} sample fits: {found}: {first}; try: shorter questions, answers or "
                "system prompt, or a model with a longer context"
            )
    hooks.on_warning(f"{found} and are left out: {first}")


def choose_cache_place(job: Job, dataset: str) -> CacheDir:
    """Return where encoded samples are kept.

    Each organization and dataset has its own folder, so that a deletion finds what belongs to it.
    """
    if job.cache is None or job.cache_bytes <= 0:
        return CacheDir(attempt_folder=job.folder)
    return CacheDir(
        attempt_folder=job.folder,
        root=job.cache,
        shared=resolve_folder(job.cache, job.run.organization_id or "none", dataset),
        limit_bytes=job.cache_bytes,
        spare_bytes=job.spare_bytes,
    )


def measure_sizes(flow: ResolvedFlow, model: LoadedModel, encoded: EncodedData) -> Sizes:
    """Return what the plan depends on besides flow and machine."""
    train, validation, data = encoded.train, encoded.validation, encoded.data
    sizes = Sizes(
        training_samples=len(train),
        validation_samples=len(validation),
        longest_answer=max(train.longest_answer, validation.longest_answer),
        cache_bytes=train.size_bytes + validation.size_bytes,
        parameters=model.parameter_count,
        trainable_parameters=sum(
            parameter.numel() for _, parameter in model.trainable_parameters()
        ),
        padding_share=partial(estimate_padding_share, flow, train.lengths),
        unpacked=model.parts.packing_obstacle,
        unfrozen=explain_not_frozen(model.module, model.parts),
        attention=get_base_model(model.module).config.get_text_config()._attn_implementation,
        uploaded=encoded.uploaded,
        images=ImageSizes(
            settings=get_resolution_settings(model.processor, model.model_type),
            family=encoded.fitting.family_settings,
            context=encoded.fitting.context,
            context_source=get_context_length(
                get_base_model(model.module), model.processor.tokenizer
            )[1],
            shrunk=encoded.fit.shrunk,
            refused=len(encoded.fit.refused),
            max_pixels=encoded.max_pixels,
        ),
    )
    if encoded.uploaded is not None:
        return sizes
    # Built-in samples are in memory, so each of them can be examined.
    tasks = [sample.task or data.task for sample in data.validation]
    return replace(sizes, version=hash_samples(data), tasks=tasks)


def place_model(model: LoadedModel, plan: Plan, device: torch.device) -> None:
    """Move the model to its device, in training mode, as the plan says."""
    module = model.module.to(device)
    module.train()
    if plan.gradient_checkpointing:
        module.activation_checkpointing_enable()
    if plan.compile:
        get_base_model(module).model.compile()


def build_optimizers(flow: ResolvedFlow, model: LoadedModel) -> list[torch.optim.Optimizer]:
    """Return the flow's optimizers for all trained parameters."""
    numbers = flow.model.hyperparameters
    return make_optimizers(
        model.trainable_parameters(),
        numbers.optimizer,
        learning_rate=numbers.learning_rate,
        rates=flow.model.training.learning_rates,
        parts=model.parts,
    )


def restore(
    job: Job,
    plan: Plan,
    model: LoadedModel,
    optimizers: list[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
) -> TrainingProgress:
    """Restore optimizers, scaler and random states from the checkpoint; return the counters.

    Without optimizers, their state is to be restored later.
    """
    torch.manual_seed(job.flow.settings.seed)
    if job.resume is None:
        return TrainingProgress()
    if optimizers:
        progress, scaler_state = load_state(job.resume, model, optimizers)
    else:
        progress, scaler_state = restore_counters(job.resume, *read_state(job.resume))
    if job.origin_run is not None:
        progress = restore_progress(progress, job.resume, total_steps=plan.total_steps)
    if scaler_state:
        scaler.load_state_dict(scaler_state)
    return progress


def micro_batch_is_auto(flow: ResolvedFlow) -> bool:
    return flow.model.hyperparameters.micro_batch_size == "auto"


def may_grow(job: Job, progress: TrainingProgress, device: torch.device) -> bool:
    """Return whether a larger micro-batch may be tried: not in the middle of a training, nor after
    memory has run out, nor on the CPU. There it gains little, and a measurement of what is about
    equal would let chance decide on the last bits of a run.
    """
    causes = [attempt.cause for attempt in job.run.status.attempts]
    return (
        micro_batch_is_auto(job.flow)
        and device.type not in FIXED_DEVICES
        and (job.resume is None or job.origin_run is not None)
        and job.world.is_single
        and progress.micro_batch_limit is None
        and not any(cause.startswith("out of memory") for cause in causes)
    )


def keep_micro_batch(plan: Plan, progress: TrainingProgress, flow: ResolvedFlow) -> Plan:
    """Return the plan with the micro-batch that was measured when this training started."""
    if progress.micro_batch_size is None or not micro_batch_is_auto(flow):
        return plan
    return with_micro_batch(
        plan, progress.micro_batch_size, "as measured when this training started"
    )


def limit_micro_batch(plan: Plan, progress: TrainingProgress, run_limit: int | None) -> Plan:
    """Return the plan with a smaller micro-batch if its own has run out of memory before.

    ``run_limit`` was set by the server when the kernel killed an attempt; the progress has the
    limit that the trainer found.
    """
    limits = [limit for limit in (progress.micro_batch_limit, run_limit) if limit and limit > 0]
    if not limits or min(limits) >= plan.micro_batch_size:
        return plan
    progress.micro_batch_limit = min(limits)
    # ``runyard.cli.resources.reproduce`` recognizes these words in the plan.
    reason = f"{plan.micro_batch_size} was too much for the memory before"
    return with_micro_batch(plan, min(limits), reason)


def make_batching(
    job: Job,
    encoded: EncodedData,
    model: LoadedModel,
    losses: TokenLosses,
    device: torch.device,
    hooks: Hooks,
) -> BatchBuilder:
    """Return the builder of batches, which decides on packing and feature cache."""
    place = choose_cache_place(job, encoded.data.name)
    return BatchBuilder(
        job.flow,
        encoded.data,
        encoded.train,
        encoded.validation,
        encoded.encoder,
        encoded.layout,
        model,
        losses,
        device,
        place,
        hooks,
        count_processes(job),
    )


def fit_plan_to_memory(
    state: TrainState, flow: ResolvedFlow, hooks: Hooks, *, may_grow: bool
) -> None:
    """Estimate the memory of a step, and shrink the micro-batch if the flow permits it.

    With ``may_grow`` a larger one is tried. Also decides on the trial of the largest micro-batch.
    """
    device, before = state.device, state.plan.micro_batch_size
    budget = TrialBudget(state.count_samples_left())

    def is_enough(bound: StepMemory) -> bool:
        available = state.world.read_memory(device)
        mode = flow.model.training.mode
        if not compare_with_available(bound, available, state.plan, mode=mode).is_ample:
            return False
        adjust_heap(device, is_ample=True)  # further passes are faster then
        # Elsewhere a larger micro-batch may be tried, which needs an estimate.
        return device.type in FIXED_DEVICES and (budget.sample_s or 0.0) > SLOW_PASS_S

    measure = partial(
        measure_step_memory,
        state.build_batch,
        state.losses,
        state.optimizers,
        longest=state.longest_index,
        plan=state.plan,
        device=device,
        budget=budget,
        on_activity=hooks.on_activity,
        is_enough=is_enough,
    )
    state.plan, state.memory_estimate = estimate_memory(
        state.plan,
        flow,
        measure=measure,
        available=partial(state.world.read_memory, device),
        sharding=describe_sharding(state, flow),
    )
    if may_grow:
        grow_micro_batch(state, budget, hooks)
    estimate = state.memory_estimate
    if not flow.is_tiny:
        adjust_heap(device, is_ample=estimate is not None and estimate.is_ample)
    if state.plan.micro_batch_size < before:
        state.progress.micro_batch_limit = state.plan.micro_batch_size
    # With ample memory it needs no trial, and with equal samples the first step shows the same.
    has_trial = (
        state.world.is_single
        and estimate is not None
        and estimate.verdict != "Deny"
        and not estimate.is_ample
        and state.lengths.min() != state.lengths.max()
    )
    state.has_memory_trial = has_trial and budget.permits(
        state.plan.micro_batch_size, "a trial of the largest micro-batch"
    )
    if budget.skipped:
        memory = state.plan.document["memory"]
        state.plan = with_memory(state.plan, memory["value"], f"{memory['reason']}; {budget}")


def describe_sharding(state: TrainState, flow: ResolvedFlow) -> Sharding | None:
    """Return what the weights could be sharded into; None if they could not, or need not be."""
    is_possible = find_shard_obstacle(flow, state.data, state.plan.precision) is None
    if not is_possible or flow.settings.resources.strategy == "ddp":
        return None
    parameters = state.model.module.parameters()
    return Sharding(
        ranks=state.world.size,
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        gathered=count_largest_block_bytes(state.model.module),
    )


def grow_micro_batch(state: TrainState, budget: TrialBudget, hooks: Hooks) -> None:
    """Enlarge the micro-batch if memory suffices and samples then pass faster, as measured."""
    larger = state.memory_estimate.larger if state.memory_estimate else None
    if larger is None:
        return
    size, count = state.plan.micro_batch_size, larger.micro_batch_size
    samples = ROUNDS * (size + count)
    if not budget.permits(samples, f"a trial of a micro-batch of {count}"):
        return
    hooks.on_activity(f"Trying a micro-batch of {count}")
    with budget.time(samples):
        speedup = measure_growth(
            state.build_batch,
            state.losses,
            longest=state.longest_index,
            size=size,
            larger=count,
            device=state.device,
        )
    if speedup is None:
        reason = f"{count} ran out of memory in a trial"
    elif speedup < MIN_SPEEDUP:
        reason = f"with {count} samples pass {speedup:.2f} times as fast (measured)"
    else:
        reason = f"memory suffices, and samples pass {speedup:.2f} times as fast as with {size}"
        state.progress.micro_batch_size, state.memory_estimate = count, larger
        state.plan = with_micro_batch(state.plan, count, f"{reason} (measured)")
        state.plan = with_memory(state.plan, larger.peak_bytes, larger.reason)
        return
    before = state.plan.document["microBatchSize"]["reason"]
    state.plan = with_micro_batch(state.plan, size, f"{before}; {reason}")


def describe_decisions(state: TrainState) -> dict[str, Any]:
    """Return what rank 0 has measured, and what must be equal on every rank."""
    return {
        "choices": state.progress.choices,
        "microBatchSize": state.plan.micro_batch_size,
        "step": state.progress.step,
        "samples": hashlib.sha256(np.asarray(state.lengths).tobytes()).hexdigest(),
    }


def follow_decisions(state: TrainState, decisions: dict[str, Any]) -> None:
    """Take over the decisions of rank 0.

    Raises:
        RuntimeError: this rank has other samples, or begins at another step.
    """
    state.plan = with_micro_batch(state.plan, decisions["microBatchSize"], "as rank 0")
    own = describe_decisions(state) | {"strategy": decisions["strategy"]}
    if own != decisions:
        raise RuntimeError(f"rank {state.world.rank} has {own}, but rank 0 has {decisions}")


def build_generation_settings(
    flow: ResolvedFlow, model: LoadedModel, answer_tokens: int
) -> dict[str, Any]:
    """Return the flow's generation settings as transformers expects them.

    They are also stored in the model's own generation settings, which every checkpoint contains.
    """
    requested, tokenizer = flow.model.evaluation, model.processor.tokenizer
    settings: dict[str, Any] = {
        "do_sample": requested.do_sample,
        "repetition_penalty": requested.repetition_penalty,
        "max_new_tokens": requested.max_new_tokens,
    }
    if requested.do_sample:
        settings |= {
            "temperature": requested.temperature,
            "top_k": requested.top_k,
            "top_p": requested.top_p,
        }
    own = model.module.generation_config
    ends = first_not_none(requested.eos_token_id, own.eos_token_id or tokenizer.eos_token_id)
    settings["eos_token_id"] = list(ends) if isinstance(ends, list | tuple) else ends
    settings["pad_token_id"] = first_not_none(requested.pad_token_id, get_pad_id(tokenizer))
    if requested.bos_token_id is not None:
        own.bos_token_id = requested.bos_token_id
    if not requested.do_sample:
        # A model with sampling settings but without sampling could not be saved.
        own.temperature = own.top_k = own.top_p = None
    own.no_repeat_ngram_size = None  # answers in JSON repeat themselves
    own._from_model_config = False  # otherwise loading the model derives these settings again
    for name, value in settings.items():
        setattr(own, name, value)
    if requested.stop_strings is not None:
        # Not stored in the model: without a tokenizer, ``generate`` would then refuse every call.
        settings |= {"stop_strings": requested.stop_strings, "tokenizer": tokenizer}
    return settings | {"max_new_tokens": answer_tokens}


def first_not_none(value: Any, default: Any) -> Any:
    return default if value is None else value


def build_run_document(job: Job, model: LoadedModel, plan: Plan) -> dict[str, Any]:
    """Return the run with every default and the plan written out: the checkpoint's ``run.json``."""
    document: dict[str, Any] = msgspec.to_builtins(job.run)
    flow = build_flow_document(job.flow)
    for block in flow["blocks"]:
        if block["block"] == "vi-model":
            # Readers of the checkpoint need these values, which the flow may leave open.
            weights_dtype = str(next(model.module.parameters()).dtype).split(".")[-1]
            # Quantized weights say nothing about the precision of the arithmetic.
            is_quantized = job.flow.model.quantization.enabled
            precision = plan.precision if is_quantized else weights_dtype
            block["settings"]["compute"]["precisionType"] = precision
            own = model.module.generation_config
            block["settings"]["evaluation"] |= {
                "pad_token_id": own.pad_token_id,
                "eos_token_id": own.eos_token_id,
                **({} if own.bos_token_id is None else {"bos_token_id": own.bos_token_id}),
            }
    document["spec"]["flow"] = flow
    document["status"]["plan"] = plan.document
    return document
