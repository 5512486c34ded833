"""Asking a model's files what was asked when their checkpoint was measured, and comparing the answers word by word.

A checkpoint keeps what the model answered (``predictions.jsonl``) and how it was asked (``run.json``, which has every
default and the plan). Asked again are the same questions about the same pictures, in the same order, batches and
arithmetic. The pictures are no part of a checkpoint: those of the built-in datasets are made anew, those of uploaded
ones lie in a version's folder, or in any folder under their names.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from runyard.datasets.versions import CONTENTS, MANIFEST, VersionError, VersionFolder
from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.rundir import MODEL_FULL, PREDICTIONS_FILE, read_json
from runyard.trainer.checkpoints.checkpoint import RUN
from runyard.trainer.data.datasets import load_dataset
from runyard.trainer.data.encode import EncodedSamples, Encoder, Layout
from runyard.trainer.data.image_resolution import Fitting, context_of
from runyard.trainer.data.images import BrokenPicture, decoded
from runyard.trainer.errors import ExportFailed
from runyard.trainer.evaluation.evaluation import generate_answers
from runyard.trainer.export.predict import block_settings
from runyard.trainer.models.model import Model, pad_id
from runyard.trainer.steps.losses import TokenLosses, base_of
from vi.api.resources.runs.responses import Run

if TYPE_CHECKING:
    from PIL.Image import Image

Line = dict[str, Any]
Show = Callable[[Line], "Image"]
Told = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a checkpoint was measured, out of its ``run.json``."""

    run: Run
    dataset: dict[str, Any]
    architecture: dict[str, Any]
    evaluation: dict[str, Any]
    task: str
    system_prompt: str
    quantization: str | None  # of the base weights while it was measured
    patch_budget: int | None
    plan: dict[str, Any]
    seed: int

    @property
    def precision(self) -> str:
        return str(self.plan["precision"])

    @property
    def is_built_in(self) -> bool:
        return self.dataset["datasetId"] in BUILT_IN_DATASETS

    @property
    def attention(self) -> str:
        return str(self.plan.get("attention", "sdpa"))

    @property
    def generation(self) -> dict[str, Any]:
        """What the model's own settings do not hold: how long answers may be here, and what else ends one."""
        stops = self.evaluation.get("stop_strings")
        return {"max_new_tokens": int(self.plan["answerTokens"])} | ({"stop_strings": stops} if stops else {})


@dataclass(frozen=True)
class Difference:
    """An answer that is not the stored one."""

    index: int
    question: str
    stored: str
    answer: str


@dataclass(frozen=True)
class Replay:
    """How many questions were asked anew, which answers were others, and where."""

    asked: int
    differences: tuple[Difference, ...]
    device: str


def read_asked(checkpoint: Path) -> Asked:
    """How the checkpoint in this folder was measured.

    Raises:
        ExportFailed: its ``run.json`` does not say.
    """
    document = read_json(checkpoint / MODEL_FULL / RUN) or {}
    try:
        settings = block_settings(document)
        quantized = settings["model"].get("quantization") or {}
        plan = {name: item["value"] for name, item in document["status"]["plan"].items()}
        return Asked(
            run=msgspec.convert(document, Run),
            dataset=settings["dataset"],
            architecture=settings["model"]["architecture"],
            evaluation=settings["model"]["evaluation"],
            task=settings["dataset"]["projectKind"],
            system_prompt=settings["system-prompt"]["systemPrompt"],
            quantization=quantized.get("type", "nf4") if quantized.get("enabled") else None,
            patch_budget=(settings["model"].get("images") or {}).get("patchBudget"),
            plan={"precision": "float32"} | plan,
            seed=int(document["spec"]["flow"]["settings"]["seed"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportFailed(
            f"{checkpoint / MODEL_FULL / RUN} does not say how the checkpoint was made ({error!r}); give a checkpoint "
            "of a run, as `runyard models download` fetches it"
        ) from error


def read_predictions(checkpoint: Path) -> list[Line]:
    """What the model answered when it was measured.

    Raises:
        ExportFailed: there is no such file, nothing in it, or something else.
    """
    path = checkpoint / PREDICTIONS_FILE
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            str(line["raw"]), str(line["question"]), str(line["truth"]), int(line["index"])
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportFailed(f"{path} does not hold predictions ({error!r}); download the checkpoint anew") from error
    if not lines:
        raise ExportFailed(
            f"{checkpoint.name} has no stored predictions to replay, as it was not measured at its step; export "
            "another checkpoint, or this one unproven with --no-replay"
        )
    return lines


@contextlib.contextmanager
def shown(asked: Asked, lines: Sequence[Line], folder: Path | None) -> Iterator[Show]:
    """A function from a line of predictions to its picture.

    ``folder`` is a version's, or holds the pictures under their names; the built-in datasets need none.

    Raises:
        ExportFailed: the pictures cannot be had, or are not those of the predictions.
    """
    if asked.is_built_in:
        yield _built_in(asked, lines)
    elif folder is None:
        raise ExportFailed(
            f"the pictures of dataset {asked.dataset['datasetId']!r} are not on this machine, so the predictions "
            "cannot be replayed; name a folder that holds them with --pictures, or export unproven with --no-replay"
        )
    elif (folder / MANIFEST).is_file() and (folder / CONTENTS).is_file():
        try:
            version = VersionFolder(folder)
        except VersionError as error:
            raise ExportFailed(f"{folder} is a damaged version of a dataset: {error}") from error
        with contextlib.closing(version):
            yield _of_version(version)
    else:
        yield _of_files(folder)


def replay(model: Model, asked: Asked, lines: Sequence[Line], show: Show, *, told: Told) -> Replay:
    """Ask the model everything again, as ``evaluation.evaluate`` did, and compare the words as they came.

    Raises:
        ExportFailed: answers were drawn by chance, or a picture cannot be shown.
    """
    seed = int(asked.evaluation.get("seed", 0))
    if asked.evaluation.get("do_sample") and seed < 0:
        raise ExportFailed(
            "the stored predictions were drawn by chance (evaluation.do_sample without a seed), so nothing can be "
            "compared with them; export unproven with --no-replay"
        )
    wanted = str(asked.plan.get("device", "cpu"))
    device = torch.device(wanted if wanted != "cuda" or torch.cuda.is_available() else "cpu")
    tokenizer = model.processor.tokenizer
    fitting = Fitting(  # what was too long for the context was shown smaller
        context=context_of(base_of(model.module), tokenizer)[0],
        image_token_id=model.image_token_id,
        model_type=model.model_type,
        budget=asked.patch_budget,
        is_apart=model.decoder_start is not None,
    )
    encoder = Encoder(
        model.processor,
        model.parts,
        system_prompt=asked.system_prompt,
        task=asked.task,
        fitting=fitting,
        renderer=model.renderer,
    )
    encoded = []
    for number, line in enumerate(lines):
        told("Reading pictures", number, len(lines))
        encoded.append(encoder.encode_answered(show(line), line["question"], line["truth"]))
    data = EncodedSamples(encoded, Layout(pad_id=pad_id(tokenizer)))
    module = model.module.to(device).eval()
    losses = TokenLosses(module, precision=asked.precision, device=device, label_smoothing=0.0)
    generation = asked.generation | ({"tokenizer": tokenizer} if "stop_strings" in asked.generation else {})
    random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with torch.inference_mode(), random, _threads(asked.plan.get("threads")), losses.arithmetic():
        if seed >= 0:
            torch.manual_seed(seed)
        told("Replaying", 0, len(lines))
        said = generate_answers(
            module,
            tokenizer,
            data,
            len(data),
            generation=generation,
            device=device,
            told=lambda answered: told("Replaying", answered, len(lines)),
        )
    different = tuple(
        Difference(line["index"], line["question"], line["raw"], answer)
        for line, answer in zip(lines, said, strict=True)
        if line["raw"] != answer
    )
    return Replay(len(lines), different, device.type)


@contextlib.contextmanager
def _threads(count: Any) -> Iterator[None]:
    """As many threads as measured with, since their number changes the last bits; afterwards as many as before."""
    before = torch.get_num_threads()
    try:
        if isinstance(count, int) and count > 0:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _built_in(asked: Asked, lines: Sequence[Line]) -> Show:
    dataset = asked.dataset
    if asked.plan.get("refusedSamples"):
        raise ExportFailed(
            f"some samples of dataset {dataset['datasetId']!r} did not fit and were left out, so which were predicted "
            "cannot be told; export unproven with --no-replay"
        )
    samples = load_dataset(
        dataset["datasetId"],
        seed=asked.seed,
        validation_fraction=float(dataset["validationFraction"]),
        max_samples=dataset.get("maxSamples"),
    ).validation
    for line in lines:
        index = int(line["index"])
        if index >= len(samples) or samples[index].question != line["question"]:
            raise ExportFailed(
                f"held-out sample #{index} of dataset {dataset['datasetId']!r} is not the one that was predicted "
                f"({line['question']!r}); export with the Runyard that trained, or unproven with --no-replay"
            )
    return lambda line: samples[int(line["index"])].image


def _of_version(version: VersionFolder) -> Show:
    hashes = {item.filename: item.sha256 for item in version.items()}

    def read(line: Line) -> bytes:
        return version.read(hashes[line["filename"]])

    return lambda line: _decoded(read, line, version.folder)


def _of_files(folder: Path) -> Show:
    root = folder.resolve()

    def read(line: Line) -> bytes:
        path = (root / str(line["filename"])).resolve()
        if not path.is_relative_to(root):
            raise KeyError(line["filename"])
        return path.read_bytes()

    return lambda line: _decoded(read, line, folder)


def _decoded(read: Callable[[Line], bytes], line: Line, folder: Path) -> "Image":
    try:
        return decoded(read(line))
    except (OSError, KeyError, VersionError, BrokenPicture) as error:
        raise ExportFailed(
            f"picture {line.get('filename')!r}, which was predicted, cannot be read from {folder} ({error}); name a "
            "folder that holds the pictures under their names with --pictures, or export unproven with --no-replay"
        ) from error
