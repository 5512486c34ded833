"""The simulated server: the real services on the real tables, which crash, pause, and restart.

The tables are in SQLite in memory, or in a real PostgreSQL. The store differs from the product's in
one point: it has no writer thread, because threads are not deterministic. Transactions are
committed where they are called, and committed data survives a crash.
"""

import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool, StaticPool

from runyard.blobs import BlobMissing
from runyard.server.services import membership, retention
from runyard.server.services.access.keys import Keyring
from runyard.server.services.access.secrets import Secrets
from runyard.server.services.access.signing import Signer
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import Memberships
from runyard.server.services.runs import deletion, leases, models, waiting_reasons
from runyard.settings import Settings
from runyard.store import StoreUnavailable, backup, events, lease_clock, organizations
from runyard.store.access import machines as machine_rows
from runyard.store.engines.postgresql import PostgreSql
from runyard.store.migrate import migrate
from runyard.store.tables import metadata
from tests.sim.simulation.world import Host, Process

ORGS = ("org-a", "org-b")
NOWHERE = Path("/nonexistent/simulated")
SECRETS = Secrets(pepper=b"p" * 32, signing_id="1", signing={"1": b"s" * 32})


class Crash(BaseException):
    """The server dies at this point."""


class InlineAsyncio:
    """Replaces ``asyncio`` in services that move work to a thread: here it runs at once."""

    @staticmethod
    async def to_thread(work: Callable[..., Any], /, *arguments: Any) -> Any:
        return work(*arguments)


Rows = list[tuple[str, Sequence[str], list[bytes]]]


class DirectStore:
    """The part of ``runyard.store.Store`` that services use, without threads.

    One connection for all, in autocommit: transactions are begun and ended by hand, in the words
    that the product's own connections use.
    """

    begin = "BEGIN"
    is_local = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._raw: Any = self._connection.connection.driver_connection
        self.on_commit: Callable[[], None] = lambda: None
        self.crash: str | None = None  # dies at the next write, "before" or "after" its commit
        self.is_full = False

    def query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return rows of the tables, without the code under test."""
        found: list[tuple[Any, ...]] = self._raw.execute(statement, values).fetchall()
        return found

    def snapshot(self) -> Rows:
        """Return every row of every table, as in a backup."""
        self._raw.execute(self.begin)
        rows: Rows = [
            (
                table.name,
                backup.list_columns(table),
                list(backup.iter_rows(self._connection, table)),
            )
            for table in backup.TABLES.values()
        ]
        self._raw.execute("COMMIT")
        return rows

    def restore(self, rows: Rows, *, store_id: str, lease_ms: int) -> None:
        """Replace every row and give the store a new id, in one transaction."""
        self._raw.execute(self.begin)
        kept: dict[str, Any] = {"operator": ORGS[0], "with_keys": True, "lease_ms": lease_ms}
        backup.replace_all(self._connection, rows, store_id=store_id, **kept)
        self._raw.execute("COMMIT")

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        if self.is_full:
            raise StoreUnavailable("no space left")
        crash, self.crash = self.crash, None
        self._raw.execute(self.begin)
        try:
            events.replace_recorded(self._connection, ())
            result = work(self._connection)
            events.write_recorded(self._connection)
            if crash == "before":
                raise Crash
        except BaseException:
            self._raw.execute("ROLLBACK")
            raise
        self._raw.execute("COMMIT")
        self.on_commit()
        if crash == "after":
            raise Crash
        return result

    def read(self, work: Callable[[Connection], Any]) -> Any:
        return work(self._connection)

    async def read_in_thread(self, work: Callable[[Connection], Any]) -> Any:
        return work(self._connection)

    def close(self) -> None:
        self._connection.close()
        self.engine.dispose()


class SqliteStore(DirectStore):
    """A SQLite database in memory."""

    _template: sqlite3.Connection | None = None

    def __init__(self) -> None:
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        event.listen(engine, "connect", _no_own_transactions)
        super().__init__(engine)
        if SqliteStore._template is None:
            metadata.create_all(engine)
            SqliteStore._template = sqlite3.connect(":memory:", check_same_thread=False)
            self._raw.backup(SqliteStore._template)
        else:
            SqliteStore._template.backup(self._raw)


class PostgreSqlStore(DirectStore):
    """A database of a real PostgreSQL, emptied for each history."""

    begin = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    _known: ClassVar[set[str]] = set()

    def __init__(self, url: str) -> None:
        engine = create_engine(url, poolclass=NullPool)
        if url not in PostgreSqlStore._known:
            kind = PostgreSql(url)
            migrate(engine, kind.lock_migrations, kind.prepare_upgrade)
            PostgreSqlStore._known.add(url)
        super().__init__(engine)
        for table in reversed(metadata.sorted_tables):
            self._connection.execute(table.delete())

    def query(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return super().query(statement.replace("?", "%s"), values)


def _no_own_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in ("synchronous=OFF", "journal_mode=MEMORY", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


class Blobs:
    """Bytes by hash, in memory."""

    def __init__(self, bytes: dict[str, bytes] | None = None) -> None:
        self.bytes = {} if bytes is None else bytes

    def has(self, sha256: str) -> bool:
        return sha256 in self.bytes

    def size_bytes(self, sha256: str) -> int:
        if sha256 not in self.bytes:
            raise BlobMissing(sha256)
        return len(self.bytes[sha256])

    def delete(self, sha256: str) -> bool:
        return self.bytes.pop(sha256, None) is not None

    def open(self, sha256: str) -> BytesIO:
        return BytesIO(self.bytes[sha256])


class SimulatedServices(Services):
    """The real services, except that blobs are in memory."""

    kept: dict[str, Blobs]

    def blobs(self, org: str) -> Any:
        return self.kept.setdefault(org, Blobs())


class ServerClock:
    """The wall clock of the server's machine, which may step, and its monotonic clock, which may
    not.
    """

    def __init__(self, host: Host):
        self._host, self.skew_ms = host, 1_700_000_000_000

    def now_ms(self) -> int:
        return self._host.world.now_ms + self.skew_ms

    def monotonic_s(self) -> float:
        return self._host.monotonic_ms / 1000

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing waits in here")


class Server:
    """One server process after another over one database."""

    def __init__(
        self,
        host: Host,
        *,
        store: DirectStore,
        attempts: int,
        lease_s: float,
        grace_s: float,
        is_wall_clock: bool = False,
    ):
        self.world, self.host, self.is_wall_clock = host.world, host, is_wall_clock
        self.settings = Settings(
            data_dir=NOWHERE, attempts=attempts, lease_s=lease_s, grace_s=grace_s
        )
        self.store = store
        self.clock = ServerClock(host)
        self._blobs: dict[str, Blobs] = {}
        self._restores = 0
        self.uptime_ms = 0  # measured here, to check the server's own count
        self._ticked_ms = self._beat_wall_ms = 0
        deletion.asyncio = models.asyncio = InlineAsyncio  # type: ignore[attr-defined, assignment]
        retention.run_in_thread = InlineAsyncio.to_thread  # type: ignore[attr-defined, assignment]
        run_coroutine(self.store.write(_create_organizations))
        self.process = Process(self.world, "server", host)
        self.process.die()
        self.start()

    @property
    def is_up(self) -> bool:
        return self.process.is_alive

    @property
    def store_id(self) -> str:
        return f"e{self._restores + 1}"

    def start(self) -> None:
        if self.is_up:
            return
        if self.host.is_suspended:
            self.world.schedule(1_000, self.start)
            return
        self.process = Process(self.world, "server", self.host)
        self.services = SimulatedServices(
            settings=self.settings,
            store=self.store,  # type: ignore[arg-type]
            clock=self.clock,
            keyring=Keyring(SECRETS.pepper, []),
            memberships=Memberships(self.store.read(machine_rows.list_all)),
            signer=Signer(SECRETS),
            pepper=SECRETS.pepper,
        )
        self.services.kept = self._blobs
        self._ticked_ms = self.host.monotonic_ms
        self.world.record("server starts")
        if self._run_guarded(lambda: deletion.sweep(self.services)) is not None:
            return
        self.process.schedule(1000, self._tick)

    def crash(self) -> None:
        if self.is_up:
            self.world.record("server crashes")
            self.process.die()
            self.store.crash = None

    def restore(self, rows: Rows, blobs: dict[str, Blobs]) -> None:
        """Restore a backup: stop the server, replace the rows, and add the backup's blobs."""
        self.crash()
        self._restores += 1
        lease_ms = leases.get_restore_lease_ms(self.services)
        self.store.restore(rows, store_id=self.store_id, lease_ms=lease_ms)
        for org, kept in blobs.items():
            self._blobs.setdefault(org, Blobs()).bytes.update(kept.bytes)

    def copy_blobs(self) -> dict[str, Blobs]:
        return {org: Blobs(dict(kept.bytes)) for org, kept in self._blobs.items()}

    def handle(
        self, request: Callable[[Services], Coroutine[Any, Any, Any]], answer: Callable[[Any], None]
    ) -> None:
        """Handle a request: a paused server does so when it resumes, a stopped one never."""

        def work() -> None:
            outcome = self._run_guarded(lambda: request(self.services))
            if not isinstance(outcome, Crash):
                answer(outcome)

        self.process.deliver(work)

    def _run_guarded(self, request: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return run_coroutine(request())
        except (Refusal, StoreUnavailable) as error:
            return error
        except Crash as error:
            self.crash()
            return error

    def _tick(self) -> None:
        """Act as ``http.app`` does once a second."""
        elapsed_ms = self.host.monotonic_ms - self._ticked_ms
        self._ticked_ms = self.host.monotonic_ms
        if not self.store.is_full:  # a beat that cannot be written down ages no lease
            self.uptime_ms += min(elapsed_ms, 2000)
        if self.is_wall_clock:
            elapsed_ms = max(0, self.clock.now_ms() - (self._beat_wall_ms or self.clock.now_ms()))
            self._beat_wall_ms = self.clock.now_ms()
        self._run_guarded(lambda: leases.tick(self.services, elapsed_ms / 1000))
        self._run_guarded(lambda: waiting_reasons.refresh(self.services))
        self._run_guarded(lambda: membership.refresh(self.services))
        self.process.schedule(1000, self._tick)


def add_machines(connection: Connection, ids: Sequence[str]) -> None:
    """Let machines join; one that was removed joins again."""
    for machine_id in ids:
        membership.add_machine(
            connection,
            machine_id=machine_id,
            org=ORGS[0],
            name=machine_id,
            key_id=f"key of {machine_id}",
            host=machine_id,
            invited_by="a test",
            now_ms=0,
        )


def _create_organizations(connection: Connection) -> None:
    organizations.set_meta(connection, organizations.STORE_ID, "e1")
    lease_clock.insert_clock(connection)
    for org in ORGS:
        organizations.add(connection, org=org, name=org, time_ms=0)


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("a service waited for something; a simulated one has nothing to wait for")
