"""From samples to tensors: each image is processed once, each text tokenized once, then batches are
made by index.

The model's own processor does the work, one sample at a time, so images and text are treated
exactly as when the model is used. Its results are stored: token IDs unchanged, pixels as the 8-bit
values that the processor normalized (``pixels.py``), which takes a quarter of the size and restores
the same floats. A training step then only gathers.

Only the answer is learned by default: its tokens are those that ``generate`` must produce after the
prompt.

Shapes: B samples of a batch, T tokens of its longest row, P label positions.
"""

import copy
import hashlib
import json
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import AddedToken

from runyard.datasets.records import IMAGE_MARK, Turn
from runyard.rundir import files_below
from runyard.trainer.answer_forms import JSON_FORM, AnswerForm
from runyard.trainer.answers import Answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.image_resolution import Area, TokenBudget, TooLong
from runyard.trainer.data.pixels import (
    PackedArray,
    PackedColumn,
    PixelCodec,
    concatenate_padded,
)
from runyard.trainer.data.templates import Renderer, TemplateProcess
from runyard.trainer.errors import InvalidData
from runyard.trainer.families import FamilyParts

# The input that replaces pixels where image features are stored (``features.py``).
FEATURES = "features"
MAX_KNOWN_PROMPTS = 512
# Stands for an earlier answer while the processor reads a conversation; never in a prompt.
ANSWER_TOKEN = "<|runyard:answer|>"  # noqa: S105
# Fields of saved processors that record their origin and have no effect.
_ORIGIN_FIELDS = (
    "name_or_path",
    "_name_or_path",
    "transformers_version",
    "local_files_only",
    "is_local",
    "backend",
)
# Per-token fields of a processor's output; all others belong to images.
TOKEN_FIELDS = ("token_type_ids", "mm_token_type_ids")
# Fields of an image processor's output that models take, besides those with "pixel" in their name.
_MODEL_FIELDS = ("image_grid_thw", "image_sizes", "image_position_ids")
_Array = np.ndarray[Any, Any]


@dataclass
class EncodedSample:
    """One sample: the prompt with its image tokens, the answer, and the processor's output for the
    images.

    The prompt of a conversation contains its earlier answers, which are learned too:
    ``answer_spans`` has the begin and the end of each. ``is_shrunk``: the images take fewer tokens
    than with the family's own settings.
    """

    prompt: _Array  # (prompt tokens,)
    answer: _Array  # (answer tokens,)
    token_fields: dict[str, _Array]  # each (prompt tokens,)
    images: dict[str, Any]  # arrays, each (images or patches, ...), or packed ones
    is_shrunk: bool = False
    answer_spans: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class _KnownPrompt:
    """The tokens of a prompt, and whether the image processor alone suffices.

    None until compared.
    """

    prompt: EncodedSample
    is_image_processor_enough: bool | None


class SampleEncoder(Protocol):
    """Converts samples to tokens and image tensors; ``settings`` determine the result.

    ``codec`` packs the image tensors, where they are kept.
    """

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def codec(self) -> PixelCodec: ...

    def encode(self, sample: Sample) -> EncodedSample: ...


class Encoder:
    """Converts a sample to tokens and pixels with the model's processor.

    The tokens of a prompt depend on its text and on the size of the image, not on the image's
    content. So the whole processor runs for each new text and size. When a pair occurs a second
    time and the image processor alone produces the same pixels, it suffices for all later samples
    of that pair, which is several times faster.

    With ``budget`` a sample that exceeds the context gets a smaller image, see
    ``image_resolution.py``.
    """

    def __init__(
        self,
        processor: Any,
        parts: FamilyParts,
        *,
        system_prompt: str,
        task: str,
        budget: TokenBudget | None = None,
        renderer: Renderer | None = None,
        form: AnswerForm = JSON_FORM,
    ):
        self._form = form
        self._processor, self._parts, self._budget = processor, parts, budget
        self.codec = PixelCodec(processor.image_processor)
        self._renderer = renderer or TemplateProcess(processor)
        self._system_prompt, self._task = system_prompt, task
        self._known: OrderedDict[tuple[str, tuple[int, int]], _KnownPrompt] = OrderedDict()
        # A cache with a strong reference would keep this object, and its renderer's process, until
        # a garbage collection.
        weak_self = weakref.proxy(self)
        self._prompt = lru_cache(maxsize=MAX_KNOWN_PROMPTS)(
            partial(Encoder._write_prompt, weak_self)
        )
        self._end = self._find_end_of_answer()
        self._tokenize_answer = lru_cache(maxsize=16_384)(partial(Encoder._tokenize, weak_self))

    def encode(self, sample: Sample, *, with_image: bool = True) -> EncodedSample:
        """Encode a training sample; ``with_image=False`` encodes only its tokens, which is far
        faster.

        Raises:
            TooLong: it does not fit, even with the smallest image.
        """
        task = sample.task or self._task
        if sample.turns:
            encoded = self.encode_conversation(
                sample.images,
                sample.turns[:-1],
                self._form.write(task, sample.truth, None),
                task=task,
            )
            return encoded if with_image else replace(encoded, images={})
        image = sample.image

        def write(processor: Any, image: Any) -> str:
            is_sized = self._form.needs_size(task)
            size = Area().resize(processor, *image.size) if is_sized else None
            return self._form.write(task, sample.truth, size)

        encoded = self.encode_with_answer(
            image,
            sample.question,
            write(self._processor, image),
            with_image=with_image,
            rewrite=write if self._form.needs_size(task) else None,
        )
        return encoded if with_image else replace(encoded, images={})

    def encode_conversation(
        self, images: Sequence[Any], turns: Sequence[Turn], answer: str, *, task: str | None = None
    ) -> EncodedSample:
        """Encode a conversation whose ``turns`` end with a question, and its answer in its written
        form.

        Raises:
            InvalidData: the model's processor has no chat template.
            TooLong: it does not fit, even with the smallest images.
        """
        if not self._has_template:
            raise InvalidData(
                "the model's processor has no chat template, so it takes one question about one "
                "image; the dataset has conversations, several images or rows of text only; try: "
                "a family with a chat template, or records with one question and one image"
            )
        prompt, answers = self._write_conversation(turns, len(images), task or self._task)
        images = [image.convert("RGB") for image in images]
        answer_ids = self.tokenize_answer(answer)

        def encode_with(processor: Any, scaled: Sequence[Any]) -> EncodedSample:
            encoded = self._process(scaled, prompt, processor, answers)
            return replace(encoded, answer=answer_ids)

        encoded, budget = encode_with(self._processor, images), self._budget
        if budget is None:
            return encoded
        if budget.fits(encoded.prompt, answer_ids, images=len(images)):
            is_shrunk = any(budget.is_reduced(self._processor, image) for image in images)
            return replace(encoded, is_shrunk=is_shrunk)
        for processor, smaller in budget.list_smaller_together(
            self._processor, images, encoded.prompt, answer_ids
        ):
            found = encode_with(processor, smaller)
            if budget.fits(found.prompt, answer_ids, images=len(images)):
                padded = _pad_patches_like(found.images, encoded.images)
                return replace(found, images=padded, is_shrunk=True)
        raise TooLong(budget.describe_length(encoded.prompt, answer_ids, images=len(images)))

    def _write_conversation(
        self, turns: Sequence[Turn], image_count: int, task: str
    ) -> tuple[str, list[_Array]]:
        """Return the text of a conversation up to the answer, with ``ANSWER_TOKEN`` in place of
        each earlier answer, and the tokens of these answers.

        The end of an answer belongs to it, if the template writes it.
        """
        spoken = [turn.content for turn in turns if turn.role == "assistant"]
        digest = hashlib.sha256("\0".join(turn.content for turn in turns).encode()).hexdigest()
        marks = [f"ANSWER-{number}-{digest[:16]}" for number in range(len(spoken))]
        messages = build_messages(self._system_prompt, turns, image_count, marks)
        text = self._renderer.render(messages, with_generation_prompt=True)
        written, answers = "", []
        for mark, content in zip(marks, spoken, strict=True):
            before, found, text = text.partition(mark)
            if not found or mark in text:
                raise InvalidData(
                    "the model's chat template does not write each earlier answer of a "
                    "conversation once; try: records with a single question"
                )
            end = self._end if text.startswith(self._end) else ""
            text = text.removeprefix(end)
            written += before + ANSWER_TOKEN
            answer = self._form.write(task, Answer(content), None)
            answers.append(self._tokenize_answer(self._parts.answer_prefix + answer + end))
        return written + text, answers

    @cached_property
    def _history_tokenizer(self) -> Any:
        """The tokenizer with ``ANSWER_TOKEN`` as one more token."""
        tokenizer = copy.deepcopy(self._processor.tokenizer)
        token = AddedToken(ANSWER_TOKEN, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
        return tokenizer

    def encode_with_answer(
        self,
        image: Any,
        question: str,
        answer: str,
        *,
        with_image: bool = True,
        rewrite: Callable[[Any, Any], str] | None = None,
    ) -> EncodedSample:
        """Encode a question with an answer in its written form. Without ``with_image`` images may
        still be included. ``rewrite`` returns the answer for another processor and image, if it
        depends on them.

        Raises:
            TooLong: it does not fit, even with the smallest image.
        """
        answer_ids = self.tokenize_answer(answer)
        encoded = replace(
            self.encode_question(image, question, with_image=with_image), answer=answer_ids
        )
        if self._budget is None:
            return encoded
        if self._budget.fits(encoded.prompt, answer_ids):
            return (
                replace(encoded, is_shrunk=True)
                if self._budget.is_reduced(self._processor, image)
                else encoded
            )
        if not with_image:
            return self.encode_with_answer(image, question, answer, rewrite=rewrite)
        return self._shrink_to_fit(
            self._budget, image.convert("RGB"), self._prompt(question), encoded, rewrite
        )

    def tokenize_answer(self, answer: str) -> _Array:
        """Return the tokens that the model generates for an answer in its written form."""
        tokens: _Array = self._tokenize_answer(self._parts.answer_prefix + answer + self._end)
        return tokens

    def _shrink_to_fit(
        self,
        budget: TokenBudget,
        image: Any,
        prompt: str,
        full: EncodedSample,
        rewrite: Callable[[Any, Any], str] | None,
    ) -> EncodedSample:
        """Encode the same sample with the largest image that fits."""
        image_tokens_left = budget.image_tokens_left(full.prompt, full.answer)
        for processor, smaller in budget.list_smaller(self._processor, image, image_tokens_left):
            encoded = self._process([smaller], prompt, processor)
            answer = full.answer
            if rewrite is not None:
                written = rewrite(processor, smaller)
                answer = self.tokenize_answer(written)
            if budget.fits(encoded.prompt, answer):
                return replace(
                    encoded,
                    answer=answer,
                    images=_pad_patches_like(encoded.images, full.images),
                    is_shrunk=True,
                )
        raise TooLong(budget.describe_length(full.prompt, full.answer))

    def encode_question(
        self, image: Any, question: str, *, with_image: bool = True
    ) -> EncodedSample:
        """Encode a question without an answer, as ``generate`` takes it."""
        image = image.convert("RGB")
        prompt = self._prompt(question)
        key = (prompt, image.size)
        known = self._known.pop(key, None)
        if known is not None and known.is_image_processor_enough:
            self._known[key] = known
            return replace(
                known.prompt, images=self._process_image_only(image) if with_image else {}
            )
        encoded = self._process([image], prompt)
        # A prompt that occurs only once, such as a caption, is not worth the comparison.
        is_enough = None
        if known is not None:
            alone = (
                self._process_image_only(image) if known.is_image_processor_enough is None else {}
            )
            is_enough = all(
                name in alone and np.array_equal(alone[name], encoded.images[name])
                for name in encoded.images
            )
        self._known[key] = _KnownPrompt(replace(encoded, images={}), is_enough)
        if len(self._known) > MAX_KNOWN_PROMPTS:
            self._known.popitem(last=False)
        return encoded

    def _process(
        self,
        images: Sequence[Any],
        prompt: str,
        processor: Any = None,
        answers: Sequence[_Array] = (),
    ) -> EncodedSample:
        """Process images and prompt; ``answers`` replace the ``ANSWER_TOKEN`` of the prompt."""
        processor = processor or self._processor
        if answers:
            processor = copy.copy(processor)
            processor.tokenizer = self._history_tokenizer
        inputs = {"images": [images] if len(images) > 1 else list(images)} if images else {}
        output = processor(**inputs, text=[prompt], return_tensors="np")
        text_fields = (*TOKEN_FIELDS, "input_ids", "attention_mask", "labels")
        encoded = EncodedSample(
            prompt=np.asarray(output["input_ids"])[0].astype(np.int64),
            answer=np.zeros(0, np.int64),
            token_fields={
                name: np.asarray(output[name])[0] for name in TOKEN_FIELDS if name in output
            },
            images={
                n: np.asarray(v)
                for n, v in output.items()
                if n not in text_fields and v is not None
            },
        )
        if not answers:
            return encoded
        token = processor.tokenizer.convert_tokens_to_ids(ANSWER_TOKEN)
        return _insert_answers(encoded, token, answers)

    def _process_image_only(self, image: Any) -> dict[str, _Array]:
        output = self._processor.image_processor(images=[[image]], return_tensors="np")
        return {
            name: np.asarray(value)
            for name, value in output.items()
            if name in _MODEL_FIELDS or "pixel" in name
        }

    def _tokenize(self, answer: str) -> _Array:
        return np.asarray(
            self._processor.tokenizer(answer, add_special_tokens=False)["input_ids"], np.int64
        )

    def _write_prompt(self, question: str) -> str:
        """Return the family's prompt with system prompt, image and question."""
        if self._has_template:
            messages = build_conversation(self._system_prompt, question)
            return self._renderer.render(messages, with_generation_prompt=True)
        text = " ".join(part for part in (self._system_prompt, question) if part)
        return str(self._parts.plain_prompt).format(text=text)

    @property
    def settings(self) -> dict[str, Any]:
        """Return as JSON everything that determines how a sample is encoded."""
        with tempfile.TemporaryDirectory() as folder:
            self._processor.save_pretrained(folder)
            files = {path: full.read_bytes() for path, full in files_below(Path(folder))}
        processor = {
            path: _drop_origin(json.loads(data))
            if path.endswith(".json")
            else hashlib.sha256(data).hexdigest()
            for path, data in files.items()
        }
        return {
            "processor": processor,
            "parts": repr(self._parts),
            "systemPrompt": self._system_prompt,
            "task": self._task,
            "form": self._form.name,
            "end": self._end,
            "fitting": repr(self._budget),
        }

    def _find_end_of_answer(self) -> str:
        """Return what the family writes after an answer, where generation must stop."""
        end = self._processor.tokenizer.eos_token or ""
        if not self._has_template:
            if self._parts.plain_prompt is None:
                raise InvalidData(
                    "the model's processor has no chat template; try: weights with a "
                    "chat_template.jinja"
                )
            return end
        # Templates differ in how they end a turn: it is the text after the answer in a whole
        # conversation. A template that writes nothing there, or does not contain the answer, gets
        # the end-of-text token.
        reply = {"role": "assistant", "content": [{"type": "text", "text": "ANSWER"}]}
        messages = [*build_conversation(self._system_prompt, "QUESTION"), reply]
        text = self._renderer.render(messages, with_generation_prompt=False)
        _, found, rest = text.rpartition("ANSWER")
        return rest.rstrip() if found and rest.strip() else end

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self._processor, "chat_template", None))


def _pad_patches_like(images: dict[str, _Array], like: Mapping[str, _Array]) -> dict[str, _Array]:
    """Pad Gemma 4's patches to one number, with position IDs of -1, as its processor does."""
    if "image_position_ids" not in images:
        return images
    padded = {}
    for name, array in images.items():
        padding = [(0, 0)] * array.ndim
        if array.ndim > 1:
            padding[1] = (0, like[name].shape[1] - array.shape[1])
        padded[name] = np.pad(
            array, padding, constant_values=-1 if name == "image_position_ids" else 0
        )
    return padded


def _drop_origin(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _drop_origin(item) for name, item in value.items() if name not in _ORIGIN_FIELDS
        }
    return [_drop_origin(item) for item in value] if isinstance(value, list) else value


def build_conversation(system_prompt: str, question: str) -> list[dict[str, Any]]:
    """Return the messages: the system prompt, then the user's image and question."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    if not system_prompt:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, user]


def build_messages(
    system_prompt: str, turns: Sequence[Turn], image_count: int, answers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the messages of a conversation, with ``answers`` as the texts of earlier answers.

    A system turn of the conversation follows the system prompt. Each image is at its mark in the
    turns of the user; a single image without a mark comes first.
    """
    has_marks = any(IMAGE_MARK in turn.content for turn in turns if turn.role == "user")
    texts, left = [system_prompt] if system_prompt else [], iter(answers)
    texts += [turn.content for turn in turns if turn.role == "system"]
    messages = [_build_message("system", ["\n\n".join(texts)])] if texts else []
    for turn in turns:
        if turn.role == "assistant":
            messages.append(_build_message("assistant", [next(left)]))
        elif turn.role == "user":
            parts = _split_at_marks(turn.content) if image_count and has_marks else [turn.content]
            is_first = all(message["role"] == "system" for message in messages)
            if is_first and image_count and not has_marks:
                parts = [None, *parts]
            messages.append(_build_message("user", parts))
    return messages


def _build_message(role: str, parts: Sequence[str | None]) -> dict[str, Any]:
    """Return a message of texts and images, which are None."""
    content = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in parts
    ]
    return {"role": role, "content": content}


def _split_at_marks(text: str) -> list[str | None]:
    """Return the parts of a turn, with None for each image.

    White space next to images at the beginning and at the end of a turn separates lines of the
    file, and is left out.
    """
    texts = text.strip().split(IMAGE_MARK)
    words = [number for number, piece in enumerate(texts) if piece.strip()]
    if words:
        first, last = words[0], words[-1]
        texts[first] = texts[first].lstrip() if first else texts[first]
        texts[last] = texts[last].rstrip() if last < len(texts) - 1 else texts[last]
    parts: list[str | None] = []
    for number, piece in enumerate(texts):
        parts += [None] if number else []
        is_inside = bool(words) and words[0] < number < words[-1]
        parts += [piece] if piece.strip() or (piece and is_inside) else []
    return parts


def _insert_answers(encoded: EncodedSample, token: int, answers: Sequence[_Array]) -> EncodedSample:
    """Replace each answer token of a prompt by the tokens of its answer."""
    at = np.flatnonzero(encoded.prompt == token)  # (answers,)
    if len(at) != len(answers):
        raise InvalidData(
            f"the model's tokenizer writes {len(at)} of {len(answers)} earlier answers of a "
            "conversation; try: records with a single question"
        )
    counts = np.ones(len(encoded.prompt), np.int64)
    counts[at] = [len(answer) for answer in answers]
    prompt = np.repeat(encoded.prompt, counts)
    begins = np.cumsum(counts)[at] - counts[at]
    spans = [
        (int(begin), int(begin) + len(answer))
        for begin, answer in zip(begins, answers, strict=True)
    ]
    for (begin, end), answer in zip(spans, answers, strict=True):
        prompt[begin:end] = answer
    fields = {name: np.repeat(values, counts) for name, values in encoded.token_fields.items()}
    return replace(encoded, prompt=prompt, token_fields=fields, answer_spans=tuple(spans))


def pack_images(item: EncodedSample, codec: PixelCodec) -> EncodedSample:
    """Return the sample with its image tensors as they are kept."""
    packed = {
        name: array if isinstance(array, PackedArray) else codec.pack(array)
        for name, array in item.images.items()
    }
    return replace(item, images=packed)


def join_images(
    found: Sequence[Mapping[str, Any]],
    join: Callable[[Sequence[Any]], _Array] = concatenate_padded,
) -> dict[str, _Array]:
    """Join the image tensors of samples, of which some may have none."""
    names = dict.fromkeys(name for images in found for name in images)
    return {name: join([images[name] for images in found if name in images]) for name in names}


def _list_token_fields(rows: Sequence[EncodedSample]) -> dict[str, None]:
    """Return the names of the per-token fields; a sample without images may lack them."""
    return dict.fromkeys(name for row in rows for name in row.token_fields)


@dataclass
class Batch:
    """Model inputs and labels: the token after position ``label_positions[i]`` is ``labels[i]``.

    Positions index the flattened rows. With ``segments`` there is one packed row of samples with
    these lengths, without padding between them (``packing.py``).
    """

    # Tokens (B, T), or (1, N) packed; images (images or patches, ...).
    inputs: dict[str, torch.Tensor]
    label_positions: torch.Tensor  # (P,), into B * T
    labels: torch.Tensor  # (P,)
    segments: tuple[int, ...] | None = None

    @property
    def label_count(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Batch":
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        positions, labels = (
            self.label_positions.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
        )
        return replace(self, inputs=inputs, label_positions=positions, labels=labels)


@dataclass(frozen=True)
class Layout:
    """How rows are collated: the padding token, and which tokens are labels.

    ``decoder_start_id`` is the first token of answers in encoder-decoder models; None for
    decoder-only models.
    """

    pad_id: int
    image_token_id: int | None = None
    answer_token_type: int = 0
    answers_only: bool = True
    decoder_start_id: int | None = None


def collate(rows: Sequence[EncodedSample], images: Mapping[str, _Array], layout: Layout) -> Batch:
    """Return prompts with answers as a batch padded on the right, for teacher forcing."""
    if layout.decoder_start_id is not None:
        return _collate_encoder_decoder(rows, images, layout.pad_id, layout.decoder_start_id)
    width = max(row.length for row in rows)
    ids = np.full((len(rows), width), layout.pad_id, np.int64)  # (B, T)
    mask = np.zeros((len(rows), width), np.int64)  # (B, T)
    is_label = np.zeros((len(rows), width), bool)  # (B, T)
    types = {name: np.zeros((len(rows), width), np.int64) for name in _list_token_fields(rows)}
    for at, row in enumerate(rows):
        begin, end = len(row.prompt), row.length
        ids[at, :begin], ids[at, begin:end] = row.prompt, row.answer
        mask[at, :end] = 1
        is_label[at, begin:end] = True
        for first, last in row.answer_spans:
            is_label[at, first:last] = True
        if not layout.answers_only:
            is_label[at, 1:begin] = row.prompt[1:] != layout.image_token_id
        for name, values in types.items():
            values[at, :begin] = row.token_fields.get(name, 0)
            if name == "token_type_ids":
                values[at, begin:end] = layout.answer_token_type
    fields = {"input_ids": ids, "attention_mask": mask, **types, **images}
    flat = np.flatnonzero(is_label)  # (P,), into B * T
    return Batch(
        inputs={
            name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()
        },
        # A label is predicted at the position before it.
        label_positions=torch.from_numpy(flat - 1),
        labels=torch.from_numpy(ids.ravel()[flat]),
    )


def _collate_encoder_decoder(
    rows: Sequence[EncodedSample], images: Mapping[str, _Array], pad_id: int, start_id: int
) -> Batch:
    """Return prompts for the encoder and right-shifted answers for the decoder."""
    ids, mask = _pad([row.prompt for row in rows], pad_id)  # (B, prompt tokens)
    answers, is_label = _pad([row.answer for row in rows], pad_id)  # (B, T) of the decoder
    # (B, T).
    decoder_ids = np.concatenate(
        [np.full((len(rows), 1), start_id, np.int64), answers[:, :-1]], axis=1
    )
    fields = {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int64),
        "decoder_input_ids": decoder_ids,
        **images,
    }
    return Batch(
        inputs={
            name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()
        },
        label_positions=torch.from_numpy(np.flatnonzero(is_label)),
        labels=torch.from_numpy(answers[is_label]),
    )


def _pad(rows: Sequence[_Array], pad_id: int) -> tuple[_Array, _Array]:
    """Return rows of tokens padded on the right (B, T), and which tokens are real (B, T)."""
    is_real = np.arange(max(map(len, rows))) < np.asarray([len(row) for row in rows])[:, None]
    ids = np.full(is_real.shape, pad_id, np.int64)
    ids[is_real] = np.concatenate(rows)
    return ids, is_real


class Encodings(ABC):
    """All samples of one part of the data, ready to be gathered.

    ``lengths`` are tokens of prompt and answer.
    """

    lengths: _Array
    prompt_lengths: _Array
    size_bytes: int

    def __init__(self, layout: Layout):
        self._layout = layout

    @abstractmethod
    def read_row(self, index: int) -> EncodedSample:
        """Return the tokens of a sample."""

    @abstractmethod
    def read_images(self, indices: Sequence[int]) -> dict[str, _Array]:
        """Return the processed images of these samples, concatenated; empty if they have none."""

    def read_longest_images(self) -> tuple[int, dict[str, _Array]]:
        """Return the index and the processed images of the sample with the most tokens.

        If it has none, those of the first sample that has any; empty if none has.
        """
        longest = int(np.argmax(self.lengths))
        for index in (longest, *range(len(self))):
            images = self.read_images([index])
            if images:
                return index, images
        return longest, {}

    def read_processed(self, index: int) -> dict[str, _Array]:
        """Return what the processor made of a sample's image, without computing features of it."""
        return self.read_images([index])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def cache_growth_bytes(self) -> int:
        """The memory that reading samples may take for good."""
        return 0

    @property
    def longest_answer(self) -> int:
        return int((self.lengths - self.prompt_lengths).max(initial=0))

    def make_batch(self, indices: Sequence[int]) -> Batch:
        """Return samples with their answers as a batch."""
        return collate([self.read_row(i) for i in indices], self.read_images(indices), self._layout)

    def make_prompts(
        self, indices: Sequence[int], *, pad_left: bool = True
    ) -> dict[str, torch.Tensor]:
        """Return prompts without their answers as a padded batch, for ``generate``.

        A decoder continues at the right end of its rows, so they are padded on the left. The
        encoder of an encoder-decoder model counts positions from the left end.
        """
        return pad_prompts(
            [self.read_row(i) for i in indices],
            self.read_images(indices),
            pad_id=self._layout.pad_id,
            pad_left=pad_left,
        )

    def sort_by_prompt_length(self, count: int) -> list[int]:
        """Return the first ``count`` samples, the longest prompts first, for ``generate``."""
        order: list[int] = np.argsort(-self.prompt_lengths[:count], kind="stable").tolist()
        return order


class InMemoryEncodings(Encodings):
    """Encodings in memory, for small datasets.

    With ``codec``, images are packed unless they are already.
    """

    def __init__(
        self, encoded: Sequence[EncodedSample], layout: Layout, codec: PixelCodec | None = None
    ):
        super().__init__(layout)
        codec = codec or PixelCodec()
        packed = [pack_images(item, codec).images for item in encoded]
        self._images = {}
        for name in dict.fromkeys(name for images in packed for name in images):
            has_images = [name in images for images in packed]
            # (samples,) the position of each sample among those with images.
            positions = np.where(has_images, np.cumsum(has_images) - 1, -1)
            arrays = [images[name] for images in packed if name in images]
            self._images[name] = PackedColumn(arrays, codec.tables), positions
        self._rows = [replace(item, images={}) for item in encoded]
        self.lengths = np.asarray([item.length for item in encoded], np.int64)
        self.prompt_lengths = np.asarray([len(item.prompt) for item in encoded], np.int64)
        self.size_bytes = sum(column.size_bytes for column, _ in self._images.values())

    def read_row(self, index: int) -> EncodedSample:
        return self._rows[index]

    def read_images(self, indices: Sequence[int]) -> dict[str, _Array]:
        images = {}
        for name, (column, positions) in self._images.items():
            some = positions[np.asarray(indices, np.int64)]
            if (some >= 0).any():
                images[name] = column.join(some[some >= 0].tolist())
        return images


class AugmentedSamples:
    """Samples whose images are augmented on each use; boxes follow, so answers are encoded again
    too.

    ``augment`` receives sample, epoch and index, and must depend on nothing else. ``read_ahead``
    may return a sample that was encoded elsewhere, from its epoch and index.
    """

    read_ahead: Callable[[int, int], EncodedSample | None] | None = None

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: Encoder,
        layout: Layout,
        augment: Callable[[Sample, int, int], Sample],
    ):
        self._samples, self._encoder, self._layout, self._augment = (
            samples,
            encoder,
            layout,
            augment,
        )

    def make_batch(self, indices: Sequence[int], epoch: int) -> Batch:
        rows = [self._read(epoch, index) for index in indices]
        images = join_images([row.images for row in rows])
        return collate(rows, images, self._layout)

    def _read(self, epoch: int, index: int) -> EncodedSample:
        found = self.read_ahead(epoch, index) if self.read_ahead is not None else None
        if found is None:
            return self.encode(epoch, index)
        tables = self._encoder.codec.tables
        images = {name: packed.restore(tables) for name, packed in found.images.items()}
        return replace(found, images=images)

    def encode(self, epoch: int, index: int) -> EncodedSample:
        """Return the augmented sample of an epoch."""
        sample = self._samples[index]
        try:
            return self._encoder.encode(self._augment(sample, epoch, index))
        # Moved boxes may take a token more; without augmentation the sample is known to fit.
        except TooLong:
            return self._encoder.encode(sample)


def pad_prompts(
    rows: Sequence[EncodedSample], images: Mapping[str, _Array], *, pad_id: int, pad_left: bool
) -> dict[str, torch.Tensor]:
    """Return prompts as model inputs, (B, T) each; the attention mask leaves the padding out."""
    width = max(len(row.prompt) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros_like(ids)
    types = {name: np.zeros_like(ids) for name in _list_token_fields(rows)}
    for at, row in enumerate(rows):
        length = len(row.prompt)
        place = slice(width - length, width) if pad_left else slice(0, length)
        ids[at, place], mask[at, place] = row.prompt, 1
        for name, values in types.items():
            values[at, place] = row.token_fields.get(name, 0)
    fields = {"input_ids": ids, "attention_mask": mask, **types, **images}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()}


def epoch_batches(
    lengths: _Array,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drawn: _Array | None = None,
) -> list[list[int]]:
    """Return the batches of one epoch, from seed and epoch alone, so that a resumed run finds its
    position again.

    Samples are shuffled, sorted by length within chunks of fifty batches, and cut into batches,
    which are shuffled again: this saves padding, and the composition of batches changes with every
    epoch. ``drawn`` are the indices of the epoch's samples, (samples,), where these are not each
    sample once.
    """
    order = np.arange(len(lengths)) if drawn is None else drawn
    if not shuffle:
        return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    random = np.random.default_rng([seed, epoch])
    order = order[random.permutation(len(order))]
    chunk = 50 * batch_size
    order = np.concatenate(
        [
            part[np.argsort(lengths[part], kind="stable")]
            for part in (order[i : i + chunk] for i in range(0, len(order), chunk))
        ]
    )
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    return [batches[int(i)] for i in random.permutation(len(batches))]
