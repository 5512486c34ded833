"""Measure the time from an attempt's start to its first step with a real model's shape.

    .venv/bin/python benchmarks/first_step.py [--images 40] [--side 4000x3000] [--max-pixels null]

Makes a model with the configuration of SmolVLM-256M and random weights, and a dataset of large
JPEGs, then starts a training with default settings on them, and ends it after its first step.
Prints the seconds to the first step, the CPU seconds of the trainer, which other processes of the
machine do not change much, the longest silence between two events, and what the plan says about
images and memory. Exits with 1 if either is above its limit.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from start_of_training import VERSION, make_version

MAX_FIRST_STEP_S, MAX_SILENCE_S = 60.0, 5.0
NAMES = ("maxPixels", "pictureSettings", "microBatchSize", "featureCache", "packing", "memory")


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


def make_attempt(root: Path, threads: int, images: dict[str, Any]) -> Path:
    folder = root / "runs" / "org" / "run" / "attempts" / "1"
    folder.mkdir(parents=True)
    data = {"datasetId": "photographs", "datasetVersion": VERSION, "projectKind": "vqa"}
    weights = {"name": "auto", "weights": str(root / "models" / "smolvlm")}
    model = {"architecture": weights, "images": images}
    flow = {
        "name": "benchmark",
        "schema": "v1",
        "tolerations": {},
        "settings": {},
        "blocks": [
            {"block": "vi-dataset", "settings": data, "style": {}},
            {"block": "vi-model", "settings": model, "style": {}},
        ],
    }
    document = {"kind": "Run", "workspaceId": "org", "runId": "run", "spec": {"flow": flow}}
    config = {
        "run": document,
        "attempt": 1,
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


def run_to_first_step(folder: Path) -> tuple[float, list[dict[str, Any]], list[float]]:
    """Return the time at which the process was started, the events up to the first step, and the
    CPU seconds of the process when each event was seen.
    """
    started = time.time()
    process = get_context("spawn").Process(target=train, args=(folder,))
    process.start()
    assert process.pid is not None
    cpu_s: list[float] = []
    try:
        while True:
            is_alive, events = process.is_alive(), read_events(folder)
            used_s = read_cpu_seconds(process.pid) if is_alive else 0.0
            for event in events[len(cpu_s) :]:
                cpu_s.append(used_s)
                if event["ev"] == "phase":
                    at_s = event["t"] / 1000 - started
                    print(f"{at_s:6.1f} s {used_s:6.1f} s CPU  {event['message']}", flush=True)
            steps = [at for at, event in enumerate(events) if event["ev"] == "step"]
            if steps:
                return started, events[: steps[0] + 1], cpu_s[: steps[0] + 1]
            assert is_alive, f"the run ended before its first step: {events[-3:]}"
            time.sleep(0.2)
    finally:
        process.kill()
        process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--side", default="4000x3000", help="width x height of each image")
    parser.add_argument("--max-pixels", default="auto", help="images.maxPixels: auto, null, number")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    width, _, height = given.side.partition("x")
    limit = given.max_pixels if given.max_pixels == "auto" else json.loads(given.max_pixels)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the training ends too
    root = Path(tempfile.mkdtemp(prefix="runyard-benchmark-"))
    try:
        make_version(root / "version", given.images, (int(width), int(height)))
        make_smolvlm(root / "models" / "smolvlm")
        folder = make_attempt(root, given.threads, {"maxPixels": limit})
        started, events, cpu_s = run_to_first_step(folder)
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
