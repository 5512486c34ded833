"""Compare our SDK with the published one against the same server: import, list and read of runs.

Absolute times on a shared machine say little, so each round makes the same call with both clients,
one right after the other and in changing order, and the ratio of the medians is what counts. The
server runs without a controller: its 100 runs stay pending and no training disturbs the clock. Both
clients keep one connection open, and the published one has its debug log file switched off, which
is in its favor. A call that returns different runs from both cannot be compared and ends the
program.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import vi

ROOT = Path(__file__).parent.parent
OURS = ROOT / ".venv" / "bin" / "python"
PEER = ROOT / ".venv-vi-sdk" / "bin" / "python"
RUN_COUNT = 100
START_TIMEOUT_S = 60
FIRST_ANSWER = "import vi, sys; client = vi.Client(); print(client.runs.get(sys.argv[1]).run_id)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. ``ratio`` is how many times longer the published client takes."""

    what: str
    ours_ms: float
    peer_ms: float
    ratio: float
    rounds: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=200, help="rounds of each call; fresh processes take a tenth"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the table"
    )
    arguments = parser.parse_args()
    rounds = max(1, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "data") as environ:
        run_ids = make_runs(environ)
        rows = compare_processes(environ, run_ids[0], max(5, rounds // 10)) + compare_calls(
            environ, run_ids, rounds
        )
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}))
    else:
        print_table(rows)


def compare_calls(environ: dict[str, str], run_ids: list[str], rounds: int) -> list[Row]:
    """The calls of two processes that stay, each with its connection open."""
    with caller(OURS, environ, run_ids[0]) as ours, caller(PEER, environ, run_ids[0]) as peer:
        rows = []
        for call, what in (("list", f"list {RUN_COUNT} runs"), ("get", "read one run")):
            for _ in range(5):  # connections, caches and the server's own first use
                ours(call), peer(call)
            # Used at once.
            rows.append(compared(what, lambda: ours(call), lambda: peer(call), rounds))  # noqa: B023
        return rows


def compare_processes(environ: dict[str, str], run_id: str, rounds: int) -> list[Row]:
    """Measure the startup cost of a script: the import, and the first response."""

    def import_ms(python: Path) -> float:
        return process_ms([python, "-c", "import vi"], environ) - process_ms(
            [python, "-c", "pass"], environ
        )

    def answer_ms(python: Path) -> float:
        return process_ms([python, "-c", FIRST_ANSWER, run_id], environ)

    for python in (OURS, PEER):  # compiles what was just installed, so that no round pays for it
        answer_ms(python)
    return [
        compared("import vi", lambda: import_ms(OURS), lambda: import_ms(PEER), rounds),
        compared(
            "start, import, read one run", lambda: answer_ms(OURS), lambda: answer_ms(PEER), rounds
        ),
    ]


def compared(what: str, ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> Row:
    """Alternate who goes first, so that neither always finds the machine as the other left it."""
    ours_ms, peer_ms = [], []
    for number in range(rounds):
        if number % 2:
            ours_ms.append(ours())
            peer_ms.append(peer())
        else:
            peer_ms.append(peer())
            ours_ms.append(ours())
    ours_median, peer_median = statistics.median(ours_ms), statistics.median(peer_ms)
    return Row(
        what=what,
        ours_ms=round(ours_median, 3),
        peer_ms=round(peer_median, 3),
        ratio=round(peer_median / ours_median, 2),
        rounds=rounds,
    )


def process_ms(command: list[str | Path], environ: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        command, env=environ, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    return (time.perf_counter() - began) * 1000


@contextmanager
def caller(python: Path, environ: dict[str, str], run_id: str) -> Iterator[Callable[[str], float]]:
    """A process with a client in it; calling makes one call there and returns its milliseconds."""
    expected = {"list": RUN_COUNT, "get": 1}
    with subprocess.Popen(
        [python, ROOT / "benchmarks" / "calls.py", run_id],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(name: str) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            print(name, file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            if answer["count"] != expected[name] or answer["last"] != run_id:
                raise SystemExit(
                    f"{python} got {answer}, not {expected[name]} runs ending with {run_id}"
                )
            return float(answer["ms"])

        yield call
        process.stdin.close()


@contextmanager
def server(data_dir: Path) -> Iterator[dict[str, str]]:
    """Start a server without a controller over a new data folder.

    Yields the environment that points either client at it.
    """
    environ = {
        **os.environ,
        "VI_ENABLE_FILE": "false",
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_PORT": "0",
    }
    data_dir.mkdir(parents=True)
    with open(data_dir / "server.log", "wb") as log:
        process = subprocess.Popen(
            [OURS, "-m", "runyard.server"], env=environ, stdout=log, stderr=log
        )
        try:
            yield {**environ, **credentials(data_dir, process)}
        finally:
            process.terminate()
            process.wait(30)


def credentials(data_dir: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (data_dir / "server.json").exists() or not (data_dir / "credentials.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start:\n{(data_dir / 'server.log').read_text()}")
        time.sleep(0.05)
    given = json.loads((data_dir / "credentials.json").read_text())
    return {
        "DATATURE_VI_API_ENDPOINT": given["endpoint"],
        "DATATURE_VI_SECRET_KEY": given["secret_key"],
        "DATATURE_VI_ORGANIZATION_ID": given["organization_id"],
    }


def make_runs(environ: dict[str, str]) -> list[str]:
    """Ids of the runs, oldest first: lists end with the first of them."""
    with vi.Client(
        secret_key=environ["DATATURE_VI_SECRET_KEY"],
        organization_id=environ["DATATURE_VI_ORGANIZATION_ID"],
        endpoint=environ["DATATURE_VI_API_ENDPOINT"],
    ) as client:
        return [client.runs.create(flow={"name": f"Run {n}"}).run_id for n in range(RUN_COUNT)]


def machine() -> dict[str, str | int]:
    return {
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def print_table(rows: list[Row]) -> None:
    print(f"{'':30}{'ours':>12}{'vi-sdk':>12}{'ratio':>9}   (medians; ratio: vi-sdk over ours)")
    for row in rows:
        print(
            f"{row.what:30}{row.ours_ms:>9.2f} ms{row.peer_ms:>9.2f} ms{row.ratio:>8.2f}x   "
            f"{row.rounds} rounds"
        )
    print(", ".join(f"{name} {value}" for name, value in machine().items()), file=sys.stderr)


if __name__ == "__main__":
    main()
