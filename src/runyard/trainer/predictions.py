"""What the model answered at each evaluation: one file a step, one JSON object a line, in the order of the samples.

    predictions/step-400.jsonl

A file appears whole: staged, fsynced, renamed. The newest stays, and those of the checkpoints that are kept; these have
the same bytes as ``predictions.jsonl``, so that whoever has the checkpoint can see what its numbers are made of.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from runyard.rundir import PREDICTIONS, fsync_dir, write_bytes


def write_predictions(
    attempt: Path, step: int, predictions: Sequence[dict[str, Any]], *, keep: Collection[int] = ()
) -> Path:
    """Write those of ``step`` and remove all but these and those of the steps in ``keep``.

    Raises:
        OSError: the disk did not take them; nothing of them is left.
    """
    folder = attempt / PREDICTIONS
    path = folder / _name(step)
    lines = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in predictions)
    try:
        folder.mkdir(exist_ok=True)
        write_bytes(path, lines.encode())
        fsync_dir(attempt)
    finally:
        kept = {_name(number) for number in (*keep, step)}
        for other in folder.glob("*"):
            if other.name not in kept:
                other.unlink()
    return path


def _name(step: int) -> str:
    return f"step-{step}.jsonl"
