"""The empty flow on a user's own images that it cannot read: every place says so."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi
from tests.support.instance import Instance
from tests.support.receipts import write_receipts

TRAIN_TIMEOUT_S = 500
QUESTIONS = 2000


def read_page(instance: Instance, path: str) -> str:
    """Return a page as a browser that is signed in gets it."""
    origin = instance.endpoint.rstrip("/")
    with httpx2.Client(base_url=origin, trust_env=False) as http:
        signed_in = http.post(
            "/ui/sessions", json={"key": instance.secret_key}, headers={"origin": origin}
        )
        assert signed_in.status_code == 201, signed_in.text
        answer = http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.mark.slow
@pytest.mark.train
def test_the_empty_flow_on_receipts_says_what_it_sees_and_that_nothing_was_learned(
    client: vi.Client, instance: Instance, tmp_path: Path
) -> None:
    assert write_receipts(tmp_path / "receipts", count=QUESTIONS // 4) == QUESTIONS
    imported = client.datasets.import_folder(tmp_path / "receipts", progress=False)
    assert imported.dataset.statistic.asset_total == QUESTIONS // 4
    flow: dict[str, Any] = {
        "name": "receipts",
        "blocks": [{"block": "vi-dataset", "settings": {"datasetId": imported.dataset_id}}],
    }
    seen = "tiny: images become 32 x 32"
    with pytest.warns(UserWarning, match=seen):
        run = client.runs.create(flow=flow)
    assert [finding.code for finding in run.status.findings] == ["TinyImages"]
    assert seen in read_page(instance, f"/ui/runs/{run.run_id}")

    with pytest.warns(UserWarning, match="nothing was learned"):
        run = client.runs.wait(run.run_id, timeout=TRAIN_TIMEOUT_S, show_progress=False)
    plan, progress = run.status.plan, run.status.progress
    assert plan is not None and progress is not None
    assert plan["images"] == {"value": "32 x 32", "reason": seen}
    first, last = run.status.findings
    assert (first.code, last.code) == ("TinyImages", "NothingLearned")
    assert progress.baseline is not None
    for words in (seen, f"{progress.baseline:.4g}", "constant answers", "random weights"):
        assert words in last.message
    assert len({suggestion.setting for suggestion in last.suggestions}) == 3
    assert "nothing was learned" in str(run.status.conditions[-1].message)
    page = read_page(instance, f"/ui/runs/{run.run_id}")
    for words in (seen, "Nothing was learned", "vi-model.architecture.weights=base:NAME"):
        assert words in page
    client.runs.delete(run.run_id)
    client.datasets.delete(imported.dataset_id)
