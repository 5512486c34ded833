"""Attempts and prepared trainings of the checks, made as a supervisor makes them.

``prepare_training`` stops before the first step, so that a check can take steps by itself;
``train_run`` runs a whole attempt and returns its events.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.rundir import AttemptDir, EventWriter
from runyard.trainer.gpu_check.model import DATASET, SYSTEM_PROMPT, VERSION

SMALL_MODEL, LARGE_MODEL = "small", "large"
NEVER = {"every": {"steps": 1_000_000}}
CACHE_BYTES = 4 << 30
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What all checks share: a folder with models and datasets, and what is known of the device."""

    folder: Path
    is_dry: bool
    threads: int = 1
    devices: int = 0
    device_name: str = ""
    memory_bytes: int = 0

    @property
    def batch_size(self) -> int:
        return 4 if self.is_dry else 8


@dataclass(frozen=True)
class PreparedTraining:
    """A training before its first step. ``job`` and ``state`` are those of the trainer."""

    job: Any
    state: Any
    events: EventWriter

    def take_steps(self, count: int) -> list[float]:
        """Take optimizer steps as the loop does, all with the first batch; return their losses."""
        from runyard.trainer.train import BatchOrder, begin_step, compute_gradients, update_weights

        flow, state = self.job.flow, self.state
        order, losses = BatchOrder(flow, state), []
        _, indices = order.select(0)
        for _ in range(count):
            epoch, _, _ = begin_step(flow, state, order)
            loss = compute_gradients(state, indices, epoch, flow.model, self.events)
            update_weights(state, loss, flow.model.hyperparameters.optimizer.max_grad_norm)
            state.progress.step += 1
            losses.append(loss)
        return losses


def merge(base: Settings, changes: Settings) -> Settings:
    """Return ``base`` with the values of ``changes``, also inside of nested objects."""
    merged = dict(base)
    for name, value in changes.items():
        inner = merged.get(name)
        is_nested = isinstance(inner, dict) and isinstance(value, dict)
        merged[name] = merge(inner, value) if is_nested else value  # type: ignore[arg-type]
    return merged


def write_attempt(
    context: CheckContext,
    name: str,
    settings: Settings,
    *,
    model: str = SMALL_MODEL,
    attempt: int = 1,
    validation_fraction: float = 0.0,
    resume: Path | None = None,
    resources: Settings | None = None,
) -> Path:
    """Write an attempt's folder; ``settings`` change those of a short LoRA training."""
    folder = context.folder / "runs" / name / "attempts" / str(attempt)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = context.folder / "models" / model
    default = {
        "architecture": {"name": "auto", "weights": str(weights)},
        "training": {"mode": "lora", "lora": {"dropout": 0.0}},
        "compute": {"precisionType": "float32", "featureCache": False},
        "packing": False,
        "hyperparameters": {
            "epochs": 1000,
            "batchSize": context.batch_size,
            "microBatchSize": context.batch_size,
            "learningRate": 1e-3,
            "schedule": {"name": "constant", "warmupFraction": 0},
        },
        "checkpoint": NEVER,
        "validation": NEVER,
    }
    data = {
        "datasetId": DATASET,
        "datasetVersion": VERSION,
        "projectKind": "vqa",
        "validationFraction": validation_fraction,
    }
    blocks = {
        "vi-dataset": data,
        "vi-system-prompt": {"systemPrompt": SYSTEM_PROMPT},
        "vi-model": merge(default, settings),
    }
    flow = {
        "name": name,
        "schema": "v1",
        "tolerations": {},
        "settings": {"resources": resources or {}},
        "blocks": [
            {"block": block, "settings": value, "style": {}} for block, value in blocks.items()
        ],
    }
    config = {
        "run": {"kind": "Run", "workspaceId": "org", "runId": name, "spec": {"flow": flow}},
        "attempt": attempt,
        "threads": context.threads,
        "dataDir": str(context.folder / "data"),
        "cacheBytes": CACHE_BYTES,  # samples are encoded once for all checks
        "modelFolders": [str(context.folder / "models")],
    }
    files = AttemptDir(folder)
    files.run.write_text(json.dumps(config))
    fetched = context.folder / "datasets" / model
    files.dataset.write_text(
        json.dumps({"folder": str(fetched), "dataset": DATASET, "version": VERSION})
    )
    if resume is not None:
        files.resume.write_text(json.dumps({"folder": str(resume)}))
    return folder


@contextlib.contextmanager
def prepare_training(
    context: CheckContext, name: str, settings: Settings, **options: Any
) -> Iterator[PreparedTraining]:
    """Prepare a training as the trainer does, up to its first step."""
    from runyard.trainer.data.cache import Hooks
    from runyard.trainer.main import load_job
    from runyard.trainer.prepare import prepare

    folder = write_attempt(context, name, settings, **options)
    events = EventWriter(folder, now_ms)
    try:
        job, machine = load_job(folder, events)
        yield PreparedTraining(job, prepare(job, machine, hooks=Hooks()), events)
    finally:
        events.close()


def train_run(folder: Path) -> list[dict[str, Any]]:
    """Run an attempt to its end in this process; return its events.

    Raises:
        RuntimeError: it did not succeed.
    """
    from runyard.trainer.main import train_attempt

    code = train_attempt(folder)
    if code != 0:
        result = AttemptDir(folder).result
        found = json.loads(result.read_text())["message"] if result.exists() else "no result"
        raise RuntimeError(f"the training ended with code {code}: {found}")
    return read_events(folder)


def read_events(folder: Path) -> list[dict[str, Any]]:
    lines = AttemptDir(folder).events.read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["values"]["loss"] for event in events if event["ev"] == "step"]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fork_rank(folder: Path, rank: int, size: int) -> int:
    """Fork a trainer of the attempt in ``folder``; return its process id."""
    pid = os.fork()
    if pid == 0:
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size)})
        code = 1
        try:
            from runyard.trainer.main import train_attempt

            code = train_attempt(folder)
        finally:
            os._exit(code)
    return pid
