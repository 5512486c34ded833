"""Attempts of a server in another process: claimed as by a controller, reported as by a supervisor.

Nothing trains; a test says what the trainer reports, so that it decides what a page shows when.
"""

import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx2

RENEW_EVERY_S = 3.0


class FakeTrainer:
    """One attempt of one run, whose lease is renewed until it is closed."""

    def __init__(self, endpoint: str, assignment: dict[str, Any]) -> None:
        headers = {"authorization": f"Bearer {assignment['token']}"}
        self._http = httpx2.Client(base_url=endpoint, headers=headers, trust_env=False)
        self._offsets: dict[str, int] = {}
        self.run_id: str = assignment["run_id"]
        self._post("process", machine_id="m1", boot_id="b", pid=7, start_ticks=8)
        self._has_ended = threading.Event()
        threading.Thread(target=self._renew_lease, daemon=True).start()

    def report(self, event: str, **fields: Any) -> None:
        """Report an event of the trainer, such as ``step`` or ``evaluation``."""
        self.report_many([{"ev": event, **fields}])

    def report_many(self, events: list[dict[str, Any]]) -> None:
        """Report several events at once."""
        now_ms = time.time_ns() // 1_000_000
        self.write("events", *[json.dumps({"n": 1, "t": now_ms, **event}) for event in events])

    def write(self, stream: str, *lines: str) -> None:
        """Write lines of a stream: ``stdout``, ``stderr``, ``samples``, ``system``, ``events``."""
        offset = self._offsets.get(stream, 0)
        end = offset + sum(len(line.encode()) + 1 for line in lines)
        self._post("lines", stream=stream, offset=offset, next_offset=end, lines=list(lines))
        self._offsets[stream] = end

    def save(self, checkpoint: str, *, step: int, file: str = "model.safetensors") -> None:
        """Upload a checkpoint of one file and register it."""
        content = f"{self.run_id} {checkpoint}".encode()
        sha256 = hashlib.sha256(content).hexdigest()
        answer = self._http.put(f"/internal/v1/attempt/blobs/{sha256}", content=content)
        assert answer.status_code == 201, answer.text
        self._post(
            "checkpoints", checkpoint_id=checkpoint, step=step, epoch=1, is_best=True, time=5,
            metrics={"validation/iou": 0.5, "validation/loss": 0.25},
            files=[{"path": f"model_full/{file}", "size_bytes": len(content), "sha256": sha256}],
        )  # fmt: skip

    def step(self, step: int, total: int, *, loss: float, seconds_left: float = 0.0) -> None:
        """Report an optimizer step."""
        self.report(
            "step", step=step, totalSteps=total, epoch=step / total, secondsLeft=seconds_left,
            values={"loss": loss},
        )  # fmt: skip

    def finish(self, code: int = 0, **result: Any) -> None:
        """Report that the attempt has ended."""
        self._has_ended.set()
        self._post(
            "finish", exit_code=code, signal=None, group_empty=True, cause=f"exit code {code}",
            time=5, result=result or None,
        )  # fmt: skip

    def close(self) -> None:
        self._has_ended.set()
        self._http.close()

    def _renew_lease(self) -> None:
        while not self._has_ended.wait(RENEW_EVERY_S):
            with contextlib.suppress(httpx2.HTTPError, RuntimeError):  # down, or closed meanwhile
                self._http.post("/internal/v1/attempt/renew", json={})

    def _post(self, name: str, **message: Any) -> None:
        answer = self._http.post(f"/internal/v1/attempt/{name}", json=message)
        assert answer.status_code < 300, answer.text


def claim_run(endpoint: str, data_dir: Path) -> FakeTrainer:
    """Claim the next waiting run and start its attempt."""
    controller = json.loads((data_dir / "secrets" / "controller.json").read_text())
    headers = {"authorization": f"Bearer {controller['key']}"}
    offer = {
        "claim_id": f"c{time.time_ns()}", "machine_id": "m1", "host": "here", "slots": 1000,
        "wait_s": 0,
    }  # fmt: skip
    with httpx2.Client(base_url=endpoint, headers=headers, trust_env=False) as http:
        answer = http.post("/internal/v1/claims", json=offer)
    assert answer.status_code == 200, answer.text
    assignment = answer.json()["assignment"]
    assert assignment is not None, "there was nothing to claim"
    return FakeTrainer(endpoint, assignment)
