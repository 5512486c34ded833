"""Resume from another run's checkpoint: exact if the schedule permits, rejected if unfit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runyard.rundir import read_json, sha256_of
from runyard.trainer.checkpoints.checkpoint import read_progress, save_checkpoint
from runyard.trainer.main import train_attempt

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
MakeAttempt = Callable[..., Path]
CONSTANT = {"name": "constant", "warmupFraction": 0}


def make_blocks(epochs: int, **model: Any) -> dict[str, dict[str, Any]]:
    """Return blocks with two steps per epoch and a constant learning rate."""
    numbers = {"epochs": epochs, "schedule": CONSTANT} | model.pop("hyperparameters", {})
    model = {
        "validation": {"maxSamples": 8},
        "hyperparameters": numbers,
        "checkpoint": {"keep": 9},
    } | model
    return {"vi-dataset": {"maxSamples": 64}, "vi-model": model}


def resume_from(folder: Path, checkpoint: Path) -> Path:
    """Let an attempt resume from another run's checkpoint, as server and supervisor do."""
    manifest = read_json(checkpoint / "manifest.json")
    assert manifest is not None
    document = json.loads((folder / "run.json").read_text())
    document["run"]["spec"]["resumeFrom"] = {
        "runId": "other",
        "checkpoint": checkpoint.name,
        "step": manifest["step"],
        "epoch": manifest["epoch"],
    }
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "resume.json").write_text(json.dumps({"folder": str(checkpoint), "runId": "other"}))
    return folder


def tensors(folder: Path, checkpoint: str = "epoch-4") -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / checkpoint
    found: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    found |= load_file(root / "training_state" / "state.safetensors")
    return found


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


@pytest.fixture(scope="module")
def whole(write_attempt: MakeAttempt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of four epochs."""
    folder = write_attempt(tmp_path_factory.mktemp("whole"), make_blocks(4))
    assert train_attempt(folder) == 0
    return folder


@pytest.fixture(scope="module")
def half(write_attempt: MakeAttempt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two epochs."""
    folder = write_attempt(tmp_path_factory.mktemp("half"), make_blocks(2))
    assert train_attempt(folder) == 0
    return folder


@pytest.mark.parametrize("checkpoint", ["epoch-2", "epoch-1"])
def test_two_epochs_resumed_to_four_equal_four_uninterrupted_ones_bit_for_bit(
    checkpoint: str, whole: Path, half: Path, make_attempt: MakeAttempt, events_of: EventsOf
) -> None:
    """From the end of the finished run, and as a branch from its middle."""
    folder = resume_from(make_attempt(make_blocks(4), run="new"), half / "checkpoints" / checkpoint)
    assert train_attempt(folder) == 0
    assert differing(tensors(whole), tensors(folder)) == []
    begins_after = 2 * int(checkpoint[-1])
    assert [event["step"] for event in events_of(folder, "step")] == list(
        range(begins_after + 1, 9)
    )
    message = f"Resuming from run other, checkpoint {checkpoint}, step {begins_after}"
    assert events_of(folder, "phase")[0]["message"] == message


def test_a_run_that_resumes_from_another_has_its_own_data_and_learning_rate(
    half: Path, make_attempt: MakeAttempt, events_of: EventsOf
) -> None:
    changed = make_blocks(4, hyperparameters={"learningRate": 0.0007})
    folder = resume_from(make_attempt(changed, run="new"), half / "checkpoints" / "epoch-2")
    assert train_attempt(folder) == 0
    assert {event["values"]["learningRate"] for event in events_of(folder, "step")} == {0.0007}


def test_the_best_checkpoint_of_the_other_run_is_not_kept(
    half: Path, make_attempt: MakeAttempt, events_of: EventsOf
) -> None:
    """The other run's metric cannot be beaten, yet this run's first checkpoint is its best."""
    source = make_attempt(make_blocks(2), run="source") / "checkpoints" / "epoch-2"
    shutil.copytree(half / "checkpoints" / "epoch-2", source)
    counters = source / "training_state" / "evaluated.json"
    state = json.loads(counters.read_text())
    state["progress"] |= {
        "best": 99.0,
        "bestSeen": 99.0,
        "bestCheckpoint": "epoch-1",
        "evaluationsWithoutGain": 50,
    }
    counters.write_text(json.dumps(state))
    rewrite_manifest(source)
    blocks = make_blocks(3, validation={"maxSamples": 8, "earlyStopping": {"patience": 1}})
    folder = resume_from(make_attempt(blocks, run="new"), source)
    assert train_attempt(folder) == 0
    assert [event["isBest"] for event in events_of(folder, "checkpoint")] == [True]
    assert read_progress(folder / "checkpoints" / "epoch-3").best_checkpoint == "epoch-3"


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (
            make_blocks(4, hyperparameters={"optimizer": {"name": "sgd"}}),
            ["optimizer.name is 'sgd'", "'adamw'"],
        ),
        (make_blocks(4, training={"mode": "lora"}), ["training.mode is 'lora'", "'full'"]),
        (make_blocks(4, training={"freeze": ["vision"]}), ["training.freeze is ['vision']", "[]"]),
        (
            make_blocks(2),
            ["is of step 4", "ends after 4 steps", "hyperparameters.epochs or maxSteps"],
        ),
        (make_blocks(9, hyperparameters={"maxSteps": 3}), ["is of step 4", "ends after 3 steps"]),
    ],
)
def test_a_flow_that_does_not_fit_the_checkpoint_is_refused_with_the_differences(
    blocks: dict[str, Any], words: list[str], half: Path, make_attempt: MakeAttempt
) -> None:
    folder = resume_from(make_attempt(blocks, run="new"), half / "checkpoints" / "epoch-2")
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["reason"]) == ("Failed", "InvalidFlow")
    assert [word for word in words if word not in result["message"]] == []


def test_optimizer_state_is_stored_by_name_and_fits_other_groups_of_parameters(
    half: Path, make_attempt: MakeAttempt
) -> None:
    checkpoint = half / "checkpoints" / "epoch-2"
    blocks = make_blocks(4, hyperparameters={"optimizer": {"weightDecay": 0}})
    folder = resume_from(make_attempt(blocks, run="new"), checkpoint)
    assert train_attempt(folder) == 0
    state = json.loads((checkpoint / "training_state" / "state.json").read_text())
    (saved,) = state["optimizers"]
    model = load_file(checkpoint / "model_full" / "model.safetensors")
    assert (state["format"], set(saved["values"])) == (2, set(saved["parameters"]))
    assert set(saved["parameters"]) <= set(model)
    stored = load_file(checkpoint / "training_state" / "state.safetensors")
    for name, entries in saved["values"].items():
        assert stored[entries["exp_avg"]["tensor"]].shape == model[name].shape


def test_a_checkpoint_of_format_1_resumes_bit_for_bit(
    whole: Path, half: Path, make_attempt: MakeAttempt, tmp_path: Path
) -> None:
    """Format 1 stored optimizer state by the index of the parameter, and settings of groups."""
    old = shutil.copytree(half / "checkpoints" / "epoch-2", tmp_path / "epoch-2")
    state_file = old / "training_state" / "state.json"
    state = json.loads(state_file.read_text())
    tensors_file = old / "training_state" / "state.safetensors"
    stored = load_file(tensors_file)
    (saved,) = state["optimizers"]
    model = load_file(old / "model_full" / "model.safetensors")
    decay = {True: 0.01, False: 0.0}
    groups: dict[bool, list[int]] = {}
    renamed = {name: value for name, value in stored.items() if name.startswith("random.")}
    for index, name in enumerate(saved["parameters"]):
        groups.setdefault(model[name].dim() >= 2, []).append(index)
        for key, place in saved["values"][name].items():
            renamed[f"optimizer.0.{index}.{key}"] = stored[place["tensor"]]
    state["optimizers"] = [
        {
            "values": {str(index): {} for index in range(len(saved["parameters"]))},
            "groups": [
                {"params": members, "weight_decay": decay[is_matrix], "betas": [0.9, 0.999]}
                for is_matrix, members in groups.items()
            ],
        }
    ]
    del state["format"]
    state_file.write_text(json.dumps(state))
    save_file(renamed, tensors_file)
    rewrite_manifest(old)
    folder = resume_from(make_attempt(make_blocks(4), run="new"), old)
    assert train_attempt(folder) == 0
    assert differing(tensors(whole), tensors(folder)) == []


def test_a_training_state_of_a_later_format_is_refused(
    half: Path, make_attempt: MakeAttempt, tmp_path: Path
) -> None:
    later = shutil.copytree(half / "checkpoints" / "epoch-2", tmp_path / "epoch-2")
    state_file = later / "training_state" / "state.json"
    state_file.write_text(json.dumps(json.loads(state_file.read_text()) | {"format": 3}))
    rewrite_manifest(later)
    folder = resume_from(make_attempt(make_blocks(4), run="new"), later)
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert "training state of format 3" in result["message"]


def test_a_model_of_another_shape_is_refused(
    half: Path, make_attempt: MakeAttempt, miniature: Any
) -> None:
    blocks = make_blocks(4, architecture={"weights": str(miniature("llava"))})
    folder = resume_from(make_attempt(blocks, run="new"), half / "checkpoints" / "epoch-2")
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json")
    assert result is not None and "architecture.weights is" in result["message"]


@pytest.mark.slow
def test_an_adapter_resumes_bit_for_bit_and_its_base_may_be_removed(
    make_attempt: MakeAttempt, miniature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint it resumed from is removed once a newer one is stored; saving still works."""
    import runyard.trainer.train as train_module

    lora = {"architecture": {"weights": str(miniature("llava"))}, "training": {"mode": "lora"}}
    lora |= {"compute": {"precisionType": "float32"}}

    def blocks(epochs: int) -> dict[str, Any]:
        made = make_blocks(epochs, **lora, hyperparameters={"batchSize": 4})
        made["vi-dataset"]["maxSamples"] = 8
        return made

    whole, half = make_attempt(blocks(3), run="whole"), make_attempt(blocks(1), run="half")
    assert train_attempt(whole) == 0
    assert train_attempt(half) == 0
    source = half / "checkpoints" / "epoch-1"
    folder = resume_from(make_attempt(blocks(3), run="new"), source)

    def save_and_prune(*arguments: Any, **named: Any) -> Any:
        saved = save_checkpoint(*arguments, **named)
        shutil.rmtree(source, ignore_errors=True)
        return saved

    monkeypatch.setattr(train_module, "save_checkpoint", save_and_prune)
    assert train_attempt(folder) == 0
    adapters = [
        load_file(f / "checkpoints/epoch-3/model_adapter/adapter_model.safetensors")
        for f in (whole, folder)
    ]
    assert differing(*adapters) == []
    base = [
        load_file(f / "checkpoints/epoch-3/model_full/model.safetensors") for f in (whole, folder)
    ]
    assert differing(*base) == []


@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_run_that_must_resume_never_starts_from_the_beginning(
    loss: str, half: Path, make_attempt: MakeAttempt
) -> None:
    """Another attempt may find the checkpoint, so this one ends without a result."""
    source = make_attempt(make_blocks(2), run="source") / "checkpoints" / "epoch-2"
    shutil.copytree(half / "checkpoints" / "epoch-2", source)
    folder = resume_from(make_attempt(make_blocks(4), run="new"), source)
    if loss == "gone":
        (folder / "resume.json").unlink()
    else:
        (source / "model_full" / "model.safetensors").write_bytes(b"torn")
    assert train_attempt(folder) == 1
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints").exists()


def rewrite_manifest(checkpoint: Path) -> None:
    """Write the manifest again after a change of the state."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for item in manifest["files"]:
        file = checkpoint / item["path"]
        item |= {"sizeBytes": file.stat().st_size, "sha256": sha256_of(file)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
