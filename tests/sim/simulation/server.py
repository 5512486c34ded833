"""The server of a simulated world: the real services over the real tables, which crash, pause and start again.

The store differs from the product's in one thing: there is no writer thread, a piece of work is committed where it is
called, because a thread would bring back the chance that a simulation keeps out. What is committed survives a crash.
"""

import sqlite3
from collections.abc import Callable, Coroutine
from io import BytesIO
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import StaticPool

from runyard.server.services import bootstrap, deletion, leases, models, retention
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.keys import Keyring
from runyard.server.services.secrets import Secrets
from runyard.server.services.signing import Signer
from runyard.settings import Settings
from runyard.store import StoreUnavailable, organizations, pulse
from runyard.store.tables import metadata

from .world import Process, World

ORGS = ("org-a", "org-b")
NOWHERE = Path("/nonexistent/simulated")
SECRETS = Secrets(pepper=b"p" * 32, signing_id="1", signing={"1": b"s" * 32})


class Crash(BaseException):
    """The server dies at this very line."""


class Direct:
    """Stands for ``asyncio`` in services that move work to a thread: here it is done on the spot."""

    @staticmethod
    async def to_thread(work: Callable[..., Any], /, *arguments: Any) -> Any:
        return work(*arguments)


class DirectStore:
    """What services use of ``runyard.store.Store``, on a database in memory, without threads."""

    _template: sqlite3.Connection | None = None

    def __init__(self) -> None:
        self.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        event.listen(self.engine, "connect", _no_own_transactions)
        raw = self.engine.raw_connection().driver_connection
        assert isinstance(raw, sqlite3.Connection)
        self.raw = raw
        if DirectStore._template is None:
            metadata.create_all(self.engine)
            DirectStore._template = sqlite3.connect(":memory:", check_same_thread=False)
            raw.backup(DirectStore._template)
        else:
            DirectStore._template.backup(raw)
        # One connection for all, its transactions begun and ended by hand.
        self._connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.on_commit: Callable[[], None] = lambda: None
        self.crash: str | None = None  # dies at the next write, "before" or "after" its commit
        self.is_full = False

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        if self.is_full:
            raise StoreUnavailable("no space left")
        crash, self.crash = self.crash, None
        self.raw.execute("BEGIN")
        try:
            result = work(self._connection)
            if crash == "before":
                raise Crash
        except BaseException:
            self.raw.execute("ROLLBACK")
            raise
        self.raw.execute("COMMIT")
        self.on_commit()
        if crash == "after":
            raise Crash
        return result

    def read(self, work: Callable[[Connection], Any]) -> Any:
        return work(self._connection)

    async def read_aside(self, work: Callable[[Connection], Any]) -> Any:
        return work(self._connection)

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()


def _no_own_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("synchronous=OFF", "journal_mode=MEMORY", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


class Blobs:
    """Bytes by hash, in memory."""

    def __init__(self) -> None:
        self.bytes: dict[str, bytes] = {}

    def has(self, sha256: str) -> bool:
        return sha256 in self.bytes

    def delete(self, sha256: str) -> bool:
        return self.bytes.pop(sha256, None) is not None

    def open(self, sha256: str) -> BytesIO:
        return BytesIO(self.bytes[sha256])


class SimulatedServices(Services):
    """The real ones, but for where bytes lie."""

    kept: dict[str, Blobs]

    def blobs(self, org: str) -> Any:
        return self.kept.setdefault(org, Blobs())


class ServerClock:
    """The wall clock of the server's machine, which may step, and its monotonic clock, which may not."""

    def __init__(self, world: World):
        self._world, self.skew_ms = world, 1_700_000_000_000

    def now_ms(self) -> int:
        return self._world.now_ms + self.skew_ms

    def monotonic_s(self) -> float:
        return self._world.now_ms / 1000

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits in here")


class Server:
    """One server process after another over one database."""

    def __init__(self, world: World, *, attempts: int, lease_s: float, grace_s: float, is_wall_clock: bool = False):
        self.world, self.is_wall_clock = world, is_wall_clock
        self.settings = Settings(data_dir=NOWHERE, attempts=attempts, lease_s=lease_s, grace_s=grace_s)
        self.store = DirectStore()
        self.clock = ServerClock(world)
        self._blobs: dict[str, Blobs] = {}
        self.lived_ms = 0  # by our own books, to judge the server's by
        self._last_ms = self._beat_wall_ms = 0
        deletion.asyncio = models.asyncio = retention.asyncio = Direct  # type: ignore[attr-defined]
        drive(self.store.write(_founded))
        self.process = Process(world, "server")
        self.process.die()
        self.start()

    @property
    def is_up(self) -> bool:
        return self.process.is_alive

    def start(self) -> None:
        if self.is_up:
            return
        self.process = Process(self.world, "server")
        self.services = SimulatedServices(
            settings=self.settings,
            store=self.store,  # type: ignore[arg-type]
            clock=self.clock,
            keyring=Keyring(SECRETS.pepper, []),
            signer=Signer(SECRETS),
            pepper=SECRETS.pepper,
        )
        self.services.kept = self._blobs
        self._last_ms = self.world.now_ms
        self.world.say("server starts")
        if self._guarded(lambda: deletion.sweep(self.services)) is not None:
            return
        self.process.after(1000, self._beat)

    def crash(self) -> None:
        if self.is_up:
            self.world.say("server crashes")
            self.process.die()
            self.store.crash = None

    def handle(self, request: Callable[[Services], Coroutine[Any, Any, Any]], answer: Callable[[Any], None]) -> None:
        """Take a request: a paused server takes it when it goes on, one that is down never."""

        def work() -> None:
            outcome = self._guarded(lambda: request(self.services))
            if not isinstance(outcome, Crash):
                answer(outcome)

        self.process.take(work)

    def _guarded(self, request: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return drive(request())
        except (Refusal, StoreUnavailable) as error:
            return error
        except Crash as error:
            self.crash()
            return error

    def _beat(self) -> None:
        """What ``http.app`` does once a second."""
        elapsed_ms = self.world.now_ms - self._last_ms
        self._last_ms = self.world.now_ms
        if not self.store.is_full:  # a beat that cannot be written down ages no lease
            self.lived_ms += min(elapsed_ms, 2000)
        if self.is_wall_clock:
            elapsed_ms = max(0, self.clock.now_ms() - (self._beat_wall_ms or self.clock.now_ms()))
            self._beat_wall_ms = self.clock.now_ms()
        self._guarded(lambda: leases.tick(self.services, elapsed_ms / 1000))
        self.process.after(1000, self._beat)


def _founded(connection: Connection) -> None:
    organizations.set_fact(connection, bootstrap.EPOCH, "e1")
    pulse.begin(connection)
    for org in ORGS:
        organizations.add(connection, org=org, name=org, time_ms=0)


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("a service waited for something; a simulated one has nothing to wait for")
