"""Measure how long ``import vi`` and a client take, and the published client of the same name.

Every step runs in a process of its own, all steps in turn in each round, and in changing order. A
bare interpreter of the same environment is a step as well; *over bare* is the difference of the
medians. The ratio is our client over the name of theirs: ``vi.Client(...)`` over ``vi.Client``,
to their advantage.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CREATE_CLIENT = f"import vi; vi.Client('dtvi_{'k' * 98}', 'lab')"
STEPS = {
    "ours: bare": ("ours", "pass"),
    "ours: import vi": ("ours", "import vi"),
    "ours: vi.Client": ("ours", "import vi; vi.Client"),
    "ours: client": ("ours", CREATE_CLIENT),
    "ours: client.runs": ("ours", f"{CREATE_CLIENT}.runs"),
    "ours: AsyncClient": ("ours", CREATE_CLIENT.replace("vi.Client", "vi.AsyncClient")),
    "theirs: bare": ("theirs", "pass"),
    "theirs: import vi": ("theirs", "import vi"),
    "theirs: vi.Client": ("theirs", "import vi; vi.Client"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--vi-sdk", type=Path, default=ROOT / ".venv-vi-sdk/bin/python")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    pythons = {"ours": Path(sys.executable), "theirs": arguments.vi_sdk}
    if not arguments.vi_sdk.exists():
        raise SystemExit(f"{arguments.vi_sdk} is missing. try: scripts/setup-vi-sdk")
    taken_ms: dict[str, list[float]] = {step: [] for step in STEPS}
    for number in range(arguments.rounds + 1):
        for step in sorted(STEPS, reverse=number % 2 == 0):
            side, code = STEPS[step]
            took_ms = time_process(pythons[side], code, is_ours=side == "ours")
            if number:  # the first round fills the cache of files
                taken_ms[step].append(took_ms)
    print_result({step: statistics.median(taken) for step, taken in taken_ms.items()}, arguments)


def time_process(python: Path, code: str, *, is_ours: bool) -> float:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if is_ours:
        environ["PYTHONPATH"] = str(ROOT / "src")
    start_s = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, env=environ)
    return (time.perf_counter() - start_s) * 1000


def print_result(medians_ms: dict[str, float], arguments: argparse.Namespace) -> None:
    over_bare = {
        step: value - medians_ms[f"{STEPS[step][0]}: bare"] for step, value in medians_ms.items()
    }
    ratio = over_bare["ours: client"] / over_bare["theirs: vi.Client"]
    if arguments.json:
        print(json.dumps({"ms": medians_ms, "over_bare_ms": over_bare, "ratio": ratio}))
        return
    print(f"{'step':<20}{'ms':>8}{'over bare':>12}   medians of {arguments.rounds} rounds")
    for step, value in medians_ms.items():
        print(f"{step:<20}{value:8.1f}{over_bare[step]:12.1f}")
    print(f"our client takes {ratio:.0%} of the time of theirs over a bare interpreter")


if __name__ == "__main__":
    main()
