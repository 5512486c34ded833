"""The secrets of a deployment: pepper and signing keys, outside the database, in files of mode 0600.

They are made on first start with O_EXCL, so that two servers starting at once cannot each invent their own. A folder
or file that others may read is an error with a remedy, not a warning: the keys in it may be known already.
"""

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class InsecureSecret(Exception):
    """A secret lies where others can read it."""


@dataclass(frozen=True)
class Secrets:
    """``signing`` maps key ids to keys; new signatures use ``signing_id``, old ones still verify."""

    pepper: bytes
    signing_id: str
    signing: dict[str, bytes]


def open_secrets(folder: Path) -> Secrets:
    """Read the secrets, making those that are missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    pepper = _read_or_make(folder / "pepper", lambda: secrets.token_hex(32))
    signing = json.loads(
        _read_or_make(
            folder / "signing.json", lambda: json.dumps({"current": "1", "keys": {"1": secrets.token_hex(32)}})
        )
    )
    return Secrets(
        pepper=bytes.fromhex(pepper),
        signing_id=signing["current"],
        signing={key_id: bytes.fromhex(key) for key_id, key in signing["keys"].items()},
    )


def write_private(path: Path, text: str) -> None:
    """Write a file only we can read, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    _create(beside, text)
    os.replace(beside, path)
    _fsync_folder(path.parent)


def _read_or_make(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.unlink(missing_ok=True)
        _create(beside, make())
        try:
            os.link(beside, path)  # unlike a rename this never replaces what another server has just made
        except FileExistsError:
            pass
        finally:
            beside.unlink()
        _fsync_folder(path.parent)
    if path.stat().st_mode & 0o077:
        raise InsecureSecret(f"{path} can be read by others; run `chmod 600 {path}`, and renew the keys if it was")
    return path.read_text().strip()


def _create(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
