"""Checkpoints: everything needed to use the model, and everything needed to resume its training.

    checkpoints/epoch-3/
        model_full/       weights (with an adapter: the base), config, processor, run.json
        model_adapter/    the adapter, if there is one
        training_state/   optimizer, random states, counters; never leaves the machine with a model
        predictions.jsonl the model's answers, if it was evaluated at this step
        manifest.json     written last: every file with its size and hash

A checkpoint is written into a staging folder, every file is fsynced and hashed, the manifest is
written last, the folder is renamed, and the folders above it are fsynced. After loss of power it is
complete or absent. If the disk refuses anything, above all an fsync, the whole staging folder is
removed and the next save starts from nothing.

A checkpoint is saved before the model is evaluated at the same step, with ``isUnevaluated`` in its
manifest. After the evaluation its predictions and counters are added, and the manifest is replaced
last. Until then it is the checkpoint of a run whose evaluation was interrupted.

Nothing is pickled: tensors are stored as safetensors, everything else as JSON.
"""

import copy
import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from runyard.rundir import (
    MODEL_FULL,
    RUN,
    AttemptDir,
    CheckpointDir,
    files_below,
    fsync_dir,
    read_json,
    sha256_of,
    write_json,
)
from runyard.trainer.data.image_resolution import write_model_config
from runyard.trainer.devices import find_device, read_random_states, restore_random_states
from runyard.trainer.disk_space import as_system_error
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.models.adapters import list_adapter_tensors
from runyard.trainer.models.model import LoadedModel

STATE, TENSORS = "state.json", "state.safetensors"
EVALUATED = "evaluated.json"  # the counters after an evaluation that followed the save
STAGING = ".staging"
FORMAT = 2  # of the training state; format 1 stored optimizer state by index, and had no number
# Changes the state of an optimizer before it is loaded.
Placement = Callable[[dict[str, Any], torch.optim.Optimizer], dict[str, Any]]
TENSOR = "tensor"  # the key of a reference to a tensor
# Upper bound of configuration, tokenizer and counters of built-in models.
SMALL_FILES_BYTES = 1 << 20


class TrainingProgress(msgspec.Struct, rename="camel", kw_only=True):
    """The state of training apart from tensors."""

    step: int = 0
    epoch: float = 0.0
    best: float | None = None  # of the saved checkpoints
    best_seen: float | None = None  # of all evaluations
    best_checkpoint: str | None = None
    first_loss: float | None = None  # of the held-out samples before the first step
    evaluations_without_gain: int = 0
    metrics: dict[str, float] = {}
    train_seconds: float = 0.0
    owes_evaluation: bool = False  # a stop came before this step's evaluation was complete
    choices: dict[str, bool] = {}  # measured choices, which a resumed attempt keeps
    skipped_steps: int = 0  # in a row, by a scaled loss
    micro_batch_size: int | None = None  # larger than usual, as measured; resumed attempts keep it
    micro_batch_limit: int | None = None  # set once a larger micro-batch ran out of memory
    evaluation_batch_limit: int | None = None  # the most samples evaluated at once so far


@dataclass(frozen=True, kw_only=True)
class CheckpointContents:
    """The contents of a checkpoint at one step.

    ``async_checkpoint`` replaces the tensors that training changes by copies. ``weights`` are all
    weights in full training, else those of the adapter and of parts trained with it, by the
    module's names; tied weights share memory.
    """

    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]  # optimizer state and random states
    state: dict[str, Any]  # counters and everything else that is not a tensor
    step: int
    epoch: float
    run_document: dict[str, Any]
    processor: Any


def collect_contents(
    model: LoadedModel,
    optimizers: list[torch.optim.Optimizer],
    progress: TrainingProgress,
    *,
    run_document: dict[str, Any],
    scaler: dict[str, Any] | None = None,
) -> CheckpointContents:
    """Return what a checkpoint saved now contains.

    Tensors of model and optimizers are the ones in use; everything else is a copy.
    """
    if model.base is None:
        weights = dict(model.module.state_dict(keep_vars=True))
    else:  # the state of a quantized base is not needed
        weights = list_adapter_tensors(model.module)
    tensors = read_random_states(find_device())
    names = _get_names(model)
    flat = [
        _flatten(optimizer, names, tensors, f"optimizer.{number}")
        for number, optimizer in enumerate(optimizers)
    ]
    return CheckpointContents(
        weights=weights,
        tensors=tensors,
        state={
            "format": FORMAT,
            "progress": msgspec.to_builtins(progress),
            "optimizers": flat,
            "scaler": scaler,
        },
        step=progress.step,
        epoch=progress.epoch,
        run_document=copy.deepcopy(run_document),
        processor=model.processor,
    )


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint of this attempt; ``next_bytes`` is the disk space of the next one."""

    name: str
    folder: Path
    next_bytes: int = 0
    step: int = 0


def save_checkpoint(
    attempt: Path,
    name: str,
    model: LoadedModel,
    contents: CheckpointContents,
    *,
    metrics: dict[str, float],
    is_best: bool,
    previous: SavedCheckpoint | None = None,
    predictions: Path | None = None,
    is_unevaluated: bool = False,
) -> SavedCheckpoint:
    """Write a complete checkpoint.

    The base weights of ``previous``, which are the same, are hard-linked, and so is
    ``predictions``, the file of the evaluation at this step. Only constant parts of ``model`` are
    read, so training may continue meanwhile.

    Raises:
        OSError: the disk refused it; nothing of it is left.
    """
    checkpoints = AttemptDir(attempt).checkpoints
    final, staged = checkpoints / name, checkpoints / f"{STAGING}-{name}"
    parts = CheckpointDir(staged)
    for leftover in (staged, final):
        _remove(leftover)
    try:
        staged.mkdir(parents=True)
        _write_model(staged, model, contents, previous)
        _write_state(parts.training_state, contents)
        if predictions is not None:
            _link_or_copy(predictions, parts.predictions, may_link=True)
        files: list[dict[str, Any]] = []
        for path, full in files_below(staged):
            _fsync_file(full)
            files.append(_describe_file(path, full))
        for folder in sorted(item for item in staged.rglob("*") if item.is_dir()):
            fsync_dir(folder)
        manifest = {
            "checkpoint": name,
            "step": contents.step,
            "epoch": int(contents.epoch),
            "metrics": metrics,
            "isBest": is_best,
            **({"isUnevaluated": True} if is_unevaluated else {}),
            "time": time.time_ns() // 1_000_000,
            "files": files,
        }
        write_json(parts.manifest, manifest)
        os.replace(staged, final)
        fsync_dir(final.parent)
        fsync_dir(attempt)
    except Exception as error:
        for incomplete in (staged, final):
            _remove(incomplete)
        # Libraries that write weights and tokenizers raise errors of their own.
        system_error = as_system_error(error)
        if system_error is None or system_error is error:
            raise
        raise system_error from error
    next_bytes = sum(
        int(file["sizeBytes"]) for file in files if not _is_hard_linked(file["path"], model)
    )
    return SavedCheckpoint(name, final, next_bytes, contents.step)


def add_evaluation(
    saved: SavedCheckpoint,
    progress: TrainingProgress,
    *,
    metrics: dict[str, float],
    is_best: bool,
    predictions: Path | None,
) -> SavedCheckpoint:
    """Complete a checkpoint that was saved before the evaluation at its step.

    Raises:
        OSError: the disk refused it; the checkpoint is as before.
    """
    parts = CheckpointDir(saved.folder)
    manifest = read_json(parts.manifest)
    if manifest is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(parts.manifest))
    added = [parts.training_state / EVALUATED]
    write_json(added[0], {"progress": msgspec.to_builtins(progress)})
    if predictions is not None:
        parts.predictions.unlink(missing_ok=True)
        _link_or_copy(predictions, parts.predictions, may_link=True)
        _fsync_file(parts.predictions)
        added.append(parts.predictions)
    for folder in (parts.training_state, saved.folder):
        fsync_dir(folder)
    more = [_describe_file(path.relative_to(saved.folder).as_posix(), path) for path in added]
    files = manifest.pop("files") + more
    manifest.pop("isUnevaluated", None)
    write_json(parts.manifest, {**manifest, "metrics": metrics, "isBest": is_best, "files": files})
    fsync_dir(saved.folder)
    added_bytes = sum(int(file["sizeBytes"]) for file in more)
    return replace(saved, next_bytes=saved.next_bytes + added_bytes)


def _describe_file(path: str, full: Path) -> dict[str, Any]:
    return {"path": path, "sizeBytes": full.stat().st_size, "sha256": sha256_of(full)}


def read_progress(folder: Path) -> TrainingProgress:
    """Return the counters of a checkpoint; those after its evaluation, once it is complete."""
    parts = CheckpointDir(folder)
    manifest = read_json(parts.manifest) or {}
    listed = {file["path"] for file in manifest.get("files", [])}
    path = parts.training_state / EVALUATED
    is_evaluated = path.relative_to(folder).as_posix() in listed
    state = read_json(path if is_evaluated else parts.training_state / STATE) or {}
    return msgspec.convert(state["progress"], TrainingProgress)


def estimate_bytes(
    model: LoadedModel, contents: CheckpointContents, previous: SavedCheckpoint | None
) -> int:
    """Return the disk space of the next checkpoint: that of the previous one, or an upper bound."""
    if previous is not None:
        return previous.next_bytes
    base_bytes = SMALL_FILES_BYTES
    if model.base is not None:
        base_bytes += sum(path.stat().st_size for _, path in files_below(model.base))
    tensors = [*contents.weights.values(), *contents.tensors.values()]
    return base_bytes + sum({tensor.data_ptr(): int(tensor.nbytes) for tensor in tensors}.values())


def _is_hard_linked(path: str, model: LoadedModel) -> bool:
    """Return whether the next checkpoint links this file; see ``_link_or_copy``."""
    return (
        model.base is not None
        and path.startswith(f"{MODEL_FULL}/")
        and path.endswith(".safetensors")
    )


def _remove(folder: Path) -> None:
    """Remove the manifest first, so that a half-removed checkpoint never counts as complete."""
    CheckpointDir(folder).manifest.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def is_proven(folder: Path) -> bool:
    """Return whether every file of the manifest exists with its size and hash."""
    manifest = read_json(CheckpointDir(folder).manifest)
    if manifest is None:
        return False
    try:
        return all(
            (folder / item["path"]).stat().st_size == item["sizeBytes"]
            and sha256_of(folder / item["path"]) == item["sha256"]
            for item in manifest["files"]
        )
    except (OSError, KeyError, TypeError):
        return False


def load_state(
    folder: Path, model: LoadedModel, optimizers: list[torch.optim.Optimizer]
) -> tuple[TrainingProgress, dict[str, Any] | None]:
    """Restore optimizers and random states; return the counters and the loss scaler's state.

    Raises:
        InvalidFlow: see ``load_optimizers``.
    """
    state, tensors = load_optimizers(folder, model, optimizers)
    return restore_counters(folder, state, tensors)


def restore_counters(
    folder: Path, state: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[TrainingProgress, dict[str, Any] | None]:
    """Restore random states; return the counters and the loss scaler's state."""
    restore_random_states(tensors, find_device())
    return read_progress(folder), state.get("scaler")


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the training state of a checkpoint.

    Raises:
        InvalidFlow: it is of a later format.
    """
    from safetensors.torch import load_file

    saved_state = CheckpointDir(folder).training_state
    state, tensors = read_json(saved_state / STATE) or {}, load_file(saved_state / TENSORS)
    if (found := state.get("format", 1)) > FORMAT:
        raise InvalidFlow(
            f"checkpoint {folder.name} has a training state of format {found}, and this version of "
            f"Runyard reads up to {FORMAT}; try: a later version"
        )
    return state, tensors


def load_optimizers(
    folder: Path,
    model: LoadedModel,
    optimizers: list[torch.optim.Optimizer],
    *,
    place: Placement | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Restore optimizers; return the whole training state. ``place`` keeps a part of each tensor.

    Learning rates and weight decay stay those of the flow: a run that resumes from another run's
    checkpoint may have different ones.

    Raises:
        InvalidFlow: the optimizers are for other parameters, or the checkpoint is of a later
            format.
    """
    (state, tensors), names = read_state(folder), _get_names(model)
    found = state.get("format", 1)
    if len(optimizers) != len(state["optimizers"]):
        raise InvalidFlow(_describe_group_mismatch(folder))
    for number, (optimizer, saved) in enumerate(zip(optimizers, state["optimizers"], strict=True)):
        flow_settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        try:
            restored = (
                _unflatten(saved, optimizer, names, tensors)
                if found == FORMAT
                else _unflatten_indices(saved, tensors, f"optimizer.{number}")
            )
            if place is not None:
                restored = place(restored, optimizer)
            optimizer.load_state_dict(restored)
        except ValueError as error:
            raise InvalidFlow(_describe_group_mismatch(folder)) from error
        for group, settings in zip(optimizer.param_groups, flow_settings, strict=True):
            group.update(settings)
        _restore_dtypes(optimizer, restored["state"])
    return state, tensors


def _describe_group_mismatch(folder: Path) -> str:
    return (
        f"the flow's optimizer does not fit the training state of checkpoint {folder.name}; "
        "try: the checkpoint's optimizer and freeze, and for a checkpoint of an older version its "
        "learningRates and weightDecay (zero or not)"
    )


def select_kept(
    saved: list[SavedCheckpoint], *, keep: int, keep_best: bool, best: str | None
) -> list[SavedCheckpoint]:
    """Return the ``keep`` newest checkpoints, and the best one if requested, oldest first."""
    first_kept = len(saved) - max(1, keep)
    return [
        item
        for index, item in enumerate(saved)
        if index >= first_kept or (keep_best and item.name == best)
    ]


def remove_checkpoints(items: list[SavedCheckpoint]) -> None:
    """Remove checkpoints.

    Raises:
        OSError: the disk refused; what is left then does not count as a complete checkpoint.
    """
    for item in items:
        _remove(item.folder)


def _write_model(
    staged: Path, model: LoadedModel, contents: CheckpointContents, previous: SavedCheckpoint | None
) -> None:
    full, adapter = CheckpointDir(staged).model_full, CheckpointDir(staged).model_adapter
    full.mkdir()
    # A dictionary of its own, because libraries empty the one they are given.
    weights = {name: value.detach() for name, value in contents.weights.items()}
    if model.base is None:
        model.module.save_pretrained(full, state_dict=weights)
    else:
        # The checkpoint that the attempt resumed from may be gone; the previous one of ours is not.
        base = CheckpointDir(previous.folder).model_full if previous else model.base
        for path, source in files_below(base):
            suffixes = (".safetensors", ".json", ".txt", ".model", ".jinja")
            if source.suffix in suffixes and path != RUN:
                _link_or_copy(source, full / path, may_link=previous is not None)
        model.module.save_pretrained(adapter, save_embedding_layers=False, state_dict=weights)
        (adapter / "README.md").unlink(missing_ok=True)
        write_model_config(full, model.module)
        # Of this flow, as in full training.
        model.module.generation_config.save_pretrained(full)
    contents.processor.save_pretrained(full)
    write_json(full / RUN, contents.run_document)


def _link_or_copy(source: Path, target: Path, *, may_link: bool) -> None:
    """Hard-link a file of this attempt; copy a file that is not ours.

    Only weights and predictions are linked. Small files may be rewritten later, which would change
    both names.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if may_link and source.suffix in (".safetensors", ".jsonl"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def _write_state(folder: Path, contents: CheckpointContents) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {name: value.detach().cpu().contiguous() for name, value in contents.tensors.items()}
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, contents.state)


def _flatten(
    optimizer: torch.optim.Optimizer,
    names: dict[int, str],
    tensors: dict[str, torch.Tensor],
    prefix: str,
) -> dict[str, Any]:
    """Move the tensors of an optimizer's state into ``tensors``; return the rest, which is JSON.

    Everything is stored by the parameter's name. In the place of a tensor is ``{TENSOR: key}``; one
    that several parameters share is stored once. Settings of groups are not stored, as they come
    from the flow.
    """
    state = optimizer.state_dict()
    parameters = [
        names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]
    ]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    keys: dict[int, str] = {}

    def take_out(value: Any, key: str) -> Any:
        if isinstance(value, torch.Tensor):
            stored = keys.setdefault(id(value), key)
            tensors[stored] = value
            return {TENSOR: stored}
        if isinstance(value, dict):
            return {name: take_out(item, f"{key}/{name}") for name, item in value.items()}
        return value

    values = {
        name: take_out(state["state"][index], f"{prefix}/{name}")
        for name, index in zip(parameters, indices, strict=True)
        if index in state["state"]
    }
    return {"parameters": parameters, "values": values}


def _unflatten(
    saved: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    names: dict[int, str],
    tensors: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Return the optimizer state that ``_flatten`` took apart, by the index of the parameter.

    Raises:
        ValueError: the optimizer is for other parameters.
    """
    members = optimizer.param_groups
    parameters = [names[id(parameter)] for group in members for parameter in group["params"]]
    if sorted(parameters) != sorted(saved["parameters"]):
        raise ValueError("the optimizer is for other parameters")

    def put_back(value: Any) -> Any:
        if isinstance(value, dict):
            if TENSOR in value:
                return tensors[value[TENSOR]]
            return {name: put_back(item) for name, item in value.items()}
        return value

    groups = optimizer.state_dict()["param_groups"]
    indices = [index for group in groups for index in group["params"]]
    values = saved["values"]
    state = {
        index: put_back(values[name])
        for name, index in zip(parameters, indices, strict=True)
        if name in values
    }
    return {"state": state, "param_groups": groups}


def _restore_dtypes(optimizer: torch.optim.Optimizer, loaded: dict[int, dict[str, Any]]) -> None:
    """Restore the dtypes of the state, which torch has cast to those of the weights."""
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in loaded.items():
        state = optimizer.state[members[index]]
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and state[name].dtype != value.dtype:
                state[name] = value.to(state[name].device, copy=True)


def _unflatten_indices(
    saved: dict[str, Any], tensors: dict[str, torch.Tensor], prefix: str
) -> dict[str, Any]:
    """Return the optimizer state of a checkpoint of format 1, which was stored by index."""
    state: dict[int, dict[str, Any]] = {
        int(name): dict(values) for name, values in saved["values"].items()
    }
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            parameter, name = key.removeprefix(prefix + ".").split(".", 1)
            state.setdefault(int(parameter), {})[name] = tensor
    groups = [
        {name: tuple(v) if name == "betas" else v for name, v in group.items()}
        for group in saved["groups"]
    ]
    return {"state": state, "param_groups": groups}


def _get_names(model: LoadedModel) -> dict[int, str]:
    """Return the names of the trained parameters by identity."""
    return {id(parameter): name for name, parameter in model.trainable_parameters()}


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
