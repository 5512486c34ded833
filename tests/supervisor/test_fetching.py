"""Real supervisors that fetch a checkpoint from the server: of an attempt elsewhere, or of another
run.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir
from tests.support.slow import mark_slow

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]

# Writes down what it resumes from, saves the next step, and ends.
NEXT_STEP = """
import hashlib, json
from pathlib import Path
def train(folder):
    from runyard import rundir
    resume = rundir.read_json(folder / "resume.json")
    manifest = rundir.read_json(Path(resume["folder"]) / "manifest.json") if resume else None
    proven = bool(manifest) and rundir.is_proven(Path(resume["folder"]), manifest)
    (folder / "seen").write_text(json.dumps({"resume": resume, "proven": proven}))
    step = manifest["step"] + 1 if manifest else 1
    checkpoint = folder / "checkpoints" / f"step-{step}"
    (checkpoint / "model_full").mkdir(parents=True)
    (checkpoint / "model_full" / "model.safetensors").write_bytes(b"next")
    sha256 = hashlib.sha256(b"next").hexdigest()
    files = [{"path": "model_full/model.safetensors", "sizeBytes": 4, "sha256": sha256}]
    rundir.write_json(checkpoint / "manifest.json", {
        "checkpoint": f"step-{step}", "step": step, "epoch": 1, "metrics": {}, "isBest": True,
        "time": 9, "files": files})
    result = {"outcome": "Succeeded", "reason": "Completed", "message": ""}
    rundir.write_json(folder / "result.json", result)
    return 0
"""


def add_checkpoint(server: Any, name: str, *, step: int, run_id: str) -> None:
    """Add a checkpoint to the server."""
    files = []
    for path in ("model_full/model.safetensors", "training_state/state.json"):
        content = f"{name} {path}".encode() * 1000
        digest = hashlib.sha256(content).hexdigest()
        server.blobs[digest] = content
        files.append({"path": path, "size_bytes": len(content), "sha256": digest})
    server.resumable.append(
        {
            "run_id": run_id,
            "checkpoint_id": name,
            "step": step,
            "epoch": 1,
            "time": step,
            "files": files,
        }
    )


def read_seen(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "seen").read_text())
    return document


@pytest.mark.parametrize(
    "failure", mark_slow([None, "503", "lose", "cut"], unless=(None, "cut").__contains__)
)
def test_the_checkpoint_of_an_attempt_on_another_machine_comes_from_the_server(
    folder: Path, server: Any, start: Start, failure: str | None
) -> None:
    """Also when every second call fails."""
    add_checkpoint(server, "step-6", step=6, run_id="run-1")
    server.fail = lambda path, times: (
        failure if times % 2 and ("resume" in path or "blobs" in path) else None
    )
    assert start(folder, NEXT_STEP).wait(60) == 0
    fetched = rundir.AttemptDir(folder).fetched.checkpoints / "step-6"
    assert read_seen(folder) == {"resume": {"folder": str(fetched)}, "proven": True}
    assert [report["step"] for report in server.checkpoints] == [7]
    assert server.reports[0]["exit_code"] == 0
    assert not fetched.exists()  # a newer one is stored


def test_another_runs_checkpoint_is_fetched_under_its_name(
    folder: Path, server: Any, start: Start
) -> None:
    add_checkpoint(server, "epoch-2", step=12, run_id="source")
    assert start(folder, NEXT_STEP).wait(20) == 0
    assert read_seen(folder)["resume"]["runId"] == "source"
    assert [report["step"] for report in server.checkpoints] == [13]


def test_a_kill_while_the_server_returns_no_checkpoint_works(
    folder: Path, server: Any, start: Start
) -> None:
    add_checkpoint(server, "epoch-2", step=12, run_id="source")
    server.fail = lambda path, times: "503" if "blobs" in path else None
    supervisor = start(folder, NEXT_STEP)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    with server.changed:
        server.renewal = {"action": "kill", "lease_s": 1.2, "grace_s": 0.5, "epoch": "e1"}
    assert supervisor.wait(20) == 0
    assert not (folder / "seen").exists()
    assert (server.reports[0]["exit_code"], server.reports[0]["group_empty"]) == (75, True)


def test_a_supervisor_killed_while_it_fetches_leaves_an_attempt_that_can_be_settled(
    folder: Path, server: Any, start: Start
) -> None:
    add_checkpoint(server, "epoch-2", step=12, run_id="source")
    server.fail = lambda path, times: "503" if "blobs" in path else None
    first = start(folder, NEXT_STEP)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    first.kill()
    first.wait()
    assert start(folder, NEXT_STEP).wait(20) == 0
    assert server.reports[-1]["group_empty"]
    assert not (folder / "seen").exists()
