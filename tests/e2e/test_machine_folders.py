"""Machines with data folders of their own: what they fetch, and what a deletion leaves there."""

from pathlib import Path
from typing import Any

import pytest

import vi
from runyard import processes, rundir
from runyard.cli.resources import base_models
from runyard.model_folders import ModelFolders
from tests.support.instance import LONG_RECIPE
from tests.support.machines import count_bytes, deploy
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not processes.IS_LINUX, reason="machines need /proc"),
]


def make_flow(**architecture: str) -> dict[str, Any]:
    """Return a flow of two steps."""
    settings = {
        "architecture": {"size": "tiny"} | architecture,
        "hyperparameters": {"epochs": 1, "maxSteps": 2},
        "validation": {"maxSamples": 8},
    }
    return {
        "name": "short",
        "blocks": [
            {"block": "vi-dataset", "settings": {"maxSamples": 64}},
            {"block": "vi-model", "settings": settings},
        ],
    }


DELETED_WITHIN_S = 60


def wait_for(client: vi.Client, run_id: str, condition: str) -> None:
    def has_condition() -> bool:
        run = client.runs.get(run_id)
        assert run.condition is not None
        assert not run.condition.is_final or run.condition.value == condition, run
        return run.condition.value == condition

    eventually(has_condition, timeout_s=120, what=f"run {run_id} is {condition}")


def test_a_deletion_leaves_no_bytes_on_any_machine(tmp_path: Path) -> None:
    server_dir, second_dir = tmp_path / "server", tmp_path / "second"
    with deploy(server_dir) as deployment:
        client = deployment.client()
        deployment.start_machine(server_dir)
        here = client.runs.create(LONG_RECIPE).run_id
        wait_for(client, here, "Running")
        deployment.start_machine(second_dir, SLOTS="2")
        finished = client.runs.create(make_flow()).run_id
        begun = client.runs.create(LONG_RECIPE).run_id
        wait_for(client, finished, "Succeeded")
        wait_for(client, begun, "Running")
        copied = client.runs.create(make_flow(weights=f"run:{finished}/latest")).run_id
        wait_for(client, copied, "Succeeded")
        runs = (finished, begun, copied, here)
        assert all(count_bytes(second_dir, run_id) for run_id in (finished, begun, copied))
        assert count_bytes(second_dir, "weights/") and count_bytes(server_dir, here)
        for run_id in runs:
            client.runs.delete(run_id)
        eventually(
            lambda: (
                not any(
                    count_bytes(folder, *runs, "weights/") for folder in (server_dir, second_dir)
                )
            ),
            timeout_s=DELETED_WITHIN_S,
            what="no machine has bytes of a deleted run",
        )


def test_a_machine_fetches_a_base_model_that_only_the_server_has(tmp_path: Path) -> None:
    server_dir, machine_dir = tmp_path / "server", tmp_path / "machine"
    with deploy(server_dir) as deployment:
        client = deployment.client()
        deployment.start_machine(machine_dir)
        first = client.runs.create(make_flow()).run_id
        wait_for(client, first, "Succeeded")
        model = client.models.download(first, save_dir=tmp_path / "saved", show_progress=False)
        folders = ModelFolders((server_dir / "models",), server_dir)
        base_models.add(
            folders,
            Path(str(model.model_path)),
            "tiny",
            link=False,
            spare_bytes=0,
            on_progress=lambda *_: None,
        )
        run_id = client.runs.create(make_flow(weights="base:tiny")).run_id
        wait_for(client, run_id, "Succeeded")
    [home] = (machine_dir / "weights").glob("*/base-*")
    assert rundir.is_complete(home) and not (machine_dir / "models").exists()
    assert not (server_dir / "weights").exists()
