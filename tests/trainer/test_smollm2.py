"""A merged export of a LoRA over real language weights passes, and a wrong merge is rejected.

``make export-smollm2`` installs the weights and runs this.
"""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from runyard.datasets.records import Interaction, Vqa
from runyard.rundir import read_json
from runyard.trainer.errors import ExportFailed
from runyard.trainer.export import export as export_module
from runyard.trainer.export.export import export_model
from runyard.trainer.main import train_attempt
from tests.trainer import smollm2
from tests.trainer.conftest import make_png, write_version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (smollm2.FOLDER / smollm2.WEIGHTS).is_file(),
        reason="the weights are not installed; make export-smollm2 does it",
    ),
]
PROGRAM = Path(__file__).with_name("plain_likelihoods.py")
TOPICS = ("cat", "river", "bicycle", "bridge", "violin", "lemon", "doctor", "island")
QUESTIONS = ("What is a {}?", "Where does one find a {}?", "Why would a {} matter to a child?")
ANSWERS = (
    "A {} is something that most people know from everyday life.",
    "One finds a {} in many places of the world, near to people.",
    "A {} matters because it is fun, useful and good to look at.",
)
HELD_OUT, STEPS = 24, 12


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, write_attempt: Callable[..., Path]
) -> tuple[Path, Path]:
    """Train a short LoRA in bfloat16; return its checkpoint and the folder of its images."""
    root = tmp_path_factory.mktemp("smollm2")
    smollm2.save_smollm2_shell(root / "models" / "smollm2")
    images, splits = {}, {}
    asked = itertools.product(TOPICS, zip(QUESTIONS, ANSWERS, strict=True), ("train", "validation"))
    for number, (topic, (question, answer), part) in enumerate(asked):
        word = topic if part == "train" else f"{topic}s"  # others than those that are trained
        turn = Interaction(order=1, question=question.format(word), answer=answer.format(word))
        images[f"{number:02}.png"] = (make_png(number, (64, 64)), [Vqa(interactions=[turn])])
        splits[f"{number:02}.png"] = part
    version = write_version(root / "versions", images, splits)
    (root / "images").mkdir()
    for name, (data, _) in images.items():
        (root / "images" / name).write_bytes(data)
    blocks: dict[str, dict[str, Any]] = {
        "vi-dataset": {"datasetId": "topics", "projectKind": "vqa"},
        "vi-model": {
            "architecture": {"name": "auto", "weights": str(root / "models" / "smollm2")},
            "training": {"mode": "lora"},
            "hyperparameters": {
                "maxSteps": STEPS,
                "epochs": STEPS,
                "batchSize": 8,
                "learningRate": 0.0005,
            },
            "validation": {"every": {"steps": STEPS}},
            "checkpoint": {"every": {"steps": STEPS}},
            "compute": {"precisionType": "bfloat16"},
        },
    }
    folder = write_attempt(root, blocks)
    fetched = {"folder": str(version), "dataset": "topics", "version": version.name}
    (folder / "dataset.json").write_text(json.dumps(fetched))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return next((folder / "checkpoints").iterdir()), root / "images"


@pytest.fixture(scope="module")
def merged(checkpoint: tuple[Path, Path]) -> tuple[Path, dict[str, Any]]:
    folder, images = checkpoint
    out = folder.parents[1] / "merged"
    return out, export_model(folder, out, form="merged", images=images)


def test_a_merged_export_of_real_weights_passes_and_lists_its_flips(
    merged: tuple[Path, dict[str, Any]],
) -> None:
    out, document = merged
    comparison = document["comparison"]
    print(json.dumps({name: comparison[name] for name in comparison if name != "answers"}))
    assert (document["dtype"], document["precision"]) == ("bfloat16", "bfloat16")
    assert (document["replayed"], comparison["outside"]) == (HELD_OUT, [])
    assert 0 < comparison["largestShare"] < 1
    assert len(comparison["flips"]) == document["different"] > 0
    for flip in comparison["flips"]:
        assert flip["recorded"] != flip["merged"]
        assert abs(flip["margin"]) <= comparison["tolerance"]
    assert (read_json(out / "export.json") or {})["comparison"] == comparison


@pytest.mark.parametrize("change", ["negated", "of_the_next_layer", "shuffled"])
def test_a_merge_with_one_wrong_matrix_is_rejected_with_numbers(
    change: str, checkpoint: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export_module._write_merged
    layer = "model.text_model.layers.{}.mlp.down_proj.weight"

    def write_wrongly(full: Path, adapter: Path, staged: Path, dtype: str | None) -> str:
        written = write(full, adapter, staged, dtype)
        tensors = load_file(staged / "model.safetensors")
        right = tensors[layer.format(15)]
        wrong = {
            "negated": -right,
            "of_the_next_layer": tensors[layer.format(16)].clone(),
            "shuffled": right.flip(0),
        }
        tensors[layer.format(15)] = wrong[change]
        save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
        return written

    monkeypatch.setattr(export_module, "_write_merged", write_wrongly)
    folder, images = checkpoint
    with pytest.raises(ExportFailed, match="by more than rounding explains") as failed:
        export_model(folder, tmp_path / "out", form="merged", images=images)
    print(failed.value)
    assert "log-likelihood -" in str(failed.value)
    assert not (tmp_path / "out").exists()


def test_plain_transformers_and_peft_give_the_answers_the_same_likelihood(
    merged: tuple[Path, dict[str, Any]], checkpoint: tuple[Path, Path]
) -> None:
    out, document = merged
    folder, images = checkpoint
    adapter = folder.parents[1] / "adapter"
    exported = export_model(folder, adapter, form="adapter", images=images)
    assert exported["different"] == 0
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), str(out), str(adapter), str(images)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["runyard"]
    comparison = document["comparison"]
    for name, field in (("adapter", "logLikelihood"), ("merged", "mergedLogLikelihood")):
        for answer, likelihood in zip(comparison["answers"], found[name], strict=True):
            assert math.isclose(likelihood, answer[field], abs_tol=answer["tolerance"])
