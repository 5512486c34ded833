"""Checkpoints: everything needed to use the model, and everything needed to go on training it.

    checkpoints/epoch-3/
        model_full/       weights, config, processor, tokenizer, run.json; with an adapter: the unchanged base weights
        model_adapter/    the adapter, if there is one
        training_state/   optimizer, random states, counters; never leaves the machine as part of a model
        predictions.jsonl what the model answered, if it was evaluated at this step
        manifest.json     last: every file with size and hash

A checkpoint is staged beside its place, every file fsynced and hashed, the manifest written last, the folder renamed,
and the folders above fsynced: after loss of power it is there whole or not at all. Whatever the disk refuses, and above
all a failed fsync, condemns all that was staged: it is removed, and the next save starts from nothing. Nothing is
pickled: tensors are safetensors, the rest is JSON.
"""

import copy
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from runyard.rundir import (
    CHECKPOINTS,
    MANIFEST,
    MODEL_ADAPTER,
    MODEL_FULL,
    PREDICTIONS_FILE,
    TRAINING_STATE,
    files_below,
    fsync_dir,
    read_json,
    sha256_of,
    write_json,
)
from runyard.trainer.data.image_resolution import write_model_config
from runyard.trainer.disk_space import as_system_error
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.models.model import Model

RUN = "run.json"
STATE, TENSORS = "state.json", "state.safetensors"
STAGING = ".staging"
SMALL_FILES_BYTES = 1 << 20  # what configuration, tokenizer and counters take at most beside built-in weights


class Progress(msgspec.Struct, rename="camel", kw_only=True):
    """Where training stands; all that is not tensors."""

    step: int = 0
    epoch: float = 0.0
    best: float | None = None  # of the saved ones
    best_seen: float | None = None  # of all evaluations
    best_checkpoint: str | None = None
    evaluations_without_gain: int = 0
    metrics: dict[str, float] = {}
    train_seconds: float = 0.0
    owes_evaluation: bool = False  # a stop came before the evaluation that belongs behind this step was done
    choices: dict[str, bool] = {}  # what was measured to be faster, and so is done by whoever goes on
    micro_batch_limit: int | None = None  # what the machine's memory has taken, where it did not take more


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint will hold, as training stands now. ``saving`` replaces what moves on by copies.

    ``weights`` are all of a full training and those of the adapter else, by the module's names. Tied ones share memory.
    """

    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]  # of the optimizers, and random states
    state: dict[str, Any]  # counters and all else that is no tensor
    step: int
    epoch: float
    run_document: dict[str, Any]
    processor: Any


def contents_of(
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    *,
    run_document: dict[str, Any],
    scaler: dict[str, Any] | None = None,
) -> Contents:
    """Tensors of model and optimizers are those that training goes on with; everything else stays as it is now."""
    if model.base is None:
        weights = dict(model.module.state_dict(keep_vars=True))
    else:  # a quantised base need not be asked for its state
        weights = {name: value for name, value in model.module.named_parameters() if value.requires_grad}
    tensors: dict[str, torch.Tensor] = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    flat = [_flatten(optimizer.state_dict(), tensors, f"optimizer.{i}") for i, optimizer in enumerate(optimizers)]
    return Contents(
        weights=weights,
        tensors=tensors,
        state={"progress": msgspec.to_builtins(progress), "optimizers": flat, "scaler": scaler},
        step=progress.step,
        epoch=progress.epoch,
        run_document=copy.deepcopy(run_document),
        processor=model.processor,
    )


@dataclass(frozen=True)
class Saved:
    """A checkpoint of this attempt that is complete, and what the next one like it will take on disk."""

    name: str
    folder: Path
    next_bytes: int = 0
    step: int = 0


def save_checkpoint(
    attempt: Path,
    name: str,
    model: Model,
    contents: Contents,
    *,
    metrics: dict[str, float],
    is_best: bool,
    previous: Saved | None = None,
    predictions: Path | None = None,
) -> Saved:
    """Write a checkpoint whole. ``previous`` lends its base weights, which are the same, by hard link.

    So does ``predictions``, the file of the evaluation at this step. Of ``model`` only what never changes is read.

    Raises:
        OSError: the disk did not take it; nothing of it is left.
    """
    final = attempt / CHECKPOINTS / name
    staged = attempt / CHECKPOINTS / f"{STAGING}-{name}"
    for left_over in (staged, final):
        _remove(left_over)
    try:
        staged.mkdir(parents=True)
        _write_model(staged, model, contents, previous)
        _write_state(staged / TRAINING_STATE, contents)
        if predictions is not None:
            _link_or_copy(predictions, staged / PREDICTIONS_FILE, is_ours=True)
        files: list[dict[str, Any]] = []
        for path, full in files_below(staged):
            _fsync_file(full)
            files.append({"path": path, "sizeBytes": full.stat().st_size, "sha256": sha256_of(full)})
        for folder in sorted(item for item in staged.rglob("*") if item.is_dir()):
            fsync_dir(folder)
        manifest = {
            "checkpoint": name,
            "step": contents.step,
            "epoch": int(contents.epoch),
            "metrics": metrics,
            "isBest": is_best,
            "time": time.time_ns() // 1_000_000,
            "files": files,
        }
        write_json(staged / MANIFEST, manifest)
        os.replace(staged, final)
        fsync_dir(final.parent)
        fsync_dir(attempt)
    except Exception as error:
        for condemned in (staged, final):
            _remove(condemned)
        refused = as_system_error(error)  # weights and tokenizer are written by libraries with errors of their own
        if refused is None or refused is error:
            raise
        raise refused from error
    next_bytes = sum(int(file["sizeBytes"]) for file in files if not _is_lent(file["path"], model))
    return Saved(name, final, next_bytes, contents.step)


def needed_bytes(model: Model, contents: Contents, previous: Saved | None) -> int:
    """What the next checkpoint takes on disk: as much as the previous one, or an estimate that is rather too large."""
    if previous is not None:
        return previous.next_bytes
    below_bytes = SMALL_FILES_BYTES
    if model.base is not None:
        below_bytes += sum(path.stat().st_size for _, path in files_below(model.base))
    tensors = [*contents.weights.values(), *contents.tensors.values()]
    return below_bytes + sum({tensor.data_ptr(): int(tensor.nbytes) for tensor in tensors}.values())


def _is_lent(path: str, model: Model) -> bool:
    """Whether the next checkpoint takes this file by hard link, see ``_link_or_copy``."""
    return model.base is not None and path.startswith(f"{MODEL_FULL}/") and path.endswith(".safetensors")


def _remove(folder: Path) -> None:
    """The manifest goes first, so that a half-removed checkpoint is never taken for a whole one."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def is_proven(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size and hash."""
    manifest = read_json(folder / MANIFEST)
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


def load_state(folder: Path, optimizers: list[torch.optim.Optimizer]) -> tuple[Progress, dict[str, Any] | None]:
    """Put optimizers and random states back as they were; returns the counters and the loss scaler's state.

    Rates and decay stay those of the recipe: a run that continues another may have others.

    Raises:
        InvalidFlow: the optimizers are of another kind, or group their parameters in another way.
    """
    from safetensors.torch import load_file

    state = read_json(folder / TRAINING_STATE / STATE) or {}
    tensors = load_file(folder / TRAINING_STATE / TENSORS)
    if len(optimizers) != len(state["optimizers"]):
        raise InvalidFlow(_other_groups(folder))
    for number, (optimizer, saved) in enumerate(zip(optimizers, state["optimizers"], strict=True)):
        own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
        try:
            optimizer.load_state_dict(_unflatten(saved, tensors, f"optimizer.{number}"))
        except ValueError as error:
            raise InvalidFlow(_other_groups(folder)) from error
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return msgspec.convert(state["progress"], Progress), state.get("scaler")


def _other_groups(folder: Path) -> str:
    return (
        f"the recipe groups parameters in another way than checkpoint {folder.name}; take its optimizer, freeze, "
        "learningRates and weightDecay (zero or not)"
    )


def prune(saved: list[Saved], *, keep: int, keep_best: bool, best: str | None) -> list[Saved]:
    """The ``keep`` newest, and the best if wanted, oldest first; the others need not be kept."""
    newest = len(saved) - max(1, keep)
    return [item for place, item in enumerate(saved) if place >= newest or (keep_best and item.name == best)]


def remove_checkpoints(items: list[Saved]) -> None:
    """Raises OSError; what is left then is no whole checkpoint any more."""
    for item in items:
        _remove(item.folder)


def _write_model(staged: Path, model: Model, contents: Contents, previous: Saved | None) -> None:
    full = staged / MODEL_FULL
    full.mkdir()
    weights = {name: value.detach() for name, value in contents.weights.items()}  # its own: libraries empty it
    if model.base is None:
        model.module.save_pretrained(full, state_dict=weights)
    else:
        # What the attempt was resumed from may be gone by now; the checkpoint before this one is not.
        for path, source in files_below(previous.folder / MODEL_FULL if previous else model.base):
            if source.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja") and path != RUN:
                _link_or_copy(source, full / path, is_ours=previous is not None)
        model.module.save_pretrained(staged / MODEL_ADAPTER, save_embedding_layers=False, state_dict=weights)
        for note in ("README.md",):
            (staged / MODEL_ADAPTER / note).unlink(missing_ok=True)
        write_model_config(full, model.module)
        model.module.generation_config.save_pretrained(full)  # of this recipe, as under a full training
    contents.processor.save_pretrained(full)
    write_json(full / RUN, contents.run_document)


def _link_or_copy(source: Path, target: Path, *, is_ours: bool) -> None:
    """Take the bytes from a file of this attempt without copying them; one that is not ours is copied.

    Only weights and predictions are linked: small files may be written again by what follows, which would write into
    both.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_ours and source.suffix in (".safetensors", ".jsonl"):
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links: a copy does as well
            pass
    shutil.copyfile(source, target)


def _write_state(folder: Path, contents: Contents) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {name: value.detach().cpu().contiguous() for name, value in contents.tensors.items()}
    save_file(tensors, folder / TENSORS)
    write_json(folder / STATE, contents.state)


def _flatten(state: dict[str, Any], tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Tensors of an optimizer's state into ``tensors`` under a name each; what is left is JSON."""
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        plain = values.setdefault(str(parameter), {})
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}.{parameter}.{name}"] = value
            else:
                plain[name] = value
    groups = [
        {name: value for name, value in group.items() if isinstance(value, _PLAIN)} for group in state["param_groups"]
    ]
    return {"values": values, "groups": groups}


_PLAIN = (int, float, str, bool, list, tuple, type(None))


def _unflatten(saved: dict[str, Any], tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(name): dict(values) for name, values in saved["values"].items()}
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            parameter, name = key.removeprefix(prefix + ".").split(".", 1)
            state.setdefault(int(parameter), {})[name] = tensor
    groups = [{name: tuple(v) if name == "betas" else v for name, v in group.items()} for group in saved["groups"]]
    return {"state": state, "param_groups": groups}


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
