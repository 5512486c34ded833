"""One step's loss and every gradient, compared with a reference in plain transformers.

The reference reads one conversation at a time with the family's own processor, marks with -100 what
is not the answer, calls the model as a user would, and takes the mean over all answer tokens of the
batch. It shares only the miniature with the trainer. The trainer pads, splits into
micro-batches, packs, and computes logits only where they count. All of that must give the same
result, whatever the flow requests.
"""

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.nn.functional import cross_entropy

from runyard.datasets.records import Interaction, Vqa
from runyard.rundir import read_json
from runyard.trainer.data.cache import Hooks
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.families import PARTS, find_part
from runyard.trainer.main import detect_machine, parse_model_folders, parse_run
from runyard.trainer.prepare import Job, TrainState, prepare
from runyard.trainer.train import accumulate_gradients
from tests.support.slow import mark_slow
from tests.trainer import miniatures

SYSTEM = "Look well."
# Questions and answers of different lengths about images of different shapes; a few of them are
# held out.
CONVERSATIONS = [
    ("What is it?", "a"),
    ("Which digit is this, the seven or another?", "seven"),
    ("Where?", "locate the seven with the other digit, left of this image"),
    ("How many?", "17"),
    ("What does the image of this question show?", "an answer"),
    ("Why?", "x y z"),
    ("Which one is this?", "the one"),
    ("And this?", "json"),
]
SIZES = [(32, 32), (48, 24), (24, 40)]
BATCH = 5
# Tolerances of float32, because sums have another order: relative to the loss, to a parameter's
# largest gradient, and to the largest of all, for parameters whose gradient is zero except for
# rounding (biases of keys).
OF_LOSS, OF_PARAMETER, OF_ALL = 1e-6, 2e-5, 1e-7

Gradients = dict[str, torch.Tensor]


def make_model_block(
    micro_batch_size: int, *, freeze: tuple[str, ...] = (), packing: bool = False, **compute: bool
) -> dict[str, Any]:
    """Return a vi-model block that leaves nothing to be measured."""
    return {
        "training": {"mode": "full", "freeze": list(freeze)},
        "hyperparameters": {"batchSize": 4, "microBatchSize": micro_batch_size},
        "packing": packing,
        "compute": {
            "precisionType": "float32",
            "featureCache": False,
            "gradientCheckpointing": False,
        }
        | compute,
    }


# Options of a flow's vi-model that must not change a step. A new one is one more line.
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": make_model_block(4),
    "micro-2": make_model_block(2),
    "micro-1": make_model_block(1),
    "packed": make_model_block(4, packing=True),
    "packed-micro-2": make_model_block(2, packing=True),
    "recomputed": make_model_block(2, gradientCheckpointing=True),
    "vision-frozen": make_model_block(2, freeze=("vision",)),
    "vision-frozen-kept": make_model_block(2, freeze=("vision",), featureCache=True),
    "vision-projector-frozen": make_model_block(2, freeze=("vision", "projector")),
    "vision-projector-frozen-kept": make_model_block(
        2, freeze=("vision", "projector"), featureCache=True
    ),
    "packed-kept": make_model_block(
        4, freeze=("vision", "projector"), packing=True, featureCache=True
    ),
    "language-frozen": make_model_block(2, freeze=("language",)),
}
# The memory of a step is measured before these only, by steps that must leave nothing behind. It
# takes as long as the rest of the test, and the other variants differ in nothing it depends on.
MEASURED = ("whole", "recomputed", "packed-kept")
WITH_ADAPTER = {
    name: VARIANTS[name]
    | {"training": {"mode": "lora", "lora": {"rank": 2, "alpha": 6, "dropout": 0.0}}}
    for name in ("whole", "micro-1", "packed")
}


@pytest.fixture
def trainer(
    make_attempt: Callable[..., Path],
    make_version: Callable[..., Path],
    miniature: Callable[[str], Path],
) -> Callable[[str, dict[str, Any]], TrainState]:
    """Return the trainer before its first step, for a family and a vi-model block."""

    def begin(model_type: str, settings: dict[str, Any]) -> TrainState:
        version = make_version(
            {
                f"{n}.png": (make_image(n), [Vqa(interactions=[interaction])])
                for n, interaction in enumerate(
                    Interaction(order=1, question=asked, answer=answer)
                    for asked, answer in CONVERSATIONS
                )
            }
        )
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
        folder = make_attempt(blocks)
        document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(document))
        config = read_json(folder / "run.json") or {}
        run, flow = parse_run(config)
        job = Job(folder=folder, run=run, flow=flow, models={}, folders=parse_model_folders(config))
        return prepare(job, detect_machine(1), hooks=Hooks())

    return begin


def make_image(number: int) -> bytes:
    held = io.BytesIO()
    noise = torch.randint(
        0, 256, (*SIZES[number % 3][::-1], 3), generator=torch.Generator().manual_seed(number)
    )
    Image.fromarray(noise.byte().numpy()).save(held, "PNG")
    return held.getvalue()


def step(state: TrainState) -> tuple[list[int], float, Gradients]:
    """Return the indices in ``CONVERSATIONS`` of a batch, its loss and its gradients."""
    indices = list(range(BATCH))
    loss = accumulate_gradients(state, indices, 0, state.plan.micro_batch_size)
    questions = [asked for asked, _ in CONVERSATIONS]
    indices = [questions.index(state.data.train[index].question) for index in indices]
    return (
        indices,
        loss,
        {name: p.grad for name, p in state.model.trainable_parameters() if p.grad is not None},
    )


class Reference:
    """A family's model and processor, and a textbook step."""

    def __init__(self, model_type: str):
        self.model_type = model_type
        self.model, self.processor = miniatures.make(model_type)
        self.model.train()
        self.steps: dict[tuple[int, ...], tuple[float, Gradients]] = {}

    def step(self, indices: list[int]) -> tuple[float, Gradients]:
        """Return the loss and the gradients of a batch; each batch is computed once."""
        if tuple(indices) not in self.steps:
            self.steps[tuple(indices)] = self.compute_step(indices)
        return self.steps[tuple(indices)]

    def compute_step(self, indices: list[int]) -> tuple[float, Gradients]:
        self.model.zero_grad()  # new gradients; those returned before stay as they are
        losses, tokens = [], 0
        for number in indices:
            inputs, labels = self.read(number)
            logits = self.model(**inputs).logits[0]
            # Logits predict the next token; those of a decoder with an encoder are already shifted.
            predicted, targets = (
                (logits, labels) if "labels" in inputs else (logits[:-1], labels[1:])
            )
            losses.append(cross_entropy(predicted, targets, ignore_index=-100, reduction="sum"))
            tokens += int((targets != -100).sum())
        loss = torch.stack(losses).sum() / tokens
        loss.backward()
        return float(loss.detach()), {
            n: p.grad for n, p in self.model.named_parameters() if p.grad is not None
        }

    def read(self, number: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return a conversation as inputs of the model, and its labels."""
        question, answer = CONVERSATIONS[number]
        image = Image.open(io.BytesIO(make_image(number)))
        answer = '{"vqa":{"answer":"' + answer + '"}}'
        if self.model_type == "paligemma":
            state = self.processor(
                images=[image],
                text=[f"<image>{SYSTEM} {question}"],
                suffix=[answer],
                return_tensors="np",
            )
            state = {name: torch.as_tensor(value) for name, value in state.items()}
            return state, state.pop("labels")[0]
        if self.model_type == "florence2":
            labels = self.processor.tokenizer(f"<s>{answer}<|im_end|>", return_tensors="pt")[
                "input_ids"
            ]
            state = self.processor(
                images=[image], text=[f"{SYSTEM} {question}"], return_tensors="pt"
            )
            return {**state, "labels": labels}, labels[0]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        ]
        prompt = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        alone = self.processor(images=[image], text=[prompt], return_tensors="pt")["input_ids"]
        state = self.processor(
            images=[image], text=[f"{prompt}{answer}<|im_end|>"], return_tensors="pt"
        )
        labels = state["input_ids"][0].clone()
        assert torch.equal(labels[: alone.shape[1]], alone[0])
        labels[: alone.shape[1]] = -100
        return dict(state), labels


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Reference]:
    """Create each family's reference once."""
    return cache(Reference)


def compare(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    """Fail with the parameters whose gradients differ too much, as multiples of the tolerance."""
    assert math.isclose(found[0], expected[0], rel_tol=OF_LOSS)
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    apart = {}
    for name, gradient in found[1].items():
        true = expected[1][name]
        allowed = OF_PARAMETER * float(true.abs().max()) + OF_ALL * largest
        apart[name] = float((gradient - true).abs().max()) / allowed
    assert {name: part for name, part in apart.items() if not part < 1} == {}


def is_quick(case: tuple[str, str]) -> bool:
    """Two families take every variant, each other one three, another three for each family."""
    place, variant = list(miniatures.MINIATURES).index(case[0]), list(VARIANTS).index(case[1])
    return case[0] in ("qwen3_vl", "llava") or (variant + place) % 4 == 0


@pytest.mark.parametrize(
    ("model_type", "variant"),
    mark_slow(itertools.product(miniatures.MINIATURES, VARIANTS), unless=is_quick),
)
def test_a_step_has_the_loss_and_the_gradients_of_the_reference(
    model_type: str,
    variant: str,
    trainer: Callable[..., TrainState],
    reference: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, parts = VARIANTS[variant], PARTS[model_type]
    if variant not in MEASURED:
        monkeypatch.setattr("runyard.trainer.prepare.fit_plan_to_memory", lambda *_, may_grow: None)
    if settings["packing"] and parts.packing_obstacle:
        pytest.skip(f"not packed: {parts.packing_obstacle}")
    if settings["compute"]["featureCache"] and model_type == "florence2":
        with pytest.raises(
            InvalidFlow,
            match="featureCache true is not possible: the family accepts images only as pixels",
        ):
            trainer(model_type, settings)
        return
    state = trainer(model_type, settings)

    indices, loss, gradients = step(state)

    expected_loss, expected = reference(model_type).step(indices)
    frozen = settings["training"]["freeze"]
    assert {find_part(name, parts) for name, gradient in expected.items() if gradient.any()} == {
        "vision",
        "projector",
        "language",
    }
    assert gradients.keys() == {name for name in expected if find_part(name, parts) not in frozen}
    compare((loss, gradients), (expected_loss, expected))


@pytest.mark.parametrize("variant", WITH_ADAPTER)
@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl"])
def test_a_step_of_an_adapter_has_the_loss_and_the_gradients_of_the_reference(
    model_type: str, variant: str, trainer: Callable[..., TrainState]
) -> None:
    state, reference = trainer(model_type, WITH_ADAPTER[variant]), Reference(model_type)
    linear = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=rf"model\.language_model\.layers\..*\.({linear})"
    )
    with warnings.catch_warnings():  # peft reads an attribute of transformers under its old name
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(reference.model, config)
    ours, theirs = (
        {name: p for name, p in module.named_parameters() if p.requires_grad}
        for module in (state.model.module, adapted)
    )
    assert ours.keys() == theirs.keys()
    with torch.no_grad():
        # A new adapter's second half is zero, which would leave the first without a gradient.
        for name in ours:
            ours[name].copy_(torch.randn_like(ours[name]) / 4)
            theirs[name].copy_(ours[name])

    indices, loss, gradients = step(state)

    expected_loss, expected = reference.step(indices)
    assert len(gradients) == 28
    assert gradients.keys() == expected.keys()
    compare((loss, gradients), (expected_loss, expected))
