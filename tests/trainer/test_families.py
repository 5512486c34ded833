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


def test_base_and_adapter_load_with_plain_transformers_as_the_published_client_does(
    miniature: Any, make_attempt: Any
) -> None:
    """``load_adapter`` on ``model_full`` says what our own merged model says, and ``model_full`` alone does not."""
    import torch
    from transformers import AutoModelForImageTextToText

    from runyard.trainer.model import load_model

    folder = make_attempt(recipe(miniature("llava"), "lora"))
    assert train_attempt(folder) == 0
    checkpoint = folder / "checkpoints" / "step-2"
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint / "model_full", dtype=torch.float32).eval()
    merged = load_model(checkpoint, dtype=torch.float32).module.eval()
    ids = torch.tensor([[5, 6, 7, 40, 41]])
    with torch.no_grad():
        base = plain(input_ids=ids).logits
        plain.load_adapter(str(checkpoint / "model_adapter"))
        adapted, wanted = plain(input_ids=ids).logits, merged(input_ids=ids).logits
    assert torch.allclose(adapted, wanted, atol=1e-5)
    assert not torch.allclose(base, wanted, atol=1e-5)


def _picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (32, 32), "white")
