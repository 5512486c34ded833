"""A server and two machines with data folders of their own: bytes of runs on all of them."""

from pathlib import Path
from typing import Any

import pytest

import vi
from runyard import processes
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
