"""Brings a database to the schema this code knows: forward only, in one transaction.

Alembic is loaded only when there is something to do, since it takes longer to import than the rest of the store.
A database that is newer than the code is refused: writing to it with old rules would damage it.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

log = logging.getLogger(__name__)

HEAD = "0007"


class StoreTooNew(Exception):
    """The database was written by a newer Runyard."""


class CannotUpgrade(Exception):
    """The database has to be upgraded and may not be: it is damaged, or there is no room for a copy of it."""


def migrate(
    engine: Engine, lock: Callable[[Connection], None], prepare_upgrade: Callable[[Connection, str, str], None]
) -> None:
    """Upgrade the database to ``HEAD``; with ``lock``, of two servers that start at once one does it and one waits.

    ``prepare_upgrade`` is called before anything of an older database is changed, with its version and ``HEAD``.

    Raises:
        StoreTooNew: it stands at a version this code does not know.
        CannotUpgrade: ``prepare_upgrade`` forbids it.
    """
    with engine.begin() as connection:
        lock(connection)
        version = _version(connection)
        if version == HEAD:
            return
        if version is not None and not list(_migrations_dir().glob(f"versions/{version}_*.py")):
            raise StoreTooNew(
                f"the database {engine.url.database} is at schema {version}, newer than {HEAD}; "
                "start the Runyard version that wrote it, or a later one"
            )
        if version is not None:
            log.info("upgrading the database from schema %s to %s", version, HEAD)
            prepare_upgrade(connection, version, HEAD)
        _upgrade(connection)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic.command import upgrade  # slow to import, needed once
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    upgrade(config, HEAD)


def _migrations_dir() -> Path:
    return Path(__file__).parent / "migrations"
