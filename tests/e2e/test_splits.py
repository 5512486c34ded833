"""A dataset with its own split, from the folder to the samples that a run was evaluated on."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vi

pytestmark = pytest.mark.e2e


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write 24 images with a question each: 16 in train/, 4 in valid/, 4 in test/."""
    rows = []
    for number in range(24):
        split = "train" if number < 16 else "valid" if number < 20 else "test"
        name = f"{split}/{number}.png"
        (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (number * 10, 90, 60)).save(tmp_path / "set" / name)
        asked = {"order": 1, "question": "How dark?", "answer": str(number % 3)}
        contents = {"type": "Vqa", "interactions": [asked]}
        asset = {"filename": name, "width": 24, "height": 16}
        rows.append(json.dumps({"id": name, "asset": asset, "contents": contents}) + "\n")
    (tmp_path / "set" / "labels.jsonl").write_text("".join(rows))
    return tmp_path / "set"


def test_a_run_trains_and_validates_on_the_split_of_the_folder(
    client: vi.Client, folder: Path
) -> None:
    imported = client.datasets.import_folder(folder, progress=False)
    assert imported.session.status.splits == {"train": 16, "validation": 4, "test": 4}
    settings: dict[str, Any] = {
        "hyperparameters": {"maxSteps": 2, "batchSize": 8},
        "checkpoint": {"every": {"steps": 1000}},
    }
    data = {"datasetId": imported.dataset_id, "projectKind": "vqa"}
    blocks = [
        {"block": "vi-dataset", "settings": data},
        {"block": "vi-model", "settings": settings},
    ]
    run = client.runs.create({"name": "own split", "blocks": blocks})
    run = client.runs.wait(run.run_id, timeout=120, show_progress=False)
    plan = run.status.plan
    assert plan is not None
    names = ("trainingPictures", "validationPictures", "unusedImages")
    assert [plan[name]["value"] for name in names] == [16, 4, 4]
    assert plan["validationPictures"]["reason"].startswith("its validation split")

    merged = client.datasets.import_folder(folder, name="merged", split="ignore", progress=False)
    assert merged.session.status.splits == {}
    with pytest.raises(vi.ViValidationError):
        client.datasets.import_folder(folder, name="wrong", split="merge", progress=False)
