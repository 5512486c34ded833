"""What this machine is: its name to the server, what it can offer, and who controls it.

The machine's id is made once and kept in the data folder, so that a controller that comes back asks for what the last
one placed. One controller per machine folder: it holds a lock as long as it lives.
"""

import fcntl
import os
import secrets
from pathlib import Path

from runyard import rundir


class MachineTaken(Exception):
    """Another controller works with this machine folder."""

    def __init__(self, folder: Path):
        super().__init__(
            f"another controller works with {folder}; end that one first, or choose another data folder "
            "(RUNYARD_DATA_DIR) for this one"
        )


def hold_machine(folder: Path) -> int:
    """Take the machine's lock for the life of this process; returns the descriptor, to be kept open.

    Raises:
        MachineTaken: another controller holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "controller.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise MachineTaken(folder) from None
    return descriptor


def machine_id(folder: Path) -> str:
    """The id of this machine, made on first use. Call while holding the machine."""
    path = folder / "machine.json"
    known = (rundir.read_json(path) or {}).get("id")
    if isinstance(known, str) and known:
        return known
    made = f"machine-{secrets.token_hex(8)}"
    rundir.write_json(path, {"id": made})
    return made


def threads_per_run(threads: int, *, slots: int, cores: int) -> int:
    """CPU threads of one trainer: as set, or the cores shared among the slots."""
    return threads or max(1, cores // max(1, slots))
