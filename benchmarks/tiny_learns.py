"""Measure what the tiny model learns of each built-in dataset: held-out metrics and seconds.

Each seed makes another split of the scans, other weights and another order, so the median over
seeds says what to expect and the least what may happen. Attempts run one after the other, each in a
process of its own as a supervisor starts them. Seconds of training count from the plan to the last
event, evaluations and checkpoints included. They depend on what else the machine does, so its load
and the processor time of the whole attempt are reported with them.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.rundir import read_json

METRICS = {
    "digits": ("exactMatch",),
    "digits-grounding": ("accuracyAt50", "iou"),
    "digits-both": ("exactMatch", "accuracyAt50", "iou"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training: ``metrics`` of its last evaluation, ``load`` of its last minute."""

    dataset: str
    seed: int
    metrics: dict[str, float]
    steps: int
    train_s: float
    whole_s: float
    processor_s: float
    load: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset",
        action="append",
        choices=sorted(BUILT_IN_DATASETS),
        help="only this one; repeat",
    )
    parser.add_argument(
        "--seed", action="append", type=int, help="a split; repeat (default: 1, 2 and 3)"
    )
    parser.add_argument(
        "--json", type=Path, help="write every training and the medians to this file"
    )
    arguments = parser.parse_args()
    rows = []
    for dataset in arguments.dataset or BUILT_IN_DATASETS:
        for seed in arguments.seed or (1, 2, 3):
            rows.append(trained(dataset, seed))
            print(in_words(rows[-1]), flush=True)
    medians = [
        median(dataset, [row for row in rows if row.dataset == dataset]) for dataset in METRICS
    ]
    found = [each for each in medians if each is not None]
    for each in found:
        print(f"median of {each['seeds']}: {json.dumps(each)}")
    if arguments.json is not None:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        whole = {"machine": machine, "rows": [asdict(row) for row in rows], "medians": found}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


def trained(dataset: str, seed: int) -> Row:
    """Train in a fresh process, and read what came of it."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run" / "attempts" / "1"
        folder.mkdir(parents=True)
        flow = {
            "name": "tiny learns",
            "schema": "v1",
            "tolerations": {},
            "settings": {"seed": seed},
            "blocks": [{"block": "vi-dataset", "settings": {"datasetId": dataset}, "style": {}}],
        }
        run = {"kind": "Run", "workspaceId": "bench", "runId": "run", "spec": {"flow": flow}}
        config = {
            "run": run,
            "attempt": 1,
            "threads": os.cpu_count(),
            "dataDir": root,
            "models": {},
        }
        (folder / "run.json").write_text(json.dumps(config))
        began, used = time.monotonic(), processor_seconds()
        ended = subprocess.run(
            [sys.executable, "-m", "runyard.trainer", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        whole_s, processor_s = time.monotonic() - began, processor_seconds() - used
        result = read_json(folder / "result.json")
        if ended.returncode or result is None or result["outcome"] != "Succeeded":
            raise SystemExit(
                f"{dataset}, seed {seed}: exit code {ended.returncode}\n"
                f"{ended.stdout}{ended.stderr}"
            )
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return Row(
        dataset=dataset,
        seed=seed,
        metrics={name: result["metrics"][f"validation/{name}"] for name in METRICS[dataset]},
        steps=sum(event["ev"] == "step" for event in events),
        train_s=round(training_seconds(events), 1),
        whole_s=round(whole_s, 1),
        processor_s=round(processor_s, 1),
        load=round(os.getloadavg()[0], 2),
    )


def processor_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def training_seconds(events: list[dict[str, Any]]) -> float:
    """From the plan, which is the last thing before the first step, to the last event."""
    (planned,) = (event["t"] for event in events if event["ev"] == "plan")
    return float(events[-1]["t"] - planned) / 1000


def median(dataset: str, rows: list[Row]) -> dict[str, Any] | None:
    """The median and the least of each metric, and the median and the most of the seconds.

    None without trainings.
    """
    if not rows:
        return None
    return {
        "dataset": dataset,
        "seeds": len(rows),
        "metrics": {
            name: statistics.median(row.metrics[name] for row in rows) for name in METRICS[dataset]
        },
        "least": {name: min(row.metrics[name] for row in rows) for name in METRICS[dataset]},
        "trainSeconds": statistics.median(row.train_s for row in rows),
        "mostSeconds": max(row.train_s for row in rows),
        "processorSeconds": statistics.median(row.processor_s for row in rows),
    }


def in_words(row: Row) -> str:
    metrics = "  ".join(f"{name} {value:.3f}" for name, value in row.metrics.items())
    return (
        f"{row.dataset:<16}  seed {row.seed}  {metrics}  {row.steps} steps, {row.train_s:.1f} s of "
        f"training, {row.whole_s:.1f} s in all, {row.processor_s:.1f} s of one core, load "
        f"{row.load:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
