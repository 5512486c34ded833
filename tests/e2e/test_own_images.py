"""The empty flow on a user's own images that it cannot read: every place says so.

``make own-images`` runs it on 2,000 questions.
"""

import json
import os
from pathlib import Path

import httpx2
import pytest

from tests.support.first_run import FreshInstance, start_instance
from tests.support.receipts import write_receipts

TRAIN_TIMEOUT_S = 1800
QUESTIONS = int(os.environ.get("RUNYARD_TEST_QUESTIONS", "400"))
SEEN = "tiny: images become 32 x 32"


def read_page(instance: FreshInstance, path: str) -> str:
    """Return a page as a browser that is signed in gets it."""
    key = json.loads((instance.data_dir / "credentials.json").read_text())["secret_key"]
    with httpx2.Client(base_url=instance.endpoint, trust_env=False) as http:
        signed_in = http.post(
            "/ui/sessions", json={"key": key}, headers={"origin": instance.endpoint}
        )
        assert signed_in.status_code == 201, signed_in.text
        answer = http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.mark.slow
@pytest.mark.train
def test_the_empty_flow_on_receipts_says_what_it_sees_and_that_nothing_was_learned(
    tmp_path: Path,
) -> None:
    assert write_receipts(tmp_path / "receipts", count=QUESTIONS // 4) == QUESTIONS
    with start_instance(tmp_path) as instance, instance.client() as client:
        imported = client.datasets.import_folder(tmp_path / "receipts", progress=False)
        assert imported.dataset.statistic.asset_total == QUESTIONS // 4
        own = {"block": "vi-dataset", "settings": {"datasetId": imported.dataset_id}}
        with pytest.warns(UserWarning, match=SEEN):
            run = client.runs.create(flow={"name": "receipts", "blocks": [own]})
        assert [finding.code for finding in run.status.findings] == ["TinyImages"]
        page_path = f"/ui/runs/{run.run_id}"
        assert SEEN in read_page(instance, page_path)
        with pytest.warns(UserWarning, match="nothing was learned"):
            run = client.runs.wait(run.run_id, timeout=TRAIN_TIMEOUT_S, show_progress=False)
        page = read_page(instance, page_path)
    plan, progress = run.status.plan, run.status.progress
    assert plan is not None and progress is not None
    assert plan["images"] == {"value": "32 x 32", "reason": SEEN}
    first, last = run.status.findings
    assert (first.code, last.code) == ("TinyImages", "NothingLearned")
    assert progress.baseline is not None
    for words in (SEEN, f"{progress.baseline:.4g}", "constant answers", "random weights"):
        assert words in last.message
    assert len({suggestion.setting for suggestion in last.suggestions}) == 3
    assert "nothing was learned" in str(run.status.conditions[-1].message)
    for words in (SEEN, "Nothing was learned", "vi-model.architecture.weights=base:NAME"):
        assert words in page
