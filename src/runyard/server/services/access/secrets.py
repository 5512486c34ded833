"""The secrets of a deployment: pepper and signing keys, outside the database, in files of mode
0600.

They are created at the first start with O_EXCL, so that two servers that start at once do not
create different ones. A folder or file that others can read is an error, not a warning: its keys
may be known already.
"""

import hmac
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHORTEST_SECRET_BYTES = 16


class UnusableSecret(Exception):
    """A secret is missing, damaged, or belongs to another store; the message never contains it."""


class InsecureSecret(UnusableSecret):
    """A secret is in a file that others can read."""


@dataclass(frozen=True)
class Secrets:
    """The pepper and signing keys.

    ``signing`` maps key ids to keys; new signatures use ``signing_id``, old ones still verify.
    """

    pepper: bytes
    signing_id: str
    signing: dict[str, bytes]


def open_secrets(folder: Path, *, is_new: bool = True) -> Secrets:
    """Read the secrets, creating those that are missing.

    A store with ``is_new`` False has keys that were hashed under its pepper, so none is created for
    it.

    Raises:
        UnusableSecret: one is missing, damaged, or readable by others.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    pepper, signing = folder / "pepper", folder / "signing.json"
    if not is_new and not pepper.exists():
        raise UnusableSecret(
            f"{pepper} is missing, and without it no key of the database can be verified; try: put "
            f"back the folder {folder} that was used with this database"
        )
    signing_id, signing_keys = _parse_signing_keys(
        signing,
        _read_or_make(
            signing, lambda: json.dumps({"current": "1", "keys": {"1": secrets.token_hex(32)}})
        ),
    )
    return Secrets(
        pepper=_decode_secret(pepper, _read_or_make(pepper, lambda: secrets.token_hex(32))),
        signing_id=signing_id,
        signing=signing_keys,
    )


def fingerprint(pepper: bytes) -> str:
    """Return an identifier of a pepper; it reveals nothing, since a pepper has 256 random bits."""
    return hmac.digest(pepper, b"runyard store", "sha256").hex()[:32]


def read_private(path: Path) -> dict[str, Any] | None:
    """Return the object in a file of keys; None when there is no such file.

    Raises:
        UnusableSecret: the file holds anything else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnusableSecret(
            f"{path} is damaged: it contains no JSON object; try: put back a copy of it, or remove "
            "it"
        )
    return value


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    _create(temporary, text)
    os.replace(temporary, path)
    _fsync_folder(path.parent)


def _read_or_make(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        _create(temporary, make())
        try:
            # Unlike a rename, this never replaces what another server has just created.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
        _fsync_folder(path.parent)
    text = path.read_text(errors="replace").strip()
    if path.stat().st_mode & 0o077:
        raise InsecureSecret(
            f"{path} can be read by others; try: chmod 600 {path}, and renew the keys if it was "
            "read"
        )
    return text


def _parse_signing_keys(path: Path, text: str) -> tuple[str, dict[str, bytes]]:
    try:
        document = json.loads(text)
        current, keys = document["current"], dict(document["keys"])
        read = {str(key_id): _decode_secret(path, key) for key_id, key in keys.items()}
    except (ValueError, KeyError, TypeError):
        raise _secret_damaged(path) from None  # the cause would quote the file
    if current not in read:
        raise _secret_damaged(path)
    return current, read


def _decode_secret(path: Path, text: object) -> bytes:
    try:
        value = bytes.fromhex(str(text))
    except ValueError:
        raise _secret_damaged(path) from None
    if len(value) < SHORTEST_SECRET_BYTES:
        raise _secret_damaged(path)
    return value


def _secret_damaged(path: Path) -> UnusableSecret:
    return UnusableSecret(
        f"{path} is empty or damaged; try: put back a copy of the folder {path.parent}"
    )


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
