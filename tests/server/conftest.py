"""A real application over a real SQLite file, reached in-process; only the clock is ours."""

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from runyard.server.http.app import create_app
from runyard.server.http.gateway import Gateway
from runyard.server.services.context import Services
from runyard.settings import Settings
from runyard.store import Store
from runyard.store.tables import metadata

BASE_URL = "http://127.0.0.1:7878"


class HandClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.epoch_ms = 1_700_000_000_000
        self.lived_s = 1000.0
        self.is_racing = False

    def now_ms(self) -> int:
        return self.epoch_ms

    def monotonic_s(self) -> float:
        return self.lived_s

    async def sleep(self, seconds: float) -> None:
        """Take no real time; while racing, take the time that was asked for."""
        await asyncio.sleep(0.001)
        if self.is_racing:
            self.forward(seconds)

    def forward(self, seconds: float) -> None:
        self.epoch_ms += round(seconds * 1000)
        self.lived_s += seconds


class House:
    """A running application and clients of it. ``api`` is the organisation's admin, ``controller`` the controller."""

    def __init__(self, door: Gateway, settings: Settings, clock: HandClock, stack: contextlib.AsyncExitStack) -> None:
        self.door, self.settings, self.clock, self._stack = door, settings, clock, stack
        told = json.loads(settings.credentials_file.read_text())
        self.org: str = told["organization_id"]
        self.key: str = told["secret_key"]
        self.controller_key: str = json.loads((settings.secrets_dir / "controller.json").read_text())["key"]

    @property
    def services(self) -> Services:
        assert self.door.services is not None
        return self.door.services

    async def client(self, credential: str | None, **headers: str) -> httpx2.AsyncClient:
        if credential is not None:
            headers["authorization"] = f"Bearer {credential}"
        transport = httpx2.ASGITransport(app=self.door)
        return await self._stack.enter_async_context(
            httpx2.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers)
        )

    async def api(self) -> httpx2.AsyncClient:
        return await self.client(self.key)

    def path(self, rest: str) -> str:
        return f"/workspaces/{self.org}/{rest}"


@dataclass(frozen=True)
class Plan:
    """An application that is put together and not open yet; it holds no file, thread or loop, so it may be forked."""

    settings: Settings
    clock: HandClock
    door: Gateway


def plan(data_dir: Path, *, run_ticker: bool = False, **settings: Any) -> Plan:
    clock, chosen = HandClock(), Settings(data_dir=data_dir, **settings)
    return Plan(chosen, clock, create_app(chosen, clock=clock, run_ticker=run_ticker))


@contextlib.asynccontextmanager
async def enter(planned: Plan) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_lifespan(planned.door))
        yield House(planned.door, planned.settings, planned.clock, stack)


@contextlib.asynccontextmanager
async def open_house(data_dir: Path, *, run_ticker: bool = False, **settings: Any) -> AsyncIterator[House]:
    async with enter(plan(data_dir, run_ticker=run_ticker, **settings)) as house:
        yield house


@contextlib.asynccontextmanager
async def _lifespan(door: Gateway) -> AsyncIterator[None]:
    """Start and stop an application as a web server does."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(door(scope, incoming.get, outgoing.put))
    await incoming.put({"type": "lifespan.startup"})
    assert (started := await outgoing.get())["type"] == "lifespan.startup.complete", started
    try:
        yield
    finally:
        await incoming.put({"type": "lifespan.shutdown"})
        assert (await outgoing.get())["type"] == "lifespan.shutdown.complete"
        await task


Story = Callable[[House], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database; copying it saves each test the migration."""
    path = tmp_path_factory.mktemp("store") / "server.db"
    Store(path).close()
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: Any) -> str:
    """The URL of a migrated database in PostgreSQL."""
    url: str = postgresql.new_database()
    Store(url).close()
    return url


@pytest.fixture
def empty_postgresql(postgresql: Any, migrated_postgresql: str) -> Callable[[], str]:
    """Empties the migrated database and gives its URL: as good as a new one, in a third of the time."""

    def empty() -> str:
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        name = urlsplit(migrated_postgresql).path.removeprefix("/")
        postgresql.execute(f"TRUNCATE {tables} RESTART IDENTITY", database=name)
        return migrated_postgresql

    return empty


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What the store does is tested on each: every test of these modules runs twice."""
    is_about_the_store = metafunc.module.__name__.rpartition(".")[2] in (
        "test_audit",
        "test_backups",
        "test_bulk_runs",
        "test_datasets",
        "test_deletion",
        "test_key_lifecycle",
        "test_leases",
        "test_telemetry",
        "test_resume",
        "test_retention",
    )
    if is_about_the_store and "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", ["sqlite", "postgresql"])


@pytest.fixture
def store_kind() -> str:
    return "sqlite"


@pytest.fixture
def in_house(
    tmp_path: Path, empty_database: Path, store_kind: str, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Run an async test against a fresh application: ``in_house(story)``."""

    def run(story: Story, **settings: Any) -> None:
        if store_kind == "postgresql":
            settings["database_url"] = request.getfixturevalue("empty_postgresql")()

        async def all_of_it() -> None:
            (tmp_path / "data").mkdir(exist_ok=True)
            shutil.copyfile(empty_database, tmp_path / "data" / "server.db")
            async with open_house(tmp_path / "data", **settings) as house:
                await story(house)

        asyncio.run(all_of_it())

    return run


Digest = str


class Attempt:
    """An attempt as its supervisor sees it."""

    def __init__(self, house: House, client: httpx2.AsyncClient, assignment: dict[str, Any]) -> None:
        self.house, self.client, self.assignment = house, client, assignment
        self.offsets = {"events": 0, "stdout": 0, "stderr": 0}

    async def post(self, name: str, **message: Any) -> httpx2.Response:
        return await self.client.post(f"/internal/v1/attempt/{name}", json=message)

    async def start(self) -> httpx2.Response:
        return await self.post("process", machine_id="m1", boot_id="b", pid=7, start_ticks=8)

    async def ship(self, *lines: str, stream: str = "events", offset: int | None = None) -> httpx2.Response:
        begin = self.offsets[stream] if offset is None else offset
        end = begin + sum(len(line.encode()) + 1 for line in lines)
        answer = await self.post("lines", stream=stream, offset=begin, next_offset=end, lines=list(lines))
        if answer.status_code == 200:
            self.offsets[stream] = answer.json()["offset"]
        return answer

    async def event(self, name: str, **fields: Any) -> httpx2.Response:
        return await self.ship(json.dumps({"n": 1, "t": 1_700_000_000_500, "ev": name, **fields}))

    async def upload(self, content: bytes) -> Digest:
        digest = hashlib.sha256(content).hexdigest()
        answer = await self.client.put(f"/internal/v1/attempt/blobs/{digest}", content=content)
        assert answer.status_code == 201, answer.text
        return digest

    async def checkpoint(self, id: str = "epoch-1", *, content: bytes = b"weights", best: bool = True) -> None:
        digest = await self.upload(content)
        files = [
            {"path": "model_full/model.safetensors", "size_bytes": len(content), "sha256": digest},
            {"path": "training_state/state.json", "size_bytes": len(content), "sha256": digest},
        ]
        step = int(id.rpartition("-")[2])
        answer = await self.post(
            "checkpoints",
            checkpoint_id=id,
            step=step,
            epoch=step,
            metrics={"exactMatch": 0.5},
            is_best=best,
            time=1_700_000_000_900,
            files=files,
        )
        assert answer.status_code == 201, answer.text

    async def out_of_memory(self, cause: str = "out of memory: the kernel ended the trainer") -> httpx2.Response:
        """The kernel ended the trainer, as its supervisor reports it."""
        return await self.post(
            "finish", exit_code=None, signal="SIGKILL", group_empty=True, cause=cause, time=5, result=None
        )

    async def finish(self, code: int | None = 0, *, empty: bool = True, **result: str) -> httpx2.Response:
        return await self.post(
            "finish",
            exit_code=code,
            signal=None,
            group_empty=empty,
            cause=f"exit code {code}",
            time=5,
            result=result or None,
        )


async def claim(house: House, claim_id: str = "c1", **changes: Any) -> Attempt | None:
    """Claim as the controller does; None when there was nothing."""
    controller = await house.client(house.controller_key)
    offer = {"claim_id": claim_id, "machine_id": "m1", "host": "here", "slots": 1, "wait_s": 0} | changes
    answer = await controller.post("/internal/v1/claims", json=offer)
    assert answer.status_code == 200, answer.text
    assignment = answer.json()["assignment"]
    if assignment is None:
        return None
    return Attempt(house, await house.client(assignment["token"]), assignment)


async def running(house: House, run_id: str = "r1", flow: dict[str, Any] | None = None) -> Attempt:
    """A run that has been created, claimed and started."""
    api = await house.api()
    created = await api.put(house.path(f"runs/{run_id}"), json={"spec": {"flow": flow or {}}})
    assert created.status_code == 201, created.text
    attempt = await claim(house, f"claim-{run_id}")
    assert attempt is not None
    assert (await attempt.start()).status_code == 200
    return attempt


async def status(house: House, run_id: str = "r1") -> tuple[str, str, str | None]:
    """Condition, reason and message of a run now."""
    api = await house.api()
    latest = (await api.get(house.path(f"runs/{run_id}"))).json()["status"]["conditions"][-1]
    return latest["condition"], latest["reason"], latest["message"]


@pytest.fixture
def acts() -> Any:
    """What tests do as controller and supervisor: ``claim``, ``running``, ``status``; and ``open_house``."""
    return SimpleNamespace(claim=claim, running=running, status=status, open_house=open_house)
