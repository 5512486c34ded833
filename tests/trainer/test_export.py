"""A checkpoint and its exports answer in plain transformers and peft as when they were measured.

An export with other answers fails."""

import fcntl
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from runyard.rundir import read_json, sha256_of
from runyard.trainer.data.datasets import load_dataset
from runyard.trainer.errors import ExportFailed, InvalidFlow
from runyard.trainer.export import export as export_module
from runyard.trainer.export.export import Form, export_model
from runyard.trainer.export.likelihood import AnswerScore, Flip, ModelShape, compare
from runyard.trainer.export.replay import AnswerDifference, Replay, read_replay_context
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model_folder import check_adapter_folder, check_model_folder
from tests.support.slow import mark_slow

PROGRAM = Path(__file__).with_name("plain_answers.py")
TRAINING: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora"},
    "dora": {"mode": "lora", "lora": {"useDora": True, "useRslora": True}},
    "qlora": {"mode": "lora"},
    "qdora": {"mode": "lora", "lora": {"useDora": True}},
}
CASES = [
    (family, mode) for family in ("idefics3", "llava", "qwen3_vl") for mode in ("full", "lora")
]
CASES.append(("llava", "dora"))
ALL_PARTS = ["vision", "projector", "language"]
QUANTIZATION = {"qlora": "nf4", "qdora": "fp4"}
if importlib.util.find_spec("bitsandbytes"):
    CASES += [("idefics3", "qlora"), ("llava", "qdora")]
SEED, SAMPLES, HELD_OUT, STEPS = 7, 40, 3, 12
EXPORTS: dict[str, tuple[Form, ...]] = {
    "full": ("full",),
    "lora": ("merged", "adapter"),
    "dora": ("merged", "adapter"),
}
EXPORTS |= {"qlora": ("adapter",), "qdora": ("adapter",)}
# Those of the default suite: each mode once, and weights in 4 bits.
QUICK = {("idefics3", "full"), ("llava", "lora"), ("idefics3", "qlora"), ("llava", "dora")}
EXPORTED = [(family, mode, form) for family, mode in CASES for form in EXPORTS[mode]]
Said = dict[str, Any]


def make_blocks(architecture: dict[str, Any], mode: str) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": SAMPLES, "validationFraction": 0.2},
        "vi-model": {
            "architecture": architecture,
            "training": TRAINING[mode],
            "quantization": {"enabled": mode in QUANTIZATION}
            # All parts, as programs that load a checkpoint in 4 bits quantize them.
            | ({"type": QUANTIZATION[mode], "parts": ALL_PARTS} if mode in QUANTIZATION else {}),
            "hyperparameters": {
                "maxSteps": STEPS,
                "epochs": STEPS,
                "batchSize": 8,
                "learningRate": 0.02,
            },
            "validation": {"maxSamples": HELD_OUT, "previews": HELD_OUT, "every": {"steps": STEPS}},
            "checkpoint": {"every": {"steps": STEPS}},
            "evaluation": {"max_new_tokens": 12},
            "compute": {"precisionType": "float32"},  # as the fresh process has it
        },
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def train_cases(
    request: pytest.FixtureRequest,
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    home: Path,
) -> dict[tuple[str, str], Path]:
    """Train each case that a test of this run needs, and return the attempts' folders."""
    is_slow = any(item.get_closest_marker("slow") for item in request.session.items)
    folders = {}
    for family, mode in CASES:
        if not is_slow and (family, mode) not in QUICK:
            continue
        # The tiny preset is an Idefics3; the others begin with a folder.
        architecture = (
            {} if family == "idefics3" else {"name": "auto", "weights": str(miniature(family))}
        )
        folder = write_attempt(
            home, make_blocks(architecture, mode), run=f"{family}-{mode}", settings={"seed": SEED}
        )
        assert train_attempt(folder) == 0, (folder / "result.json").read_text()
        folders[family, mode] = folder
    return folders


def checkpoint_of(folder: Path) -> Path:
    return next((folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def answers(
    train_cases: dict[tuple[str, str], Path],
    home: Path,
    events_of: Callable[[Path, str], list[dict[str, Any]]],
) -> dict[tuple[str, str], tuple[Said, list[str]]]:
    """Return, for each case, the answers of a new process and of the last evaluation."""
    asked, measured = [], []
    for (family, mode), folder in train_cases.items():
        checkpoint = checkpoint_of(folder)
        exports = {form: home / "exports" / f"{family}-{mode}-{form}" for form in EXPORTS[mode]}
        for form, out in exports.items():
            export_model(checkpoint, out, form=form)
        previews = events_of(folder, "evaluation")[-1]["previews"]
        samples = load_dataset(
            "digits", seed=SEED, validation_fraction=0.2, max_samples=SAMPLES
        ).validation
        images = [folder / f"{n}.png" for n in range(HELD_OUT)]
        for path, sample in zip(images, samples, strict=False):
            sample.image.save(path)
        asked.append(
            {
                "checkpoint": str(checkpoint),
                "quantization": QUANTIZATION.get(mode),
                "exports": {form: str(out) for form, out in exports.items()},
                "images": [str(path) for path in images],
                "questions": [preview["question"] for preview in previews],
            }
        )
        measured.append([preview["answer"] for preview in previews])
    (home / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), str(home / "asked.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert not answer["runyard"]
    return dict(zip(train_cases, zip(answer["found"], measured, strict=True), strict=True))


@pytest.mark.parametrize(("family", "mode"), mark_slow(CASES, unless=QUICK.__contains__))
def test_plain_transformers_and_peft_reproduce_the_measured_answers(
    family: str, mode: str, answers: Any
) -> None:
    fresh, measured = answers[family, mode]
    assert len(measured) == HELD_OUT
    assert all(measured)
    assert fresh["answers"] == measured
    if mode != "full":  # the adapter is what makes the difference
        assert fresh["base"] != measured


@pytest.mark.parametrize(
    ("family", "mode", "form"), mark_slow(EXPORTED, unless=lambda case: case[:2] in QUICK)
)
def test_plain_transformers_and_peft_reproduce_the_exported_models_answers(
    family: str, mode: str, form: str, answers: Any, home: Path
) -> None:
    fresh, measured = answers[family, mode]
    assert fresh["exported"][form] == measured
    out = home / "exports" / f"{family}-{mode}-{form}"
    document = read_json(out / "export.json") or {}
    assert (document["form"], document["replayed"], document["different"]) == (form, HELD_OUT, 0)
    assert (out / "predictions.jsonl").exists()
    if form == "adapter":
        check_adapter_folder(out)
    else:
        check_model_folder(out)


@pytest.fixture
def lora(train_cases: dict[tuple[str, str], Path], tmp_path: Path) -> Path:
    """Return a copy of a checkpoint with an adapter, which the test may change."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of(train_cases["llava", "lora"]), copy)
    return copy


def change_a_weight(path: Path) -> None:
    """Negate the matrix that decides the next token, or the largest matrix of an adapter."""
    tensors = load_file(path)
    name = max(tensors, key=lambda name: (name.endswith("lm_head.weight"), tensors[name].numel()))
    tensors[name] = -tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def test_an_adapter_names_its_base_model(
    lora: Path, tmp_path: Path, miniature: Callable[[str], Path]
) -> None:
    document = export_model(lora, tmp_path / "out", form="adapter")
    weights = lora / "model_full" / "model.safetensors"
    assert document["base"]["weights"] == str(miniature("llava"))
    assert document["base"]["files"] == [
        {
            "path": "model.safetensors",
            "sizeBytes": weights.stat().st_size,
            "sha256": sha256_of(weights),
        }
    ]
    config = read_json(tmp_path / "out" / "adapter_config.json") or {}
    assert config["base_model_name_or_path"] == str(miniature("llava"))
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {
        ".json",
        ".jsonl",
        ".safetensors",
    }


def test_a_full_export_has_the_adapter_next_to_its_base(lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # As the command line finds a downloaded one.
    document = export_model(lora / "model_full", out, form="full")
    assert (document["replayed"], document["different"]) == (HELD_OUT, 0)
    assert sorted(path.name for path in out.iterdir()) == [
        "export.json", "model_adapter", "model_full", "predictions.jsonl",
    ]  # fmt: skip
    again = export_model(out, tmp_path / "again")  # And is usable as a checkpoint
    assert (again["form"], again["different"]) == ("merged", 0)


def test_weights_without_an_adapter_keep_bits_and_format(
    train_cases: dict[tuple[str, str], Path],
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    tmp_path: Path,
) -> None:
    base = tmp_path / "models" / "base"
    shutil.copytree(miniature("llava"), base)
    halves = {
        name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(halves, base / "model.safetensors", metadata={"format": "pt"})
    folder = write_attempt(
        tmp_path,
        make_blocks({"name": "auto", "weights": str(base)}, "lora"),
        settings={"seed": SEED},
    )
    assert train_attempt(folder) == 0
    document = export_model(checkpoint_of(folder), tmp_path / "out", tolerate=1)
    assert (document["dtype"], document["tolerated"]) == ("bfloat16", 1)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == halves.keys()
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}
    changed = {name for name in halves if not torch.equal(merged[name], halves[name])}
    assert changed == {name for name in halves if "language_model" in name and "_proj" in name}
    # In float32 nothing is lost of the sum, and every answer is the stored one.
    whole = export_model(checkpoint_of(folder), tmp_path / "whole", dtype="float32")
    assert (whole["dtype"], whole["different"]) == ("float32", 0)


def test_a_merge_is_compared_with_its_adapter_by_likelihood(lora: Path, tmp_path: Path) -> None:
    document = export_model(lora, tmp_path / "out", dtype="bfloat16")
    comparison = document["comparison"]
    assert (read_json(tmp_path / "out" / "export.json") or {})["comparison"] == comparison
    assert comparison["unitRoundoff"] == 2**-8
    assert comparison["outside"] == []
    assert 0 < comparison["largestShare"] <= 1
    assert len(comparison["flips"]) == document["different"]
    assert [answer["index"] for answer in comparison["answers"]] == list(range(HELD_OUT))
    for answer in comparison["answers"]:
        difference = answer["mergedLogLikelihood"] - answer["logLikelihood"]
        assert abs(difference) <= comparison["largestShare"] * answer["tolerance"] * 1.0001
        assert answer["tolerance"] == comparison["tolerance"] * math.sqrt(answer["tokenCount"])
    exact = export_model(lora, tmp_path / "exact", dtype="float32")["comparison"]
    assert exact["tolerance"] < comparison["tolerance"] / 1000


@pytest.mark.parametrize("margin", [0.001, 3.0, -3.0], ids=["tied", "clear", "not_the_adapters"])
def test_only_a_flip_of_a_near_tie_is_within_the_tolerance(margin: float, lora: Path) -> None:
    context = read_replay_context(lora)
    lines = [{"index": 4, "question": "Which?", "raw": "8"}]
    flip = AnswerDifference(row=0, index=4, question="Which?", stored="8", answer="9")
    found = compare(
        context,
        lines,
        Replay(1, (flip,), "cpu"),
        {0: 1},
        ([AnswerScore(-2.0, 4, 9.0, margin)], [AnswerScore(-2.001, 4, 9.0, -0.002)]),
        dtypes=[torch.bfloat16],
        shape=ModelShape(100, 64),
    )
    assert found.tolerance.logit_spread == 3
    assert found.flips[0] == Flip(4, "Which?", "8", "9", 1, margin, -0.002)
    assert found.outside == (() if margin == 0.001 else (4,))


@pytest.mark.parametrize("merged", [-3.0, math.nan], ids=["unlikely", "not_a_number"])
def test_a_likelihood_that_rounding_does_not_explain_is_outside(merged: float, lora: Path) -> None:
    found = compare(
        read_replay_context(lora),
        [{"index": 0, "question": "Which?", "raw": "8"}],
        Replay(1, (), "cpu"),
        {},
        ([AnswerScore(-0.5, 1, 4.0)], [AnswerScore(merged, 1, 4.0)]),
        dtypes=[torch.bfloat16],
        shape=ModelShape(100, 64),
    )
    assert found.outside == (0,)


def test_different_answers_fail_the_export_and_leave_nothing(lora: Path, tmp_path: Path) -> None:
    change_a_weight(lora / "model_adapter" / "adapter_model.safetensors")
    out = tmp_path / "new" / "out"
    for form, files in (
        ("merged", "merged weights"),
        ("adapter", "exported files"),
        ("full", "exported files"),
    ):
        with pytest.raises(
            ExportFailed, match=rf"^\d of {HELD_OUT} answers of the {files} differ"
        ) as failed:
            export_model(lora, out, form=cast(Form, form))
        assert "download it again, or allow it with --tolerate" in str(failed.value)
        stored = json.loads((lora / "predictions.jsonl").read_text().splitlines()[0])
        assert f"#0 {stored['question']!r}: stored {stored['raw']!r}, now " in str(failed.value)
        assert list(out.parent.iterdir()) == []
    document = export_model(lora, out, tolerate=1)
    assert 0 < document["different"] <= HELD_OUT


def test_a_weight_that_differs_from_the_computed_one_fails_the_export(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export_module._write_merged

    def write_wrongly(full: Path, adapter: Path, staged: Path, dtype: str | None) -> str:
        written = write(full, adapter, staged, dtype)
        change_a_weight(staged / "model.safetensors")
        return written

    monkeypatch.setattr(export_module, "_write_merged", write_wrongly)
    with pytest.raises(ExportFailed, match="than rounding explains") as failed:
        export_model(lora, tmp_path / "out" / "model")
    assert re.search(
        r"#0 .*: log-likelihood -\S+ with the adapter, -\S+ merged \(\S+ tolerance \S+\)",
        str(failed.value).replace("\n", " "),
    ) or "margin" in str(failed.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_not_empty_is_kept_unless_it_is_an_export(
    lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty one is used
    export_model(lora, out, form="adapter")
    with pytest.raises(ExportFailed, match=r"is not empty.*--overwrite"):
        export_model(lora, out)
    assert export_model(lora, out, overwrite=True)["form"] == "merged"
    before = {path: path.read_bytes() for path in out.iterdir()}
    change_a_weight(lora / "model_adapter" / "adapter_model.safetensors")
    with pytest.raises(ExportFailed, match="answers"):
        export_model(lora, out, overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / "export.json").unlink()
    with pytest.raises(ExportFailed, match="is not an earlier export"):
        export_model(lora, out, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}


def test_the_remains_of_a_killed_export_are_removed(lora: Path, tmp_path: Path) -> None:
    export_model(lora, tmp_path / "out", form="adapter")
    # Killed between the two renames of an export that replaces another.
    os.replace(tmp_path / "out", tmp_path / ".out.replaced")
    (tmp_path / ".out.exporting" / "model_full").mkdir(parents=True)
    (tmp_path / ".out.exporting" / "left.json").write_text("{")
    with pytest.raises(ExportFailed, match="is not empty"):
        export_model(lora, tmp_path / "out", form="full")
    export_model(lora, tmp_path / "out", form="full", overwrite=True)
    assert not (tmp_path / "out" / "left.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}


def test_two_exports_into_one_folder_do_not_interfere(lora: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.exporting").mkdir()
    held = os.open(tmp_path / ".out.exporting", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ExportFailed, match="another export is writing"):
            export_model(lora, tmp_path / "out")
        assert (tmp_path / ".out.exporting").exists()
    finally:
        os.close(held)


def test_unsupported_exports_are_refused_with_the_reason(
    lora: Path, tmp_path: Path, train_cases: dict[tuple[str, str], Path]
) -> None:
    full, out = checkpoint_of(train_cases["idefics3", "full"]), tmp_path / "out"
    with pytest.raises(ExportFailed, match="has no adapter for the form merged; try: full"):
        export_model(full, out, form="merged")
    with pytest.raises(ExportFailed, match="dtype 'bfloat16' is for merged weights"):
        export_model(full, out, dtype="bfloat16")
    with pytest.raises(ExportFailed, match="has no model_full"):
        export_model(tmp_path, out)
    (lora / "predictions.jsonl").unlink()
    with pytest.raises(ExportFailed, match=r"no stored predictions to replay.*--no-replay"):
        export_model(lora, out)
    document = export_model(lora, out, with_replay=False)
    assert document["replayed"] == 0
    assert "different" not in document
    (lora / "model_adapter" / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InvalidFlow, match=r"adapter_model.bin is not allowed in an adapter folder"):
        export_model(lora, tmp_path / "other", with_replay=False)
    shutil.rmtree(lora / "model_adapter")
    (lora / "model_full" / "run.json").write_text("{}")
    with pytest.raises(ExportFailed, match="does not say how the checkpoint was made"):
        export_model(lora, tmp_path / "other", with_replay=False)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}
