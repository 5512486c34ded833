"""A server killed at any moment of a restore leaves the old data or the new, never a mixture."""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runyard.store import Store
from runyard.store import backup as rows
from tests.support import attempts
from tests.support.server import open_server

START_TIMEOUT_S = 60.0
# A restore issues a store id and records who did it. The data is created with a clock far in the
# past, so a server with the real clock forgets what was deleted then.
OWN = {"meta", "audit", "attempts", "pulse", "tombstones", "events", "event_counters"}

pytestmark = pytest.mark.e2e


def read_state(data_dir: Path) -> dict[str, list[bytes]]:
    store = Store(data_dir / "server.db")
    try:
        with store.snapshot() as connection:
            return {
                name: list(rows.iter_rows(connection, rows.TABLES[name]))
                for name in rows.TABLES
                if name not in OWN
            }
    finally:
        store.close()


@pytest.fixture
def restore_case(
    tmp_path: Path,
) -> tuple[Path, bytes, dict[str, list[bytes]], dict[str, list[bytes]]]:
    """Return a data folder, an earlier backup of it, and both states: current and earlier."""
    data_dir = tmp_path / "made"

    async def scenario() -> bytes:
        async with open_server(data_dir) as server:
            attempt = await attempts.start(server, "old")
            for number in range(30):
                await attempt.ship(
                    *(f"line {number} {line}" for line in range(500)), stream="stdout"
                )
            for step in range(1, 6):
                await attempt.checkpoint(f"epoch-{step}", content=os.urandom(1 << 20))
            await attempt.finish(64)
            api = await server.api()
            data = (await api.post(server.path("storage/backups"))).content
            await api.put(server.path("runs/young"), json={"spec": {}})
            await api.delete(server.path("runs/old"))
            return bytes(data)

    data = asyncio.run(scenario())
    as_it_is = read_state(data_dir)
    shutil.copytree(data_dir, tmp_path / "before")

    async def restore() -> None:
        async with open_server(tmp_path / "before") as server:
            answer = await (await server.api()).post(server.path("storage/restores"), content=data)
            assert answer.status_code == 200, answer.text

    asyncio.run(restore())
    return data_dir, data, as_it_is, read_state(tmp_path / "before")


class Restoring:
    """A real server, and a restore request that is sent in two parts."""

    def __init__(self, data_dir: Path, data: bytes) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
        }
        environ = kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
        command = [sys.executable, "-m", "runyard.server"]
        self.process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (data_dir / "server.json").exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        credentials = json.loads((data_dir / "credentials.json").read_text())
        self._data = data
        self._connection = http.client.HTTPConnection(
            urlsplit(credentials["endpoint"]).netloc, timeout=60
        )
        self._connection.putrequest(
            "POST", f"/workspaces/{credentials['organization_id']}/storage/restores"
        )
        self._connection.putheader("Authorization", f"Bearer {credentials['secret_key']}")
        self._connection.putheader("Content-Length", str(len(data)))
        self._connection.endheaders()

    def send(self, share: float) -> None:
        for start in range(0, int(len(self._data) * share), 1 << 16):
            self._connection.send(
                self._data[start : min(start + (1 << 16), int(len(self._data) * share))]
            )

    def answered(self) -> float:
        """Return the seconds until the successful response."""
        begun_s = time.monotonic()
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read()
        return time.monotonic() - begun_s

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._connection.close()


@pytest.mark.parametrize(
    ("sent", "late"),
    [
        ((0.5,), (0.5,)),
        pytest.param((0.1, 0.5, 0.999), (0.2, 0.5, 0.8, 1.0), marks=pytest.mark.slow),
    ],
    ids=["few", "many"],
)
def test_a_killed_restore_leaves_either_the_old_data_or_the_new(
    restore_case: Any, tmp_path: Path, sent: tuple[float, ...], late: tuple[float, ...]
) -> None:
    """Kills after shares of the data are sent, and after shares of the time of the transaction."""
    made, data, old, new = restore_case
    assert old != new

    def outcome(name: str, share: float, wait_s: float | None) -> str:
        data_dir = tmp_path / name
        shutil.copytree(made, data_dir)
        restoring = Restoring(data_dir, data)
        try:
            restoring.send(share)
            if wait_s is None:
                took_s.append(restoring.answered())
            else:
                time.sleep(wait_s)  # the test varies the moment of the kill
        finally:
            restoring.kill()
        (data_dir / "server.json").unlink()
        found = read_state(data_dir)
        assert found in (old, new), name
        asyncio.run(check(data_dir))
        shutil.rmtree(data_dir)
        return "old" if found == old else "new"

    async def check(data_dir: Path) -> None:
        """Check that the next start cleans up, and that a collection removes unneeded bytes."""
        async with open_server(data_dir) as server:
            api = await server.api()
            assert list((data_dir / "backups").glob("*")) == []
            found = (await api.get(server.path("storage"))).json()
            assert found["rowsWithoutBlobs"] == []
            await api.post(server.path("storage/collections"))
            assert (await api.get(server.path("storage"))).json()["agrees"]
            assert (await api.put(server.path("runs/after"), json={"spec": {}})).status_code == 201
            claimed = [await attempts.try_claim(server, f"after-{number}") for number in range(2)]
            assert "after" in {attempt.assignment["run_id"] for attempt in claimed if attempt}

    took_s: list[float] = []
    assert outcome("whole", 1.0, None) == "new"
    for share in sent:
        assert outcome(f"sent-{share}", share, 0.0) == "old"
    # All data was sent: from here on the transaction decides, so kills are spread over the time
    # that it took without a kill.
    outcomes = [outcome(f"late-{part}", 1.0, took_s[0] * part) for part in late]
    assert set(outcomes) <= {"old", "new"}
