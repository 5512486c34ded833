"""Plain transformers loads a downloaded checkpoint and reaches the metric of the run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vi
from runyard.flows import resolve
from runyard.trainer.data.datasets import Sample, load_dataset
from vi.api.resources.models.responses import DownloadedModel
from vi.api.resources.runs.responses import Run

PROGRAM = Path(__file__).with_name("plain_transformers.py")


@pytest.fixture(scope="module")
def model(
    client: vi.Client, finished_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> DownloadedModel:
    return client.models.download(
        finished_run.run_id, save_dir=tmp_path_factory.mktemp("model"), show_progress=False
    )


@pytest.fixture(scope="module")
def run_document(model: DownloadedModel) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(model.run_config_path.read_text())
    return found


def settings_of(run_document: dict[str, Any], block: str) -> dict[str, Any]:
    """Return settings as the published client does: of the first block with the word."""
    blocks = run_document["spec"]["flow"]["blocks"]
    found: dict[str, Any] = next(each["settings"] for each in blocks if block in each["block"])
    return found


def held_out(run: Run) -> list[Sample]:
    resolved = resolve(run.spec.flow)
    dataset = load_dataset(
        resolved.dataset.dataset_id,
        seed=resolved.settings.seed,
        validation_fraction=resolved.dataset.validation_fraction,
    )
    return list(dataset.validation)


@pytest.mark.slow
def test_plain_transformers_answers_as_well_as_the_run_reported(
    client: vi.Client,
    finished_run: Run,
    model: DownloadedModel,
    run_document: dict[str, Any],
    tmp_path: Path,
) -> None:
    samples = held_out(finished_run)
    system = settings_of(run_document, "system-prompt")["systemPrompt"]
    questions = []
    for number, sample in enumerate(samples):
        sample.image.save(tmp_path / f"{number}.png")
        questions.append({"image": f"{number}.png", "question": sample.question, "system": system})
    (tmp_path / "questions.json").write_text(json.dumps(questions))

    done = subprocess.run(
        [sys.executable, "-P", PROGRAM, model.model_path, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["imported"] == []

    right = 0
    for answer, sample in zip(answers["answers"], samples, strict=True):
        right += json.loads(answer)["vqa"]["answer"] == sample.truth.text
    accuracy = right / len(samples)
    reported = client.models.get(finished_run.run_id).spec.evaluation_metrics or {}
    # One answer may differ: the trainer evaluates in other batches, and sums in another order
    # differ in their last bits.
    assert accuracy == pytest.approx(reported["validation/exactMatch"], abs=1 / len(samples))
    assert accuracy >= 0.95


def test_the_flow_in_the_model_folder_has_what_the_published_loader_reads(
    run_document: dict[str, Any],
) -> None:
    assert settings_of(run_document, "dataset")["projectKind"] == "vqa"
    assert isinstance(settings_of(run_document, "system-prompt")["systemPrompt"], str)
    model = settings_of(run_document, "model")
    assert model["architecture"]["name"]
    assert model["architecture"]["size"] == "tiny"
    assert model["quantization"]["enabled"] is False
    assert isinstance(model["compute"]["precisionType"], str)
    assert type(model["evaluation"]["max_new_tokens"]) is int
    assert type(model["evaluation"]["temperature"]) is float
    for block in run_document["spec"]["flow"]["blocks"]:
        assert {"block", "settings", "style"} <= set(block)


def test_the_model_folder_has_only_weights_that_run_no_code(model: DownloadedModel) -> None:
    names = {path.name for path in model.model_path.iterdir()}
    assert {"model.safetensors", "config.json", "run.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth", ".py"))]
    assert not (model.model_path.parent / "training_state").exists()
