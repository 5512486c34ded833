"""Compare ways to store trained weights in 16 bits by what the tiny model learns with them.

    .venv/bin/python benchmarks/weight_precision.py [--case fine-tuning] [--seed 1 --seed 2]

Two cases: training from scratch, and fine-tuning the result at a rate so low that most updates are
smaller than the distance between two bfloat16 numbers. Each way trains with the same samples in the
same order for every seed; the losses are those of held-out samples.
"""

import argparse
import contextlib
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STEPS = {"from-scratch": 120, "fine-tuning": 120}
PRETRAINING_STEPS = 100
FINE_TUNING_RATE = 5e-5
WAYS = {
    "float32": "float32 weights and arithmetic",
    "mixed": "float32 weights, bfloat16 arithmetic",
    "nearest": "bfloat16 weights, rounded to the nearest",
    "compensated": "bfloat16 weights, the rounding error kept in bfloat16 (Kahan)",
    "stochastic": "bfloat16 weights, rounded at random",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=sorted(STEPS), help="repeat; else both")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="repeat; else all")
    parser.add_argument("--seed", action="append", type=int, help="repeat (default: 1 to 4)")
    parser.add_argument("--json", type=Path, help="write all losses to this file")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for seed in arguments.seed or [1, 2, 3, 4]:
            for case in arguments.case or list(STEPS):
                start = pretrain(Path(place), seed) if case == "fine-tuning" else None
                for way in arguments.way or list(WAYS):
                    began = time.monotonic()
                    found = run(Path(place), case=case, way=way, seed=seed, start=start)
                    row = {"case": case, "way": way, "seed": seed, "loss": found}
                    rows.append(row | {"seconds": round(time.monotonic() - began, 1)})
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the losses, and their ratios to those of float32 weights with the same seed."""
    losses = {(row["case"], row["way"], row["seed"]): row["loss"] for row in rows}
    for case in dict.fromkeys(row["case"] for row in rows):
        seeds = sorted({seed for found, _, seed in losses if found == case})
        print(f"\n| {case} | loss (median) | ratio to mixed: median | least | most |")
        print("|---|---|---|---|---|")
        for way in WAYS:
            found = [losses[case, way, seed] for seed in seeds if (case, way, seed) in losses]
            if not found:
                continue
            median = statistics.median(found)
            ratios = [
                losses[case, way, seed] / losses[case, "mixed", seed]
                for seed in seeds
                if (case, "mixed", seed) in losses
            ]
            shown = (
                ""
                if not ratios
                else " | ".join(
                    f"{value:.3f}"
                    for value in (statistics.median(ratios), min(ratios), max(ratios))
                )
            )
            print(f"| {WAYS[way]} | {median:.4f} | {shown} |")


def pretrain(place: Path, seed: int) -> Path:
    """Return the weights of a short training from scratch, of other samples."""
    folder = place / f"pretraining-{seed}"
    blocks = make_blocks(steps=PRETRAINING_STEPS, way="float32", rate=3e-3, weights=None)
    train(folder, blocks, way="float32", seed=seed + 100)
    return next((folder / "checkpoints").iterdir()) / "model_full"


def run(place: Path, *, case: str, way: str, seed: int, start: Path | None) -> float:
    """Train in one way; return the loss of the held-out samples."""
    folder = place / f"{case}-{way}-{seed}"
    rate = 3e-3 if start is None else FINE_TUNING_RATE
    blocks = make_blocks(steps=STEPS[case], way=way, rate=rate, weights=start)
    train(folder, blocks, way=way, seed=seed)
    lines = (folder / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    (evaluation,) = [event for event in found if event["ev"] == "evaluation"]
    shutil.rmtree(folder)
    return float(evaluation["values"]["validation/loss"])


def make_blocks(*, steps: int, way: str, rate: float, weights: Path | None) -> dict[str, Any]:
    is_low = way not in ("float32", "mixed")
    return {
        "vi-dataset": {"augmentation": {}},
        "vi-model": {
            "architecture": {"size": "tiny"} | ({"weights": str(weights)} if weights else {}),
            "training": {"mode": "full", "weightsPrecision": "bfloat16" if is_low else "float32"},
            "compute": {"precisionType": "float32" if way == "float32" else "bfloat16"},
            "hyperparameters": {"maxSteps": steps, "epochs": 100, "learningRate": rate},
            "checkpoint": {"every": {"steps": 10_000}},
            "validation": {"every": {"steps": 10_000}, "previews": 0},
            "evaluation": {"max_new_tokens": 1},
        },
    }


def train(folder: Path, blocks: dict[str, Any], *, way: str, seed: int) -> None:
    """Train in a process of its own."""
    folder.mkdir()
    flow = {
        "name": "weights",
        "schema": "v1",
        "tolerations": {},
        "settings": {"seed": seed},
        "blocks": [
            {"block": name, "settings": settings, "style": {}} for name, settings in blocks.items()
        ],
    }
    document = {"kind": "Run", "workspaceId": "org", "runId": "run", "spec": {"flow": flow}}
    config = {"run": document, "attempt": 1, "threads": 1, "dataDir": str(folder.parent / "data")}
    (folder / "run.json").write_text(json.dumps(config | {"modelFolders": [str(folder.parent)]}))
    process = get_context("fork").Process(target=train_here, args=(folder, way))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"the training in {folder.name} ended with exit code {process.exitcode}")


def train_here(folder: Path, way: str) -> None:
    from runyard.trainer.main import train_attempt

    with contextlib.redirect_stdout(io.StringIO()), round_in(way):
        raise SystemExit(train_attempt(folder))


@contextlib.contextmanager
def round_in(way: str) -> Iterator[None]:
    """Replace how weights are stored after a step."""
    import torch

    from runyard.trainer.steps import rounding

    errors: dict[int, torch.Tensor] = {}  # in bfloat16, by the address of the weights

    def widen(weights: torch.Tensor) -> torch.Tensor:
        return weights.float() + errors.get(weights.data_ptr(), torch.zeros(())).float()

    def narrow(updated: torch.Tensor, weights: torch.Tensor, generator: torch.Generator) -> None:
        weights.copy_(updated)
        if way == "compensated":
            errors[weights.data_ptr()] = (updated - weights.float()).to(torch.bfloat16)

    if way in ("nearest", "compensated"):
        rounding.widen, rounding.narrow = widen, narrow
    yield


if __name__ == "__main__":
    sys.exit(main())
