"""Models of every family from a local folder: full, partial and adapter training, save, load."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.trainer.export.predict import Predictor
from runyard.trainer.families import PARTS, find_part
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import load_model
from tests.support.slow import mark_slow
from tests.trainer import miniatures

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
TRAINING = {"full": {"mode": "full"}, "lora": {"mode": "lora"}}
# Frozen parts, and the parts that change.
FREEZING: dict[str, tuple[list[str], set[str]]] = {
    "vision": (["vision"], {"projector", "language"}),
    "vision-projector": (["vision", "projector"], {"language"}),
    "language": (["language"], {"vision", "projector"}),
}
FROZEN_BY_DEFAULT = ("qwen3_vl", "gemma4", "florence2")


def make_blocks(
    folder: Path, training: dict[str, Any], **hyperparameters: Any
) -> dict[str, dict[str, Any]]:
    numbers = {"maxSteps": 2, "batchSize": 4, "microBatchSize": 2, "learningRate": 0.01}
    return {
        "vi-dataset": {"maxSamples": 12},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(folder)},
            "training": training,
            "hyperparameters": numbers | hyperparameters,
            "validation": {"maxSamples": 4},
            "evaluation": {"max_new_tokens": 4},
        },
    }


def is_quick(case: tuple[str, str]) -> bool:
    """Take each family in one mode by default, in turn."""
    return list(TRAINING)[list(miniatures.MINIATURES).index(case[0]) % 2] == case[1]


@pytest.mark.parametrize(
    ("model_type", "training"),
    mark_slow(itertools.product(miniatures.MINIATURES, TRAINING), unless=is_quick),
)
def test_a_model_of_the_family_is_trained_saved_and_answers(
    model_type: str,
    training: str,
    miniature: Any,
    make_attempt: Any,
    events_of: EventsOf,
) -> None:
    folder = make_attempt(make_blocks(miniature(model_type), TRAINING[training], maxSteps=3))

    assert train_attempt(folder) == 0, (folder / "result.json").read_text()

    losses = [event["values"]["loss"] for event in events_of(folder, "step")]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    checkpoint = folder / "checkpoints" / "epoch-1"
    assert (checkpoint / "model_adapter").is_dir() == (training == "lora")
    (evaluation,) = events_of(folder, "evaluation")
    asked = [(_make_image(), preview["question"]) for preview in evaluation["previews"]]
    assert isinstance(Predictor(checkpoint).predict_all(asked, max_new_tokens=2)[0].raw, str)


@pytest.mark.parametrize(("frozen", "changing"), FREEZING.values(), ids=FREEZING)
@pytest.mark.parametrize("model_type", miniatures.MINIATURES)
def test_frozen_parts_stay_unchanged_and_the_rest_changes(
    model_type: str, frozen: list[str], changing: set[str], miniature: Any, make_attempt: Any
) -> None:
    if model_type not in FROZEN_BY_DEFAULT and not os.environ.get("RUNYARD_ALL_FAMILIES"):
        pytest.skip("make families tries all")
    source = miniature(model_type)
    folder = make_attempt(make_blocks(source, {"mode": "full", "freeze": frozen}, maxSteps=1))

    assert train_attempt(folder) == 0, (folder / "result.json").read_text()

    before, after = (weights(place) for place in (source, folder / "checkpoints" / "step-1"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {find_part(name, PARTS[model_type]) for name in changed} == changing


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder, dtype=torch.float32).module.named_parameters())


def _make_image() -> Any:
    from PIL import Image

    return Image.new("RGB", (32, 32), "white")
