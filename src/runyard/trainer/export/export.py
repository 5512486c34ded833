"""Export of a checkpoint to files for other programs, verified against its predictions.

    merged     one model folder: the adapter merged in float32, stored in the base's own dtype
    adapter    the adapter alone; ``export.json`` names its base weights, with their hashes
    full       as trained: the model folder, or ``model_full`` and ``model_adapter``

The export also contains the predictions and ``export.json``, which says what was exported and how
it was verified: a model loaded from the exported files alone answers all stored questions again
(``replay.py``). Everything is written into a sibling folder that is renamed after verification, so
a folder with the final name is complete and verified. A failed export leaves nothing.
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

from runyard.base_models import BASE_KEY, EXPORT
from runyard.flows.families import FAMILIES
from runyard.flows.weights import classify_weights
from runyard.model_folders import ADAPTER_CONFIG
from runyard.rundir import (
    MODEL_FULL,
    RUN,
    CheckpointDir,
    files_below,
    fsync_dir,
    read_json,
    sha256_of,
    write_json,
)
from runyard.trainer.disk_space import as_system_error
from runyard.trainer.errors import ExportFailed
from runyard.trainer.export.likelihood import (
    ComparedAnswer,
    Comparison,
    Flip,
    compare,
    describe_comparison,
    find_first_differences,
    measure_shape,
    score_answers,
)
from runyard.trainer.export.predict import read_block_settings, silence_libraries
from runyard.trainer.export.replay import (
    ImageFolders,
    Line,
    OnProgress,
    ReadImage,
    Replay,
    ReplayContext,
    encode_recorded,
    open_images,
    read_predictions,
    read_replay_context,
    replay,
)
from runyard.trainer.models.adapters import attach_adapter, merge_adapter
from runyard.trainer.models.model import DTYPES, LoadedModel, load_model
from runyard.trainer.models.model_folder import check_adapter_folder, check_model_folder

SHOWN_DIFFERENCES = 3
SHOWN_CHARACTERS = 120
Form = Literal["merged", "adapter", "full"]
DTYPES_BY_CODE = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _ignore_progress(phase: str, done: int, total: int) -> None:
    pass


def export_model(
    checkpoint: Path,
    out: Path,
    *,
    form: Form | None = None,
    dtype: str | None = None,
    images: ImageFolders | None = None,
    with_replay: bool = True,
    tolerate: float = 0.0,
    overwrite: bool = False,
    on_progress: OnProgress = _ignore_progress,
) -> dict[str, Any]:
    """Export a checkpoint's tree into the folder ``out`` and return the content of its
    ``export.json``.

    Args:
        checkpoint: a folder with ``model_full`` and, where there is one, ``model_adapter``.
        out: the folder to create; a non-empty one is kept, unless it is an export and
            ``overwrite``.
        form: defaults to ``merged`` where there is an adapter, else ``full``.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of merged weights; defaults to the base's.
        images: the folders of uploaded datasets' images, see ``replay.open_images``.
        with_replay: whether to verify the export; an unverified one says ``"replayed": 0``.
        tolerate: the share of answers, from 0 to 1, that may differ from the stored ones.
        on_progress: called with the current phase.

    Raises:
        ExportFailed: the form does not fit, ``out`` is taken, or answers differ.
        InvalidFlow: the checkpoint has content that is forbidden in model folders.
        OSError: the disk refused the files.
    """
    silence_libraries()
    root = checkpoint.parent if checkpoint.name == MODEL_FULL else checkpoint
    form = _resolve_form(root, form, dtype)
    context = read_replay_context(root)
    lines = read_predictions(root) if with_replay else []
    on_progress("Checking", 0, 0)
    check_model_folder(CheckpointDir(root).model_full)
    with _stage(out, overwrite=overwrite) as staged, contextlib.ExitStack() as stack:
        read_image = (
            stack.enter_context(open_images(context, lines, images)) if with_replay else None
        )
        document = _write_form(root, staged, form, context, dtype, on_progress)
        if read_image is not None:
            document |= _verify(
                root, staged, form, context, document, lines, read_image, tolerate, on_progress
            )
        on_progress("Storing", 0, 0)
        write_json(staged / EXPORT, document)
    return document


def _resolve_form(root: Path, form: Form | None, dtype: str | None) -> Form:
    checkpoint = CheckpointDir(root)
    if not checkpoint.model_full.is_dir():
        raise ExportFailed(
            f"{root} is not a checkpoint: it has no {MODEL_FULL}; try: a folder made by `runyard "
            "models download`"
        )
    has_adapter = checkpoint.has_adapter
    form = form or ("merged" if has_adapter else "full")
    if form != "full" and not has_adapter:
        raise ExportFailed(
            f"{root.name} was trained in full, so it has no adapter for the form {form}; try: full"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ExportFailed(f"unknown dtype {dtype!r}; expected {', '.join(DTYPES)}")
    if dtype is not None and form != "merged":
        raise ExportFailed(
            f"dtype {dtype!r} is for merged weights; the form {form} does not change weights"
        )
    if has_adapter:
        check_adapter_folder(checkpoint.model_adapter)
    return form


def _write_form(
    root: Path,
    staged: Path,
    form: Form,
    context: ReplayContext,
    dtype: str | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Write the files of this form and return their description."""
    source, target = CheckpointDir(root), CheckpointDir(staged)
    full, adapter = source.model_full, source.model_adapter
    document: dict[str, Any] = {
        "form": form,
        "runId": context.run.run_id,
        "checkpoint": root.name,
        "replayed": 0,
    }
    if context.quantization is not None:
        document["quantization"] = context.quantization.type
    try:
        if form == "merged":
            on_progress("Merging", 0, 0)
            document["dtype"] = _write_merged(full, adapter, staged, dtype)
            check_model_folder(staged)
        elif form == "adapter":
            on_progress("Hashing the base weights", 0, 0)
            _copy(adapter, staged)
            document["base"] = _describe_base(full, context)
            _write_base_name(staged / ADAPTER_CONFIG, document["base"]["weights"], full)
        else:
            on_progress("Copying", 0, 0)
            _copy(full, target.model_full if source.has_adapter else staged)
            if source.has_adapter:
                _copy(adapter, target.model_adapter)
        if source.predictions.is_file():
            shutil.copyfile(source.predictions, target.predictions)
    except Exception as error:
        refused = as_system_error(error)  # libraries that write weights raise classes of their own
        if refused is None or refused is error:
            raise
        raise refused from error
    return document


def _write_merged(full: Path, adapter: Path, staged: Path, dtype: str | None) -> str:
    """Merge the adapter in float32 and return the stored dtype.

    Weights without an adapter keep their bits.
    """
    stored = DTYPES[dtype] if dtype is not None else _find_dtype(full)
    module = merge_adapter(load_model(full, dtype=torch.float32).module, adapter).to(stored)
    module.save_pretrained(staged)
    for path, source in files_below(full):
        # The model's generation config, processor and tokenizer are copied byte for byte.
        if (
            not source.name.endswith((".safetensors", ".safetensors.index.json"))
            and path != "config.json"
        ):
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staged / path)
    _disable_quantization(staged / RUN)
    return str(stored).removeprefix("torch.")


def _disable_quantization(run: Path) -> None:
    """Update ``run.json``, so that its readers do not load merged weights in 4 bits."""
    document = read_json(run) or {}
    model = read_block_settings(document).get("model", {})
    if (model.get("quantization") or {}).get("enabled"):
        model["quantization"]["enabled"] = False
        write_json(run, document)


def _find_dtype(full: Path) -> torch.dtype:
    """Return the dtype of most of the weights."""
    counts = Counter[torch.dtype]()
    for path in full.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                tensor = file.get_slice(name)
                if (kind := DTYPES_BY_CODE.get(tensor.get_dtype())) is not None:
                    counts[kind] += int(torch.Size(tensor.get_shape()).numel())
    return max(counts, key=lambda kind: counts[kind], default=torch.float32)


def _describe_base(full: Path, context: ReplayContext) -> dict[str, Any]:
    """Return the base weights of an adapter: their name in the flow, and their files."""
    own = context.architecture
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


def _write_base_name(config: Path, weights: str | None, full: Path) -> None:
    """Write the base where other libraries, such as peft's ``AutoPeftModel``, load it from.

    This is the hub ID or the folder of the flow. Where other libraries understand neither, it is
    the checkpoint's own copy.
    """
    form = classify_weights(weights) if weights else None
    is_usable = form == "hub" or (form == "folder" and Path(str(weights)).is_dir())
    name = weights if is_usable else str(full.resolve())
    write_json(config, (read_json(config) or {}) | {BASE_KEY: name})


def _load_exported(root: Path, staged: Path, form: Form, context: ReplayContext) -> LoadedModel:
    """Load a model from the exported files; for an adapter alone the base comes from the
    checkpoint.

    The dtypes are those of the evaluation: base weights in its precision or in 4 bits, trained
    weights in float32, or as the flow says in a full training. Merged weights are never in 4 bits.
    """
    attention = context.attention
    if form == "merged":
        return load_model(staged, dtype=DTYPES[context.precision], attention=attention)
    exported = CheckpointDir(staged)
    if form == "full" and not exported.has_adapter:
        return load_model(staged, dtype=DTYPES[context.weights_precision], attention=attention)
    base, adapter = exported.model_full, exported.model_adapter
    if form == "adapter":
        base, adapter = CheckpointDir(root).model_full, staged
    model = load_model(
        base,
        dtype=DTYPES[context.precision],
        attention=attention,
        quantization=context.quantization,
    )
    model.module = attach_adapter(model.module, adapter)
    return model


def _verify(
    root: Path,
    staged: Path,
    form: Form,
    context: ReplayContext,
    document: dict[str, Any],
    lines: list[Line],
    read_image: ReadImage,
    tolerate: float,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Ask the exported model every recorded question, and return the fields of ``export.json``.

    Raises:
        ExportFailed: more answers differ than are tolerated.
    """
    model = _load_exported(root, staged, form, context)
    data = encode_recorded(model, context, lines, read_image, on_progress=on_progress)
    result = replay(model, context, lines, data, on_progress=on_progress)
    described = _describe_replay(result, context, tolerate)
    if form != "merged":
        _check_differences(result, form, context, tolerate)
        return described
    first = find_first_differences(model, context, data, result)
    by_merged = score_answers(model, context, data, first, on_progress=on_progress)
    shape = measure_shape(model.module)
    del model  # before the other is loaded: there may be memory for one
    adapted = _load_exported(root, root, "full", context)
    by_adapter = score_answers(adapted, context, data, first, on_progress=on_progress)
    comparison = compare(
        context,
        lines,
        result,
        first,
        (by_adapter, by_merged),
        dtypes=[DTYPES[document["dtype"]], DTYPES[context.precision]],
        shape=shape,
    )
    _check_comparison(comparison, result, context, tolerate)
    return described | {"comparison": describe_comparison(comparison)}


def _check_comparison(
    comparison: Comparison, result: Replay, context: ReplayContext, tolerate: float
) -> None:
    """Check that no more answers are outside the tolerance than are tolerated.

    Raises:
        ExportFailed: with the differences of the first few, and a fix.
    """
    outside = set(comparison.outside)
    if len(outside) <= tolerate * len(comparison.answers):
        return
    flips = {flip.index: flip for flip in comparison.flips}
    few = [
        _explain_outside(answer, flips.get(answer.index))
        for answer in comparison.answers
        if answer.index in outside
    ][:SHOWN_DIFFERENCES]
    summary = (
        f"{len(outside)} of {len(comparison.answers)} answers of the merged weights differ from "
        f"those of the adapter by more than rounding explains (margins of up to "
        f"{comparison.tolerance.value:.2g}), so nothing was exported:"
    )
    share = _round_up(len(outside), len(comparison.answers))
    fix = f"{_suggest_fix(result, 'merged', context)}, or allow it with --tolerate {share}"
    raise ExportFailed("\n".join([summary, *few, fix]))


def _explain_outside(answer: ComparedAnswer, flip: Flip | None) -> str:
    texts = (
        f"stored {_shorten(flip.recorded)}, now {_shorten(flip.merged)}, margin {flip.margin:.2g} "
        f"at token {flip.token}; "
        if flip
        else ""
    )
    return (
        f"  #{answer.index} {_shorten(answer.question)}: {texts}log-likelihood "
        f"{answer.log_likelihood:.4g} with the adapter, {answer.merged_log_likelihood:.4g} merged "
        f"({answer.difference:+.2g}, tolerance {answer.tolerance:.2g})"
    )


def _check_differences(result: Replay, form: Form, context: ReplayContext, tolerate: float) -> None:
    """Check that no more answers differ than are tolerated.

    Raises:
        ExportFailed: with the number of differing answers, the first few, and a fix.
    """
    count = len(result.differences)
    if count <= tolerate * result.question_count:
        return
    few = [
        f"  #{item.index} {_shorten(item.question)}: stored {_shorten(item.stored)}, now "
        f"{_shorten(item.answer)}"
        for item in result.differences[:SHOWN_DIFFERENCES]
    ]
    share = _round_up(count, result.question_count)
    fix = f"{_suggest_fix(result, form, context)}, or allow it with --tolerate {share}"
    summary = (
        f"{count} of {result.question_count} answers of the exported files differ from the stored "
        "ones, so nothing was "
        "exported:"
    )
    raise ExportFailed("\n".join([summary, *few, fix]))


def _round_up(count: int, total: int) -> str:
    """Return a share with three decimals, rounded up, so that passing it suffices."""
    return f"{-(-count * 1000 // total) / 1000:g}"


def _suggest_fix(result: Replay, form: Form, context: ReplayContext) -> str:
    evaluated_on = str(context.plan.get("device", "cpu"))
    if evaluated_on != result.device and form != "merged":
        return (
            f"They were evaluated on {evaluated_on} and replayed on {result.device}; try: export "
            "on a machine with "
            f"{evaluated_on}"
        )
    if form == "merged" and context.quantization is not None:
        return (
            f"They were evaluated over base weights in 4 bits ({context.quantization.type}), and "
            "merged weights are not quantized; try: keep adapter and base separate (--form full)"
        )
    return "The checkpoint's files may be damaged; try: download it again"


def _describe_replay(result: Replay, context: ReplayContext, tolerate: float) -> dict[str, Any]:
    return {
        "replayed": result.question_count,
        "different": len(result.differences),
        "tolerated": tolerate,
        "precision": context.precision,
        "device": result.device,
    }


def _shorten(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")


def _copy(source: Path, target: Path) -> None:
    for path, full in files_below(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(full, target / path)


@contextlib.contextmanager
def _stage(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a sibling folder of ``out`` to fill, which is renamed at the end; on any error it is
    removed.

    The leftovers of a killed export are removed by the next one. A lock keeps two exports out of
    the same folder.

    Raises:
        ExportFailed: ``out`` is taken, or another export is writing it.
    """
    out = out.resolve()
    _check_free(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    staged, replaced = (
        out.with_name(f".{out.name}.exporting"),
        out.with_name(f".{out.name}.replaced"),
    )
    if replaced.is_dir() and not out.exists():  # killed between the two renames at the end
        os.replace(replaced, out)
        _check_free(out, overwrite=overwrite)
    staged.mkdir(exist_ok=True)
    descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExportFailed(
                f"another export is writing {out}; try: wait for it, or another folder"
            ) from error
        try:
            for left_over in staged.iterdir():
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
            yield staged
            _fsync_all(staged)
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
    """Check that a folder is empty or missing, or an earlier export that may be replaced.

    Raises ExportFailed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ExportFailed(
            f"{out} is not empty; try: another folder, or --overwrite to replace an earlier export"
        )
    if not out.is_dir() or read_json(out / EXPORT) is None:
        raise ExportFailed(
            f"{out} is not an earlier export ({EXPORT} is missing), so it is not replaced; try: "
            "another folder"
        )


def _fsync_all(staged: Path) -> None:
    for _, path in files_below(staged):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder in [*sorted(item for item in staged.rglob("*") if item.is_dir()), staged]:
        fsync_dir(folder)
