"""The trainer's memory estimate compared with the memory that training takes.

Models of three families with 5 to 30 million random weights are trained for three steps on the
longest sample, each setting in a separate process. The peak of the entire process in the plan is
compared with the kernel's (``VmHWM``, reset before the first step). So is the memory that the steps
add to that of the process before the first one. Ratios are predicted to measured.

The processes return freed memory to the system, as the trainer does where memory is scarce; with
--ample they retain it, as elsewhere, and use more than necessary.

    --every 7 takes every seventh setting.
    --write puts the table into RESULTS.md
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the miniatures of the tests

from train_speed import RESULTS, machine, say, write_results

from runyard.model_folders import ModelFolders
from runyard.trainer.data.cache import Hooks
from runyard.trainer.export.predict import silence_libraries
from runyard.trainer.main import detect_machine, parse_run, preload
from runyard.trainer.prepare import Job, prepare
from runyard.trainer.steps.memory import (
    measure_step_memory,
    retain_freed_memory,
    return_freed_memory,
    trim_heap,
)
from runyard.trainer.train import accumulate_gradients, optimizer_step
from tests.trainer import miniatures

BAR = 0.15
HEADS = (
    "| family | mode | micro-batch | optimizer | recompute | answers | predicted | measured | x "
    "| steps predicted | steps measured | x |"
)
MIB = 1 << 20
STEPS = 3
BATCH = 8
VOCABULARY = 8192
SIZES = {"llava": (320, 6), "idefics3": (384, 8), "qwen3_vl": (256, 8)}  # width and layers
PROMPTS = {"short": 10, "long": 90}  # words before the question; all are labels
GRID = list(
    itertools.product(
        SIZES, ("full", "lora"), (1, 4, 8), ("adamw", "muon"), (False, True), PROMPTS
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th setting only")
    parser.add_argument("--ample", action="store_true", help="keep what is freed")
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/RESULTS.md"
    )
    arguments = parser.parse_args()
    preload()
    silence_libraries()
    import torch

    torch.set_num_threads(1)
    rows = []
    context = multiprocessing.get_context("fork")
    say(f"{HEADS}\n{'|---' * HEADS.count(' | ')}|---|\n")
    with tempfile.TemporaryDirectory(prefix="runyard-memory-") as name:
        for family in SIZES:
            maker = context.Process(target=make_model, args=(family, Path(name) / family))
            maker.start()
            maker.join()
        for case in GRID[:: arguments.every]:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=measure, args=(Path(name), case, theirs, arguments.ample)
            )
            process.start()
            theirs.close()
            rows.append(Row(case, *ours.recv()))
            process.join()
            say(f"{rows[-1]}\n")
    text = section(rows, is_ample=arguments.ample)
    print(text)
    if arguments.write:
        write_results(
            RESULTS, text, mark="memory_ample" if arguments.ample else "memory_prediction"
        )
    return 0 if all(abs(row.whole - 1) <= BAR for row in rows) else 1


@dataclass(frozen=True)
class Row:
    """Memory in bytes: before the first step, predicted for the steps, and added by them."""

    case: tuple[Any, ...]
    before: int
    predicted: int
    added: int

    @property
    def whole(self) -> float:
        return (self.before + self.predicted) / (self.before + self.added)

    @property
    def steps(self) -> float:
        return self.predicted / self.added

    def __str__(self) -> str:
        numbers = (
            self.before + self.predicted,
            self.before + self.added,
            self.predicted,
            self.added,
        )
        values = [f"{number / MIB:,.0f}" for number in numbers]
        cells = [
            *map(str, self.case),
            *values[:2],
            f"{self.whole:.3f}",
            *values[2:],
            f"{self.steps:.3f}",
        ]
        return f"| {' | '.join(cells)} |"


def section(rows: list[Row], *, is_ample: bool) -> str:
    """Return the table with its interpretation."""
    way = (
        "kept what it freed, as where memory is ample" if is_ample else "handed back what it freed"
    )
    found = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        f"## Memory{', ample' if is_ample else ''}",
        "",
        f"`make bench-memory`, {time.strftime('%Y-%m-%d')}, {len(rows)} of {len(GRID)} settings. "
        f"{found}.",
        "",
        f"Every process {way}. MiB; *x* is predicted over measured.",
        "",
        f"- the whole process: {summary([row.whole for row in rows])}",
        f"- what the steps add: {summary([row.steps for row in rows])}",
        "",
        HEADS,
        "|---" * HEADS.count(" | ") + "|---|",
        *map(str, rows),
    ]
    return "\n".join(lines)


def summary(ratios: list[float]) -> str:
    within = sum(abs(ratio - 1) <= BAR for ratio in ratios)
    return (
        f"{within} of {len(ratios)} within {BAR:.0%}; median {statistics.median(ratios):.3f}, "
        f"lowest {min(ratios):.3f}, highest {max(ratios):.3f}"
    )


def make_model(family: str, folder: Path) -> None:
    """Write a wider and deeper miniature as a folder of weights."""
    model, processor = miniatures.make(family)
    width, layers = SIZES[family]
    config = model.config
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.vocab_size = width, 3 * width, VOCABULARY
    text.num_attention_heads = text.num_key_value_heads = width // 64
    text.num_hidden_layers, text.head_dim, text.max_position_embeddings = layers, 64, 4096
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * layers
    if "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
        text.rope_parameters["mrope_section"] = [16, 8, 8]
    vision.hidden_size, vision.intermediate_size = width, 3 * width
    for name, value in {
        "num_attention_heads": width // 64,
        "num_heads": width // 64,
        "out_hidden_size": width,
    }.items():
        if hasattr(vision, name):
            setattr(vision, name, value)
    for name in ("num_hidden_layers", "depth"):
        if hasattr(vision, name):
            setattr(vision, name, layers // 2)
    type(model)(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(home: Path, case: tuple[Any, ...], answer: Any, is_ample: bool) -> None:
    """Train for some steps as the trainer does.

    Send the memory of the process before, and the predicted and measured additions, in bytes.
    """
    family, mode, micro, optimizer, recompute, length = case
    settings = {
        "architecture": {"weights": str(home / family), "name": "auto"},
        "training": {"mode": mode, "lora": {"dropout": 0.0}},
        "hyperparameters": {
            "batchSize": BATCH,
            "microBatchSize": micro,
            "optimizer": {"name": optimizer},
            "loss": {"answersOnly": False},
        },
        "compute": {
            "gradientCheckpointing": recompute,
            "precisionType": "float32",
            "featureCache": False,
        },
        "packing": False,
    }
    words = " ".join(itertools.islice(itertools.cycle(miniatures.WORDS.split()), PROMPTS[length]))
    blocks = {
        "vi-dataset": {"maxSamples": 64},
        "vi-system-prompt": {"systemPrompt": words},
        "vi-model": settings,
    }
    flow = {
        "name": "memory",
        "schema": "v1",
        "tolerations": {},
        "settings": {},
        "blocks": [
            {"block": name, "settings": value, "style": {}} for name, value in blocks.items()
        ],
    }
    run, flow = parse_run(
        {
            "run": {"kind": "Run", "workspaceId": "org", "runId": "run", "spec": {"flow": flow}},
            "attempt": 1,
        }
    )
    with tempfile.TemporaryDirectory(dir=home) as folder:
        made = prepare(
            Job(
                folder=Path(folder),
                run=run,
                flow=flow,
                models={},
                folders=ModelFolders((home,), home / "data"),
            ),
            detect_machine(1),
            hooks=Hooks(),
        )
        step = measure_step_memory(
            made.build_batch,
            made.losses,
            made.optimizers,
            longest=made.longest_index,
            plan=made.plan,
            device=made.device,
        )
        predicted = step.peak(micro, BATCH)
        trim_heap()
        (retain_freed_memory if is_ample else return_freed_memory)()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(STEPS):
            accumulate_gradients(made, [made.longest_index] * BATCH, 0, micro)
            optimizer_step(made, 1.0)
        answer.send((before, predicted, resident("VmHWM") - before))


def resident(name: str) -> int:
    """Return a line of ``/proc/self/status``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


if __name__ == "__main__":
    raise SystemExit(main())
