"""Time and size of reading the curve of a long run.

    python benchmarks/series_speed.py [--steps 1000000] [--folder FOLDER]

The steps of one run are shipped to the real route in this process, with one spike among them. Then
curves are requested: whole, zoomed, and 50 random zooms around the spike, each of which must show
it. Times are the processor time of this process, client included, the best of five requests; sizes
are those of the compressed answers.
"""

import argparse
import asyncio
import gzip
import json
import random
import sys
import tempfile
import time
from array import array
from base64 import b64decode
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import attempts
from tests.support.server import TestServer, open_server

BATCH = 1000
SPIKE = 50.0


async def fill(server: TestServer, total: int) -> float:
    """Ship the steps; return the seconds that took."""
    attempt = await attempts.start(server)
    chance = random.Random(2)  # noqa: S311
    seconds = 0.0
    for first in range(1, total + 1, BATCH):
        lines = [
            json.dumps(
                {
                    "ev": "step",
                    "t": 1_700_000_000_000 + 10 * step,
                    "step": step,
                    "epoch": step / 1000,
                    "values": {
                        "loss": SPIKE if step == total * 7 // 10 else 2 + chance.random() / 10,
                        "learningRate": 1e-4,
                    },
                }
            )
            for step in range(first, min(first + BATCH, total + 1))
        ]
        begun = time.perf_counter()
        answer = await attempt.ship(*lines)
        seconds += time.perf_counter() - begun
        assert answer.status_code == 200, answer.text
    return seconds


async def request(server: TestServer, **query: Any) -> tuple[float, int, Any]:
    """Return milliseconds, bytes and the series of a request."""
    api = await server.api()
    path = server.path("runs/r1/metrics:series")
    best_s = float("inf")
    for _ in range(5):
        begun = time.process_time()
        answer = await api.get(path, params={"keys": "loss", **query})
        best_s = min(best_s, time.process_time() - begun)
    [item] = answer.json()["items"]
    return best_s * 1000, len(gzip.compress(answer.content, 4)), item


def get_maximum(item: Any) -> float:
    numbers = array("f")
    numbers.frombytes(b64decode(item["columns"]["max"]))
    return max(numbers)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    total = arguments.steps
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        async with open_server(Path(folder) / "data") as server:
            seconds = await fill(server, total)
            print(f"{total:,} steps of 2 values in {seconds:.1f} s")
            print("| request | ms | KiB | bucketSteps | buckets |\n|---|---|---|---|---|")
            zooms: dict[str, dict[str, int]] = {
                "whole, 500 points": {"points": 500},
                "whole, 1,000 points": {"points": 1000},
                "a tenth": {"from": total // 2, "to": total // 2 + total // 10},
                "a hundredth": {"from": total // 2, "to": total // 2 + total // 100},
                "a thousandth": {"from": total // 2, "to": total // 2 + total // 1000},
            }
            for name, query in zooms.items():
                ms, size, item = await request(server, **query)
                print(
                    f"| {name} | {ms:.1f} | {size / 1024:.1f} | {item['bucketSteps']:,} | "
                    f"{item['count']} |"
                )
            chance = random.Random(9)  # noqa: S311
            slowest_ms = 0.0
            for _ in range(50):
                width = chance.randrange(1, total)
                first = max(0, total * 7 // 10 - chance.randrange(width))
                ms, _, item = await request(server, **{"from": first, "to": first + width})
                slowest_ms = max(slowest_ms, ms)
                assert get_maximum(item) == SPIKE, (first, width)
            print(f"the spike is in 50 of 50 random zooms; the slowest took {slowest_ms:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main())
