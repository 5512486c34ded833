"""Compare the requests a second of our server and of MLflow's, both on SQLite, as ratios.

Both servers run with their defaults over new data, ours with keys and MLflow's without. ``wrk``
sends the same kind of request to both in turn, over 16 connections: reading a run, listing 50 of
1,000, creating a run. Ratios are those of the medians of the rounds; above 1, ours is faster.

    apt-get install wrk && scripts/setup-mlflow && .venv/bin/python benchmarks/server_vs_mlflow.py
"""

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
MLFLOW = ROOT / ".venv-mlflow/bin/mlflow"
START_TIMEOUT_S = 120
TARGETS = {"read a run": 45, "list 50 runs": 20, "create a run": 10}


@dataclass(frozen=True)
class Request:
    """What ``wrk`` sends; a ``{uuid}`` in the path is a new one in each request."""

    method: str
    path: str
    body: str = ""


@dataclass
class Server:
    """A running server, and the requests of each kind."""

    endpoint: str
    headers: dict[str, str]
    requests: dict[str, Request] = field(default_factory=dict)

    def send(self, request: Request) -> Any:
        path = request.path.replace("{uuid}", str(uuid.uuid4()))
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        try:
            connection.request(request.method, path, request.body.encode() or None, self.headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status not in (200, 201):
            raise OSError(f"{request.method} {path} ended with {response.status}")
        return json.loads(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="duration of each measurement")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1000, help="runs in both servers beforehand")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing. try: apt-get install wrk")
    if not MLFLOW.exists():
        raise SystemExit(f"{MLFLOW} is missing. try: scripts/setup-mlflow")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            "ours": stack.enter_context(serve_ours(folder / "ours", arguments.runs)),
            "mlflow": stack.enter_context(serve_mlflow(folder / "mlflow", arguments.runs)),
        }
        rates: dict[tuple[str, str], list[float]] = {}
        for number in range(arguments.rounds):
            for what in TARGETS:
                for name in sorted(servers, reverse=number % 2 == 0):
                    rate = measure_rate(servers[name], what, folder, arguments)
                    rates.setdefault((what, name), []).append(rate)
    print_result(rates, as_json=arguments.json)


def print_result(rates: dict[tuple[str, str], list[float]], *, as_json: bool) -> None:
    rows = []
    for what, target in TARGETS.items():
        ours, mlflow = (statistics.median(rates[what, name]) for name in ("ours", "mlflow"))
        rows.append(
            {"what": what, "ours": ours, "mlflow": mlflow, "x": ours / mlflow, "target": target}
        )
    if as_json:
        print(json.dumps({"rows": rows}))
        return
    print("| what | ours, requests/s | MLflow, requests/s | x | target |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {row['ours']:,.0f} | {row['mlflow']:,.0f} | {row['x']:.1f} | "
            f"{row['target']} |"
        )


def measure_rate(server: Server, what: str, folder: Path, arguments: argparse.Namespace) -> float:
    """Return the requests a second that a server answers with success.

    Raises:
        SystemExit: More than one in ten failed, so that the rate means nothing.
    """
    script = folder / "request.lua"
    script.write_text(render_script(server.requests[what], server.headers))
    command = ["wrk", "-t1", f"-c{arguments.connections}", f"-d{arguments.seconds}s"]
    done = subprocess.run(
        [*command, "-s", script, server.endpoint], capture_output=True, text=True, check=True
    )
    total, seconds = re.findall(r"(\d+) requests in ([0-9.]+)s", done.stdout)[0]
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout)))
    if failed * 10 > int(total) or not int(total):
        raise SystemExit(f"{what}: {failed} of {total} requests failed\n{done.stdout}")
    if failed:
        print(f"{what} at {server.endpoint}: {failed} of {total} failed", file=sys.stderr)
    return (int(total) - failed) / float(seconds)


def render_script(request: Request, headers: dict[str, str]) -> str:
    """Return the program of ``wrk`` that builds each request."""
    lines = [f'wrk.method = "{request.method}"', f"wrk.body = {json.dumps(request.body)}"]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    before, _, after = request.path.partition("{uuid}")
    unique = "string.format('%08x-%04x-4%03x-8%03x-%012x', random(), random() % 65536, "
    unique += "random() % 4096, random() % 4096, random())"
    path = f'"{before}" .. {unique} .. "{after}"' if "{uuid}" in request.path else f'"{before}"'
    lines += [
        "math.randomseed(os.time() + tonumber(tostring({}):sub(8), 16) % 100000)",
        "local function random() return math.random(0, 2147483647) end",
        f"request = function() return wrk.format(nil, {path}) end",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def serve_ours(data_dir: Path, runs: int) -> Iterator[Server]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environ = kept | {
        "PYTHONPATH": str(ROOT / "src"),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_PORT": "0",
        "RUNYARD_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
    )
    with stopping(process):
        file = data_dir / "server.json"
        wait_until(file.exists, process, "our server")
        given = json.loads((data_dir / "credentials.json").read_text())
        base = f"/workspaces/{given['organization_id']}/runs"
        headers = {
            "Authorization": f"Bearer {given['secret_key']}",
            "Organization-Id": given["organization_id"],
            "Content-Type": "application/json",
        }
        server = Server(given["endpoint"].rstrip("/"), headers)
        create = Request("PUT", f"{base}/{{uuid}}", '{"spec":{}}')
        created = [server.send(create) for _ in range(runs)]
        server.requests = {
            "read a run": Request("GET", f"{base}/{created[runs // 2]['runId']}"),
            "list 50 runs": Request("GET", f"{base}?s=50"),
            "create a run": create,
        }
        assert len(server.send(server.requests["list 50 runs"])["items"]) == 50
        yield server


@contextmanager
def serve_mlflow(data_dir: Path, runs: int) -> Iterator[Server]:
    data_dir.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{data_dir}/mlflow.db"
    command = [str(MLFLOW), "server", "--backend-store-uri", store, "--port", str(port)]
    # Its supervisor otherwise ends workers that a busy machine keeps from answering for 5 s.
    command += ["--uvicorn-opts", "--timeout-worker-healthcheck 60"]
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
        server = Server(f"http://127.0.0.1:{port}", {"Content-Type": "application/json"})
        base = "/api/2.0/mlflow/runs"
        create = Request(
            "POST", f"{base}/create", '{"experiment_id":"0","start_time":1767225600000}'
        )
        search = Request("POST", f"{base}/search", '{"experiment_ids":["0"],"max_results":50}')

        def is_up() -> bool:
            try:
                server.send(search)
            except OSError:
                return False
            return True

        wait_until(is_up, process, "MLflow")
        created = [server.send(create) for _ in range(runs)]
        run_id = created[runs // 2]["run"]["info"]["run_id"]
        server.requests = {
            "read a run": Request("GET", f"{base}/get?run_id={run_id}"),
            "list 50 runs": search,
            "create a run": create,
        }
        assert len(server.send(search)["runs"]) == 50
        yield server


def wait_until(is_ready: Any, process: "subprocess.Popen[bytes]", what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start")
        time.sleep(0.1)


@contextmanager
def stopping(process: "subprocess.Popen[bytes]", *, is_group: bool = False) -> Iterator[None]:
    """Stop a server and, with ``is_group``, the workers that it started."""
    try:
        yield
    finally:
        if is_group:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
