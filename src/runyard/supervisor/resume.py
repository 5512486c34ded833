"""Where an attempt goes on from: the newest checkpoint of an earlier attempt on this machine that proves itself.

It is looked for after the run's lock is ours, so nobody writes checkpoints any more, and every file of the one that is
taken is read and compared with its manifest: a checkpoint that a power cut tore, or that is being removed, is passed
over for the one before it.
"""

from pathlib import Path

from runyard import rundir
from runyard.seams import Files


def newest_proven(folder: Path, *, files: Files = rundir) -> Path | None:
    """The checkpoint folder the attempt in ``folder`` shall resume from; None on a fresh start."""
    attempts = [path for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < int(folder.name)]
    found = [item for attempt in attempts for item in files.checkpoints(attempt)]
    newest_first = sorted(found, key=lambda item: (item[1]["step"], item[1]["time"]), reverse=True)
    return next((path for path, manifest in newest_first if files.is_proven(path, manifest)), None)


def prepare(folder: Path, *, files: Files = rundir) -> None:
    """Write ``resume.json`` if there is something to resume from. Reads whole checkpoints, so it takes its time."""
    checkpoint = newest_proven(folder, files=files)
    if checkpoint is not None:
        files.write_json(folder / rundir.RESUME, {"folder": str(checkpoint)})
