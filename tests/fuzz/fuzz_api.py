"""Send requests generated from the OpenAPI document to a real server, and check the responses.

The server is a separate process on loopback with its own data folder, which is filled first, so
that requests find runs, models, datasets and images. schemathesis generates valid and invalid
requests, and sequences of requests, as admin, controller and supervisor. A failure is a status of
500 or above, a status, content type, header or body that the document lacks, or a 405 without
``Allow``. The access log of the server counts the requests and must not contain a status of 500 or
above.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

import vi
from runyard.datasets.samples import write

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = ROOT / ".venv-schemathesis" / "bin" / "st"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance"
)
START_TIMEOUT_S, END_TIMEOUT_S, SEED_TIMEOUT_S = 60.0, 30.0, 60.0
# What each kind of credential may call, by paths of the document, and its share of the requests.
SHARES = {
    "admin": ("^/(workspaces|health|openapi)", 0.8),
    "controller": ("^/internal/v1/(claims|machines)", 0.05),
    "supervisor": ("^/internal/v1/attempt", 0.15),
}
ACCESS = re.compile(rb'^\{"time":.*"method":"(\w+)","path":"([^"]*)","status":(\d+)', re.MULTILINE)


class Server:
    """Server process with its own data folder; ``log`` is its output so far."""

    def __init__(self, folder: Path) -> None:
        self._log_file = folder / "server.log"
        self.data_dir = folder / "data"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
        }
        settings = {
            "RUNYARD_DATA_DIR": str(self.data_dir),
            "RUNYARD_PORT": "0",
            "RUNYARD_LOG_LEVEL": "info",
        }
        with open(self._log_file, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runyard.server"], env=kept | settings, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.data_dir / "server.json").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{self._log_file.read_text()}")
            time.sleep(0.05)
        credentials = json.loads((self.data_dir / "credentials.json").read_text())
        self.endpoint = str(credentials["endpoint"]).rstrip("/")
        self.org, self.key = credentials["organization_id"], credentials["secret_key"]
        self.controller_key = json.loads(
            (self.data_dir / "secrets" / "controller.json").read_text()
        )["key"]

    @property
    def log(self) -> bytes:
        return self._log_file.read_bytes()

    def requests(self) -> list[tuple[str, str, int]]:
        """Return method, path and status of every request so far."""
        return [
            (method.decode(), path.decode(), int(status))
            for method, path, status in ACCESS.findall(self.log)
        ]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(END_TIMEOUT_S)


def fill(server: Server, folder: Path) -> tuple[dict[str, list[str]], str]:
    """Create one of each resource.

    Return known ids by path parameter, and the token of an attempt.
    """
    base, org = server.endpoint, server.org
    with (
        vi.Client(secret_key=server.key, organization_id=org, endpoint=f"{base}/") as client,
        httpx2.Client(base_url=base, headers={"authorization": f"Bearer {server.key}"}) as api,
        httpx2.Client(
            base_url=base, headers={"authorization": f"Bearer {server.controller_key}"}
        ) as controller,
    ):
        workspace = f"/workspaces/{org}"
        for path, body in {
            "flows/flow-1": {"spec": {"name": "A flow"}},
            "trainingProjects/project-1": {"spec": {"name": "A project", "datasetId": "digits"}},
            "runs/run-1": {"spec": {}, "metadata": {"attributes": {"team": "fuzz"}}},
            "runs/run-2": {"spec": {"flowId": "flow-1"}},
            "runs/run-3": {"spec": {"trainingProject": "project-1"}},
        }.items():
            _ok(api.put(f"{workspace}/{path}", json=body))
        (folder / "sample").mkdir()
        write("digits-grounding", folder / "sample", count=4)
        imported = client.datasets.import_folder(folder / "sample", name="fuzz", progress=False)
        dataset_id = imported.dataset.dataset_id
        dataset = f"{workspace}/datasets/{dataset_id}"
        listed = _ok(api.get(f"{dataset}/assets")).json()["items"]
        annotated = _ok(api.get(f"{dataset}/assets/{listed[0]['assetId']}/annotations")).json()[
            "items"
        ]
        export = _ok(api.post(f"{dataset}/datasetExports", json={"spec": {}})).json()
        files = {"spec": {"assets": [{"filename": "later.png", "size": 9, "kind": "Image"}]}}
        source = f"{dataset}/assetSources/managed/datature/default"
        ingestion = _ok(api.post(f"{source}/assetIngestionSessions", json=files)).json()
        soon = {"spec": {"uploadBefore": int(time.time() * 1000) + 3_600_000}}
        session = _ok(api.post(f"{dataset}/annotationImportSessions", json=soon)).json()
        imports = _ok(api.get(f"{dataset}/imports")).json()["items"]
        versions = _ok(api.get(f"{dataset}/versions")).json()["items"]
        tokens = [_claim(controller, number) for number in (1, 2)]
        _train(httpx2.Client(base_url=base, headers={"authorization": f"Bearer {tokens[0]}"}))
        _report(httpx2.Client(base_url=base, headers={"authorization": f"Bearer {tokens[1]}"}))
    known = {
        "org": [org],
        "run_id": ["run-1", "run-2", "run-3"],
        "flow_id": ["flow-1"],
        "project_id": ["project-1"],
        "dataset": [dataset_id, f"{org}_{dataset_id}"],
        "asset_id": [_id(asset) for asset in listed],
        "annotation_id": [_id(annotation) for annotation in annotated],
        "filename": ["later.png"],
        "import_id": [_id(item) for item in imports],
        "session_id": [_id(ingestion), _id(session)],
        "export_id": [_id(export)],
        "version": ["v1", *(_id(version) for version in versions)],
        "checkpoint": ["epoch-1", "latest", "best"],
        "machine_id": ["machine-1"],
        "part": ["1"],
    }
    return known, tokens[1]


def _id(document: dict[str, Any]) -> str:
    """Return the id of a document: the last part of its link."""
    return str(document["selfLink"].rpartition("/")[2])


def _claim(controller: httpx2.Client, number: int) -> str:
    offer = {
        "claim_id": f"claim-{number}",
        "machine_id": "machine-1",
        "host": "here",
        "slots": 1,
        "wait_s": 0,
    }
    answer = _ok(controller.post("/internal/v1/claims", json=offer))
    return str(answer.json()["assignment"]["token"])


def _report(supervisor: httpx2.Client) -> None:
    process = {"machine_id": "machine-1", "boot_id": "boot", "pid": 1, "start_ticks": 1}
    _ok(supervisor.post("/internal/v1/attempt/process", json=process))


def _train(supervisor: httpx2.Client) -> None:
    """Report one step, a checkpoint and a successful end, like a supervisor."""
    _report(supervisor)
    line = json.dumps(
        {"n": 1, "t": 1_700_000_000_000, "ev": "step", "step": 1, "values": {"loss": 0.5}}
    )
    shipped = {"stream": "events", "offset": 0, "next_offset": len(line) + 1, "lines": [line]}
    _ok(supervisor.post("/internal/v1/attempt/lines", json=shipped))
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    _ok(supervisor.put(f"/internal/v1/attempt/blobs/{digest}", content=b"test"))
    checkpoint = {
        "checkpoint_id": "epoch-1",
        "step": 1,
        "epoch": 1,
        "metrics": {"exactMatch": 0.5},
        "is_best": True,
        "time": 1_700_000_000_000,
        "files": [{"path": "model.safetensors", "size_bytes": 4, "sha256": digest}],
    }
    _ok(supervisor.post("/internal/v1/attempt/checkpoints", json=checkpoint))
    end = {"exit_code": 0, "signal": None, "group_empty": True, "cause": "", "time": 5}
    _ok(
        supervisor.post(
            "/internal/v1/attempt/finish", json=end | {"result": {"outcome": "Succeeded"}}
        )
    )


def _ok(answer: httpx2.Response) -> httpx2.Response:
    if answer.status_code >= 300:
        raise SystemExit(
            f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"
        )
    return answer


def fuzz(
    server: Server,
    known: dict[str, list[str]],
    credentials: dict[str, str],
    args: argparse.Namespace,
) -> bool:
    """Send the requests; return True if no check failed."""
    is_good = True
    ends_s = time.monotonic() + args.seconds
    document = Path(args.folder) / "openapi.json"
    operations = _save_document(server, document)
    for name, (paths, share) in SHARES.items():
        target_count = round(args.requests * share)
        round_number, before = 0, len(server.requests())
        while (
            sent := len(server.requests()) - before
        ) < target_count and time.monotonic() < ends_s:
            examples = max(1, (target_count - sent) // operations[name])
            environ = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": "fuzz_hooks",
                "PYTHONPATH": str(Path(__file__).parent),
                "RUNYARD_FUZZ_IDS": json.dumps(known),
            }
            phases = (
                "fuzzing"
                if target_count < 20 * operations[name]
                else "examples,coverage,fuzzing,stateful"
            )
            command = [
                *(str(SCHEMATHESIS), "run", str(document), "--url", server.endpoint, "--no-color"),
                *("--header", f"Authorization: Bearer {credentials[name]}"),
                *(
                    "--checks",
                    CHECKS,
                    "--include-path-regex",
                    paths,
                    "--phases",
                    phases,
                    "--continue-on-failure",
                ),
                *(
                    "--max-examples",
                    str(min(examples, args.examples)),
                    "--seed",
                    str(args.seed + round_number),
                ),
                *(
                    "--generation-database",
                    "none",
                    "--request-timeout",
                    "30",
                    "--warnings",
                    "off",
                    "--no-shrink",
                ),
                *("--suppress-health-check", "all"),
            ]
            result = subprocess.run(
                command, env=environ, capture_output=True, text=True, check=False, cwd=args.folder
            )
            sent = len(server.requests()) - before
            print(
                f"--- {name}, round {round_number + 1}: {sent} of {target_count} requests",
                flush=True,
            )
            if result.returncode != 0:
                is_good = False
                print(result.stdout[-args.output :], result.stderr[-4000:])
                break
            round_number += 1
    return is_good


def _save_document(server: Server, path: Path) -> dict[str, int]:
    """Write the OpenAPI document as served; return the number of operations of each credential."""
    headers = {"authorization": f"Bearer {server.key}"}
    answer = httpx2.get(f"{server.endpoint}/openapi.json", headers=headers)
    path.write_bytes(answer.content)
    return {
        name: sum(
            len(methods)
            for found, methods in answer.json()["paths"].items()
            if re.search(paths, found)
        )
        for name, (paths, _) in SHARES.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=5000, help="requests to send, about")
    parser.add_argument(
        "--seconds", type=int, default=1500, help="begin no further round after this time"
    )
    parser.add_argument(
        "--examples", type=int, default=40, help="most examples of one operation in a round"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=int, default=20_000, help="characters of a report to print"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runyard-fuzz-") as folder:
        args.folder = folder
        server = Server(Path(folder))
        try:
            known, token = fill(server, Path(folder))
            filled = len(server.requests())
            credentials = {
                "admin": server.key,
                "controller": server.controller_key,
                "supervisor": token,
            }
            is_good = fuzz(server, known, credentials, args)
            sent = server.requests()[filled:]
        finally:
            server.stop()
        statuses = Counter(status for _, _, status in sent)
        failed = [line for line in sent if line[2] >= 500]
        print(f"{len(sent)} requests; by status: {dict(sorted(statuses.items()))}")
        for method, path, status in failed[:20]:
            print(f"{status}: {method} {path}")
        if failed:
            print(server.log.decode(errors="replace")[-6000:])
    return 0 if is_good and not failed and len(sent) >= args.requests * 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
