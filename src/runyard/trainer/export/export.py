"""A checkpoint as files for elsewhere, proven to say what the checkpoint said when it was measured.

    merged     one model folder: the adapter added into the base weights, in float32, stored in the base's own format
    adapter    the adapter alone; ``export.json`` says to which base weights it belongs, with their hashes
    full       as trained: after a full training the model folder, else ``model_full`` and ``model_adapter`` beside it

Beside the files lie the predictions and ``export.json``, which says what was exported and how it was proven: a model is
made of the exported files alone and asked all stored questions again (``replay.py``). Everything is written into a
folder beside its place and renamed when it is proven, so what has the name is whole and proven; of a try that fails
nothing is left.
"""

import contextlib
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from runyard.flows.families import FAMILIES
from runyard.flows.weights import classify_weights
from runyard.rundir import (
    MODEL_ADAPTER,
    MODEL_FULL,
    PREDICTIONS_FILE,
    files_below,
    fsync_dir,
    read_json,
    sha256_of,
    write_json,
)
from runyard.trainer.checkpoints.checkpoint import RUN
from runyard.trainer.disk_space import as_system_error
from runyard.trainer.errors import ExportFailed
from runyard.trainer.export.predict import block_settings, keep_libraries_quiet
from runyard.trainer.export.replay import Asked, Replay, Told, read_asked, read_predictions, replay, shown
from runyard.trainer.models.model import DTYPES, Model, attach_adapter, load_model, merge_adapter
from runyard.trainer.models.model_folder import ADAPTER_CONFIG, check_adapter_folder, check_model_folder

EXPORT = "export.json"
SHOWN_DIFFERENCES = 3
SHOWN_CHARACTERS = 120
Form = Literal["merged", "adapter", "full"]
FORMATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _silent(doing: str, done: int, total: int) -> None:
    pass


def export_model(
    checkpoint: Path,
    out: Path,
    *,
    form: Form | None = None,
    dtype: str | None = None,
    pictures: Path | None = None,
    with_replay: bool = True,
    tolerate: float = 0.0,
    overwrite: bool = False,
    told: Told = _silent,
) -> dict[str, Any]:
    """Export a checkpoint's tree into the folder ``out`` and return what its ``export.json`` says.

    Args:
        checkpoint: a folder with ``model_full`` and, where there is one, ``model_adapter``.
        out: the folder to make; what is there stays unless ``overwrite``, which replaces earlier exports alone.
        form: without it ``merged`` where there is an adapter, else ``full``.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of merged weights; without it the base's own.
        pictures: where those of an uploaded dataset lie, see ``replay.shown``.
        with_replay: whether the export is proven; one that is not says ``"replayed": 0``.
        tolerate: the share of answers, from 0 to 1, that may be others than the stored ones.
        told: hears what is being done.

    Raises:
        ExportFailed: the form does not fit, ``out`` is taken, answers differ, or cannot be compared.
        InvalidFlow: the checkpoint holds what model folders may not hold.
        OSError: the disk did not take it.
    """
    keep_libraries_quiet()
    root = checkpoint.parent if checkpoint.name == MODEL_FULL else checkpoint
    form = _checked_form(root, form, dtype)
    asked = read_asked(root)
    lines = read_predictions(root) if with_replay else []
    told("Checking", 0, 0)
    check_model_folder(root / MODEL_FULL)
    with _staged(out, overwrite=overwrite) as staged, contextlib.ExitStack() as opened:
        show = opened.enter_context(shown(asked, lines, pictures)) if with_replay else None
        document = _written(root, staged, form, asked, dtype, told)
        if show is not None:
            found = replay(_loaded(root, staged, form, asked), asked, lines, show, told=told)
            _check(found, form, asked, document, tolerate)
            document |= _proof(found, asked, tolerate)
        told("Storing", 0, 0)
        write_json(staged / EXPORT, document)
    return document


def _checked_form(root: Path, form: Form | None, dtype: str | None) -> Form:
    if not (root / MODEL_FULL).is_dir():
        raise ExportFailed(
            f"{root} is no checkpoint: it has no {MODEL_FULL}; give a folder of `runyard models download`"
        )
    has_adapter = (root / MODEL_ADAPTER).is_dir()
    form = form or ("merged" if has_adapter else "full")
    if form != "full" and not has_adapter:
        raise ExportFailed(f"{root.name} was trained in full and has no adapter, so there is nothing {form}; use full")
    if dtype is not None and dtype not in DTYPES:
        raise ExportFailed(f"dtype {dtype!r} is not known; {', '.join(DTYPES)} are")
    if dtype is not None and form != "merged":
        raise ExportFailed(f"dtype {dtype!r} is for merged weights; the form {form} leaves weights as they are")
    if has_adapter:
        check_adapter_folder(root / MODEL_ADAPTER)
    return form


def _written(root: Path, staged: Path, form: Form, asked: Asked, dtype: str | None, told: Told) -> dict[str, Any]:
    """Write the files of this form, and say what they are."""
    full, adapter = root / MODEL_FULL, root / MODEL_ADAPTER
    document: dict[str, Any] = {
        "form": form,
        "runId": asked.run.run_id,
        "checkpoint": root.name,
        "replayed": 0,
    }
    if asked.quantization is not None:
        document["quantization"] = asked.quantization
    try:
        if form == "merged":
            told("Merging", 0, 0)
            document["dtype"] = _write_merged(full, adapter, staged, dtype)
            check_model_folder(staged)
        elif form == "adapter":
            told("Hashing the base weights", 0, 0)
            _copy(adapter, staged)
            document["base"] = _base(full, asked)
            _name_base(staged / ADAPTER_CONFIG, document["base"]["weights"])
        else:
            told("Copying", 0, 0)
            has_adapter = adapter.is_dir()
            _copy(full, staged / MODEL_FULL if has_adapter else staged)
            if has_adapter:
                _copy(adapter, staged / MODEL_ADAPTER)
        if (root / PREDICTIONS_FILE).is_file():
            shutil.copyfile(root / PREDICTIONS_FILE, staged / PREDICTIONS_FILE)
    except Exception as error:
        refused = as_system_error(error)  # weights are written by libraries with errors of their own
        if refused is None or refused is error:
            raise
        raise refused from error
    return document


def _write_merged(full: Path, adapter: Path, staged: Path, dtype: str | None) -> str:
    """Base and adapter added in float32. What the adapter does not touch keeps its bits; returns the format."""
    wanted = DTYPES[dtype] if dtype is not None else _format_of(full)
    module = merge_adapter(load_model(full, dtype=torch.float32).module, adapter).to(wanted)
    module.save_pretrained(staged)
    for path, source in files_below(full):
        # The model's own settings of generation, processor and tokenizer as they are, byte for byte.
        if not source.name.endswith((".safetensors", ".safetensors.index.json")) and path != "config.json":
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staged / path)
    _say_whole(staged / RUN)
    return str(wanted).removeprefix("torch.")


def _say_whole(run: Path) -> None:
    """Readers of ``run.json`` would load merged weights in 4 bit where the recipe says so of the base."""
    document = read_json(run) or {}
    model = block_settings(document).get("model", {})
    if (model.get("quantization") or {}).get("enabled"):
        model["quantization"]["enabled"] = False
        write_json(run, document)


def _format_of(full: Path) -> torch.dtype:
    """The format that most of the weights have."""
    values = Counter[torch.dtype]()
    for path in full.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no table
                tensor = file.get_slice(name)
                if (kind := FORMATS.get(tensor.get_dtype())) is not None:
                    values[kind] += int(torch.Size(tensor.get_shape()).numel())
    return max(values, key=lambda kind: values[kind], default=torch.float32)


def _base(full: Path, asked: Asked) -> dict[str, Any]:
    """Which weights an adapter belongs to: what the recipe called them, and the files as they lie in the checkpoint."""
    own = asked.architecture
    family, size = FAMILIES.get(str(own.get("family") or own["name"])), str(own.get("size"))
    return {
        "family": family.key if family else "auto",
        "size": size,
        "weights": own.get("weights") or (family.sizes.get(size) if family else None),
        "files": [
            {"path": path, "sizeBytes": source.stat().st_size, "sha256": sha256_of(source)}
            for path, source in files_below(full)
            if source.suffix == ".safetensors"
        ],
    }


def _name_base(config: Path, weights: str | None) -> None:
    """Name the base as the flow did, where other libraries understand it: a folder or a hub id."""
    if weights and classify_weights(weights) in ("folder", "hub"):
        write_json(config, (read_json(config) or {}) | {"base_model_name_or_path": weights})


def _loaded(root: Path, staged: Path, form: Form, asked: Asked) -> Model:
    """A fresh model of the exported files; for an adapter alone the base comes from the checkpoint.

    In the formats that it was measured in: base weights lay in that of the arithmetic or in 4 bit, trained ones in
    float32. Merged weights are whole, whatever they were made of.
    """
    attention = asked.attention
    if form == "merged":
        return load_model(staged, dtype=DTYPES[asked.precision], attention=attention)
    if form == "full" and not (staged / MODEL_ADAPTER).is_dir():
        return load_model(staged, dtype=torch.float32, attention=attention)
    base, adapter = (root / MODEL_FULL, staged) if form == "adapter" else (staged / MODEL_FULL, staged / MODEL_ADAPTER)
    model = load_model(base, dtype=DTYPES[asked.precision], attention=attention, quantization=asked.quantization)
    model.module = attach_adapter(model.module, adapter)
    return model


def _check(found: Replay, form: Form, asked: Asked, document: dict[str, Any], tolerate: float) -> None:
    """Refuse more other answers than are tolerated.

    Raises:
        ExportFailed: with how many of how many, the first few, and what may help.
    """
    count = len(found.differences)
    if count <= tolerate * found.asked:
        return
    few = [
        f"  #{item.index} {_short(item.question)}: stored {_short(item.stored)}, now {_short(item.answer)}"
        for item in found.differences[:SHOWN_DIFFERENCES]
    ]
    share = -(-count * 1000 // found.asked) / 1000  # rounded up, so that giving it is enough
    remedy = f"{_remedy(found, form, asked, document)}, or allow it with --tolerate {share:g}"
    told = f"{count} of {found.asked} answers of the exported files are not the stored ones, so nothing was exported:"
    raise ExportFailed("\n".join([told, *few, remedy]))


def _remedy(found: Replay, form: Form, asked: Asked, document: dict[str, Any]) -> str:
    measured_on = str(asked.plan.get("device", "cpu"))
    if measured_on != found.device:
        return (
            f"They were measured on {measured_on} and replayed on {found.device}: export where there is {measured_on}"
        )
    if form == "merged" and asked.quantization is not None:
        return (
            f"They were measured over base weights in 4 bit ({asked.quantization}), and merged weights are whole: keep "
            "the adapter beside its base (--form full)"
        )
    if form == "merged" and asked.precision == "float32" and document["dtype"] != "float32":
        return f"Merged weights are rounded to {document['dtype']}: keep them whole with --dtype float32"
    if form == "merged" and asked.precision != "float32":
        return f"Merged weights are rounded to {asked.precision} in use: keep the adapter beside its base (--form full)"
    return "The checkpoint's files may be damaged: download it anew"


def _proof(found: Replay, asked: Asked, tolerate: float) -> dict[str, Any]:
    return {
        "replayed": found.asked,
        "different": len(found.differences),
        "tolerated": tolerate,
        "precision": asked.precision,
        "device": found.device,
    }


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")


def _copy(source: Path, target: Path) -> None:
    for path, full in files_below(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(full, target / path)


@contextlib.contextmanager
def _staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill beside ``out``, which gets that name in the end; on any error it is removed.

    What a killed export left is cleared away by the next one; a lock keeps two that write the same folder apart.

    Raises:
        ExportFailed: ``out`` is taken, or being written.
    """
    out = out.resolve()
    _check_free(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged, replaced = out.with_name(f".{out.name}.exporting"), out.with_name(f".{out.name}.replaced")
    if replaced.is_dir() and not out.exists():  # killed between the two renames at the end
        os.replace(replaced, out)
        _check_free(out, overwrite=overwrite)
    staged.mkdir(exist_ok=True)
    descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportFailed(f"another export is writing {out}; wait for it, or name another folder") from error
        try:
            for left_over in staged.iterdir():
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
            yield staged
            _sync(staged)
            _check_free(out, overwrite=overwrite)
            if out.exists() and any(out.iterdir()):
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(out, replaced)
            os.replace(staged, out)
            fsync_dir(out.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless that is an export and may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ExportFailed(f"{out} holds something already; name another folder, or replace it with --overwrite")
    if not out.is_dir() or read_json(out / EXPORT) is None:
        raise ExportFailed(f"{out} holds no earlier export ({EXPORT} is missing), so it is not replaced; name another")


def _sync(staged: Path) -> None:
    for _, path in files_below(staged):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in [*sorted(item for item in staged.rglob("*") if item.is_dir()), staged]:
        fsync_dir(folder)
