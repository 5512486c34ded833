"""Errors that prevent a server from starting, each as one line with cause and fix.

Every foreseeable cause is listed here; any other error is a bug and keeps its traceback.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Iterator

from sqlalchemy.exc import ArgumentError

from runyard.extras import explain_missing_extra
from runyard.server.services.access.secrets import UnusableSecret
from runyard.settings import SettingError, Settings
from runyard.starting import CannotStart, explain_os_error
from runyard.store import StoreUnavailable
from runyard.store.migrate import StoreTooNew

MIN_PYTHON, MIN_SQLITE = (3, 11), (3, 35)


@contextlib.contextmanager
def explain_failures(settings: Settings | None = None) -> Iterator[None]:
    """Convert errors that prevent a start to ``CannotStart``.

    Raises:
        CannotStart: the block failed for a foreseeable reason, or this Python or SQLite is too old.
    """
    try:
        check_versions(sys.version_info[:2], sqlite3.sqlite_version_info[:2])
        if settings is not None:
            _check_not_emptied(settings)
        yield
    except (SettingError, UnusableSecret, StoreTooNew) as error:
        raise CannotStart(str(error)) from error
    except StoreUnavailable as error:
        raise CannotStart(str(error), may_pass=error.may_pass) from error
    except ArgumentError as error:  # quotes the whole address
        raise CannotStart(
            "RUNYARD_DATABASE_URL cannot be read; try: postgresql+psycopg://user@host/name, or "
            "nothing for SQLite"
        ) from error
    except ModuleNotFoundError as error:
        sentence = explain_missing_extra(error)
        if sentence is None:
            raise
        raise CannotStart(sentence) from error
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise explain_os_error(error) from error


def check_versions(python: tuple[int, ...], sqlite: tuple[int, ...]) -> None:
    """Raise CannotStart for a Python or an SQLite that is too old to run on."""
    for name, found, required in (("Python", python, MIN_PYTHON), ("SQLite", sqlite, MIN_SQLITE)):
        if found < required:
            have, need = (".".join(map(str, each)) for each in (found, required))
            raise CannotStart(
                f"{name} {have} is too old: at least {need} is required; try: update Python"
            )


def _check_not_emptied(settings: Settings) -> None:
    """Raise for an empty database next to data: a new one would hide the loss."""
    path = settings.database
    if isinstance(path, str) or not path.is_file() or path.stat().st_size:
        return
    kept = [
        folder
        for folder in (settings.blobs_dir, settings.runs_dir)
        if folder.is_dir() and any(folder.iterdir())
    ]
    if kept:
        raise CannotStart(
            f"the database {path} is empty, although {kept[0]} holds data; try: put back a copy of "
            "the database, or choose a new --data-dir and restore a backup there"
        )
