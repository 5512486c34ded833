"""Run the simulation for long: ``python tests/sim/simulate.py --events 10000000 --processes 2``.

A seed that breaks a promise is printed as soon as it is found, and ``--first SEED --log`` prints its history. With
``--rules`` each rule that can be taken out is taken out in turn, and a table says which seeds notice it. With
``--postgresql`` the histories run over a real PostgreSQL that is started for it.
"""

import argparse
import contextlib
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from simulation.simulation import RULES, Outcome, simulate

SAY_EVERY_S = 60.0
SEEDS_A_RULE = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="go on until so many have happened")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--without", choices=RULES, help="leave one rule out")
    parser.add_argument("--rules", action="store_true", help="leave each rule out in turn, and print the table")
    parser.add_argument("--postgresql", action="store_true", help="on a real PostgreSQL instead of SQLite")
    parser.add_argument("--log", action="store_true", help="print the history of the first seed")
    chosen = parser.parse_args()
    logging.disable()  # what the services say about the faults that are wanted here
    if chosen.rules:
        return _table_of_rules(chosen.processes)
    with _database(chosen.postgresql) as url:
        if chosen.log:
            outcome = simulate(chosen.first, without=chosen.without, is_logging=True, postgresql=url)
            print("\n".join(outcome.log), outcome.broken, sep="\n")
            return int(outcome.broken is not None)
        processes = 1 if url else chosen.processes
        return _run(events=chosen.events, first=chosen.first, without=chosen.without, url=url, processes=processes)


def _run(*, events: int, first: int, without: str | None, url: str | None, processes: int) -> int:
    began_s = said_s = time.perf_counter()
    total = seeds = broken = 0
    virtual_s, counts = 0.0, Counter[str]()
    for outcome in _outcomes(itertools.count(first), without=without, url=url, processes=processes):
        total, seeds, virtual_s = total + outcome.events, seeds + 1, virtual_s + outcome.virtual_s
        counts += outcome.counts
        if outcome.broken is not None:
            broken += 1
            print(f"seed {outcome.seed}: {outcome.broken}", flush=True)
        now_s = time.perf_counter()
        if now_s - said_s > SAY_EVERY_S:
            said_s, rate = now_s, total / (now_s - began_s)
            print(f"{total} events, {rate:.0f} a second, {(events - total) / rate:.0f} s to go", flush=True)
        if total >= events:
            break
    took_s, hours = time.perf_counter() - began_s, virtual_s / 3600
    print(f"{seeds} seeds, {total} events, {hours:.1f} virtual hours in {took_s:.0f} s; {broken} broke a promise")
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return int(broken > 0)


def _outcomes(seeds: Iterator[int], *, without: str | None, url: str | None, processes: int) -> Iterator[Outcome]:
    """One history after another, in the order in which they end."""
    if processes == 1:
        for seed in seeds:
            yield simulate(seed, without=without, postgresql=url)
    with ProcessPoolExecutor(processes) as pool:
        under_way = {pool.submit(simulate, next(seeds), without=without) for _ in range(2 * processes)}
        try:
            while True:
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    under_way.add(pool.submit(simulate, next(seeds), without=without))
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _table_of_rules(processes: int) -> int:
    """How many seeds notice that a rule is gone, which is the first, and by what; 1 when one goes unnoticed."""
    is_unnoticed = False
    print("| left out | seeds that notice | the first | by |\n|---|---|---|---|")
    for rule in RULES:
        with ProcessPoolExecutor(processes) as pool:
            outcomes = list(pool.map(_without, [rule] * SEEDS_A_RULE, range(SEEDS_A_RULE)))
        found = [outcome for outcome in outcomes if outcome.broken is not None]
        is_unnoticed = is_unnoticed or not found
        by = Counter(outcome.broken.promise for outcome in found if outcome.broken is not None)
        told = ", ".join(f"invariant {promise} ({count})" for promise, count in by.most_common())
        first = f"seed {found[0].seed}, after {found[0].events:,} events" if found else "-"
        print(f"| {rule} | {len(found)} of {SEEDS_A_RULE} | {first} | {told or '-'} |", flush=True)
    return int(is_unnoticed)


def _without(rule: str, seed: int) -> Outcome:
    return simulate(seed, without=rule)


@contextlib.contextmanager
def _database(is_wanted: bool) -> Iterator[str | None]:
    """The URL of a database of a PostgreSQL of our own, which the tests know how to start."""
    if not is_wanted:
        yield None
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import PostgreSqlServer

    server = PostgreSqlServer()
    try:
        yield server.new_database()
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
