"""Time of reading a long log: its end, searches, levels and times.

    python benchmarks/log_speed.py [--lines 10000000] [--folder FOLDER]

The lines of one run are inserted by SQL, with the summaries of their blocks as the server writes
them. Then each request is sent to the real routes in this process, follows its cursor until the
first line is found, and is printed with its whole time, the longest single request, and how many
there were.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runyard.server.services.runs.telemetry import log_index
from runyard.store.telemetry import logs
from runyard.store.telemetry.log_blocks import LINES
from tests.support import attempts
from tests.support.server import TestServer, open_server

BATCH = 100 * LINES
START_MS = 1_700_000_000_000


def make_lines(server: TestServer, first: int, last: int, total: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(first)  # noqa: S311
    needles = {1000: "first", total // 2: "middle", total - 1000: "last"}
    for number in range(first, last + 1):
        text = (
            f"{number} samples read, queue {chance.randrange(100)}, loss {chance.random():.4f}, "
            f"waited {chance.random():.6f} s"
        )
        if number in needles:
            text += f" overflow at the {needles[number]} needle"
        if number == total // 2:
            text = f"WARNING: {text}"
        yield {
            "org": server.org,
            "run_id": "r1",
            "number": number,
            "time": START_MS + number * 10,
            "attempt": 1,
            "stream": "stdout",
            "text": text,
        }


async def fill(server: TestServer, total: int) -> float:
    """Insert the lines; return the seconds that their summaries took."""
    summary_s = 0.0
    for first in range(1, total + 1, BATCH):
        last = min(total, first + BATCH - 1)
        rows = list(make_lines(server, first, last, total))
        await server.services.store.write(partial(logs.add_log_lines, rows=rows))
        summarize = partial(
            log_index.add_complete_blocks,
            org=server.org,
            run_id="r1",
            count_before=first - 1,
            count=last,
        )
        begun = time.perf_counter()
        await server.services.store.write(summarize)
        summary_s += time.perf_counter() - begun
    return summary_s


async def find_first(server: TestServer, query: dict[str, Any]) -> tuple[float, float, int, int]:
    """Return the seconds until the first line, the longest request, requests, and its number."""
    client = await server.api()
    begun, longest, count = time.perf_counter(), 0.0, 0
    while True:
        start = time.perf_counter()
        page = (await client.get(server.path("runs/r1/logs"), params=query)).json()
        longest, count = max(longest, time.perf_counter() - start), count + 1
        if page["items"] or not page["hasMore"]:
            number = page["items"][-1]["number"] if page["items"] else 0
            return time.perf_counter() - begun, longest, count, number
        is_backward = "tail" in query or "before" in query
        query = {name: value for name, value in query.items() if name not in ("tail", "since")}
        query |= {"before": page["previous"]} if is_backward else {"since": page["next"]}


async def measure(folder: Path, total: int) -> None:
    async with open_server(folder, log_max_mib=0) as server:
        # The real clock, by which a request stops.
        server.clock.monotonic_s = time.monotonic  # type: ignore[method-assign]
        await attempts.start(server)
        begun = time.perf_counter()
        summary_s = await fill(server, total)
        inserted_s = time.perf_counter() - begun
        print(f"{total:,} lines inserted in {inserted_s:.0f} s, summaries {summary_s:.0f} s of it")
        middle = START_MS + total // 2 * 10
        queries: dict[str, dict[str, Any]] = {
            "tail of 100 (first request)": {"tail": 100},
            "tail of 100": {"tail": 100},
            "tail of 1000": {"tail": 1000},
            "page in the middle": {"before": total // 2},
            "search from the end, hit near it": {"search": "last needle", "tail": 100},
            "search from the end, hit in the middle": {"search": "middle needle", "tail": 100},
            "search from the end, hit at the start": {"search": "first needle", "tail": 100},
            "search from the start, hit at the end": {"search": "last needle", "since": 0},
            "search without a hit": {"search": "absent", "tail": 100},
            "expression, hit in the middle": {
                "search": "nan|(over|under)flow at the mid", "regex": "true", "tail": 100,
            },
            "expression without a text, hit in the middle": {
                "search": r"^[A-Z]+: \d+", "regex": "true", "tail": 100,
            },
            "digits, hit in the middle": {"search": f" {total // 2} ", "tail": 100},
            "level, hit in the middle": {"level": "warning", "tail": 100},
            "times in the middle": {"after": middle, "to": middle + 5000, "tail": 100},
        }  # fmt: skip
        print(f"{'request':<48}{'first hit s':>12}{'longest s':>11}{'requests':>10}  line")
        for name, query in queries.items():
            taken, longest, count, number = await find_first(server, query)
            print(f"{name:<48}{taken:>12.3f}{longest:>11.3f}{count:>10}  {number:,}")
        client = await server.api()
        begun, size = time.perf_counter(), 0
        async with client.stream("GET", server.path("runs/r1/logs/file")) as answer:
            async for part in answer.aiter_raw():
                size += len(part)
                if time.perf_counter() - begun > 5:
                    break
        print(f"download, compressed: {size / (time.perf_counter() - begun) / 1e6:.1f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the database is made; default: /tmp")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        asyncio.run(measure(Path(folder), given.lines))


if __name__ == "__main__":
    main()
