"""The predictions of each evaluation: one file per step, one JSON object per line and sample.

    predictions/step-400.jsonl

A file appears atomically: staged, fsynced, renamed. The newest is kept, and those of the kept
checkpoints. The latter have the same bytes as the checkpoint's ``predictions.jsonl``, so its
metrics can be inspected.
"""

import contextlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from runyard.rundir import AttemptDir, fsync_dir, write_bytes


def write_predictions(
    attempt: Path, step: int, predictions: Sequence[dict[str, Any]], *, keep: Collection[int] = ()
) -> Path:
    """Write the predictions of ``step``; remove all others except those of the steps in ``keep``.

    Raises:
        OSError: the disk refused them; no partial file is left.
    """
    path = AttemptDir(attempt).predictions / f"step-{step}.jsonl"
    lines = "".join(
        json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in predictions
    )
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, lines.encode())
        fsync_dir(attempt)
    finally:
        prune_predictions(attempt, keep=keep)
    return path


def prune_predictions(attempt: Path, *, keep: Collection[int]) -> None:
    """Remove all but the newest and those of the steps in ``keep``.

    A file that cannot be removed is retried later.
    """
    steps = {
        path: int(path.stem.removeprefix("step-"))
        for path in AttemptDir(attempt).predictions.glob("step-*.jsonl")
    }
    newest = max(steps.values(), default=None)
    for path in AttemptDir(attempt).predictions.glob("*"):  # staged files too: no writer is active
        if path not in steps or steps[path] not in (newest, *keep):
            with contextlib.suppress(OSError):
                path.unlink()
