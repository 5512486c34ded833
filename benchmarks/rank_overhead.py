"""Measure what a step of a single process costs, against a revision without ranks.

Both revisions train the tiny model in separate processes with the same Python environment, one
right after the other and in changing order. The ratio is that of the medians of the CPU time per
step, which other work on a shared machine affects least. The first steps of each training do not
count.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEFORE = "a7cefdb1"  # the last revision without ranks
LIMIT = 1.01  # times the earlier revision's CPU time

TRAIN = """
import json, sys, time
from pathlib import Path
import runyard.trainer.train as module
from runyard.trainer.main import train_attempt

folder, steps, skipped = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
record, times = module.TrainLoop.record_step, []
def record_step(self, *arguments, **named):
    times.append(time.process_time())
    return record(self, *arguments, **named)
module.TrainLoop.record_step = record_step
assert train_attempt(folder) == 0
cost_ms = 1000 * (times[-1] - times[skipped]) / (steps - 1 - skipped)
(folder / "cost.json").write_text(json.dumps(cost_ms))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BEFORE, help="the revision to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--skipped", type=int, default=20)
    given = parser.parse_args()
    costs: dict[str, list[float]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = {"before": extract_revision(given.base, folder / "before"), "now": ROOT}
        for number in range(given.rounds):
            for name in list(trees)[:: 1 if number % 2 else -1]:
                place = folder / f"{name}-{number}"
                costs[name].append(
                    measure(trees[name], place, steps=given.steps, skipped=given.skipped)
                )
    before, now = (statistics.median(values) for values in costs.values())
    print(f"{given.base}: {before:.2f} ms of CPU time a step, {_format(costs['before'])}")
    print(f"now:      {now:.2f} ms of CPU time a step, {_format(costs['now'])}")
    print(f"ratio of the medians: {now / before:.3f}, the limit is {LIMIT}")
    return 0 if now <= LIMIT * before else 1


def _format(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f} in {len(values)} trainings"


def extract_revision(revision: str, folder: Path) -> Path:
    """Write the sources of a revision to a folder."""
    command = ["git", "-C", str(ROOT), "archive", revision, "src"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def measure(tree: Path, run: Path, *, steps: int, skipped: int) -> float:
    """Train with the sources of ``tree``; return the milliseconds of CPU time of a step."""
    folder = run / "attempts" / "1"
    folder.mkdir(parents=True)
    never = {"every": {"steps": 1_000_000}}
    model = {
        "hyperparameters": {"maxSteps": steps, "epochs": 1000, "batchSize": 8},
        "validation": {"maxSamples": 1, **never},
        "checkpoint": never,
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"maxSamples": 96}, "style": {}},
        {"block": "vi-model", "settings": model, "style": {}},
    ]
    flow = {"name": "test", "schema": "v1", "settings": {}, "blocks": blocks}
    document = {"kind": "Run", "workspaceId": "org", "runId": "run", "spec": {"flow": flow}}
    (folder / "run.json").write_text(json.dumps({"run": document, "attempt": 1, "threads": 1}))
    environ = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN, str(folder), str(steps), str(skipped)]
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    cost: float = json.loads((folder / "cost.json").read_text())
    return cost


if __name__ == "__main__":
    sys.exit(main())
