"""Measure what the checks of a request cost, for reading and creating a run, against a revision.

Both revisions run as separate processes over new data folders, with the same Python
environment. Each round makes the same number of requests to both, one right after the other and in
changing order, over one kept connection each. Ratios are those of the medians: of the time that the
client waits, and of the processor time that the server takes. The second is the steadier one on a
shared machine; the first contains the fsync of a create.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 60
# The last revision that authorized the raw path.
BEFORE = "8e25313"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Served:
    """A running server, and one connection to it."""

    process: subprocess.Popen[bytes]
    connection: http.client.HTTPConnection
    headers: dict[str, str]
    runs: str

    def request(self, method: str, path: str, body: bytes | None = None) -> None:
        self.connection.request(method, path, body=body, headers=self.headers)
        response = self.connection.getresponse()
        response.read()
        if response.status not in (200, 201):
            raise SystemExit(f"{method} {path} ended with {response.status}")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BEFORE, help="the revision to compare with")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--reads", type=int, default=1000, help="reads in a round")
    parser.add_argument("--creates", type=int, default=200, help="creates in a round")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {
            "here": stack.enter_context(serve(ROOT / "src", folder / "here-data")),
            "base": stack.enter_context(
                serve(extract(arguments.base, folder / "base"), folder / "base-data")
            ),
        }
        rows = [
            compare("read a run", sides, arguments.rounds, arguments.reads, read_run),
            compare("create a run", sides, arguments.rounds, arguments.creates, create_run),
        ]
    if arguments.json:
        print(json.dumps({"base": arguments.base, "rows": rows}))
    else:
        print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    print("microseconds a request; ratios are those here over those of the base")
    columns = (
        "what",
        "wait_us",
        "base_wait_us",
        "wait_ratio",
        "cpu_us",
        "base_cpu_us",
        "cpu_ratio",
    )
    print("".join(f"{column:>14}" for column in columns))
    for row in rows:
        figures = "".join(f"{row[column]:14.3f}" for column in columns[1:])
        print(f"{row['what']:>14}{figures}")


def extract(revision: str, folder: Path) -> Path:
    """Put the source of an earlier revision into ``folder``, and return where it is."""
    command = ["git", "archive", revision, "src"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


def read_run(served: Served) -> None:
    served.request("GET", f"{served.runs}/r0")


def create_run(served: Served) -> None:
    served.request("PUT", f"{served.runs}/{uuid.uuid4()}", b'{"spec":{}}')


def compare(
    what: str, sides: dict[str, Served], rounds: int, count: int, call: Callable[[Served], None]
) -> dict[str, Any]:
    wait_us: dict[str, list[float]] = {name: [] for name in sides}
    cpu_us: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name in sorted(sides, reverse=round_number % 2 == 0):
            served = sides[name]
            cpu_began, began = served.cpu_s(), time.perf_counter()
            for _ in range(count):
                call(served)
            if round_number:  # the first warms both up
                wait_us[name].append((time.perf_counter() - began) / count * 1e6)
                cpu_us[name].append((served.cpu_s() - cpu_began) / count * 1e6)
    wait = {name: statistics.median(values) for name, values in wait_us.items()}
    # Processor time has a resolution of 10 ms, so it is summed over all rounds.
    total = {name: sum(values) for name, values in cpu_us.items()}
    return {
        "what": what,
        "rounds": rounds,
        "wait_us": wait["here"],
        "base_wait_us": wait["base"],
        "wait_ratio": wait["here"] / wait["base"],
        "cpu_us": total["here"] / rounds,
        "base_cpu_us": total["base"] / rounds,
        "cpu_ratio": total["here"] / total["base"],
    }


@contextmanager
def serve(source: Path, data_dir: Path) -> Iterator[Served]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environ = kept | {
        "PYTHONPATH": str(source),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_PORT": "0",
    }
    environ["RUNYARD_LOG_LEVEL"] = "warning"
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (data_dir / "server.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server of {source} did not start")
            time.sleep(0.05)
        given = json.loads((data_dir / "credentials.json").read_text())
        port = int(given["endpoint"].rstrip("/").rpartition(":")[2])
        headers = {
            "Authorization": f"Bearer {given['secret_key']}",
            "Organization-Id": given["organization_id"],
        }
        connection = http.client.HTTPConnection("127.0.0.1", port)
        served = Served(
            process, connection, headers, f"/workspaces/{given['organization_id']}/runs"
        )
        served.request("PUT", f"{served.runs}/r0", b'{"spec":{}}')
        yield served
        connection.close()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
