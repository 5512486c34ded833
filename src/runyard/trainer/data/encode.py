"""From samples to tensors: each picture decoded and processed once, each text tokenised once, then batches by index.

The model's own processor does the work, one sample at a time, so whatever a family does to pictures and text happens
here as it will when the model is used. What it returns is kept: token ids as they are, pixels as indices into the table
of values that occur (a processor that starts from 8-bit pictures gives few hundred different numbers), which is a
quarter of the size and gives back the very same floats. A step then only gathers.

What is learnt is the answer alone: its tokens are those that ``generate`` would have to produce after the prompt.
"""

import hashlib
import json
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from runyard.rundir import files_below
from runyard.trainer.answers import write_answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.image_resolution import Fitting, TooLong
from runyard.trainer.data.templates import Renderer, TemplateProcess
from runyard.trainer.errors import InvalidData
from runyard.trainer.families import Parts

LARGEST_TABLE = 65_536
FEATURES = "features"  # stands for pixels where the features of pictures are kept (``features.py``)
KNOWN_PROMPTS = 512
# Fields of saved processors that name where they came from or who wrote them, and decide nothing.
_ORIGIN = ("name_or_path", "_name_or_path", "transformers_version", "local_files_only", "is_local", "backend")
# Per-token fields of a processor's answer; everything else belongs to pictures.
TOKEN_FIELDS = ("token_type_ids", "mm_token_type_ids")
# Fields of an image processor's answer that models take, besides those named after pixels.
_MODEL_FIELDS = ("image_grid_thw", "image_sizes", "image_position_ids")
_Array = np.ndarray[Any, Any]


@dataclass
class Encoded:
    """One sample: the prompt with its pictures' places, the answer, and what the processor made of the pictures.

    ``is_shrunk``: its picture takes fewer tokens than the family's own settings would give it.
    """

    prompt: _Array
    answer: _Array
    token_fields: dict[str, _Array]
    images: dict[str, _Array]
    is_shrunk: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class _Known:
    """The tokens of a prompt, and whether the image part alone is enough; None until that has been compared."""

    prompt: Encoded
    is_enough: bool | None


class Encodes(Protocol):
    """What makes tokens and pixels of samples, and all that decides how."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def encode(self, sample: Sample) -> Encoded: ...


class Encoder:
    """Turns a sample into tokens and pixels with the model's processor.

    The tokens of a prompt depend on its text and on how large the picture is, not on what it shows. So the whole
    processor runs for each new text and size; when that comes a second time and the image part alone gives the same
    pixels, that part is enough for all others of this text and size, which is several times faster.

    With ``fitting`` a sample that is longer than the context gets a smaller picture, see ``picture_sizes.py``.
    """

    def __init__(
        self,
        processor: Any,
        parts: Parts,
        *,
        system_prompt: str,
        task: str,
        fitting: Fitting | None = None,
        renderer: Renderer | None = None,
    ):
        self._processor, self._parts, self._fitting = processor, parts, fitting
        self._renderer = renderer or TemplateProcess(processor)
        self._system_prompt, self._task = system_prompt, task
        self._known: OrderedDict[tuple[str, tuple[int, int]], _Known] = OrderedDict()
        # A cache that held this object would keep it, and its renderer's process, until garbage is collected.
        unheld = weakref.proxy(self)
        self._prompt = lru_cache(maxsize=KNOWN_PROMPTS)(partial(Encoder._write_prompt, unheld))
        self._end = self._end_of_answer()
        self._tokens_of_answer = lru_cache(maxsize=16_384)(partial(Encoder._tokenize, unheld))

    def encode(self, sample: Sample, *, with_picture: bool = True) -> Encoded:
        """The sample as it is learnt from; without its picture where only tokens are wanted, which is far faster.

        Raises:
            TooLong: it does not fit, and no smaller picture helps.
        """
        written = write_answer(sample.task or self._task, sample.truth)
        made = self.encode_answered(sample.image, sample.question, written, with_picture=with_picture)
        return made if with_picture else replace(made, images={})

    def encode_answered(self, image: Any, question: str, written: str, *, with_picture: bool = True) -> Encoded:
        """The same with the answer as it is written. A picture that is not wanted may be there.

        Raises:
            TooLong: it does not fit, and no smaller picture helps.
        """
        answer = self._tokens_of_answer(self._parts.answer_begin + written + self._end)
        made = replace(self.encode_question(image, question, with_picture=with_picture), answer=answer)
        if self._fitting is None:
            return made
        if self._fitting.takes(made.prompt, answer):
            return replace(made, is_shrunk=True) if self._fitting.is_reduced(self._processor, image) else made
        if not with_picture:
            return self.encode_answered(image, question, written)
        return self._made_to_fit(self._fitting, image.convert("RGB"), self._prompt(question), made)

    def _made_to_fit(self, fitting: Fitting, image: Any, prompt: str, whole: Encoded) -> Encoded:
        """The same sample with as large a picture as there is room for."""
        for processor, smaller in fitting.smaller(self._processor, image, fitting.room(whole.prompt, whole.answer)):
            made = self._whole(smaller, prompt, processor)
            if fitting.takes(made.prompt, whole.answer):
                return replace(
                    made, answer=whole.answer, images=_filled_up_to(made.images, whole.images), is_shrunk=True
                )
        length = fitting.length(len(whole.prompt), len(whole.answer))
        raise TooLong(f"{length:,} tokens, {fitting.of_picture(whole.prompt):,} of them the picture's")

    def encode_question(self, image: Any, question: str, *, with_picture: bool = True) -> Encoded:
        """A question without an answer, as ``generate`` takes it."""
        image = image.convert("RGB")
        prompt = self._prompt(question)
        key = (prompt, image.size)
        known = self._known.pop(key, None)
        if known is not None and known.is_enough:
            self._known[key] = known
            return replace(known.prompt, images=self._images_alone(image) if with_picture else {})
        whole = self._whole(image, prompt)
        is_enough = None  # a prompt that never comes again, such as a caption, is not worth the comparison
        if known is not None:
            alone = self._images_alone(image) if known.is_enough is None else {}
            is_enough = all(name in alone and np.array_equal(alone[name], whole.images[name]) for name in whole.images)
        self._known[key] = _Known(replace(whole, images={}), is_enough)
        if len(self._known) > KNOWN_PROMPTS:
            self._known.popitem(last=False)
        return whole

    def _whole(self, image: Any, prompt: str, processor: Any = None) -> Encoded:
        made = (processor or self._processor)(images=[image], text=[prompt], return_tensors="np")
        texts = (*TOKEN_FIELDS, "input_ids", "attention_mask", "labels")
        return Encoded(
            prompt=np.asarray(made["input_ids"])[0].astype(np.int64),
            answer=np.zeros(0, np.int64),
            token_fields={name: np.asarray(made[name])[0] for name in TOKEN_FIELDS if name in made},
            images={n: np.asarray(v) for n, v in made.items() if n not in texts and v is not None},
        )

    def _images_alone(self, image: Any) -> dict[str, _Array]:
        made = self._processor.image_processor(images=[[image]], return_tensors="np")
        return {name: np.asarray(value) for name, value in made.items() if name in _MODEL_FIELDS or "pixel" in name}

    def _tokenize(self, answer: str) -> _Array:
        return np.asarray(self._processor.tokenizer(answer, add_special_tokens=False)["input_ids"], np.int64)

    def _write_prompt(self, question: str) -> str:
        """System text, picture and question as the family writes them, up to where the model begins to speak."""
        if self._has_template:
            messages = conversation(self._system_prompt, question)
            return self._renderer.render(messages, with_generation_prompt=True)
        text = " ".join(part for part in (self._system_prompt, question) if part)
        return str(self._parts.plain_prompt).format(text=text)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what becomes of a sample, as JSON; what merely says where the processor lay is left out."""
        with tempfile.TemporaryDirectory() as folder:
            self._processor.save_pretrained(folder)
            files = {path: full.read_bytes() for path, full in files_below(Path(folder))}
        found = {
            path: _without_origin(json.loads(data)) if path.endswith(".json") else hashlib.sha256(data).hexdigest()
            for path, data in files.items()
        }
        return {
            "processor": found,
            "parts": repr(self._parts),
            "systemPrompt": self._system_prompt,
            "task": self._task,
            "end": self._end,
            "fitting": repr(self._fitting),
        }

    def _end_of_answer(self) -> str:
        """What the family writes after an answer; there the model shall stop."""
        end = self._processor.tokenizer.eos_token or ""
        if not self._has_template:
            if self._parts.plain_prompt is None:
                raise InvalidData("the model's processor has no chat template, so its prompts cannot be written")
            return end
        # Templates differ in how they end a turn: that is what stands behind the answer in a whole conversation. A
        # template that writes nothing there, or tells the whole otherwise than the prompt, gets the end-of-text token.
        said = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}
        messages = [*conversation(self._system_prompt, "QUESTION"), said]
        whole = self._renderer.render(messages, with_generation_prompt=False)
        _, found, rest = whole.rpartition("ANSWER")
        return rest.rstrip() if found and rest.strip() else end

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self._processor, "chat_template", None))


def _filled_up_to(images: dict[str, _Array], wanted: Mapping[str, _Array]) -> dict[str, _Array]:
    """Gemma 4's patches, filled up as its processor does it: to one number for all pictures, with places of -1."""
    if "image_position_ids" not in images:
        return images
    made = {}
    for name, array in images.items():
        missing = [(0, 0)] * array.ndim
        if array.ndim > 1:
            missing[1] = (0, wanted[name].shape[1] - array.shape[1])
        made[name] = np.pad(array, missing, constant_values=-1 if name == "image_position_ids" else 0)
    return made


def _without_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origin(item) for name, item in value.items() if name not in _ORIGIN}
    return [_without_origin(item) for item in value] if isinstance(value, list) else value


def conversation(system_prompt: str, question: str) -> list[dict[str, Any]]:
    """The chat shape of training and of use: system text; user picture, then text."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    if not system_prompt:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, user]


class PixelTable:
    """Floats kept as indices into the sorted table of the values that occur; exact, and a quarter of the size."""

    def __init__(self, arrays: Sequence[_Array]):
        is_float = all(array.dtype == np.float32 for array in arrays)
        values = np.unique(np.concatenate([np.unique(array) for array in arrays])) if is_float else None
        self._values = values if values is not None and len(values) <= LARGEST_TABLE else None
        self._kept = [self._index(array) for array in arrays]
        shapes = {array.shape for array in self._kept}
        # Pictures of one size lie in one block, so that a batch is one gather.
        self._block = np.stack(self._kept) if len(shapes) == 1 else None
        if self._block is not None:
            self._kept = []

    def get(self, indices: Sequence[int]) -> _Array:
        """The arrays at these places, one after the other along the first axis, filled up with zeros to one size."""
        if self._block is not None:
            chosen = self._block[np.asarray(indices)]
            joined = chosen.reshape(-1, *chosen.shape[2:])
            pixels: _Array = joined if self._values is None else self._values[joined]
            return pixels
        parts = [self._kept[i] if self._values is None else self._values[self._kept[i]] for i in indices]
        return join(parts)

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self._kept) + (0 if self._block is None else self._block.nbytes)

    def _index(self, array: _Array) -> _Array:
        if self._values is None:
            return array
        kind = np.uint8 if len(self._values) <= 256 else np.uint16
        return np.searchsorted(self._values, array).astype(kind)


def join(arrays: Sequence[_Array]) -> _Array:
    """Arrays one after the other along the first axis, the other axes filled up with zeros to the largest."""
    trailing = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    if all(array.shape[1:] == trailing for array in arrays):
        return np.concatenate(arrays)
    whole = np.zeros((sum(len(array) for array in arrays), *trailing), arrays[0].dtype)
    start = 0
    for array in arrays:
        whole[(slice(start, start + len(array)), *(slice(0, size) for size in array.shape[1:]))] = array
        start += len(array)
    return whole


@dataclass
class Batch:
    """Model inputs, and what is learnt from them: after the token at ``places[i]`` comes ``wanted[i]``.

    Places count through the rows one after the other. With ``segments`` there is one row, which holds samples of these
    lengths without anything between them (``packing.py``).
    """

    inputs: dict[str, torch.Tensor]
    places: torch.Tensor
    wanted: torch.Tensor
    segments: tuple[int, ...] | None = None

    @property
    def learnt_tokens(self) -> int:
        return len(self.wanted)

    def to(self, device: torch.device) -> "Batch":
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        places, wanted = self.places.to(device, non_blocking=True), self.wanted.to(device, non_blocking=True)
        return replace(self, inputs=inputs, places=places, wanted=wanted)


@dataclass(frozen=True)
class Layout:
    """How rows are made: what fills them up, and which tokens are learnt.

    ``decoder_start`` is what answers begin with in models that read prompts with an encoder and answer with a decoder.
    """

    pad_id: int
    image_token_id: int | None = None
    answer_token_type: int = 0
    answers_only: bool = True
    decoder_start: int | None = None


def assemble(rows: Sequence[Encoded], images: Mapping[str, _Array], layout: Layout) -> Batch:
    """Prompts with answers, filled up on the right, for teacher forcing."""
    if layout.decoder_start is not None:
        return _assemble_apart(rows, images, layout.pad_id, layout.decoder_start)
    width = max(row.length for row in rows)
    ids = np.full((len(rows), width), layout.pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    is_learnt = np.zeros((len(rows), width), bool)
    types = {name: np.zeros((len(rows), width), np.int64) for name in rows[0].token_fields}
    for at, row in enumerate(rows):
        begin, end = len(row.prompt), row.length
        ids[at, :begin], ids[at, begin:end] = row.prompt, row.answer
        mask[at, :end] = 1
        is_learnt[at, begin:end] = True
        if not layout.answers_only:
            is_learnt[at, 1:begin] = row.prompt[1:] != layout.image_token_id
        for name, values in types.items():
            values[at, :begin] = row.token_fields[name]
            if name == "token_type_ids":
                values[at, begin:end] = layout.answer_token_type
    fields = {"input_ids": ids, "attention_mask": mask, **types, **images}
    learnt = np.flatnonzero(is_learnt)
    return Batch(
        inputs={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()},
        places=torch.from_numpy(learnt - 1),
        wanted=torch.from_numpy(ids.ravel()[learnt]),
    )


def _assemble_apart(rows: Sequence[Encoded], images: Mapping[str, _Array], pad_id: int, start: int) -> Batch:
    """Prompts for the encoder, answers for the decoder, which is given each token one place later."""
    ids, mask = _filled_up([row.prompt for row in rows], pad_id)
    answers, is_learnt = _filled_up([row.answer for row in rows], pad_id)
    given = np.concatenate([np.full((len(rows), 1), start, np.int64), answers[:, :-1]], axis=1)
    fields = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "decoder_input_ids": given, **images}
    return Batch(
        inputs={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()},
        places=torch.from_numpy(np.flatnonzero(is_learnt)),
        wanted=torch.from_numpy(answers[is_learnt]),
    )


def _filled_up(rows: Sequence[_Array], fill: int) -> tuple[_Array, _Array]:
    """Rows of tokens side by side, and which of them are real."""
    is_real = np.arange(max(map(len, rows))) < np.asarray([len(row) for row in rows])[:, None]
    ids = np.full(is_real.shape, fill, np.int64)
    ids[is_real] = np.concatenate(rows)
    return ids, is_real


class Encodings(ABC):
    """Every sample of one part of the data, ready to be gathered. ``lengths`` are those of prompt and answer."""

    lengths: _Array
    prompt_lengths: _Array
    size_bytes: int

    def __init__(self, layout: Layout):
        self._layout = layout

    @abstractmethod
    def _row(self, index: int) -> Encoded:
        """The tokens of a sample."""

    @abstractmethod
    def _pixels(self, indices: Sequence[int]) -> dict[str, _Array]:
        """What the processor made of the pictures of these samples, one after the other."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest_answer(self) -> int:
        return int((self.lengths - self.prompt_lengths).max(initial=0))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Samples with their answers."""
        return assemble([self._row(i) for i in indices], self._pixels(indices), self._layout)

    def prompts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Prompts of one length without their answers, for ``generate``."""
        return prompts_of([self._row(i) for i in indices], self._pixels(indices))

    def groups_by_prompt_length(self, count: int, batch_size: int) -> list[list[int]]:
        """The first ``count`` samples in batches of equal prompt length, so that ``generate`` needs no filling up."""
        by_length: dict[int, list[int]] = {}
        for index in range(min(count, len(self))):
            by_length.setdefault(int(self.prompt_lengths[index]), []).append(index)
        return [
            group[start : start + batch_size]
            for _, group in sorted(by_length.items())
            for start in range(0, len(group), batch_size)
        ]


class EncodedSamples(Encodings):
    """Encodings in memory, for data that is small."""

    def __init__(self, encoded: Sequence[Encoded], layout: Layout):
        super().__init__(layout)
        self._images = (
            {name: PixelTable([item.images[name] for item in encoded]) for name in encoded[0].images} if encoded else {}
        )
        self._rows = [replace(item, images={}) for item in encoded]
        self.lengths = np.asarray([item.length for item in encoded], np.int64)
        self.prompt_lengths = np.asarray([len(item.prompt) for item in encoded], np.int64)
        self.size_bytes = sum(table.size_bytes for table in self._images.values())

    def _row(self, index: int) -> Encoded:
        return self._rows[index]

    def _pixels(self, indices: Sequence[int]) -> dict[str, _Array]:
        return {name: table.get(indices) for name, table in self._images.items()}


class VariedSamples:
    """Samples whose pictures are varied anew each time they are drawn; boxes follow, so answers are written anew too.

    ``vary`` is given sample, epoch and index, and must depend on nothing else.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        layout: Layout,
        vary: Callable[[Sample, int, int], Sample],
    ):
        self._samples, self._encoder, self._layout, self._vary = samples, encoder, layout, vary

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        rows = [self._encode(epoch, index) for index in indices]
        images = {name: join([row.images[name] for row in rows]) for name in rows[0].images}
        return assemble(rows, images, self._layout)

    def _encode(self, epoch: int, index: int) -> Encoded:
        sample = self._samples[index]
        try:
            return self._encoder.encode(self._vary(sample, epoch, index))
        except TooLong:  # boxes that moved may take a token more; unvaried the sample has been found to fit
            return self._encoder.encode(sample)


def prompts_of(rows: Sequence[Encoded], images: Mapping[str, _Array]) -> dict[str, torch.Tensor]:
    """Prompts of equal length as model inputs."""
    ids = np.stack([row.prompt for row in rows])
    fields = {"input_ids": ids, "attention_mask": np.ones_like(ids), **images}
    fields |= {name: np.stack([row.token_fields[name] for row in rows]) for name in rows[0].token_fields}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()}


def epoch_batches(lengths: _Array, *, batch_size: int, seed: int, epoch: int, shuffle: bool = True) -> list[list[int]]:
    """The batches of one epoch, from seed and epoch alone, so that any position in any epoch can be found again.

    Within stretches of fifty batches samples are sorted by length before they are cut into batches, and the batches
    are mixed again: little is spent on filling up, and every epoch has other neighbours.
    """
    if not shuffle:
        order = np.arange(len(lengths))
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    stretch = 50 * batch_size
    order = np.concatenate(
        [
            part[np.argsort(lengths[part], kind="stable")]
            for part in (order[i : i + stretch] for i in range(0, len(order), stretch))
        ]
    )
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    return [batches[int(i)] for i in random.permutation(len(batches))]
