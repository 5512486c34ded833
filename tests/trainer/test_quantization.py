"""An adapter over 4-bit base weights: saved, resumed and exported."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.flows.blocks import Part, Quantization
from runyard.rundir import read_json, sha256_of
from runyard.trainer.errors import ExportFailed
from runyard.trainer.export.export import export_model
from runyard.trainer.families import find_part
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import (
    LoadedModel,
    dequantize,
    load_model,
    read_quantization,
)

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
ALL: tuple[Part, ...] = ("vision", "projector", "language")
STEPS, LAST = 6, "epoch-1"


def make_blocks(weights: Path, steps: int = STEPS, **more: Any) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 24, "validationFraction": 0.2},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(weights)},
            "training": {"mode": "lora"},
            "quantization": {"enabled": True},
            "hyperparameters": {
                "maxSteps": steps,
                "epochs": STEPS,
                "batchSize": 4,
                "learningRate": 0.02,
                "schedule": {"name": "constant"},
            },
            "validation": {"maxSamples": 8, "every": {"steps": 2}},
            "checkpoint": {"every": {"steps": 2}, "keep": 3},
            "evaluation": {"max_new_tokens": 6},
            "compute": {"precisionType": "float32"},
        }
        | more,
    }


@pytest.fixture(scope="module")
def attempt(
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the attempt's folder of a run with three evaluations and three checkpoints."""
    folder = write_attempt(tmp_path_factory.mktemp("quantized"), make_blocks(miniature("llava")))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return folder


def adapter_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(checkpoint / "model_adapter" / "adapter_model.safetensors"))


@needs_bitsandbytes
def test_the_checkpoint_has_unquantized_base_weights(
    attempt: Path, miniature: Callable[[str], Path]
) -> None:
    full = attempt / "checkpoints" / LAST / "model_full"
    assert sha256_of(full / "model.safetensors") == sha256_of(
        miniature("llava") / "model.safetensors"
    )
    assert "quantization_config" not in (read_json(full / "config.json") or {})
    run = read_json(full / "run.json") or {}
    model = run["spec"]["flow"]["blocks"][-1]["settings"]
    assert model["quantization"] == {"enabled": True, "type": "nf4", "parts": ["language"]}
    assert model["compute"]["precisionType"] == "float32"
    plan = run["status"]["plan"]
    assert plan["quantization"]["value"] == "nf4"
    base = sum(value.numel() for value in load_file(full / "model.safetensors").values())
    # A byte has two of them.
    assert plan["parameters"]["value"] == base + plan["trainableParameters"]["value"]


@needs_bitsandbytes
def test_an_evaluation_does_not_change_the_final_adapter(
    attempt: Path,
    write_attempt: Callable[..., Path],
    tmp_path: Path,
    miniature: Callable[[str], Path],
) -> None:
    resume = attempt / "checkpoints" / "step-2"
    again = write_attempt(tmp_path, make_blocks(miniature("llava")), attempt=2, resume=resume)
    assert train_attempt(again) == 0
    one, two = (adapter_of(folder / "checkpoints" / LAST) for folder in (attempt, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    first = adapter_of(resume)
    assert any(not torch.equal(one[name], first[name]) for name in one)


def find_quantized(model: LoadedModel) -> set[str]:
    return {
        name for name, layer in model.module.named_modules() if type(layer).__name__ == "Linear4bit"
    }


@needs_bitsandbytes
@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "idefics3"])
@pytest.mark.parametrize(
    "chosen", [("language",), ("projector", "language"), ("vision",), ("projector",)]
)
def test_only_the_named_parts_are_quantized(
    chosen: tuple[Part, ...], model_type: str, miniature: Callable[[str], Path]
) -> None:
    def load(parts: tuple[Part, ...]) -> LoadedModel:
        quantization = Quantization(enabled=True, parts=[*parts])
        return load_model(miniature(model_type), dtype=torch.bfloat16, quantization=quantization)

    model = load(chosen)
    everything = find_quantized(load(ALL))
    assert find_quantized(model) == {
        name for name in everything if find_part(name, model.parts) in chosen
    }
    dtypes: dict[bool, set[str]] = {True: set(), False: set()}
    for name, parameter in model.module.named_parameters():
        dtypes[find_part(name, model.parts) in chosen].add(str(parameter.dtype))
    assert "torch.uint8" in dtypes[True] or not find_quantized(model)
    assert dtypes[True] <= {"torch.uint8", "torch.float32"}
    assert dtypes[False] == {"torch.bfloat16"}


def test_a_checkpoint_that_names_no_parts_had_all_of_them_in_4_bits() -> None:
    def read(quantization: dict[str, Any]) -> Quantization | None:
        block = {"block": "vi-model", "settings": {"quantization": quantization}}
        return read_quantization({"spec": {"flow": {"blocks": [block]}}})

    assert read({"enabled": True, "type": "fp4"}) == Quantization(
        enabled=True, type="fp4", parts=[*ALL]
    )
    assert read({"enabled": True, "type": "nf4", "parts": ["language"]}) == Quantization(
        enabled=True
    )
    assert read({"enabled": False, "type": "nf4"}) is None


@needs_bitsandbytes
def test_generation_leaves_4_bit_weights_unchanged(miniature: Callable[[str], Path]) -> None:
    model = load_model(
        miniature("llava"),
        dtype=torch.bfloat16,
        quantization=Quantization(enabled=True, type="fp4", parts=[*ALL]),
    )
    assert {str(p.dtype) for p in model.module.parameters()} == {"torch.uint8", "torch.float32"}
    layer = next(layer for layer in model.module.modules() if type(layer).__name__ == "Linear4bit")
    before = dequantize(layer.weight).clone()
    assert before.shape == (layer.out_features, layer.in_features)
    with torch.inference_mode():
        layer.eval()(torch.ones(2, layer.in_features))
    assert torch.equal(dequantize(layer.weight), before)
    assert not any(p.requires_grad for p in model.module.parameters())


@needs_bitsandbytes
def test_an_export_is_evaluated_in_4_bits_and_merged_into_full_weights(
    attempt: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(attempt / "checkpoints" / LAST, tmp_path / "checkpoint")
    for form in ("adapter", "full"):
        document = export_model(checkpoint, tmp_path / form, form=form)
        assert (document["quantization"], document["different"], document["replayed"]) == (
            "nf4",
            0,
            len(lines(checkpoint)),
        )
    document = export_model(checkpoint, tmp_path / "merged", tolerate=1)
    assert document["replayed"] == len(lines(checkpoint))
    run = read_json(tmp_path / "merged" / "run.json") or {}
    assert run["spec"]["flow"]["blocks"][-1]["settings"]["quantization"]["enabled"] is False
    config = read_json(tmp_path / "merged" / "config.json") or {}
    assert "quantization_config" not in config

    # An answer that only the 4-bit model gives is reported with a fix.
    stored = checkpoint / "predictions.jsonl"
    stored.write_text(stored.read_text().replace('"raw":"', '"raw":"other '))
    with pytest.raises(
        ExportFailed,
        match=r"base weights in 4 bits \(nf4\), and merged weights are not quantized.*--tolerate 1",
    ):
        export_model(checkpoint, tmp_path / "other", form="merged")


def lines(checkpoint: Path) -> list[str]:
    return (checkpoint / "predictions.jsonl").read_text().splitlines()


def test_without_bitsandbytes_the_flow_is_refused(
    make_attempt: Callable[..., Path],
    miniature: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "bitsandbytes" else find(name, *more),
    )
    folder = make_attempt(make_blocks(miniature("llava")))
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert result["reason"] == "InvalidFlow"
    assert "(type 'nf4') needs the package bitsandbytes" in result["message"]
    assert "install runyard[quantization], or set quantization.enabled false" in result["message"]
