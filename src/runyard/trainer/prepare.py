"""Everything the loop works with, made in the order flow -> data -> model -> plan -> optimizer.

A checkpoint to resume from brings weights, optimizer, counters and random states; all else is made as the first time,
from the recipe and its seed, and so comes out the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from runyard.flows import ResolvedFlow, build_flow_document
from runyard.ids import resolve_folder
from runyard.model_folders import ModelFolders
from runyard.rundir import DATASET, MODEL_ADAPTER, MODEL_FULL, read_json
from runyard.trainer.checkpoints.checkpoint import RUN, Progress, load_state
from runyard.trainer.checkpoints.warm_start import check_fits, taken_up
from runyard.trainer.data.cache import CacheDir, Hooks, encode_all
from runyard.trainer.data.datasets import Dataset, Sample, hash_samples, load_dataset
from runyard.trainer.data.encode import (
    Encoder,
    Encodings,
    InMemoryEncodings,
    Layout,
)
from runyard.trainer.data.image_resolution import (
    ResolutionLimits,
    TokenBudget,
    TooLong,
    apply_resolution,
    get_context_length,
    get_resolution_settings,
    limit_resolution,
)
from runyard.trainer.data.uploaded import Selection, check_split, load_uploaded
from runyard.trainer.errors import InvalidData, InvalidFlow
from runyard.trainer.models.model import (
    DTYPES,
    Model,
    add_adapter,
    build_tiny,
    check_family,
    find_weights_folder,
    freeze_parts,
    get_pad_id,
    load_model,
)
from runyard.trainer.plan import (
    FAMILY_PICTURES,
    Machine,
    PictureSizes,
    Plan,
    Sizes,
    UploadedSizes,
    choose_precision,
    make_plan,
    with_micro_batch,
)
from runyard.trainer.steps.autotune import BuildBatch
from runyard.trainer.steps.batching import BatchBuilder, estimate_padding_share
from runyard.trainer.steps.features import explain_not_frozen
from runyard.trainer.steps.losses import TokenLosses, get_base_model
from runyard.trainer.steps.memory import (
    MemoryEstimate,
    estimate_memory,
    measure_step_memory,
    read_available_memory,
    retain_freed_memory,
    return_freed_memory,
)
from runyard.trainer.steps.optim import make_optimizers
from vi.api.resources.runs.responses import Run

BASE = "base"  # below the attempt's folder: the unchanged weights under an adapter that came from no folder
SAMPLES_BETWEEN_LOOKS = 16  # a look at stop.json and permit takes 54 µs (measured on a busy core)
NAMED_REFUSED = 5  # samples that are told one by one


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt: its folder, the run, its recipe, where weights are, and a proven checkpoint to resume.

    ``models`` has the folder of each other run's weights, ``folders`` are those that weights may be read from besides.
    ``continued_run`` is the run that the checkpoint is of, unless that is the attempt's own. Encoded samples of
    uploaded data are kept below ``cache``, at most ``cache_bytes``, as long as ``spare_bytes`` of the disk stay free.
    """

    folder: Path
    run: Run
    recipe: ResolvedFlow
    models: dict[str, str]
    folders: ModelFolders = ModelFolders((), Path("/"))
    resume: Path | None = None
    continued_run: str | None = None
    cache: Path | None = None
    cache_bytes: int = 0
    spare_bytes: int = 0

    @property
    def beginning(self) -> str:
        """What the attempt begins with, in words."""
        origin = self.run.spec.resume_from
        if self.continued_run is None or origin is None:
            return "Reading data and model"
        return f"Going on from run {origin.run_id}, checkpoint {origin.checkpoint}, step {origin.step}"


@dataclass(kw_only=True)
class Prepared:
    """What the loop works with."""

    plan: Plan
    model: Model
    data: Dataset
    lengths: Any
    draw: BuildBatch
    held_out: Encodings
    optimizers: list[torch.optim.Optimizer]
    parameters: list[torch.nn.Parameter]  # all that those change
    scaler: torch.amp.GradScaler
    losses: TokenLosses  # as trained
    plain_losses: TokenLosses  # without label smoothing, to measure
    generation: dict[str, Any]
    progress: Progress
    run_document: dict[str, Any]
    device: torch.device
    longest: int  # the index of the training sample with most tokens
    outlook: MemoryEstimate | None  # of memory; None where nothing is predicted


def prepare(job: Job, machine: Machine, *, told: Hooks) -> Prepared:
    """Read data and model and make the plan; ``told.check_cancelled`` is called often and raises to abort.

    Raises:
        TrainingFailed: recipe or data are at fault.
    """
    recipe, settings = job.recipe, job.recipe.model
    if job.resume is not None and job.continued_run is not None:
        check_fits(recipe, job.resume)
    numbers, device = settings.hyperparameters, torch.device(machine.device)
    if device.type == "cpu":
        (retain_freed_memory if recipe.is_tiny else return_freed_memory)()
    data = _read_data(job, told.check_cancelled)
    told.check_cancelled()
    precision, _ = choose_precision(recipe, machine)
    model = _make_model(job, data, DTYPES[precision])
    fitting = _fit_pictures(job, model)
    layout = Layout(
        pad_id=get_pad_id(model.processor.tokenizer),
        image_token_id=model.image_token_id,
        answer_token_type=model.parts.answer_token_type,
        answers_only=numbers.loss.answers_only,
        decoder_start_id=model.decoder_start_id,
    )
    if layout.decoder_start_id is not None and not layout.answers_only:
        raise InvalidFlow(f"loss.answersOnly false is not possible: {model.parts.packing_obstacle}; leave it true")
    encoder = Encoder(
        model.processor,
        model.parts,
        system_prompt=recipe.system_prompt.system_prompt,
        task=recipe.task,
        budget=fitting,
        renderer=model.renderer,
    )
    data, cached, held_out, fit, uploaded = _encodings(job, data, encoder, layout, fitting, told)
    sizes = _sizes(model, cached, held_out, uploaded)
    sizes = replace(
        sizes if uploaded is not None else _of_built_in(data, sizes),
        pictures=PictureSizes(
            settings=get_resolution_settings(model.processor, model.model_type),
            family=fitting.family_settings,
            context=fitting.context,
            context_source=get_context_length(get_base_model(model.module), model.processor.tokenizer)[1],
            shrunk=fit.shrunk,
            refused=len(fit.refused),
        ),
        padding_share=partial(estimate_padding_share, recipe, cached.lengths),
        unpacked=model.parts.packing_obstacle,
        unfrozen=explain_not_frozen(model.module, model.parts),
    )
    plan = make_plan(recipe, machine, sizes)

    module = model.module.to(device)
    module.train()
    if plan.gradient_checkpointing:
        module.activation_checkpointing_enable()
    if plan.compile:
        get_base_model(module).model.compile()
    optimizers = make_optimizers(
        model.trainable_parameters(),
        numbers.optimizer,
        learning_rate=numbers.learning_rate,
        rates=settings.training.learning_rates,
        parts=model.parts,
        device=device,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    progress = Progress()
    torch.manual_seed(recipe.settings.seed)
    if job.resume is not None:
        progress, scaler_state = load_state(job.resume, optimizers)
        if job.continued_run is not None:
            progress = taken_up(progress, job.resume, total_steps=plan.total_steps)
        if scaler_state:
            scaler.load_state_dict(scaler_state)
    plan = _within_memory(plan, progress, job.run.status.micro_batch_limit)
    smoothing = numbers.loss.label_smoothing
    losses = TokenLosses(module, precision=precision, device=device, label_smoothing=smoothing)
    drawing = BatchBuilder(recipe, data, cached, encoder, layout, model, losses, device, _place(job, data.name), told)
    plan = drawing.resolve_choices(plan, progress.choices)
    told.check_cancelled()
    longest = int(np.argmax(cached.lengths))
    measure = partial(measure_step_memory, drawing.build, losses, optimizers, longest=longest, plan=plan, device=device)
    before = plan.micro_batch_size
    plan, outlook = estimate_memory(plan, recipe, measure=measure, available=partial(read_available_memory, device))
    if device.type == "cpu" and outlook is not None and outlook.is_ample:
        retain_freed_memory()
    if plan.micro_batch_size < before:
        progress.micro_batch_limit = plan.micro_batch_size
    return Prepared(
        plan=plan,
        model=model,
        data=data,
        lengths=cached.lengths,
        draw=drawing.build,
        held_out=held_out,
        optimizers=optimizers,
        parameters=[parameter for _, parameter in model.trainable_parameters()],
        scaler=scaler,
        losses=losses,
        plain_losses=TokenLosses(module, precision=precision, device=device, label_smoothing=0.0),
        generation=_generation(recipe, model, plan.answer_tokens),
        progress=progress,
        run_document=_run_document(job, model, plan),
        device=device,
        longest=longest,
        outlook=outlook,
    )


@dataclass(kw_only=True)
class Fit:
    """What became of samples that did not fit as they were: how many are shrunk; each that is refused, in words."""

    shrunk: int = 0
    refused: list[str] = field(default_factory=list)


def _fit_pictures(job: Job, model: Model) -> TokenBudget:
    """Limit pictures as the recipe says, and say what samples have to fit into.

    A checkpoint to go on from has the limits of its recipe in its processor; what the family had stands in its plan.
    """
    module, images = get_base_model(model.module), job.recipe.model.images
    if job.resume is not None:
        run = read_json(job.resume / MODEL_FULL / RUN) or {}
        family = (run.get("status", {}).get("plan") or {}).get(FAMILY_PICTURES)
        if family is not None:
            apply_resolution(module, model.processor, family["value"])
    family = get_resolution_settings(model.processor, model.model_type)
    limit_resolution(module, model.processor, model.model_type, images, is_tiny=job.recipe.is_tiny)
    return TokenBudget(
        context=get_context_length(module, model.processor.tokenizer)[0],
        image_token_id=model.image_token_id,
        model_type=model.model_type,
        image_budget=images.patch_budget,
        is_encoder_decoder=model.decoder_start_id is not None,
        family_settings=None if ResolutionLimits.from_images(images) == ResolutionLimits() else family,
    )


def _encodings(
    job: Job, data: Dataset, encoder: Encoder, layout: Layout, fitting: TokenBudget, told: Hooks
) -> tuple[Dataset, Encodings, Encodings, Fit, UploadedSizes | None]:
    """Both parts of the data, encoded. What turns out to be broken or too long is left out."""
    train, validation = data.train, data.validation
    if not isinstance(train, Selection) or not isinstance(validation, Selection):
        return _encodings_in_memory(job.recipe, data, encoder, layout, fitting, told)
    cached = encode_all([train, validation], encoder, _place(job, data.name), told)
    fit = Fit(
        shrunk=len(cached.shrunk),
        refused=[f"{cached.samples.filename(number)!r} ({why})" for number, why in cached.refused.items()],
    )
    missing = np.asarray(sorted({*cached.broken, *cached.refused}), np.int64)
    train, validation = train.without(missing), validation.without(missing)
    left = replace(data, train=train, validation=validation)
    _tell_refused(data, left, fit, fitting.description, told)
    check_split(left, job.recipe.dataset.validation_fraction)
    sizes = UploadedSizes(
        dataset=data.name,
        version=data.version or "",
        training_pictures=train.image_count,
        validation_pictures=validation.image_count,
        broken_pictures=cached.broken_image_count,
    )
    return left, cached.select(train, layout), cached.select(validation, layout), fit, sizes


def _encodings_in_memory(
    recipe: ResolvedFlow, data: Dataset, encoder: Encoder, layout: Layout, fitting: TokenBudget, told: Hooks
) -> tuple[Dataset, Encodings, Encodings, Fit, None]:
    fit = Fit()

    def encoded(samples: Sequence[Sample], *, with_pictures: bool = True) -> tuple[list[Sample], InMemoryEncodings]:
        kept, made = [], []
        for number, sample in enumerate(samples):
            if number % SAMPLES_BETWEEN_LOOKS == 0:
                told.check_cancelled()
            try:
                item = encoder.encode(sample, with_image=with_pictures)
            except TooLong as error:
                fit.refused.append(f"{sample.filename or sample.question!r} ({error})")
                continue
            kept.append(sample)
            made.append(item)
        fit.shrunk += sum(item.is_shrunk for item in made)
        return kept, InMemoryEncodings(made, layout)

    # Pictures that are varied are encoded anew whenever they are drawn.
    train, of_train = encoded(data.train, with_pictures=not recipe.dataset.varies_images)
    validation, of_validation = encoded(data.validation)
    left = replace(data, train=train, validation=validation) if fit.refused else data
    _tell_refused(data, left, fit, fitting.description, told)
    return left, of_train, of_validation, fit, None


def _tell_refused(data: Dataset, left: Dataset, fit: Fit, bounds: str, told: Hooks) -> None:
    """Warn of samples that are too long, the first of them by name.

    Raises:
        InvalidData: all of a part are.
    """
    if not fit.refused:
        return
    total = len(data.train) + len(data.validation)
    first = "; ".join(fit.refused[:NAMED_REFUSED])
    found = f"{len(fit.refused):,} of {total:,} samples of dataset {data.name!r} do not fit into {bounds}"
    for part, before, after in (
        ("to train on", data.train, left.train),
        ("held out", data.validation, left.validation),
    ):
        if before and not after:
            raise InvalidData(
                f"no sample {part} fits: {found}: {first}; shorten questions, answers or system prompt, or take a "
                "model with a longer context"
            )
    told.on_warning(f"{found} and are left out: {first}")


def _place(job: Job, dataset: str) -> CacheDir:
    """Of each organisation and dataset apart, so that what belongs to a deleted one can be found."""
    if job.cache is None or job.cache_bytes <= 0:
        return CacheDir(attempt_folder=job.folder)
    return CacheDir(
        attempt_folder=job.folder,
        root=job.cache,
        shared=resolve_folder(job.cache, job.run.organization_id or "none", dataset),
        limit_bytes=job.cache_bytes,
        spare_bytes=job.spare_bytes,
    )


def _within_memory(plan: Plan, progress: Progress, of_run: int | None) -> Plan:
    """The plan with the micro-batch that memory has taken before, if a larger one was too much for it.

    ``of_run`` is what the server noted when the kernel ended an attempt; a checkpoint knows what the trainer found.
    """
    limits = [limit for limit in (progress.micro_batch_limit, of_run) if limit is not None and limit > 0]
    if not limits or min(limits) >= plan.micro_batch_size:
        return plan
    progress.micro_batch_limit = min(limits)
    return with_micro_batch(plan, min(limits), f"{plan.micro_batch_size} was too much for the memory before")


def _read_data(job: Job, look: Callable[[], None]) -> Dataset:
    """The uploaded dataset that the supervisor has brought here, else a built-in one."""
    recipe = job.recipe
    brought = read_json(job.folder / DATASET)
    if brought is not None:
        if brought.get("problem"):
            raise InvalidData(str(brought["problem"]))
        return load_uploaded(
            Path(str(brought["folder"])),
            name=str(brought["dataset"]),
            version=str(brought["version"]),
            task=recipe.task,
            seed=recipe.settings.seed,
            validation_fraction=recipe.dataset.validation_fraction,
            max_samples=recipe.dataset.max_samples,
            check_cancelled=look,
        )
    data = load_dataset(
        recipe.dataset.dataset_id,
        seed=recipe.settings.seed,
        validation_fraction=recipe.dataset.validation_fraction,
        max_samples=recipe.dataset.max_samples,
    )
    if data.task != recipe.task:
        raise InvalidFlow(f"dataset {data.name!r} is for {data.task}, but projectKind is {recipe.task!r}")
    return data


def _make_model(job: Job, data: Dataset, dtype: torch.dtype) -> Model:
    """The model as it stands before the first step of this attempt."""
    recipe, settings = job.recipe, job.recipe.model
    with_adapter = settings.training.mode == "lora"
    # Weights that are trained themselves are float32: the small steps of training vanish in 16 bits.
    dtype = dtype if with_adapter else torch.float32
    attention = None if settings.compute.attention == "auto" else settings.compute.attention
    quantization = settings.quantization.type if settings.quantization.enabled else None
    if job.resume is not None:
        source: Path | None = job.resume / MODEL_FULL
    else:
        source = find_weights_folder(settings.architecture, job.models, job.folders)
    is_offered = source is not None and job.folders.resolve(source) is not None
    is_base = source is not None and not (source / MODEL_ADAPTER).is_dir()
    if source is not None:
        in_use = quantization if is_base else None  # an adapter is added to weights that are whole
        model = load_model(
            source,
            dtype=dtype,
            attention=attention,
            quantization=in_use,
            folders=job.folders if is_offered else None,
        )
    else:
        model = build_tiny(
            task=recipe.task,
            phrases=[recipe.system_prompt.system_prompt, *data.phrases],
            samples=data.train if data.version is None else None,
            seed=recipe.settings.seed,
        )
    check_family(settings.architecture, model.model_type)
    if not with_adapter:
        freeze_parts(model, settings.training.freeze)
        if not model.trainable_parameters():
            raise InvalidFlow(f"training.freeze {settings.training.freeze} leaves nothing to train")
        return model
    base = source
    if base is None or not is_base:
        base = job.folder / BASE
        model.module.save_pretrained(base)
        model.processor.save_pretrained(base)
        if quantization is not None:
            model = load_model(base, dtype=dtype, attention=attention, quantization=quantization)
    if (base / MODEL_FULL).is_dir():
        base = base / MODEL_FULL
    adapter = job.resume / MODEL_ADAPTER if job.resume is not None else None
    torch.manual_seed(recipe.settings.seed)  # a new adapter is drawn at random
    return add_adapter(model, settings.training, base=base, adapter=adapter)


def _sizes(model: Model, cached: Encodings, held_out: Encodings, uploaded: UploadedSizes | None) -> Sizes:
    return Sizes(
        training_samples=len(cached),
        validation_samples=len(held_out),
        longest_answer=max(cached.longest_answer, held_out.longest_answer),
        cache_bytes=cached.size_bytes + held_out.size_bytes,
        parameters=model.parameter_count,
        trainable_parameters=sum(parameter.numel() for _, parameter in model.trainable_parameters()),
        uploaded=uploaded,
    )


def _of_built_in(data: Dataset, sizes: Sizes) -> Sizes:
    """Their samples lie in memory, so each can be looked at."""
    return replace(sizes, version=hash_samples(data), tasks=[sample.task or data.task for sample in data.validation])


def _generation(recipe: ResolvedFlow, model: Model, answer_tokens: int) -> dict[str, Any]:
    """The recipe's generation settings as transformers wants them, and the same kept in the model's own settings."""
    wanted, tokenizer = recipe.model.evaluation, model.processor.tokenizer
    settings: dict[str, Any] = {
        "do_sample": wanted.do_sample,
        "repetition_penalty": wanted.repetition_penalty,
        "max_new_tokens": wanted.max_new_tokens,
    }
    if wanted.do_sample:
        settings |= {"temperature": wanted.temperature, "top_k": wanted.top_k, "top_p": wanted.top_p}
    own = model.module.generation_config
    ends = wanted.eos_token_id if wanted.eos_token_id is not None else own.eos_token_id or tokenizer.eos_token_id
    settings["eos_token_id"] = list(ends) if isinstance(ends, list | tuple) else ends
    settings["pad_token_id"] = wanted.pad_token_id if wanted.pad_token_id is not None else get_pad_id(tokenizer)
    if wanted.bos_token_id is not None:
        own.bos_token_id = wanted.bos_token_id
    if not wanted.do_sample:
        # Settings of drawing beside "do not draw" would be refused when the model is saved.
        own.temperature = own.top_k = own.top_p = None
    own.no_repeat_ngram_size = None  # answers in JSON repeat themselves
    own._from_model_config = False  # else whoever loads the model makes these settings anew
    for name, value in settings.items():
        setattr(own, name, value)
    if wanted.stop_strings is not None:
        # Not among the model's own settings: whoever calls generate without a tokenizer could then not call it at all.
        settings |= {"stop_strings": wanted.stop_strings, "tokenizer": tokenizer}
    return settings | {"max_new_tokens": answer_tokens}


def _run_document(job: Job, model: Model, plan: Plan) -> dict[str, Any]:
    """The run with every default and the plan written out: the checkpoint's ``run.json``."""
    document: dict[str, Any] = msgspec.to_builtins(job.run)
    flow = build_flow_document(job.recipe)
    for block in flow["blocks"]:
        if block["block"] == "vi-model":
            # Readers of the checkpoint need these; the recipe may have left them open.
            of_weights = str(next(model.module.parameters()).dtype).split(".")[-1]
            in_4_bit = job.recipe.model.quantization.enabled  # then other weights say nothing about the arithmetic
            block["settings"]["compute"]["precisionType"] = plan.precision if in_4_bit else of_weights
            own = model.module.generation_config
            block["settings"]["evaluation"] |= {
                "pad_token_id": own.pad_token_id,
                "eos_token_id": own.eos_token_id,
                **({} if own.bos_token_id is None else {"bos_token_id": own.bos_token_id}),
            }
    document["spec"]["flow"] = flow
    document["status"]["plan"] = plan.document
    return document
