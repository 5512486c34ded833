"""Runs the simulation for long: ``python -m tests.sim.simulate --events 10000000 --processes 2``.

A seed that violates an invariant is printed at once, and ``--first SEED --log`` prints its history.
With ``--rules`` each rule is disabled in turn, and a table shows which seeds detect it. With
``--postgresql`` the histories run on a real PostgreSQL that is started for them.
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

from tests.sim.simulation.simulation import RULES, Outcome, simulate
from tests.support.postgresql import PostgreSqlServer

PRINT_EVERY_S = 60.0
SEEDS_A_RULE = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events", type=int, default=200_000, help="simulate until this many events have happened"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--without", choices=RULES, help="disable one rule")
    parser.add_argument(
        "--rules", action="store_true", help="disable each rule in turn, and print the table"
    )
    parser.add_argument(
        "--postgresql", action="store_true", help="on a real PostgreSQL instead of SQLite"
    )
    parser.add_argument("--log", action="store_true", help="print the history of the first seed")
    chosen = parser.parse_args()
    logging.disable()  # the services' messages about injected faults
    if chosen.rules:
        return _print_rule_table(chosen.processes)
    with _database(chosen.postgresql) as url:
        if chosen.log:
            outcome = simulate(
                chosen.first, without=chosen.without, is_logging=True, postgresql=url
            )
            print("\n".join(outcome.log), outcome.violation, sep="\n")
            return int(outcome.violation is not None)
        processes = 1 if url else chosen.processes
        return _run(
            events=chosen.events,
            first=chosen.first,
            without=chosen.without,
            url=url,
            processes=processes,
        )


def _run(*, events: int, first: int, without: str | None, url: str | None, processes: int) -> int:
    began_s = printed_s = time.perf_counter()
    total = seeds = violations = 0
    virtual_s, counts = 0.0, Counter[str]()
    for outcome in _simulate_seeds(
        itertools.count(first), without=without, url=url, processes=processes
    ):
        total, seeds, virtual_s = total + outcome.events, seeds + 1, virtual_s + outcome.virtual_s
        counts += outcome.counts
        if outcome.violation is not None:
            violations += 1
            print(f"seed {outcome.seed}: {outcome.violation}", flush=True)
        now_s = time.perf_counter()
        if now_s - printed_s > PRINT_EVERY_S:
            printed_s, rate = now_s, total / (now_s - began_s)
            print(
                f"{total} events, {rate:.0f} a second, {(events - total) / rate:.0f} s to go",
                flush=True,
            )
        if total >= events:
            break
    took_s, hours = time.perf_counter() - began_s, virtual_s / 3600
    print(
        f"{seeds} seeds, {total} events, {hours:.1f} virtual hours in {took_s:.0f} s; "
        f"{violations} violated an invariant"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return int(violations > 0)


def _simulate_seeds(
    seeds: Iterator[int], *, without: str | None, url: str | None, processes: int
) -> Iterator[Outcome]:
    """Yield one history after another, in the order in which they end."""
    if processes == 1:
        for seed in seeds:
            yield simulate(seed, without=without, postgresql=url)
    with ProcessPoolExecutor(processes) as pool:
        pending = {
            pool.submit(simulate, next(seeds), without=without) for _ in range(2 * processes)
        }
        try:
            while True:
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ended:
                    pending.add(pool.submit(simulate, next(seeds), without=without))
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _print_rule_table(processes: int) -> int:
    """Print which seeds detect each disabled rule; return 1 if a rule is not detected."""
    is_undetected = False
    print("| disabled | seeds that detect it | the first | by |\n|---|---|---|---|")
    for rule in RULES:
        with ProcessPoolExecutor(processes) as pool:
            list_outcomes = list(
                pool.map(_simulate_without, [rule] * SEEDS_A_RULE, range(SEEDS_A_RULE))
            )
        found = [outcome for outcome in list_outcomes if outcome.violation is not None]
        is_undetected = is_undetected or not found
        by = Counter(
            outcome.violation.invariant for outcome in found if outcome.violation is not None
        )
        detected_by = ", ".join(
            f"invariant {invariant} ({count})" for invariant, count in by.most_common()
        )
        first = f"seed {found[0].seed}, after {found[0].events:,} events" if found else "-"
        print(
            f"| {rule} | {len(found)} of {SEEDS_A_RULE} | {first} | {detected_by or '-'} |",
            flush=True,
        )
    return int(is_undetected)


def _simulate_without(rule: str, seed: int) -> Outcome:
    return simulate(seed, without=rule)


@contextlib.contextmanager
def _database(is_wanted: bool) -> Iterator[str | None]:
    """Start a PostgreSQL on request, and yield the URL of a database."""
    if not is_wanted:
        yield None
        return
    server = PostgreSqlServer()
    try:
        yield server.new_database()
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
