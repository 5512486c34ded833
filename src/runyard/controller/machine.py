"""The identity of this machine, and the lock that allows one controller on it.

The machine's id is created once and kept in the data folder, so that a restarted controller gets
the attempts that the last one placed. One controller per machine folder holds a lock as long as it
lives.
"""

import fcntl
import os
import secrets
from pathlib import Path

from runyard import rundir


class MachineTaken(Exception):
    """Another controller uses this machine folder."""

    def __init__(self, folder: Path):
        super().__init__(
            f"another controller uses {folder}; try: stop that one first, or choose another data "
            "folder (RUNYARD_DATA_DIR) for this one"
        )


def lock_machine(folder: Path) -> int:
    """Lock the machine for the life of this process; return the descriptor, which must stay open.

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


def load_machine_id(folder: Path) -> str:
    """Return the id of this machine, created on first use.

    Call while holding the machine's lock.
    """
    path = folder / "machine.json"
    known = (rundir.read_json(path) or {}).get("id")
    if isinstance(known, str) and known:
        return known
    new_id = f"machine-{secrets.token_hex(8)}"
    rundir.write_json(path, {"id": new_id})
    return new_id


def count_threads_per_run(threads: int, *, slots: int, cores: int) -> int:
    """Return the CPU threads of one trainer: as set, or an equal share of the cores per slot."""
    return threads or max(1, cores // max(1, slots))
