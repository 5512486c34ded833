"""Replay: asking an exported model the questions of its checkpoint's evaluation and comparing the
generated texts.

A checkpoint has the model's predictions (``predictions.jsonl``) and how they were made
(``run.json``, with every default and the plan). The replay repeats the same questions about the
same images, in the same order, batches and precision. Images are not part of a checkpoint: those of
built-in datasets are made again, those of uploaded ones are in a version's folder, or in any folder
under their names.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from runyard.datasets.pixels import BrokenImage, decode_image
from runyard.datasets.records import Turn
from runyard.datasets.versions import CONTENTS, MANIFEST, VersionError, VersionFolder
from runyard.flows.blocks import BUILT_IN_DATASETS, AnswerFormName, Quantization
from runyard.ids import resolve_folder
from runyard.rundir import CheckpointDir, read_json
from runyard.trainer.answer_forms import make_form
from runyard.trainer.data.datasets import load_dataset
from runyard.trainer.data.encode import EncodedSample, Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.image_resolution import TokenBudget, get_context_length
from runyard.trainer.devices import CPU, find_device, keep_random_states
from runyard.trainer.errors import ExportFailed
from runyard.trainer.evaluation.evaluation import generate_answers
from runyard.trainer.export.predict import read_answer_form, read_block_settings
from runyard.trainer.models.model import LoadedModel, get_pad_id, read_quantization
from runyard.trainer.steps.losses import TokenLosses, get_base_model
from vi.api.resources.runs.responses import Run

if TYPE_CHECKING:
    from PIL.Image import Image

Line = dict[str, Any]
ImageFolders = Path | Mapping[str, Path]
ReadImage = Callable[[Line], "Image"]
OnProgress = Callable[[str, int, int], None]
"""Called with the current phase, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class ReplayContext:
    """How a checkpoint was evaluated, read from its ``run.json``."""

    run: Run
    dataset: dict[str, Any]
    architecture: dict[str, Any]
    evaluation: dict[str, Any]
    task: str
    answer_form: AnswerFormName
    system_prompt: str
    quantization: Quantization | None  # of the base weights during the evaluation
    weights_precision: str  # of a full training
    patch_budget: int | None
    attention: str | None  # None: the library's default for the family
    plan: dict[str, Any]
    seed: int

    @property
    def precision(self) -> str:
        return str(self.plan["precision"])

    @property
    def is_built_in(self) -> bool:
        return self.dataset["datasetId"] in BUILT_IN_DATASETS

    @property
    def versions(self) -> dict[str, str]:
        """The version of each uploaded dataset that samples were held out from."""
        if held_out := self.dataset.get("validationDataset"):
            return {str(held_out["datasetId"]): str(held_out["datasetVersion"])}
        own = {str(self.dataset["datasetId"]): str(self.plan.get("datasetVersion"))}
        mixed = self.dataset.get("mixture", ())
        return own | {str(each["datasetId"]): str(each["datasetVersion"]) for each in mixed}

    @property
    def is_sampled(self) -> bool:
        return bool(self.evaluation.get("do_sample"))

    @property
    def repetition_penalty(self) -> float:
        return float(self.evaluation.get("repetition_penalty", 1.0))

    @property
    def answer_tokens(self) -> int:
        """How many tokens an answer had at most."""
        return int(self.plan["answerTokens"])

    @property
    def generation(self) -> dict[str, Any]:
        """The settings that the generation config lacks: answer length and stop strings."""
        stops = self.evaluation.get("stop_strings")
        return {"max_new_tokens": self.answer_tokens} | ({"stop_strings": stops} if stops else {})


@dataclass(frozen=True)
class AnswerDifference:
    """A generated text that differs from the stored one, in line ``row``, of sample ``index``."""

    row: int
    index: int
    question: str
    stored: str
    answer: str


@dataclass(frozen=True)
class Replay:
    """The number of questions, the answers that differ, and the device."""

    question_count: int
    differences: tuple[AnswerDifference, ...]
    device: str


def read_replay_context(checkpoint: Path) -> ReplayContext:
    """Read how the checkpoint in this folder was evaluated.

    Raises:
        ExportFailed: its ``run.json`` is incomplete.
    """
    document = read_json(CheckpointDir(checkpoint).run) or {}
    try:
        settings = read_block_settings(document)
        plan = {name: item["value"] for name, item in document["status"]["plan"].items()}
        return ReplayContext(
            run=msgspec.convert(document, Run),
            dataset=settings["dataset"],
            architecture=settings["model"]["architecture"],
            evaluation=settings["model"]["evaluation"],
            task=settings["dataset"]["projectKind"],
            answer_form=read_answer_form(settings),
            system_prompt=settings["system-prompt"]["systemPrompt"],
            quantization=read_quantization(document),
            weights_precision=_read_weights_precision(settings["model"]),
            patch_budget=(settings["model"].get("images") or {}).get("patchBudget"),
            attention=_read_attention(settings["model"]),
            plan={"precision": "float32"} | plan,
            seed=int(document["spec"]["flow"]["settings"]["seed"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportFailed(
            f"{CheckpointDir(checkpoint).run} does not say how the checkpoint was made "
            f"({error!r}); try: a checkpoint "
            "downloaded by `runyard models download`"
        ) from error


def _read_attention(model: dict[str, Any]) -> str | None:
    attention = str((model.get("compute") or {}).get("attention", "auto"))
    return None if attention == "auto" else attention


def _read_weights_precision(model: dict[str, Any]) -> str:
    return str((model.get("training") or {}).get("weightsPrecision", "float32"))


def read_predictions(checkpoint: Path) -> list[Line]:
    """Read the predictions of the checkpoint's evaluation.

    Raises:
        ExportFailed: there are none, or the file is malformed.
    """
    path = CheckpointDir(checkpoint).predictions
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            str(line["raw"]), str(line["question"]), str(line["truth"]), int(line["index"])
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportFailed(
            f"{path} does not contain predictions ({error!r}); try: download the checkpoint again"
        ) from error
    if not lines:
        raise ExportFailed(
            f"{checkpoint.name} has no stored predictions to replay, because it was not evaluated "
            "at its step; try: "
            "another checkpoint, or export without verification (--no-replay)"
        )
    return lines


@contextlib.contextmanager
def open_images(
    context: ReplayContext, lines: Sequence[Line], images: ImageFolders | None
) -> Iterator[ReadImage]:
    """Yield a function from a line of predictions to its image.

    ``images`` is the folder of a version, or one that has the images under their names; the
    built-in datasets need none. For predictions of a mixture, it is such a folder for each dataset
    by its id, or a folder of these folders.

    Raises:
        ExportFailed: the images are missing, or are not those of the predictions.
    """
    if context.is_built_in:
        yield _read_built_in(context, lines)
        return
    if images is None:
        raise ExportFailed(
            f"the images of dataset {context.dataset['datasetId']!r} are not on this machine, so "
            "the predictions "
            "cannot be replayed; try: --pictures FOLDER with these images, or export without "
            "verification (--no-replay)"
        )
    with contextlib.ExitStack() as opened:
        names = {str(line["dataset"]) for line in lines if "dataset" in line}
        if names:
            in_mixture = {name: _open_folder(_choose(images, name), opened) for name in names}
            yield lambda line: in_mixture[line["dataset"]](line)
        else:
            own = str(context.dataset["datasetId"])
            yield _open_folder(images if isinstance(images, Path) else images[own], opened)


def _choose(images: ImageFolders, dataset: str) -> Path:
    """Return the folder of one dataset of a mixture."""
    return resolve_folder(images, dataset) if isinstance(images, Path) else images[dataset]


def _open_folder(folder: Path, opened: contextlib.ExitStack) -> ReadImage:
    if not (folder / MANIFEST).is_file() or not (folder / CONTENTS).is_file():
        return _read_files(folder)
    try:
        version = opened.enter_context(contextlib.closing(VersionFolder(folder)))
    except VersionError as error:
        raise ExportFailed(f"{folder} is a damaged dataset version: {error}") from error
    return _read_version(version)


def encode_recorded(
    model: LoadedModel,
    context: ReplayContext,
    lines: Sequence[Line],
    read_image: ReadImage,
    *,
    on_progress: OnProgress,
) -> InMemoryEncodings:
    """Return the questions as they were evaluated, each with the recorded answer.

    Raises:
        ExportFailed: an image cannot be read.
    """
    tokenizer = model.processor.tokenizer
    budget = TokenBudget(  # samples longer than the context had a smaller image
        context=get_context_length(get_base_model(model.module), tokenizer)[0],
        image_token_id=model.image_token_id,
        model_type=model.model_type,
        image_budget=context.patch_budget,
        is_encoder_decoder=model.decoder_start_id is not None,
    )
    encoder = Encoder(
        model.processor,
        model.parts,
        system_prompt=context.system_prompt,
        task=context.task,
        budget=budget,
        renderer=model.renderer,
        form=make_form(context.answer_form, model.model_type, model.processor),
    )
    encoded = []
    for number, line in enumerate(lines):
        on_progress("Reading images", number, len(lines))
        # The true answer determines the size of the image.
        asked = encode_line(encoder, line, read_image)
        recorded = encoder.tokenize_answer(line["raw"])[: context.answer_tokens]
        # Only this answer is compared, not the earlier ones of a conversation.
        encoded.append(replace(asked, answer=recorded, answer_spans=()))
    layout = Layout(
        pad_id=get_pad_id(tokenizer),
        image_token_id=model.image_token_id,
        answer_token_type=model.parts.answer_token_type,
        decoder_start_id=model.decoder_start_id,
    )
    return InMemoryEncodings(encoded, layout)


def replay(
    model: LoadedModel,
    context: ReplayContext,
    lines: Sequence[Line],
    data: InMemoryEncodings,
    *,
    on_progress: OnProgress,
) -> Replay:
    """Generate all answers again, as ``evaluation.evaluate`` did, and compare the texts exactly.

    Raises:
        ExportFailed: answers were sampled without a seed.
    """
    seed = int(context.evaluation.get("seed", 0))
    if context.is_sampled and seed < 0:
        raise ExportFailed(
            "the stored predictions were sampled without a seed (evaluation.do_sample), so they "
            "cannot be reproduced; "
            "try: export without verification (--no-replay)"
        )
    device = find_replay_device(context)
    tokenizer = model.processor.tokenizer
    module = model.module.to(device).eval()
    losses = TokenLosses(module, precision=context.precision, device=device, label_smoothing=0.0)
    generation = context.generation | (
        {"tokenizer": tokenizer} if "stop_strings" in context.generation else {}
    )
    random = keep_random_states(device)
    with (
        torch.inference_mode(),
        random,
        use_threads(context.plan.get("threads")),
        losses.autocast(),
    ):
        if seed >= 0:
            torch.manual_seed(seed)
        on_progress("Replaying", 0, len(lines))
        answers = generate_answers(
            module,
            tokenizer,
            data,
            len(data),
            generation=generation,
            device=device,
            decode=make_form(context.answer_form, model.model_type, model.processor).decode,
            on_answered=lambda answered: on_progress("Replaying", answered, len(lines)),
        )
    differences = tuple(
        AnswerDifference(row, line["index"], line["question"], line["raw"], answer)
        for row, (line, answer) in enumerate(zip(lines, answers, strict=True))
        if line["raw"] != answer
    )
    return Replay(len(lines), differences, device.type)


def encode_line(encoder: Encoder, line: Line, read_image: ReadImage) -> EncodedSample:
    """Encode the sample of a prediction, which may be a conversation."""
    if "turns" not in line:
        return encoder.encode_with_answer(read_image(line), line["question"], line["truth"])
    images = [read_image({**line, "filename": name}) for name in line["images"]]
    turns = msgspec.convert(line["turns"], list[Turn])
    return encoder.encode_conversation(images, turns, line["truth"])


def find_replay_device(context: ReplayContext) -> torch.device:
    """Return the device of the evaluation where this machine has one like it, else the CPU."""
    device = find_device()
    return device if device.type == str(context.plan.get("device", "cpu")) else CPU


@contextlib.contextmanager
def use_threads(count: Any) -> Iterator[None]:
    """Use the evaluation's number of threads, because it changes the last bits."""
    before = torch.get_num_threads()
    try:
        if isinstance(count, int) and count > 0:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _read_built_in(context: ReplayContext, lines: Sequence[Line]) -> ReadImage:
    dataset = context.dataset
    if context.plan.get("refusedSamples"):
        raise ExportFailed(
            f"some samples of dataset {dataset['datasetId']!r} did not fit and were left out, so "
            "the predicted samples "
            "cannot be identified; try: export without verification (--no-replay)"
        )
    samples = load_dataset(
        dataset["datasetId"],
        seed=context.seed,
        validation_fraction=float(dataset["validationFraction"]),
        max_samples=dataset.get("maxSamples"),
    ).validation
    for line in lines:
        index = int(line["index"])
        if index >= len(samples) or samples[index].question != line["question"]:
            raise ExportFailed(
                f"held-out sample #{index} of dataset {dataset['datasetId']!r} is not the one that "
                "was predicted "
                f"({line['question']!r}); try: the Runyard version that trained, or --no-replay to "
                "export without "
                "verification"
            )
    return lambda line: samples[int(line["index"])].image


def _read_version(version: VersionFolder) -> ReadImage:
    hashes = {item.filename: item.sha256 for item in version.items()}

    def read(line: Line) -> bytes:
        return version.read(hashes[line["filename"]])

    return lambda line: _decode(read, line, version.folder)


def _read_files(folder: Path) -> ReadImage:
    root = folder.resolve()

    def read(line: Line) -> bytes:
        path = (root / str(line["filename"])).resolve()
        if not path.is_relative_to(root):
            raise KeyError(line["filename"])
        return path.read_bytes()

    return lambda line: _decode(read, line, folder)


def _decode(read: Callable[[Line], bytes], line: Line, folder: Path) -> "Image":
    try:
        return decode_image(read(line))
    except (OSError, KeyError, VersionError, BrokenImage) as error:
        raise ExportFailed(
            f"image {line.get('filename')!r}, which was predicted, cannot be read from {folder} "
            f"({error}); try: "
            "--pictures FOLDER with the images under their names, or export without verification "
            "(--no-replay)"
        ) from error
