"""Measure the time from an attempt's start to its first step with a real model's shape.

    .venv/bin/python benchmarks/first_step.py [--images 40] [--side 4000x3000] [--max-pixels null]
    .venv/bin/python benchmarks/first_step.py --kill [--side 640x480]

Makes a model with the configuration of SmolVLM-256M and random weights, and a dataset of large
JPEGs, then starts a training with default settings on them, and ends it after its first step.
Prints the seconds to the first step, the CPU seconds of the trainer, which other processes of the
machine do not change much, the longest silence between two events, and what the plan says about
images and memory. Exits with 1 if either is above its limit.

With ``--kill`` it trains a few steps twice, once disturbed: the trainer is killed after a step
that no checkpoint contains, and another attempt resumes. Exits with 1 unless all losses and the
bits of the final weights are equal.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from start_of_training import VERSION, make_run, make_version

MAX_FIRST_STEP_S, MAX_SILENCE_S = 60.0, 5.0
STEPS, STEPS_PER_CHECKPOINT = 5, 2  # with --kill
NAMES = (
    "precision",
    "maxPixels",
    "pictureSettings",
    "microBatchSize",
    "featureCache",
    "packing",
    "memory",
)


def make_smolvlm(folder: Path) -> None:
    """Save a model with SmolVLM-256M's configuration, random weights and a small tokenizer."""
    import torch
    import transformers as t

    from runyard.trainer.models import tiny

    tokenizer = tiny.make_tokenizer([])
    images = t.Idefics3ImageProcessorPil(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    processor = t.Idefics3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=64,
        chat_template=tiny.CHAT_TEMPLATE,
    )
    text = {
        "model_type": "llama",
        "vocab_size": 49_280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    config = t.Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids(tiny.IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    t.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_attempt(
    root: Path, threads: int, settings: dict[str, Any], *, run: str = "run", attempt: int = 1
) -> Path:
    """Write the folder of an attempt, whose ``vi-model`` block has these settings."""
    folder = root / "runs" / "org" / run / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    data = {"datasetId": "photographs", "datasetVersion": VERSION, "projectKind": "vqa"}
    weights = {"name": "auto", "weights": str(root / "models" / "smolvlm")}
    model = {"architecture": weights, **settings}
    config = {
        "run": make_run(run, data, model),
        "attempt": attempt,
        "threads": threads,
        "dataDir": str(root / "data"),
        "cacheBytes": 1 << 40,
        "modelFolders": [str(root / "models")],
    }
    (folder / "run.json").write_text(json.dumps(config))
    version = {"folder": str(root / "version"), "dataset": "photographs", "version": VERSION}
    (folder / "dataset.json").write_text(json.dumps(version))
    return folder


def train(folder: Path) -> None:
    from runyard.trainer.main import train_attempt

    sys.stdout = open(folder / "log.txt", "w")  # noqa: SIM115 - until the process ends
    sys.exit(train_attempt(folder))


def read_events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run_until(
    folder: Path, is_over: Callable[[list[dict[str, Any]]], bool]
) -> tuple[float, list[dict[str, Any]], list[float]]:
    """Train until an event after which ``is_over``, then kill the trainer.

    Returns the time at which the process was started, the events, and the CPU seconds of the
    process when each event was seen.
    """
    started = time.time()
    process = get_context("spawn").Process(target=train, args=(folder,))
    process.start()
    assert process.pid is not None
    seen: list[dict[str, Any]] = []
    cpu_s: list[float] = []
    try:
        while True:
            is_alive = process.is_alive()
            used_s = read_cpu_seconds(process.pid) if is_alive else 0.0
            for event in read_events(folder)[len(seen) :]:
                seen.append(event)
                cpu_s.append(used_s)
                if event["ev"] == "phase":
                    at_s = event["t"] / 1000 - started
                    print(f"{at_s:6.1f} s {used_s:6.1f} s CPU  {event['message']}", flush=True)
                if is_over(seen):
                    return started, seen, cpu_s
            assert is_alive, f"the run ended early: {seen[-3:]}"
            time.sleep(0.2)
    finally:
        process.kill()
        process.join()


def is_first_step(events: list[dict[str, Any]]) -> bool:
    return str(events[-1]["ev"]) == "step"


def is_last_step_saved(events: list[dict[str, Any]]) -> bool:
    return any(event["ev"] == "checkpoint" and event["step"] == STEPS for event in events[-1:])


def is_step_after_checkpoint(events: list[dict[str, Any]]) -> bool:
    return events[-1]["ev"] == "step" and any(event["ev"] == "checkpoint" for event in events)


def compare_resumed(root: Path, threads: int, images: dict[str, Any]) -> bool:
    """Return whether a run that is killed and resumed equals an undisturbed one, bit for bit."""
    settings = {
        "images": images,
        "hyperparameters": {"maxSteps": STEPS, "batchSize": 2},
        "checkpoint": {"every": {"steps": STEPS_PER_CHECKPOINT}},
        "validation": {"maxSamples": 2},
    }
    whole = make_attempt(root, threads, settings, run="undisturbed")
    run_until(whole, is_last_step_saved)
    killed = make_attempt(root, threads, settings, run="killed")
    _, events, _ = run_until(killed, is_step_after_checkpoint)
    saved = next(event for event in reversed(events) if event["ev"] == "checkpoint")
    checkpoint = killed / "checkpoints" / saved["checkpoint"]
    resumed = make_attempt(root, threads, settings, run="killed", attempt=2)
    (resumed / "resume.json").write_text(json.dumps({"folder": str(checkpoint)}))
    run_until(resumed, is_last_step_saved)
    expected, found = read_losses(whole), read_losses(killed) | read_losses(resumed)
    weights = [read_weights(folder) for folder in (whole, resumed)]
    print(f"losses           {expected}")
    print(f"killed, resumed  {found}, the attempt after {checkpoint.name}")
    print(f"weights          {'equal' if weights[0] == weights[1] else 'DIFFERENT'}")
    return expected == found and weights[0] == weights[1]


def read_losses(folder: Path) -> dict[int, float]:
    steps = [event for event in read_events(folder) if event["ev"] == "step"]
    return {step["step"]: step["values"]["loss"] for step in steps}


def read_weights(folder: Path) -> dict[str, str]:
    """Return the hash of each file of weights in the newest checkpoint."""
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    paths = sorted(newest.rglob("*.safetensors"))
    assert paths, f"no weights in {newest}"
    return {
        str(path.relative_to(newest)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--side", default="4000x3000", help="width x height of each image")
    parser.add_argument("--max-pixels", default="auto", help="images.maxPixels: auto, null, number")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kill", action="store_true", help="compare a killed run with another")
    given = parser.parse_args()
    width, _, height = given.side.partition("x")
    limit = given.max_pixels if given.max_pixels == "auto" else json.loads(given.max_pixels)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the training ends too
    root = Path(tempfile.mkdtemp(prefix="runyard-benchmark-"))
    try:
        make_version(root / "version", given.images, (int(width), int(height)))
        make_smolvlm(root / "models" / "smolvlm")
        images = {"maxPixels": limit}
        if given.kill:
            return int(not compare_resumed(root, given.threads, images))
        folder = make_attempt(root, given.threads, {"images": images})
        started, events, cpu_s = run_until(folder, is_first_step)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    times = [started, *(event["t"] / 1000 for event in events)]
    silences = [after - before for before, after in itertools.pairwise(times)]
    first_step_s, silence_s = times[-1] - started, max(silences)
    plan = next(event["plan"] for event in events if event["ev"] == "plan")
    for name in NAMES:
        print(f"{name:<16} {plan[name]['value']}  ({plan[name]['reason']})")
    print(f"first step       {first_step_s:6.1f} s (at most {MAX_FIRST_STEP_S:.0f})")
    print(f"CPU of the trainer {cpu_s[-1]:4.1f} s with {given.threads} threads")
    print(f"longest silence  {silence_s:6.1f} s (at most {MAX_SILENCE_S:.0f})")
    return int(first_step_s > MAX_FIRST_STEP_S or silence_s > MAX_SILENCE_S)


if __name__ == "__main__":
    sys.exit(main())
