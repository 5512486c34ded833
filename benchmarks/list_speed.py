"""How long lists, filters, sorts and counts of runs take in the server, by the number of runs.

    python -m benchmarks.list_speed 1000 100000 1000000

Each number is the processor time of the thread that reads and decodes one page of 50 runs, or
counts; at the first page and deep in the list. Stores are made in a temporary folder, a million
runs in some minutes, or in the folder after ``--stores``, where the next run finds them. The
result is a table for RESULTS.md; its last column compares the largest store with the smallest.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from runyard.server.services.runs.filters import parse_filter
from runyard.server.services.runs.listing import parse_order
from runyard.server.services.runs.runs import decode_run
from runyard.store import Store
from runyard.store.lists import run_query
from runyard.store.lists.run_filter import RunFilter
from runyard.store.lists.run_query import RunOrder
from tests.support.many_runs import NEWEST_MS, insert_runs

ORG, SIZE, REPEATS = "bench", 50, 20
FILTERS = (
    "", "condition:Failed", "condition:Pending,Running", "flow:flow-detect", "owner=kim",
    "release=1", "metric.iou>0.6", "metric.iou>0.999", "lora", "name:detect", "-lora",
    "condition:Failed owner=kim", "detect condition:Failed", "duration>9h", "created>7d",
)  # fmt: skip
ORDERS = ("-created", "name", "-duration", "-metric.iou")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--stores", type=Path, help="folder of the stores")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = arguments.stores or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = {count: measure_store(folder, count) for count in arguments.counts}
    print_table(results)


def measure_store(folder: Path, count: int) -> dict[str, list[float]]:
    """Return the milliseconds of each request."""
    path = folder / str(count) / "server.db"
    is_new = not path.exists()
    store = Store(path)
    try:
        if is_new:
            insert_runs(store, count, org=ORG)
        gc.freeze()  # as the server does: a collection of what lives long takes 50 ms
        return measure_requests(store.read, count)
    finally:
        store.close()


def measure_requests(
    read: Callable[[Callable[[Any], Any]], Any], count: int
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for text in FILTERS:
        filter = parse_filter(text)
        for name in ORDERS:
            order = parse_order(name)
            label = f"`{text}` by {name}" if text else f"all by {name}"
            found[label] = time_request(read, partial(read_page, filter=filter, order=order))
        found[f"count of `{text}`" if text else "count of all"] = time_request(
            read, partial(run_query.count, org=ORG, filter=filter, now_ms=NEWEST_MS)
        )
    for name in ORDERS:
        order = parse_order(name)
        position = find_deep_position(read, order, count)
        found[f"all by {name}, deep"] = time_request(
            read, partial(read_page, filter=RunFilter(), order=order, after=position)
        )
    return found


def read_page(connection: Any, filter: RunFilter, order: RunOrder, after: Any = None) -> Any:
    rows = run_query.read_page(
        connection,
        org=ORG,
        filter=filter,
        order=order,
        after=after,
        limit=SIZE + 1,
        now_ms=NEWEST_MS,
    )
    return [decode_run(row.document) for row in rows]


def find_deep_position(read: Any, order: RunOrder, count: int) -> tuple[Any, int]:
    """Return the position after nine tenths of the list."""
    column, table = {
        "created": ("number", "run_list"),
        "name": ("name_key", "run_list"),
        "duration": ("duration", "run_list"),
        "metric": ("value", "run_metrics"),
    }[order.field]
    key = "AND key = 'validation/iou'" if order.field == "metric" else ""
    way = "DESC" if order.is_descending else "ASC"
    statement = (
        f"SELECT {column}, number FROM {table} WHERE org = '{ORG}' {key} "  # noqa: S608
        f"ORDER BY {column} {way}, number {way} LIMIT 1 OFFSET {count * 9 // 10}"
    )
    return tuple(read(lambda tx: tx.exec_driver_sql(statement).one()))


def time_request(read: Any, request: Callable[[Any], Any]) -> list[float]:
    def timed(connection: Any) -> list[float]:
        request(connection)
        taken = []
        for _ in range(REPEATS):
            begin = time.thread_time()
            request(connection)
            taken.append((time.thread_time() - begin) * 1000)
            if sum(taken) > 2000:
                break
        return taken

    measured: list[float] = read(timed)
    return measured


def print_table(results: dict[int, dict[str, list[float]]]) -> None:
    counts = list(results)
    heads = [f"{count:,} runs: p50 / slowest, ms" for count in counts]
    print(f"| request | {' | '.join(heads)} | x |")
    print("|---|" + "---|" * (len(counts) + 1))
    for label in results[counts[0]]:
        taken = [results[count][label] for count in counts]
        cells = [f"{statistics.median(each):.2f} / {max(each):.2f}" for each in taken]
        ratio = statistics.median(taken[-1]) / statistics.median(taken[0])
        print(f"| {label} | {' | '.join(cells)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
