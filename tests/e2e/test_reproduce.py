"""A run is trained again through the command line, and both are compared."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

import vi
from runyard.cli.main import cli

pytestmark = pytest.mark.e2e

BLOCKS: dict[str, Any] = {
    "name": "short",
    "blocks": [
        {"block": "vi-dataset", "settings": {"maxSamples": 48}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {"maxSteps": 10, "batchSize": 8},
                "validation": {"maxSamples": 8},
                "checkpoint": {"every": {"steps": 1000}},
            },
        },
    ],
}


def runyard(instance: Any, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--data-dir", str(instance.data_dir)])


@pytest.mark.slow
def test_a_reproduced_run_is_identical_and_a_changed_one_is_reported(
    client: vi.Client, instance: Any, finished_run: Any
) -> None:
    original = client.runs.create(BLOCKS)
    client.runs.wait(original.run_id, timeout=120, show_progress=False)
    done = runyard(instance, "runs", "reproduce", original.run_id, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["verdict"] == "identical"
    assert (found["original"], found["comparedSteps"], found["totalSteps"]) == (
        original.run_id,
        10,
        [10, 10],
    )
    assert found["areWeightsSame"] is True and found["weights"][0]["files"]
    assert found["evaluation"]["validation/exactMatch"][0] is not None
    assert found["differences"] == []
    again = client.runs.get(found["reproduction"])
    assert again.metadata.attributes == {"reproduces": original.run_id}
    assert f"Run {again.run_id} reproduces {original.run_id}" in done.stderr
    assert again.status.plan is not None
    assert again.status.plan["microBatchSize"] == {"value": 8, "reason": "flow"}

    other = runyard(instance, "runs", "compare", original.run_id, finished_run.run_id)
    assert other.exit_code == 3
    assert other.stdout.splitlines()[-1] == "Verdict: different"
    (losses,) = [line for line in other.stdout.splitlines() if line.startswith("losses")]
    assert "differ from step 1 on" in losses


def test_a_run_that_is_unfinished_or_unknown_is_not_reproduced(
    client: vi.Client, instance: Any, finished_run: Any, end_run: Any
) -> None:
    held = client.runs.create(
        {"blocks": [{"block": "vi-model", "settings": {"hyperparameters": {"epochs": 10000}}}]}
    )
    refused = runyard(instance, "runs", "reproduce", held.run_id)
    end_run(client, held.run_id)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert f"runyard runs wait {held.run_id}" in refused.stderr
    assert runyard(instance, "runs", "reproduce", "no-such-run").exit_code == 4
