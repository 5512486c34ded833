"""What a checkpoint says in a fresh process with plain transformers and peft is what it said when it was measured."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.datasets import load_dataset
from runyard.trainer.main import train_attempt

PROGRAM = Path(__file__).with_name("plain_answers.py")
TRAINING: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "lora": {"mode": "lora"},
    "dora": {"mode": "lora", "lora": {"useDora": True, "useRslora": True}},
}
CASES = [(family, mode) for family in ("idefics3", "llava", "qwen3_vl") for mode in ("full", "lora")]
CASES.append(("llava", "dora"))
SEED, SAMPLES, HELD_OUT, STEPS = 7, 40, 3, 12
Said = dict[str, list[str]]


def recipe(architecture: dict[str, Any], mode: str) -> dict[str, dict[str, Any]]:
    return {
        "vi-dataset": {"maxSamples": SAMPLES, "validationFraction": 0.2},
        "vi-model": {
            "architecture": architecture,
            "training": TRAINING[mode],
            "hyperparameters": {"maxSteps": STEPS, "epochs": STEPS, "batchSize": 8, "learningRate": 0.02},
            "validation": {"maxSamples": HELD_OUT, "previews": HELD_OUT, "every": {"steps": STEPS}},
            "checkpoint": {"every": {"steps": STEPS}},
            "evaluation": {"max_new_tokens": 12},
            "compute": {"precisionType": "float32"},  # as the fresh process has it
        },
    }


@pytest.fixture(scope="module")
def said(
    miniature: Callable[[str], Path],
    write_attempt: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    events_of: Callable[[Path, str], list[dict[str, Any]]],
) -> dict[tuple[str, str], tuple[Said, list[str]]]:
    """For each case what the fresh process was told, and what had been said at the last evaluation."""
    home = tmp_path_factory.mktemp("export")
    asked, measured = [], []
    for family, mode in CASES:
        # The tiny preset is an Idefics3; the others begin with a folder.
        architecture = {} if family == "idefics3" else {"name": "auto", "weights": str(miniature(family))}
        folder = write_attempt(home, recipe(architecture, mode), run=f"{family}-{mode}", settings={"seed": SEED})
        assert train_attempt(folder) == 0, (folder / "result.json").read_text()
        previews = events_of(folder, "evaluation")[-1]["previews"]
        samples = load_dataset("digits", seed=SEED, validation_fraction=0.2, max_samples=SAMPLES).validation
        pictures = [folder / f"{n}.png" for n in range(HELD_OUT)]
        for path, sample in zip(pictures, samples, strict=False):
            sample.image.save(path)
        asked.append(
            {
                "checkpoint": str(next((folder / "checkpoints").iterdir())),
                "pictures": [str(path) for path in pictures],
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
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["runyard"]
    return dict(zip(CASES, zip(told["found"], measured, strict=True), strict=True))


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_plain_transformers_and_peft_say_what_was_measured(family: str, mode: str, said: Any) -> None:
    fresh, measured = said[family, mode]
    assert len(measured) == HELD_OUT
    assert all(measured)
    assert fresh["answers"] == measured
    if mode != "full":  # the adapter is what makes the difference
        assert fresh["base"] != measured
