"""A mixture of datasets and a validation dataset, from the SDK to the evaluated samples."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vi

pytestmark = pytest.mark.e2e


def make_folder(folder: Path, count: int, shade: int) -> Path:
    """Write images in two class folders, each image of another color."""
    for number in range(count):
        place = folder / ("dark" if number % 2 else "light")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (number * 5, shade, 60)).save(place / f"{number}.png")
    return folder


def test_a_run_trains_on_a_mixture_and_validates_on_another_dataset(
    client: vi.Client, tmp_path: Path
) -> None:
    counts = {"shelves": 12, "receipts": 8, "held-out": 5}
    ids = [
        client.datasets.import_folder(
            make_folder(tmp_path / name, count, 40 * shade), name=name, progress=False
        ).dataset_id
        for shade, (name, count) in enumerate(counts.items())
    ]
    data: dict[str, Any] = {
        "datasetId": ids[0],
        "weight": 3,
        "mixture": [{"datasetId": ids[1], "weight": 1}],
        "validationDataset": {"datasetId": ids[2]},
    }
    model = {"hyperparameters": {"maxSteps": 2, "batchSize": 10}}
    flow = {
        "name": "mixture",
        "blocks": [
            {"block": "vi-dataset", "settings": data},
            {"block": "vi-model", "settings": model},
        ],
    }
    checked = client.flows.check(flow)
    assert checked.plan is not None
    assert checked.plan["mixedDataset1"]["reason"] == "8 images, 25.0% of the samples"
    assert checked.plan["validationDataset"]["reason"] == "5 images, held out"
    assert checked.plan["trainingSamples"]["value"] == 20
    run = client.runs.wait(client.runs.create(flow).run_id, timeout=120, show_progress=False)
    assert run.status.plan is not None
    plan = {name: item["value"] for name, item in run.status.plan.items()}
    assert (plan["trainingSamples"], plan["validationDataset"]) == (20, ids[2])
    assert (plan["trainingPictures"], plan["validationPictures"]) == (20, 5)
    pinned = run.spec.flow.blocks[0].settings
    assert all(
        each["datasetVersion"] for each in (pinned, *pinned["mixture"], pinned["validationDataset"])
    )
