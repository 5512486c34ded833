"""Training on a mixture: resumed in the middle of an epoch, and exported with its predictions."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.datasets.records import Interaction, Vqa
from runyard.rundir import CheckpointDir, read_json
from runyard.trainer import train as train_module
from runyard.trainer.data.encode import epoch_batches
from runyard.trainer.export.export import export_model
from runyard.trainer.export.replay import ImageFolders
from runyard.trainer.main import train_attempt
from tests.trainer.test_train import train_until_the_fifth_batch

STEPS, BATCH = 7, 7  # three steps are an epoch
BLOCKS: dict[str, dict[str, Any]] = {
    "vi-dataset": {
        "datasetId": "a",
        "datasetVersion": "a" * 16,
        "weight": 3,
        "mixture": [{"datasetId": "b", "datasetVersion": "b" * 16, "weight": 1}],
        "validationDataset": {"datasetId": "c", "datasetVersion": "c" * 16},
        "projectKind": "vqa",
        "augmentation": {},
    },
    "vi-model": {
        "hyperparameters": {"maxSteps": STEPS, "batchSize": BATCH, "microBatchSize": BATCH},
    },
}


@pytest.fixture
def start(
    make_attempt: Callable[..., Path], make_version: Callable[..., Path], png: Callable[..., bytes]
) -> Callable[..., Path]:
    """Return a function that writes an attempt on three datasets of 12, 8 and 5 images."""
    versions = {
        name: make_version(
            {
                f"{n}.png": (
                    png(first + n),
                    [Vqa(interactions=[Interaction(order=1, question=f"{name}?", answer=name)])],
                )
                for n in range(count)
            }
        )
        for name, count, first in (("a", 12, 0), ("b", 8, 20), ("c", 5, 40))
    }
    own, *others = [
        {"folder": str(folder), "dataset": name, "version": name * 16}
        for name, folder in versions.items()
    ]

    def write(run: str, **options: Any) -> Path:
        folder = make_attempt(BLOCKS, run=run, **options)
        (folder / "dataset.json").write_text(json.dumps(own | {"others": others}))
        return folder

    return write


def read_plan(folder: Path, checkpoint: str) -> dict[str, Any]:
    document = read_json(CheckpointDir(folder / "checkpoints" / checkpoint).run) or {}
    plan: dict[str, Any] = document["status"]["plan"]
    return plan


def test_a_mixture_trains_by_weight_and_resumes_bit_for_bit(
    start: Callable[..., Path], fork: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def record(*given: Any, **options: Any) -> list[list[int]]:
        drawn.append(options["drawn"])
        return epoch_batches(*given, **options)

    monkeypatch.setattr(train_module, "epoch_batches", record)
    whole = start("whole")
    assert train_attempt(whole) == 0
    assert [sum(index < 12 for index in epoch.tolist()) for epoch in drawn] == [15, 15, 15]
    plan = read_plan(whole, f"step-{STEPS}")
    assert (plan["trainingSamples"]["value"], plan["stepsPerEpoch"]["value"]) == (20, 3)
    assert plan["dataset"]["reason"].startswith("12 samples to train on, 15 drawn per epoch")
    assert plan["mixedDataset1"]["value"] == "b"
    assert plan["validationDataset"] == {"value": "c", "reason": "5 samples"}

    killed = start("cut")
    assert fork(lambda: train_until_the_fifth_batch(killed)).wait(60) == -signal.SIGKILL
    again = start("cut", attempt=2, resume=killed / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    one, two = (
        load_file(folder / "checkpoints" / f"step-{STEPS}" / "model_full" / "model.safetensors")
        for folder in (whole, again)
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_an_export_replays_predictions_from_the_folder_of_each_dataset(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    folder = start("whole")
    assert train_attempt(folder) == 0
    checkpoint = folder / "checkpoints" / f"step-{STEPS}"
    document = read_json(folder / "dataset.json") or {}
    held_out = Path(document["others"][1]["folder"])
    lines = (checkpoint / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["dataset"] for line in lines} == {"c"}
    shutil.copytree(held_out, tmp_path / "images" / "c")
    forms: tuple[ImageFolders, ...] = ({"a": tmp_path, "c": held_out}, tmp_path / "images")
    for number, images in enumerate(forms):
        written = export_model(checkpoint, tmp_path / f"out{number}", form="full", images=images)
        assert written["replayed"] == 5
