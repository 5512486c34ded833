"""Upgrade of a database to the current schema: forward only, in one transaction.

Alembic is imported only for an upgrade, since that takes longer than importing the rest of the
store. A database that is newer than the code is refused: writing to it by old rules would damage
it.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

log = logging.getLogger(__name__)

HEAD = "0017"


class StoreTooNew(Exception):
    """The database was written by a newer Runyard."""


class CannotUpgrade(Exception):
    """The database cannot be upgraded: it is damaged, or there is no disk space for a copy."""


def migrate(
    engine: Engine,
    lock: Callable[[Connection], None],
    prepare_upgrade: Callable[[Connection, str, str], None],
) -> None:
    """Upgrade the database to ``HEAD``.

    ``lock`` makes a second server that starts at the same time wait. ``prepare_upgrade`` is called
    before an older database is changed, with its version and ``HEAD``.

    Raises:
        StoreTooNew: it has a schema version that this code does not know.
        CannotUpgrade: raised by ``prepare_upgrade``.
    """
    with engine.begin() as connection:
        lock(connection)
        version = _read_version(connection)
        if version == HEAD:
            return
        if version is not None and not list(_migrations_dir().glob(f"versions/{version}_*.py")):
            raise StoreTooNew(
                f"the database {engine.url.database} is at schema {version}, newer than {HEAD}; "
                "try: start the Runyard version that wrote it, or a later one"
            )
        if version is not None:
            log.info("upgrading the database from schema %s to %s", version, HEAD)
            prepare_upgrade(connection, version, HEAD)
        _upgrade(connection)


def _read_version(connection: Connection) -> str | None:
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
