"""A run resumes from another run end to end, and ends like an uninterrupted one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vi

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def make_flow(epochs: int) -> dict[str, Any]:
    """Return a flow of few steps, with a rate that does not depend on their number."""
    numbers = {"epochs": epochs, "schedule": {"name": "constant", "warmupFraction": 0}}
    return {
        "name": "continued",
        "blocks": [
            {"block": "vi-dataset", "settings": {"maxSamples": 64}},
            {
                "block": "vi-model",
                "settings": {"hyperparameters": numbers, "validation": {"maxSamples": 8}},
            },
        ],
    }


def weights(client: vi.Client, run_id: str, folder: Path) -> dict[str, torch.Tensor]:
    model = client.models.download(run_id, save_dir=folder, show_progress=False)
    found: dict[str, torch.Tensor] = load_file(Path(model.model_path) / "model.safetensors")
    return found


def test_resumed_and_branched_runs_equal_an_uninterrupted_one_bit_for_bit(
    client: vi.Client, finished_run: Any, tmp_path: Path
) -> None:
    """The run they resume from is deleted before they can have started."""
    first = client.runs.create(make_flow(2))
    client.runs.wait(first.run_id, timeout=300, show_progress=False)
    whole = client.runs.create(make_flow(3))  # has the only slot meanwhile
    continued = client.runs.create(make_flow(3), resume_from=first.run_id)
    branched = client.runs.create(make_flow(3), resume_from=(first.run_id, "epoch-1"))
    client.runs.delete(first.run_id)
    runs = [
        client.runs.wait(run.run_id, timeout=300, show_progress=False)
        for run in (whole, continued, branched)
    ]

    origins = [run.spec.resume_from for run in runs]
    assert [origin and origin.checkpoint for origin in origins] == [None, "epoch-2", "epoch-1"]
    events = [line.text for line in client.runs.logs(continued.run_id, stream="events")]
    assert f"Preparing: Resuming from run {first.run_id}, checkpoint epoch-2, step 4" in events
    assert [
        point.step for point in client.runs.metrics(continued.run_id) if "loss" in point.values
    ] == [5, 6]
    expected, *found = [weights(client, run.run_id, tmp_path) for run in runs]
    for tensors in found:
        assert [name for name in expected if not torch.equal(expected[name], tensors[name])] == []
