"""Run the examples of docs/sdk.md unchanged, one after another, against a scripted server."""

import hashlib
import io
import json
import re
import tarfile
from array import array
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("model_full/run.json")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"{}"))
    return buffer.getvalue()


CURVE = {
    "runId": "r-1",
    "key": "loss",
    "bucketSteps": 4,
    "count": 1,
    "total": 3,
    "firstStep": 1,
    "lastStep": 3,
    "fromStep": 0,
    "next": 3,
    "timeStart": 0,
    "columns": {
        "step": b64encode(array("d", [3]).tobytes()).decode(),
        **dict.fromkeys(
            ("time", "epoch", "min", "max", "last"), b64encode(array("f", [1]).tobytes()).decode()
        ),
    },
}


class Lab:
    """Server with one finished run, which records its requests."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.run = run
        self.asked: list[str] = []
        self.archive = archive()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {re.sub('/[0-9a-f-]{36}', '/ID', path)}")
        if path.startswith("/uploads/"):
            return httpx2.Response(204)
        if path.endswith("/preview"):
            return httpx2.Response(200, content=b"\x89PNG")
        if path.startswith("/downloads/"):
            return httpx2.Response(200, content=self.archive)
        if request.method == "DELETE" and "/keys/" not in path:
            return httpx2.Response(200)
        if "no-such-run" in path:
            return httpx2.Response(
                404, json={"message": "run no-such-run not found", "code": "RunNotFound"}
            )
        if "/datasets" in path:
            return httpx2.Response(200, content=json.dumps(self.of_datasets(path)))
        return httpx2.Response(200, content=json.dumps(self.document(path)))

    def of_datasets(self, path: str) -> dict[str, Any]:
        """Return one dataset, with a finished import that has one finding."""
        finding = {
            "file": "labels.json",
            "line": 3,
            "code": "BoxOutside",
            "cause": "too wide",
            "cure": "correct the box",
        }
        conditions = [
            {"condition": name, "status": "Reached"} for name in ("Finished", "Checked", "Received")
        ]
        upload = {"url": "/uploads/token"}
        status = {
            "conditions": conditions,
            "upload": upload,
            "format": "Coco",
            "version": "0123456789abcdef",
        }
        answers: dict[str, dict[str, Any]] = {
            "findings": {"items": [finding]},
            "report": {
                "datasetId": "d1",
                "groups": [{"code": "BoxOutside", "count": 1, "first": [finding]}],
            },
            "versions": {"items": [{"datasetVersionId": "0123456789abcdef"}]},
            "0123456789abcdef": {"datasetVersionId": "0123456789abcdef"},
        }
        session = {"datasetId": "d1", "datasetImportId": "i1", "status": status}
        last = path.rpartition("/")[2]
        if last == "imports" and self.asked[-1].startswith("GET"):
            return {"items": [session]}
        if "/imports" in path and last not in answers:
            return session
        return answers.get(last, {"datasetId": "d1", "name": "shelves"})

    def document(self, path: str) -> dict[str, Any]:
        output = {
            "runId": "r-1",
            "runOutputId": "epoch-3",
            "status": {
                "contents": {
                    "downloadUrl": {"url": "/downloads/x"},
                    "sha256": hashlib.sha256(self.archive).hexdigest(),
                }
            },
        }
        if path.endswith("/logs"):
            return {"items": [], "ended": True}
        if path.endswith("/metrics"):
            return {"items": []}
        if path.endswith(":series"):
            return {"items": [CURVE], "keys": ["loss"]}
        if path.endswith("/outputs"):
            return {"items": [output]}
        if "/outputs/" in path:
            return output
        if path.endswith("/runs"):
            return {"items": [self.run]}
        if path.endswith("/audit"):
            return {
                "items": [
                    {"action": "reject key", "address": "192.0.2.1", "target": "no key", "count": 3}
                ]
            }
        if "/keys" in path:
            return {"keyId": "k-1", "secretKey": "dtvi_" + "s" * 98}
        if "/flows/" in path:
            return {"flowId": "f-1"}
        if "/views" in path:
            view = {"viewId": "v-1", "spec": {"name": "Failed", "filter": "condition:Failed"}}
            return {"items": [view]} if path.endswith("/views") else view
        return {"trainingProjectId": "p-1"} if "/trainingProjects/" in path else self.run


def test_the_examples_run_unchanged(
    run_document: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    key: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lab = Lab(run_document("Pending", "Running", "Succeeded"))
    transport = httpx2.MockTransport(lab)
    monkeypatch.setattr(vi, "Client", partial(vi.Client, transport=transport))
    monkeypatch.setattr(vi, "AsyncClient", partial(vi.AsyncClient, transport=transport))
    monkeypatch.setenv("DATATURE_VI_SECRET_KEY", key)
    monkeypatch.setenv("DATATURE_VI_ORGANIZATION_ID", "lab")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shelves").mkdir()
    (tmp_path / "shelves" / "labels.json").write_text("{}")
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, namespace)  # noqa: S102 - our own page
    printed = capsys.readouterr().out
    assert "run no-such-run not found" in printed
    assert (tmp_path / "models" / "r-1" / "epoch-3" / "model_full" / "run.json").read_text() == "{}"
    assert (tmp_path / "sheet.png").read_bytes() == b"\x89PNG"
    assert "k-1 103" in printed
    assert "192.0.2.1 no key 3" in printed
    assert "labels.json 3 BoxOutside too wide correct the box" in printed
    for call in (
        "PUT /workspaces/lab/runs/ID",
        "PATCH /workspaces/lab/runs/r-1",
        "DELETE /workspaces/lab/runs/r-1",
    ):
        assert call in lab.asked


def test_the_page_names_every_variable_and_the_errors_of_wait() -> None:
    text = PAGE.read_text("utf-8")
    for name in ("SECRET_KEY", "ORGANIZATION_ID", "API_ENDPOINT"):
        assert f"DATATURE_VI_{name}" in text
    for error in (
        "ViRunFailedError",
        "ViRunVanishedError",
        "ViTimeoutError",
        "ViDownloadError",
        "ViConflictError",
    ):
        assert error in text
