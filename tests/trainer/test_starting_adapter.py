"""Runs that start from an adapter: its weights are trained further, over the same base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runyard.rundir import sha256_of
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import load_model
from runyard.trainer.models.model_folder import check_adapter_folder

RUN = "run:source/epoch-1"
LORA: dict[str, Any] = {"rank": 4, "alpha": 8}
MakeAttempt = Callable[..., Path]


def make_blocks(weights: str, rate: float, **training: Any) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 8},
        "vi-model": {
            "architecture": {"name": "auto", "weights": weights},
            "training": {"mode": "lora", "lora": LORA} | training,
            "hyperparameters": {"maxSteps": 1, "epochs": 1, "learningRate": rate},
            "evaluation": {"max_new_tokens": 2},
            "compute": {"precisionType": "float32"},
        },
    }


@pytest.fixture(scope="module")
def checkpoint(
    miniature: Callable[[str], Path],
    write_attempt: MakeAttempt,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the checkpoint of an adapter that has learned something."""
    blocks = make_blocks(str(miniature("llava")), 0.1)
    folder = write_attempt(tmp_path_factory.mktemp("source"), blocks)
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return folder / "checkpoints" / "epoch-1"


@pytest.fixture
def saved(checkpoint: Path, miniature: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a folder as peft saves it, which names the base model by its path."""
    folder = shutil.copytree(checkpoint / "model_adapter", tmp_path / "models" / "adapter")
    change_config(folder, base_model_name_or_path=str(miniature("llava")))
    return folder


def change_config(folder: Path, **values: Any) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def train(folder: Path) -> Path:
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return folder / "checkpoints" / "epoch-1"


def read_refusal(folder: Path) -> str:
    assert train_attempt(folder) == 64
    result = json.loads((folder / "result.json").read_text())
    assert result["reason"] == "InvalidFlow"
    return str(result["message"])


def assert_continued(trained: Path, source: Path, base: Path) -> None:
    """With a learning rate of nearly zero, the adapter is the one that it started from."""
    before, after = read_adapter(source), read_adapter(trained / "model_adapter")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    assert any(before[name].abs().max() > 0.01 for name in before if "lora_B" in name)
    stored = trained / "model_full" / "model.safetensors"
    assert sha256_of(stored) == sha256_of(base / "model.safetensors")


def test_the_adapter_of_a_run_is_trained_further(
    checkpoint: Path, miniature: Callable[[str], Path], make_attempt: MakeAttempt
) -> None:
    fetched = {"weights": RUN, "folder": str(checkpoint)}
    trained = train(make_attempt(make_blocks(RUN, 1e-12), weights=fetched))
    assert_continued(trained, checkpoint / "model_adapter", miniature("llava"))


@pytest.mark.parametrize("form", ["path", "hub id", "export"])
def test_a_folder_saved_by_peft_is_trained_further(
    form: str, saved: Path, miniature: Callable[[str], Path], make_attempt: MakeAttempt
) -> None:
    weights = str(saved)
    if form != "path":
        shutil.copytree(miniature("llava"), saved.parent / "owner" / "llava")
        change_config(saved, base_model_name_or_path="owner/llava")
        weights = "base:adapter"
    if form == "export":
        change_config(saved, base_model_name_or_path="model_full")
        (saved / "export.json").write_text(json.dumps({"base": {"weights": "base:owner/llava"}}))
    trained = train(make_attempt(make_blocks(weights, 1e-12)))
    assert_continued(trained, saved, miniature("llava"))


def test_a_full_training_starts_from_the_merged_weights(
    saved: Path, checkpoint: Path, make_attempt: MakeAttempt
) -> None:
    trained = train(make_attempt(make_blocks(str(saved), 1e-12, mode="full", freeze=[])))
    found = load_model(trained, dtype=torch.float32).module.state_dict()
    merged = load_model(checkpoint, dtype=torch.float32).module.state_dict()
    assert not (trained / "model_adapter").exists()
    assert all(torch.allclose(found[name], merged[name], atol=1e-6) for name in merged)


def test_a_projector_is_added_to_an_adapter_without_one(
    saved: Path, make_attempt: MakeAttempt
) -> None:
    lora = LORA | {"trainProjector": True}
    trained = train(make_attempt(make_blocks(str(saved), 1e-12, lora=lora)))
    added = read_adapter(trained / "model_adapter").keys() - read_adapter(saved).keys()
    assert len(added) == 4 and all("multi_modal_projector" in name for name in added)


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"rank": 8}, "training.lora.rank is 8 in the flow and 4 in the adapter"),
        ({"alpha": 4}, "training.lora.alpha is 4.0 in the flow and 8.0 in the adapter"),
        ({"useDora": True}, "training.lora.useDora is True in the flow and False in the adapter"),
        ({"targets": ["q_proj"]}, "has 24 tensors of layers that the flow does not adapt"),
        ({"targets": ["language_model", "lm_head"]}, "lacks 2 tensors of layers"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_with_both_values(
    lora: dict[str, Any], says: str, saved: Path, make_attempt: MakeAttempt
) -> None:
    message = read_refusal(make_attempt(make_blocks(str(saved), 1e-5, lora=LORA | lora)))
    assert says in message and "; try: " in message


def test_a_trained_projector_is_never_dropped(saved: Path, make_attempt: MakeAttempt) -> None:
    change_config(saved, modules_to_save=["model.multi_modal_projector"])
    message = read_refusal(make_attempt(make_blocks(str(saved), 1e-5)))
    assert "training.lora.trainProjector is False in the flow and True in the adapter" in message


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("owner/other", "base model 'owner/other' of adapter"),
        ("/etc", "base model '/etc' of adapter"),
        ("model_full", "base model 'model_full' of adapter"),
        (None, "base model None of adapter"),
    ],
)
def test_the_base_must_be_in_the_model_folders(
    base: str | None, says: str, saved: Path, make_attempt: MakeAttempt
) -> None:
    change_config(saved, base_model_name_or_path=base)
    assert says in read_refusal(make_attempt(make_blocks(str(saved), 1e-5)))


def test_an_adapter_of_another_base_is_refused(saved: Path, make_attempt: MakeAttempt) -> None:
    weights = read_adapter(saved)
    wider = {name: torch.cat([value, value], dim=-1) for name, value in weights.items()}
    save_file(wider, saved / "adapter_model.safetensors")
    assert "tensors of other shapes" in read_refusal(make_attempt(make_blocks(str(saved), 1e-5)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"megatron_config": {}, "megatron_core": "antigravity"}, "may not choose code"),
        ({"peft_type": "XLORA"}, "has peft_type 'XLORA'; expected 'LORA'"),
    ],
)
def test_an_adapter_chooses_neither_code_nor_further_files(
    values: dict[str, Any], says: str, saved: Path
) -> None:
    change_config(saved, **values)
    with pytest.raises(InvalidFlow, match=says):
        check_adapter_folder(saved)
