"""Conversations, several images and text only: loss and gradients of plain transformers.

The reference renders a whole conversation with the family's own template, reads it with the
family's own processor, and finds each answer by rendering the turns before it. It shares only the
miniature with the trainer, which pads, packs, and keeps features.
"""

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from runyard.datasets.records import Conversation, Interaction, Turn, Vqa
from runyard.rundir import read_json
from runyard.trainer.data.cache import Hooks
from runyard.trainer.data.encode import Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.templates import BuiltInTemplate
from runyard.trainer.errors import InvalidData
from runyard.trainer.evaluation.evaluation import generate_answers
from runyard.trainer.families import PARTS
from runyard.trainer.main import detect_machine, parse_model_folders, parse_run
from runyard.trainer.prepare import Job, TrainState, prepare
from runyard.trainer.train import accumulate_gradients
from tests.support.slow import mark_slow
from tests.trainer import miniatures
from tests.trainer.test_reference_step import (
    SYSTEM,
    Gradients,
    compare,
    make_image,
    make_model_block,
)


@dataclass(frozen=True)
class Talk:
    """A conversation: the numbers of its images, and its texts, questions and answers in turn."""

    images: tuple[int, ...]
    texts: tuple[str, ...]
    system: str = ""

    @property
    def turns(self) -> list[Turn]:
        spoken = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(self.texts)]
        return [Turn("system", self.system), *spoken] if self.system else spoken

    @property
    def record(self) -> Vqa | Conversation:
        if len(self.images) == 1 and len(self.texts) == 2:
            question, answer = self.texts
            return Vqa(interactions=[Interaction(order=1, question=question, answer=answer)])
        names = [f"{number}.png" for number in self.images]
        return Conversation(
            images=names if len(names) > 1 else [], turns=self.turns, is_text_only=not names
        )


TALKS = [
    Talk((0,), ("What is it?", "a")),
    Talk((1,), ("Which digit is this?", "seven", "Where?", "left of the other", "Sure?", "x y z")),
    Talk(
        (2, 3, 4),
        ("<image><image>\nWhich one?", "the one", "And what does <image> show?", "json"),
        system="Be brief.",
    ),
    Talk((), ("How many digits are there?", "10", "Why?", "one for each finger")),
    Talk((), ("Which question is this?", "an answer")),
    Talk((5, 6), ("<image> with <image> - the same?", "another")),
]
WITH_TEMPLATE = [name for name, parts in PARTS.items() if parts.plain_prompt is None]
VARIANTS = {
    "whole": make_model_block(4),
    "micro-1": make_model_block(1),
    "packed": make_model_block(4, packing=True),
    "packed-micro-2": make_model_block(2, packing=True),
    "vision-alone-micro-1": make_model_block(1, freeze=("projector", "language")),
    "vision-frozen-kept": make_model_block(2, freeze=("vision",), featureCache=True),
    "packed-kept": make_model_block(
        4, freeze=("vision", "projector"), packing=True, featureCache=True
    ),
}


@pytest.fixture
def trainer(
    make_attempt: Callable[..., Path],
    make_version: Callable[..., Path],
    miniature: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, dict[str, Any]], TrainState]:
    """Return the trainer of ``TALKS`` before its first step, for a family and a vi-model block."""
    monkeypatch.setattr("runyard.trainer.prepare.fit_plan_to_memory", lambda *_, may_grow: None)

    def begin(
        model_type: str, settings: dict[str, Any], *, cache: Path | None = None, attempt: int = 1
    ) -> TrainState:
        images: dict[str, tuple[bytes, list[Any]]] = {
            f"{n}.png": (make_image(n), []) for n in range(7)
        }
        for number, talk in enumerate(TALKS):
            name = f"{talk.images[0]}.png" if talk.images else f"text-{number}.png"
            images.setdefault(name, (make_image(0), []))[1].append(talk.record)
        version = make_version(images)
        blocks = {
            "vi-system-prompt": {"systemPrompt": SYSTEM},
            "vi-dataset": {
                "datasetId": "shelves",
                "datasetVersion": "0" * 16,
                "projectKind": "vqa",
                "augmentation": {},
                "validationFraction": 0,
            },
            "vi-model": {"architecture": {"weights": str(miniature(model_type))}} | settings,
        }
        folder = make_attempt(blocks, attempt=attempt)
        document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(document))
        config = read_json(folder / "run.json") or {}
        run, flow = parse_run(config)
        job = Job(
            folder=folder,
            run=run,
            flow=flow,
            models={},
            folders=parse_model_folders(config),
            cache=cache,
            cache_bytes=1 << 30,
        )
        return prepare(job, detect_machine(1), hooks=Hooks())

    return begin


class Reference:
    """A family's model and processor, and a textbook step over ``TALKS``."""

    def __init__(self, model_type: str):
        self.model, self.processor = miniatures.make(model_type)
        self.model.train()
        losses, tokens = [], 0
        for talk in TALKS:
            inputs, labels = self.read(talk)
            logits = self.model(**inputs).logits[0]
            losses.append(
                cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
            )
            tokens += int((labels != -100).sum())
        loss = torch.stack(losses).sum() / tokens
        loss.backward()
        self.tokens, self.loss = tokens, float(loss.detach())
        self.gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}

    def read(self, talk: Talk) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return a conversation as inputs of the model, and its labels: all answers."""
        messages = make_messages(talk)
        whole = self.process(messages, talk)
        labels = torch.full_like(whole["input_ids"][0], -100)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.process(messages[:number], talk, add_generation_prompt=True)
            begin = before["input_ids"].shape[1]
            after = self.process(messages[: number + 1], talk)
            # The template writes a line end after the end of a turn, which is not learned.
            end = after["input_ids"].shape[1] - 1
            assert torch.equal(whole["input_ids"][0, :begin], before["input_ids"][0])
            labels[begin:end] = whole["input_ids"][0, begin:end]
        return whole, labels

    def process(
        self, messages: list[dict[str, Any]], talk: Talk, **options: Any
    ) -> dict[str, torch.Tensor]:
        text = self.processor.apply_chat_template(messages, **options)
        shown = sum(part["type"] == "image" for item in messages for part in item["content"])
        images = [Image.open(io.BytesIO(make_image(number))) for number in talk.images[:shown]]
        inputs = {"images": [images]} if images else {}
        return dict(self.processor(**inputs, text=[text], return_tensors="pt"))


def make_messages(talk: Talk) -> list[dict[str, Any]]:
    """Return the messages as a user of transformers writes them."""

    def write(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    image = {"type": "image"}
    users: dict[str, list[dict[str, str]]] = {
        "<image><image>\nWhich one?": [image, image, write("Which one?")],
        "And what does <image> show?": [write("And what does "), image, write(" show?")],
        "<image> with <image> - the same?": [image, write("with "), image, write(" - the same?")],
    }
    system = "\n\n".join(filter(None, (SYSTEM, talk.system)))
    messages: list[dict[str, Any]] = [{"role": "system", "content": [write(system)]}]
    for number, text in enumerate(talk.texts):
        if number % 2:
            answer = '{"vqa":{"answer":"' + text + '"}}'
            messages.append({"role": "assistant", "content": [write(answer)]})
            continue
        content = users.get(text, [write(text)])
        is_first = number == 0 and len(talk.images) == 1
        messages.append({"role": "user", "content": [image, *content] if is_first else content})
    return messages


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Reference]:
    """Create each family's reference once."""
    return cache(Reference)


def step(state: TrainState) -> tuple[float, Gradients]:
    indices = list(range(len(TALKS)))
    loss = accumulate_gradients(state, indices, 0, state.plan.micro_batch_size)
    found = {name: p.grad for name, p in state.model.trainable_parameters() if p.grad is not None}
    return loss, found


class UploadedTalks:
    """The samples of ``TALKS``, encoded, and the number of each."""

    def __init__(self, state: TrainState) -> None:
        model = state.model
        encoder = Encoder(
            model.processor,
            model.parts,
            system_prompt=SYSTEM,
            task="vqa",
            renderer=BuiltInTemplate(model.processor),
        )
        self.encoded = [encoder.encode(sample) for sample in state.data.train]
        last = [talk.texts[-1] for talk in TALKS]
        self.numbers = [last.index(sample.truth.text) for sample in state.data.train]


def is_quick(case: tuple[str, str]) -> bool:
    place, variant = WITH_TEMPLATE.index(case[0]), list(VARIANTS).index(case[1])
    return case[0] == "qwen3_vl" or (variant + place) % 6 == 0


@pytest.mark.parametrize(
    ("model_type", "variant"),
    mark_slow(itertools.product(WITH_TEMPLATE, VARIANTS), unless=is_quick),
)
def test_conversations_have_the_loss_and_the_gradients_of_the_reference(
    model_type: str,
    variant: str,
    trainer: Callable[..., TrainState],
    reference: Callable[[str], Reference],
) -> None:
    settings, parts = VARIANTS[variant], PARTS[model_type]
    if settings["packing"] and parts.packing_obstacle:
        pytest.skip(f"not packed: {parts.packing_obstacle}")
    state = trainer(model_type, settings)

    loss, gradients = step(state)

    expected = reference(model_type)
    assert expected.tokens > 0
    compare((loss, gradients), (expected.loss, expected.gradients))


def test_features_of_conversations_are_kept_and_shared(
    trainer: Callable[..., TrainState], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    """The first step computes features; the second, and another run, read them from the cache."""
    expected = reference("qwen3_vl")
    state = trainer("qwen3_vl", VARIANTS["packed-kept"], cache=tmp_path / "cache")
    shards = set((tmp_path / "cache").rglob("*"))
    for _ in range(2):
        compare(step(state), (expected.loss, expected.gradients))
        state.losses.zero_gradients()
    found = set((tmp_path / "cache").rglob("*"))
    assert len(found) > len(shards)
    again = trainer("qwen3_vl", VARIANTS["packed-kept"], cache=tmp_path / "cache", attempt=2)
    compare(step(again), (expected.loss, expected.gradients))
    assert set((tmp_path / "cache").rglob("*")) == found


@pytest.mark.parametrize(
    "model_type",
    mark_slow(WITH_TEMPLATE, unless=lambda name: name in ("qwen3_vl", "idefics3", "gemma3")),
)
def test_the_last_answer_is_generated_from_the_true_history(
    model_type: str,
    trainer: Callable[..., TrainState],
    reference: Callable[[str], Reference],
) -> None:
    state = trainer(model_type, VARIANTS["whole"])
    plain, count = reference(model_type), len(TALKS)
    samples = UploadedTalks(state)
    encodings = InMemoryEncodings(samples.encoded, Layout(pad_id=0))
    options = state.generation | {"max_new_tokens": 6}
    module = state.model.module.eval()
    with torch.inference_mode():
        answers = generate_answers(
            module,
            plain.processor.tokenizer,
            encodings,
            count,
            generation=options,
            device=torch.device("cpu"),
        )
        for number, answer in zip(samples.numbers, answers, strict=True):
            talk = TALKS[number]
            inputs = plain.process(make_messages(talk)[:-1], talk, add_generation_prompt=True)
            width = inputs["input_ids"].shape[1]
            tokens = plain.model.eval().generate(**inputs, **options)[0, width:]
            assert answer == plain.processor.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["paligemma", "florence2"])
def test_families_without_a_template_refuse_conversations(
    model_type: str, trainer: Callable[..., TrainState]
) -> None:
    with pytest.raises(InvalidData, match="has no chat template, so it takes one question"):
        trainer(model_type, VARIANTS["whole"])
