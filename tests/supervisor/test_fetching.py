"""Real supervisors whose training state lies on the server: of an attempt that ran elsewhere, or of another run."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard import processes, rundir

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

Start = Callable[[Path, str], subprocess.Popen[bytes]]

# Says what it was given to resume from, saves the next step, and ends.
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
    files = [{"path": "model_full/model.safetensors", "sizeBytes": 4, "sha256": hashlib.sha256(b"next").hexdigest()}]
    rundir.write_json(checkpoint / "manifest.json", {"checkpoint": f"step-{step}", "step": step, "epoch": 1,
        "metrics": {}, "isBest": True, "time": 9, "files": files})
    rundir.write_json(folder / "result.json", {"outcome": "Succeeded", "reason": "Completed", "message": ""})
    return 0
"""


def holds(server: Any, name: str, *, step: int, run_id: str) -> None:
    """Let the server hold a checkpoint."""
    files = []
    for path in ("model_full/model.safetensors", "training_state/state.json"):
        content = f"{name} {path}".encode() * 1000
        digest = hashlib.sha256(content).hexdigest()
        server.blobs[digest] = content
        files.append({"path": path, "size_bytes": len(content), "sha256": digest})
    server.resumable.append(
        {"run_id": run_id, "checkpoint_id": name, "step": step, "epoch": 1, "time": step, "files": files}
    )


def seen(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "seen").read_text())
    return document


@pytest.mark.parametrize("failure", [None, "503", "lose", "cut"])
def test_the_state_of_an_attempt_that_ran_elsewhere_comes_from_the_server(
    folder: Path, server: Any, start: Start, failure: str | None
) -> None:
    """Also over a line on which every second call fails."""
    holds(server, "step-6", step=6, run_id="run-1")
    server.fail = lambda path, times: failure if times % 2 and ("resume" in path or "blobs" in path) else None
    assert start(folder, NEXT_STEP).wait(60) == 0
    fetched = folder / rundir.FETCHED / rundir.CHECKPOINTS / "step-6"
    assert seen(folder) == {"resume": {"folder": str(fetched)}, "proven": True}
    assert [report["step"] for report in server.checkpoints] == [7]
    assert server.reports[0]["exit_code"] == 0
    assert not fetched.exists()  # a newer one is stored


def test_another_runs_state_is_fetched_under_its_name(folder: Path, server: Any, start: Start) -> None:
    holds(server, "epoch-2", step=12, run_id="source")
    assert start(folder, NEXT_STEP).wait(20) == 0
    assert seen(folder)["resume"]["runId"] == "source"
    assert [report["step"] for report in server.checkpoints] == [13]


def test_a_kill_while_the_server_does_not_hand_out_the_state_works(folder: Path, server: Any, start: Start) -> None:
    holds(server, "epoch-2", step=12, run_id="source")
    server.fail = lambda path, times: "503" if "blobs" in path else None
    supervisor = start(folder, NEXT_STEP)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    with server.changed:
        server.wanted = {"action": "kill", "lease_s": 1.2, "grace_s": 0.5, "epoch": "e1"}
    assert supervisor.wait(20) == 0
    assert not (folder / "seen").exists()
    assert (server.reports[0]["exit_code"], server.reports[0]["group_empty"]) == (75, True)


def test_a_supervisor_killed_while_it_fetches_leaves_an_attempt_that_can_be_settled(
    folder: Path, server: Any, start: Start
) -> None:
    holds(server, "epoch-2", step=12, run_id="source")
    server.fail = lambda path, times: "503" if "blobs" in path else None
    first = start(folder, NEXT_STEP)
    server.wait_for(lambda: any("blobs" in call for call in server.calls))
    first.kill()
    first.wait()
    assert start(folder, NEXT_STEP).wait(20) == 0
    assert server.reports[-1]["group_empty"]
    assert not (folder / "seen").exists()
