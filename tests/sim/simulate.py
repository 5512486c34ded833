"""Run many seeds: ``python tests/sim/simulate.py 1000``; a seed that breaks a promise is printed with its history."""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from simulation.simulation import RULES, Outcome, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="?", default=200, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--without", choices=RULES, help="leave one rule out")
    parser.add_argument("--log", action="store_true", help="print the history of the first seed")
    chosen = parser.parse_args()
    if chosen.log:
        outcome = simulate(chosen.first, without=chosen.without, is_logging=True)
        print("\n".join(outcome.log), outcome.broken, sep="\n")
        return int(outcome.broken is not None)
    began_s, total, counts, failed = time.perf_counter(), 0, Counter[str](), list[Outcome]()
    virtual_s = 0.0
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    with ProcessPoolExecutor(chosen.processes) as pool:
        for outcome in pool.map(_one, seeds, [chosen.without] * len(seeds)):
            total += outcome.events
            virtual_s += outcome.virtual_s
            counts += outcome.counts
            if outcome.broken is not None:
                failed.append(outcome)
                print(f"seed {outcome.seed}: {outcome.broken}", flush=True)
    took_s = time.perf_counter() - began_s
    hours = virtual_s / 3600
    print(f"{len(seeds)} seeds, {total} events, {hours:.1f} virtual hours in {took_s:.0f} s; {len(failed)} broken")
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return int(bool(failed))


def _one(seed: int, without: str | None) -> Outcome:
    return simulate(seed, without=without)


if __name__ == "__main__":
    sys.exit(main())
