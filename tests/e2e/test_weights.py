"""A run starts from the weights of another run end to end, after that run was deleted."""

from pathlib import Path
from typing import Any

import pytest

import vi

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def make_flow(epochs: int, **architecture: str) -> dict[str, Any]:
    return {
        "name": "begun",
        "blocks": [
            {"block": "vi-dataset", "settings": {"maxSamples": 64}},
            {
                "block": "vi-model",
                "settings": {
                    "architecture": {"size": "tiny"} | architecture,
                    "hyperparameters": {"epochs": epochs},
                    "validation": {"maxSamples": 8},
                },
            },
        ],
    }


def test_a_run_starts_from_weights_of_a_run_that_is_deleted_before_it_trains(
    client: vi.Client, finished_run: Any, tmp_path: Path
) -> None:
    first = client.runs.create(make_flow(1))
    client.runs.wait(first.run_id, timeout=300, show_progress=False)
    held = client.runs.create(make_flow(2))  # has the only slot meanwhile
    begun = client.runs.create(make_flow(1, weights=f"run:{first.run_id}/latest"))
    settings = begun.spec.flow.blocks[1].settings
    assert settings["architecture"]["weights"] == f"run:{first.run_id}/epoch-1"
    client.runs.delete(first.run_id)
    for run in (held, begun):
        ended = client.runs.wait(run.run_id, timeout=300, show_progress=False)
        assert ended.condition is not None and ended.condition.value == "Succeeded"
    assert client.models.download(begun.run_id, save_dir=tmp_path, show_progress=False).model_path
