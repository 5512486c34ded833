"""Runs that start from a checkpoint of another run, as fetched, adapter included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import load_model

NAME = "run:source/epoch-1"


def make_blocks(weights: str, mode: str, rate: float) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 8},
        "vi-model": {
            "architecture": {"name": "auto", "weights": weights},
            "training": {"mode": mode, "freeze": []},
            "hyperparameters": {
                "maxSteps": 1,
                "epochs": 1,
                "learningRate": rate,
                "optimizer": {"name": "sgd"},
            },
            "evaluation": {"max_new_tokens": 2},
        },
    }


@pytest.fixture(scope="module")
def checkpoint(
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Of an adapter that has learned something."""
    folder = write_attempt(
        tmp_path_factory.mktemp("source"), make_blocks(str(miniature("llava")), "lora", 10.0)
    )
    adapter = {"optimizer": {"name": "adamw"}, "learningRate": 0.1}
    run = json.loads((folder / "run.json").read_text())
    run["run"]["spec"]["flow"]["blocks"][1]["settings"]["hyperparameters"] |= adapter
    (folder / "run.json").write_text(json.dumps(run))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return folder / "checkpoints" / "epoch-1"


def test_an_adapter_is_not_left_out(checkpoint: Path, make_attempt: Callable[..., Path]) -> None:
    brought = {"weights": NAME, "folder": str(checkpoint)}
    folder = make_attempt(make_blocks(NAME, "full", 1e-12), weights=brought)
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    found = load_file(next((folder / "checkpoints").glob("*/model_full/model.safetensors")))
    base = load_file(checkpoint / "model_full" / "model.safetensors")
    merged = load_model(checkpoint, dtype=torch.float32).module.state_dict()
    changed = {
        name for name in base if not torch.allclose(base[name].float(), found[name], atol=1e-6)
    }
    assert changed and all("language_model" in name for name in changed)
    values = sorted(float(value.double().sum()) for value in merged.values())
    assert sorted(float(value.double().sum()) for value in found.values()) == pytest.approx(
        values, abs=1e-3
    )


@pytest.mark.parametrize(
    ("brought", "says"),
    [
        (None, "weights 'run:source/epoch-1' are not on this machine"),
        (
            {"weights": "run:other/epoch-1", "folder": "/"},
            "weights 'run:source/epoch-1' are not on this machine",
        ),
        (
            {"weights": NAME, "problem": "the server has lost bytes of it"},
            "the server has lost bytes of it",
        ),
    ],
)
def test_missing_weights_end_the_run(
    make_attempt: Callable[..., Path], brought: dict[str, str] | None, says: str
) -> None:
    folder = make_attempt(make_blocks(NAME, "full", 1e-5), weights=brought)
    assert train_attempt(folder) == 64
    result = json.loads((folder / "result.json").read_text())
    assert result["reason"] == "InvalidFlow" and says in result["message"]


def test_a_resumed_attempt_no_longer_needs_the_weights(
    checkpoint: Path, make_attempt: Callable[..., Path]
) -> None:
    lost = {"weights": NAME, "problem": "the server has lost bytes of it"}
    folder = make_attempt(
        make_blocks(NAME, "lora", 1e-5), run="resumed", attempt=2, weights=lost, resume=checkpoint
    )
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_weights_are_read_straight_to_the_accelerator(
    device: str, miniature: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText

    read, places = AutoModelForImageTextToText.from_pretrained, []

    def read_to_host(*arguments: Any, device_map: Any = None, **options: Any) -> Any:
        places.append(device_map)
        return read(*arguments, **options)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", read_to_host)
    load_model(miniature("llava"), dtype=torch.float32, device=torch.device(device))
    assert places == [{"": torch.device("cuda")} if device == "cuda" else None]
