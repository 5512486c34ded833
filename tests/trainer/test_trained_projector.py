"""A projector that is trained in full together with an adapter on the language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from runyard.flows import FlowProblems, validate
from runyard.flows.blocks import LearningRates, Lora, Optimizer, Training
from runyard.rundir import read_json
from runyard.trainer.export.export import Form, export_model
from runyard.trainer.export.predict import Predictor
from runyard.trainer.families import PARTS, find_part
from runyard.trainer.main import train_attempt
from runyard.trainer.models.adapters import PEFT_PREFIX, add_adapter
from runyard.trainer.models.model import load_model
from runyard.trainer.steps.optim import make_optimizers
from tests.support.slow import mark_slow
from tests.trainer import miniatures

LORA = {"trainProjector": True}
STEPS = 4


def make_blocks(weights: Path, *, lora: dict[str, Any] = LORA) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": 12},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(weights)},
            "training": {"mode": "lora", "lora": lora, "learningRates": {"projector": 0.02}},
            "hyperparameters": {
                "maxSteps": STEPS,
                "epochs": STEPS,
                "batchSize": 4,
                "microBatchSize": 2,
                "learningRate": 0.01,
            },
            "validation": {"maxSamples": 4, "every": {"steps": STEPS}},
            "checkpoint": {"every": {"steps": 2}, "keep": 3},
            "evaluation": {"max_new_tokens": 6},
            "compute": {"precisionType": "bfloat16"},
        },
    }


def last_of(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(checkpoint / "model_adapter" / "adapter_model.safetensors"))


def is_quick(model_type: str) -> bool:
    """Take a family with a nested projector, one with buffers in it, and a usual one."""
    return model_type in ("qwen3_vl", "florence2", "llava")


@pytest.mark.parametrize("model_type", mark_slow(miniatures.MINIATURES, unless=is_quick))
def test_other_programs_load_the_trained_projector_with_the_adapter(
    model_type: str, miniature: Callable[[str], Path], make_attempt: Callable[..., Path]
) -> None:
    source = miniature(model_type)
    folder = make_attempt(make_blocks(source))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()

    checkpoint, parts = last_of(folder), PARTS[model_type]
    before = load_model(source, dtype=torch.float32).module.state_dict()
    after = load_model(checkpoint, dtype=torch.float32).module.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {find_part(name, parts) for name in changed} == {"projector", "language"}

    # As the published client does.
    model = AutoModelForImageTextToText.from_pretrained(checkpoint / "model_full")
    model.load_adapter(checkpoint / "model_adapter")
    loaded = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): value
        for name, value in model.state_dict().items()
    }
    for name, value in weights_of(checkpoint).items():
        assert torch.equal(loaded[name.removeprefix(PEFT_PREFIX)].float(), value.float()), name


@pytest.fixture(scope="module")
def whole(
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the attempt's folder of an uninterrupted run."""
    folder = write_attempt(tmp_path_factory.mktemp("projector"), make_blocks(miniature("llava")))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return folder


def test_it_resumes_bit_for_bit(
    whole: Path, miniature: Callable[[str], Path], make_attempt: Callable[..., Path]
) -> None:
    blocks, middle = make_blocks(miniature("llava")), whole / "checkpoints" / "step-2"
    folder = make_attempt(blocks, attempt=2, resume=middle)
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    once, resumed = weights_of(last_of(whole)), weights_of(last_of(folder))
    assert once.keys() == resumed.keys()
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    earlier = weights_of(middle)
    moved = {name for name in once if not torch.equal(once[name], earlier[name])}
    assert any("multi_modal_projector" in name for name in moved)


def test_the_plan_counts_the_projector(whole: Path) -> None:
    run = read_json(last_of(whole) / "model_full" / "run.json") or {}
    trained = sum(value.numel() for value in weights_of(last_of(whole)).values())
    assert run["status"]["plan"]["trainableParameters"]["value"] == trained


@pytest.mark.parametrize("form", ["full", "adapter"])
def test_exports_answer_as_the_evaluation_did(form: Form, whole: Path, tmp_path: Path) -> None:
    document = export_model(last_of(whole), tmp_path / form, form=form)
    assert (document["replayed"], document["different"]) == (4, 0)


def test_the_projector_is_part_of_merged_weights(whole: Path, tmp_path: Path) -> None:
    checkpoint = last_of(whole)
    export_model(checkpoint, tmp_path / "merged", tolerate=1)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    trained = weights_of(checkpoint)
    found = {
        name: value
        for name, value in trained.items()
        if find_part(name.removeprefix(PEFT_PREFIX), PARTS["llava"]) == "projector"
    }
    assert len(found) == 4
    stored = {name.split("multi_modal_projector")[-1]: value for name, value in merged.items()}
    for name, value in found.items():
        assert torch.equal(stored[name.split("multi_modal_projector")[-1]], value)


def test_a_downloaded_checkpoint_answers(whole: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (32, 32), "white")
    assert isinstance(Predictor(last_of(whole)).predict(image, "?", max_new_tokens=2).raw, str)


def test_the_projector_may_have_its_own_learning_rate(miniature: Callable[[str], Path]) -> None:
    model = load_model(miniature("qwen3_vl"), dtype=torch.float32)
    training = Training(lora=Lora(train_projector=True), freeze=["vision"])
    model = add_adapter(model, training, base=Path())
    (optimizer,) = make_optimizers(
        model.trainable_parameters(),
        Optimizer(),
        learning_rate=0.1,
        rates=LearningRates(projector=0.5),
        parts=model.parts,
    )
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.trainable_parameters():
        expected = 0.5 if find_part(name, model.parts) == "projector" else 0.1
        assert rates[id(parameter)] == expected, name


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"training": {"freeze": ["projector"]}}, "training.freeze names the projector"),
        (
            {"quantization": {"enabled": True, "parts": ["projector", "language"]}},
            "4-bit weights cannot be trained in full",
        ),
    ],
)
def test_contradicting_settings_are_rejected(more: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"architecture": {"name": "llava"}, **more}
    settings["training"] = {"lora": LORA} | settings.get("training", {})
    flow = {"blocks": [{"block": "vi-model", "settings": settings}]}
    with pytest.raises(FlowProblems) as raised:
        validate(flow)
    [problem] = raised.value.problems
    assert problem.path == "/blocks/0/settings/training/lora/trainProjector"
    assert says in problem.message
