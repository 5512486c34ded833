"""A real application over a real SQLite file, called in-process; only the clock is a fake."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from runyard.server.http.app import build_api, create_app, open_services
from runyard.server.http.gateway import Gateway
from runyard.server.services.context import Services
from runyard.settings import Settings

BASE_URL = "http://127.0.0.1:7878"


class HandClock:
    """A clock that stands still until a test advances it."""

    def __init__(self) -> None:
        self.epoch_ms = 1_700_000_000_000
        self.monotonic_now_s = 1000.0
        self.is_racing = False

    def now_ms(self) -> int:
        return self.epoch_ms

    def monotonic_s(self) -> float:
        return self.monotonic_now_s

    async def sleep(self, seconds: float) -> None:
        """Take no real time; while racing, advance by the requested time."""
        await asyncio.sleep(0.001)
        if self.is_racing:
            self.forward(seconds)

    def forward(self, seconds: float) -> None:
        self.epoch_ms += round(seconds * 1000)
        self.monotonic_now_s += seconds


class TestServer:
    """A running application and clients of it.

    ``api`` returns a client of the organization's admin.
    """

    __test__ = False  # for pytest, since the name begins with Test

    def __init__(
        self,
        gateway: Gateway,
        settings: Settings,
        clock: HandClock,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self.gateway, self.settings, self.clock, self._stack = gateway, settings, clock, stack
        credentials = json.loads(settings.credentials_file.read_text())
        self.org: str = credentials["organization_id"]
        self.key: str = credentials["secret_key"]
        self.controller_key: str = json.loads(
            (settings.secrets_dir / "controller.json").read_text()
        )["key"]

    @property
    def services(self) -> Services:
        assert self.gateway.services is not None
        return self.gateway.services

    async def client(self, credential: str | None, **headers: str) -> httpx2.AsyncClient:
        if credential is not None:
            headers["authorization"] = f"Bearer {credential}"
        transport = httpx2.ASGITransport(app=self.gateway)
        return await self._stack.enter_async_context(
            httpx2.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers)
        )

    async def api(self) -> httpx2.AsyncClient:
        return await self.client(self.key)

    def path(self, rest: str) -> str:
        return f"/workspaces/{self.org}/{rest}"


@dataclass(frozen=True)
class Plan:
    """An application that is configured and not open yet.

    It holds no file, thread or loop, so it may be forked.
    """

    settings: Settings
    clock: HandClock
    gateway: Gateway
    run_ticker: bool


def plan(data_dir: Path, *, run_ticker: bool = False, **settings: Any) -> Plan:
    clock, chosen = HandClock(), Settings(data_dir=data_dir, **settings)
    build_api()  # before a fork, so that no child builds it again
    return Plan(chosen, clock, create_app(chosen), run_ticker)


@contextlib.asynccontextmanager
async def enter(planned: Plan) -> AsyncIterator[TestServer]:
    async with contextlib.AsyncExitStack() as stack:
        services = await stack.enter_async_context(
            open_services(planned.settings, planned.clock, run_ticker=planned.run_ticker)
        )
        planned.gateway.services = services
        stack.callback(services.notifier.close)
        yield TestServer(planned.gateway, planned.settings, planned.clock, stack)


@contextlib.asynccontextmanager
async def open_server(
    data_dir: Path, *, run_ticker: bool = False, **settings: Any
) -> AsyncIterator[TestServer]:
    async with enter(plan(data_dir, run_ticker=run_ticker, **settings)) as server:
        yield server


MakeServer = Callable[..., AbstractAsyncContextManager[TestServer]]
