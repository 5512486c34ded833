"""Compare how many metric values a second our server and MLflow's record, as a ratio.

Both servers run with their defaults on SQLite over new data. In turn, each receives the same steps
of one run over one connection: ours as lines of events by the route of supervisors, MLflow's by
``log-batch``, of which one request takes at most 1,000 values. An answer means that the values are
on disk. The ratio is that of the medians of the rounds; above 1, ours is faster. A second
rate of ours is per second of the server's processor time: what it could do on one core.

    scripts/setup-mlflow && .venv/bin/python benchmarks/ingest_speed.py
"""

import argparse
import http.client
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from server_vs_mlflow import stopping, wait_until

ROOT = Path(__file__).parent.parent
MLFLOW = ROOT / ".venv-mlflow/bin/mlflow"
START_TIMEOUT_S = 300
MOST_IDLE_S = 1.0  # servers close connections that are idle longer
KEYS = ("loss", "learningRate", "gradientNorm", "samplesPerSecond", "tokensPerSecond")
MLFLOW_BATCH = 1000  # values of one request, the most that MLflow takes
START_MS = 1_767_225_600_000


class Recorder(Protocol):
    """A server that records steps of one run."""

    def record(self, first: int, count: int) -> None:
        """Send so many steps in one request, or in as few as the server takes."""


class Connection:
    """One connection to a server, which stays open while it is in use."""

    def __init__(self, endpoint: str, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=60)
        self._headers = {"Content-Type": "application/json", **headers}
        self._used_s = 0.0

    def send(self, method: str, path: str, document: Any) -> Any:
        body = json.dumps(document).encode()
        if time.monotonic() - self._used_s > MOST_IDLE_S:
            self._connection.close()  # the next request opens it again
        try:
            response = self._request(method, path, body)
        except (http.client.RemoteDisconnected, BrokenPipeError):
            self._connection.close()  # it was idle for too long; both servers take a repeat
            response = self._request(method, path, body)
        answer = response.read()
        self._used_s = time.monotonic()
        if response.status not in (200, 201, 204):
            raise OSError(f"{method} {path} ended with {response.status}: {answer[:500]!r}")
        return json.loads(answer) if answer else None

    def _request(self, method: str, path: str, body: bytes) -> http.client.HTTPResponse:
        self._connection.request(method, path, body, self._headers)
        return self._connection.getresponse()


def compute_values(step: int) -> dict[str, float]:
    return {key: math.sin(step + at) + 2 for at, key in enumerate(KEYS)}


@dataclass
class Ours:
    """An attempt of a run on our server."""

    connection: Connection
    process_id: int
    offset: int = 0

    def get_cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process_id}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def record(self, first: int, count: int) -> None:
        lines = [
            json.dumps(
                {
                    "n": step,
                    "t": START_MS + step * 100,
                    "ev": "step",
                    "step": step,
                    "epoch": step / 1000,
                    "totalSteps": 1_000_000,
                    "secondsLeft": 60.0,
                    "values": compute_values(step),
                }
            )
            for step in range(first, first + count)
        ]
        end = self.offset + sum(len(line) + 1 for line in lines)
        message = {
            "stream": "events",
            "offset": self.offset,
            "next_offset": end,
            "lines": lines,
        }
        answer = self.connection.send("POST", "/internal/v1/attempt/lines", message)
        assert answer["offset"] == end, answer
        self.offset = end


@dataclass
class Mlflow:
    """A run on MLflow's server."""

    connection: Connection
    run_id: str

    def record(self, first: int, count: int) -> None:
        per_request = MLFLOW_BATCH // len(KEYS)
        for begin in range(first, first + count, per_request):
            metrics = [
                {"key": key, "value": value, "timestamp": START_MS + step * 100, "step": step}
                for step in range(begin, min(begin + per_request, first + count))
                for key, value in compute_values(step).items()
            ]
            self.connection.send(
                "POST",
                "/api/2.0/mlflow/runs/log-batch",
                {"run_id": self.run_id, "metrics": metrics},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="duration of each measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if not MLFLOW.exists():
        raise SystemExit(f"{MLFLOW} is missing. try: scripts/setup-mlflow")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    rates: dict[tuple[int, str], list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = stack.enter_context(serve_ours(folder / "ours"))
        recorders: dict[str, Recorder] = {
            "mlflow": stack.enter_context(serve_mlflow(folder / "mlflow")),
            "ours": ours,
        }
        steps = dict.fromkeys(recorders, 1)
        for number in range(arguments.rounds):
            for size in (1, 200, 1000):  # steps in a shipment
                for name in sorted(recorders, reverse=number % 2 == 0):
                    until = time.monotonic() + arguments.seconds
                    begun, cpu_s, recorded = time.perf_counter(), ours.get_cpu_s(), 0
                    while time.monotonic() < until:
                        recorders[name].record(steps[name], size)
                        steps[name] += size
                        recorded += size * len(KEYS)
                    rate = recorded / (time.perf_counter() - begun)
                    rates.setdefault((size, name), []).append(rate)
                    if name == "ours":
                        rate = recorded / (ours.get_cpu_s() - cpu_s)
                        rates.setdefault((size, "core"), []).append(rate)
    print_result(rates, as_json=arguments.json)


def print_result(rates: dict[tuple[int, str], list[float]], *, as_json: bool) -> None:
    rows = []
    for size in dict.fromkeys(size for size, _ in rates):
        ours, core, mlflow = (
            statistics.median(rates[size, name]) for name in ("ours", "core", "mlflow")
        )
        rows.append(
            {"steps": size, "ours": ours, "core": core, "mlflow": mlflow, "x": ours / mlflow}
        )
    if as_json:
        print(json.dumps({"keys": len(KEYS), "rows": rows}))
        return
    print(
        "| steps in a shipment | ours, values/s | ours, values/s of its processor time "
        "| MLflow, values/s | x |\n|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['steps']:,} | {row['ours']:,.0f} | {row['core']:,.0f} "
            f"| {row['mlflow']:,.0f} | {row['x']:.1f} |"
        )


@contextmanager
def serve_ours(data_dir: Path) -> Iterator[Ours]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environ = kept | {
        "PYTHONPATH": str(ROOT / "src"),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_PORT": "0",
        "RUNYARD_LOG_LEVEL": "warning",
        "RUNYARD_LEASE_S": "600",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
    )
    with stopping(process):
        file = data_dir / "server.json"
        wait_until(file.exists, process, "our server")
        given = json.loads((data_dir / "credentials.json").read_text())
        endpoint = given["endpoint"].rstrip("/")
        key = {"Authorization": f"Bearer {given['secret_key']}"}
        Connection(endpoint, key).send(
            "PUT", f"/workspaces/{given['organization_id']}/runs/r1", {"spec": {}}
        )
        controller = json.loads((data_dir / "secrets/controller.json").read_text())["key"]
        claim = {
            "claim_id": "c1",
            "machine_id": "m1",
            "host": "here",
            "slots": 1,
            "wait_s": 0,
        }
        claimed = Connection(endpoint, {"Authorization": f"Bearer {controller}"}).send(
            "POST", "/internal/v1/claims", claim
        )
        token = {"Authorization": f"Bearer {claimed['assignment']['token']}"}
        connection = Connection(endpoint, token)
        process_report = {"machine_id": "m1", "boot_id": "b", "pid": 1, "start_ticks": 1}
        connection.send("POST", "/internal/v1/attempt/process", process_report)
        yield Ours(connection, process.pid)


@contextmanager
def serve_mlflow(data_dir: Path) -> Iterator[Mlflow]:
    data_dir.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{data_dir}/mlflow.db"
    command = [str(MLFLOW), "server", "--backend-store-uri", store, "--port", str(port)]
    # One connection uses one worker. Of several, those that answer late are replaced under load.
    command += ["--workers", "1"]
    environ = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    process = subprocess.Popen(
        command,
        cwd=data_dir,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with stopping(process, is_group=True):
        endpoint = f"http://127.0.0.1:{port}"
        create = {"experiment_id": "0", "start_time": START_MS}
        run_ids: list[str] = []

        def is_up() -> bool:
            try:
                answer = Connection(endpoint, {}).send(
                    "POST", "/api/2.0/mlflow/runs/create", create
                )
            except OSError:
                return False
            run_ids.append(answer["run"]["info"]["run_id"])
            return True

        wait_until(is_up, process, "MLflow")
        yield Mlflow(Connection(endpoint, {}), run_ids[0])


if __name__ == "__main__":
    main()
