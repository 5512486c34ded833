"""What the model answered at each evaluation: one file a step, one JSON object a line, in the order of the samples.

    predictions/step-400.jsonl

A file appears whole: staged, fsynced, renamed. The newest stays, and those of the checkpoints that are kept; these have
the same bytes as ``predictions.jsonl``, so that whoever has the checkpoint can see what its numbers are made of.
"""

import contextlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from runyard.rundir import PREDICTIONS, fsync_dir, write_bytes


def write_predictions(
    attempt: Path, step: int, predictions: Sequence[dict[str, Any]], *, keep: Collection[int] = ()
) -> Path:
    """Write those of ``step``, and remove all but these and those of the steps in ``keep``.

    Raises:
        OSError: the disk did not take them; nothing of them is left.
    """
    path = attempt / PREDICTIONS / f"step-{step}.jsonl"
    lines = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in predictions)
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, lines.encode())
        fsync_dir(attempt)
    finally:
        prune_predictions(attempt, keep=keep)
    return path


def prune_predictions(attempt: Path, *, keep: Collection[int]) -> None:
    """Remove all but the newest and those of the steps in ``keep``. What cannot be removed now is tried again later."""
    steps = {path: int(path.stem.removeprefix("step-")) for path in (attempt / PREDICTIONS).glob("step-*.jsonl")}
    newest = max(steps.values(), default=None)
    for path in (attempt / PREDICTIONS).glob("*"):  # those being written too: nobody writes any more
        if path not in steps or steps[path] not in (newest, *keep):
            with contextlib.suppress(OSError):
                path.unlink()
