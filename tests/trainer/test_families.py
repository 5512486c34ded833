"""Models of several families, from a local folder, in full and with an adapter: trained, saved, loaded again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.main import train_attempt
from runyard.trainer.predict import Predictor

FAMILIES = {"llava": "llava", "qwen3_vl": "qwen3vl", "paligemma": "paligemma2"}


def recipe(folder: Path, mode: str, **training: Any) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 12},
        "vi-model": {
            "architecture": {"weights": str(folder)},
            "training": {"mode": mode, **training},
            "hyperparameters": {"maxSteps": 2, "batchSize": 4, "microBatchSize": 2, "learningRate": 0.01},
            "validation": {"maxSamples": 4},
            "evaluation": {"max_new_tokens": 4},
        },
    }


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_of_the_family_is_trained_saved_and_answers(
    model_type: str,
    mode: str,
    miniature: Any,
    make_attempt: Any,
    events_of: Callable[[Path, str], list[dict[str, Any]]],
) -> None:
    folder = make_attempt(recipe(miniature(model_type), mode))

    assert train_attempt(folder) == 0

    losses = [event["values"]["loss"] for event in events_of(folder, "step")]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    checkpoint = folder / "checkpoints" / "step-2"
    assert (checkpoint / "model_adapter").is_dir() == (mode == "lora")
    assert isinstance(Predictor(checkpoint).ask(_picture(), "Which digit is this?", max_new_tokens=2).raw, str)


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (32, 32), "white")
