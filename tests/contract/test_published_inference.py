"""The published client's local inference loads our full and adapter models, with equal metrics.

``make vi-inference`` runs this: the client's environment takes a while to create. See
docs/decisions/published-inference.md for the client's requirements that are left out.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.data.datasets import load_dataset
from runyard.trainer.export.export import export_model
from runyard.trainer.main import train_attempt
from tests.trainer.conftest import write_attempt

pytestmark = pytest.mark.skipif(
    not os.environ.get("RUNYARD_VI_INFERENCE"), reason="make vi-inference runs it"
)

PROGRAM = Path(__file__).with_name("published_inference.py")
SEED, ASKED = 7, 40
__all__ = ["write_attempt"]  # a fixture of the trainer's tests


@pytest.fixture(scope="module")
def inference_python(repository: Path) -> Path:
    subprocess.run([repository / "scripts" / "setup-vi-inference"], check=True, timeout=600)
    return repository / ".venv-vi-inference" / "bin" / "python"


def make_blocks(steps: int, **model: Any) -> dict[str, Any]:
    paces = {"validation": {"every": {"steps": steps}}, "checkpoint": {"every": {"steps": steps}}}
    rates = {"maxSteps": steps, "epochs": steps} | (
        {"learningRate": 0.01} if "training" in model else {}
    )
    return {"vi-model": paces | {"hyperparameters": rates} | model}


def train(folder: Path) -> Path:
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return next((folder / "checkpoints").iterdir())


def test_the_published_loader_reproduces_the_measured_answers(
    inference_python: Path, write_attempt: Callable[..., Path], tmp_path: Path
) -> None:
    settings = {"seed": SEED}
    full = train(write_attempt(tmp_path, make_blocks(150), run="full", settings=settings))
    begun = {
        "architecture": {"name": "auto", "weights": str(tmp_path / "models" / "full")},
        "training": {"mode": "lora"},
    }
    folders = {"full": tmp_path / "models" / "full", "lora": tmp_path / "models" / "lora"}
    shutil.copytree(full, folders["full"])
    lora = train(write_attempt(tmp_path, make_blocks(60, **begun), run="lora", settings=settings))
    shutil.copytree(lora, folders["lora"])
    export_model(lora, tmp_path / "models" / "merged" / "model_full")

    cases, stored = [], []
    for run, checkpoint in (("full", full), ("lora", lora), ("merged", lora)):
        lines = [
            json.loads(line) for line in (checkpoint / "predictions.jsonl").read_text().splitlines()
        ][:ASKED]
        samples = load_dataset("digits", seed=SEED, validation_fraction=0.2).validation
        asked = []
        for line in lines:
            make_image_bytes = tmp_path / f"{line['index']}.png"
            samples[line["index"]].image.save(make_image_bytes)
            asked.append([str(make_image_bytes), line["question"]])
        cases.append({"runId": run, "folder": str(tmp_path / "models"), "asked": asked})
        stored.append([line["raw"] for line in lines])
    assert len(set(stored[0])) > 5  # it has learned to distinguish digits

    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [inference_python, PROGRAM, tmp_path / "cases.json"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VI_ENABLE_FILE": "false", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert "vi-inference" in report["client"]
    assert report["found"] == stored
