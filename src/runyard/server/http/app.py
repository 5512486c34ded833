"""Puts the server together: store, secrets and rules opened by the lifespan, routes behind the one door."""

import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from runyard.server.clock import Clock, SystemClock
from runyard.server.http import access, downloads, problems, uploads
from runyard.server.http.capacity import Capacity
from runyard.server.http.gateway import Door
from runyard.server.http.proxies import Proxies
from runyard.server.http.routes import ROUTES
from runyard.server.services.access import bootstrap, key_lifecycle
from runyard.server.services.access.keys import Keyring
from runyard.server.services.access.secrets import open_secrets
from runyard.server.services.access.signing import Signer
from runyard.server.services.context import Services
from runyard.server.services.imports import sweep
from runyard.server.services.operations import audit, backups, housekeeping, legacy_ids
from runyard.server.services.runs import deletion, leases, waiting_reasons
from runyard.settings import Settings
from runyard.store import Store, StoreUnavailable
from runyard.store import keys as key_rows

log = logging.getLogger(__name__)

SWEEP_EVERY = 60  # beats


def create_app(
    settings: Settings, *, clock: Clock | None = None, pulse: bool = True, opened: Services | None = None
) -> Door:
    """The ASGI application. Its lifespan opens the store; without ``pulse`` leases age only by ``leases.tick``.

    ``opened`` are services that the caller has opened already and closes itself.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        opening = open_services(settings, clock or SystemClock(), pulse=pulse)
        async with opening if opened is None else contextlib.nullcontext(opened) as services:
            door.services = services
            try:
                yield
            finally:
                services.changes.close()

    # Named first: the framework's own answer to OPTIONS would list the methods of the first route of a path alone.
    handlers = [
        HTTPRouteHandler(path, http_method="OPTIONS", status_code=200)(problems.list_methods)
        for path in dict.fromkeys(route.path for route in ROUTES)
    ]
    handlers += [
        HTTPRouteHandler(route.path, http_method=route.method, status_code=200)(access.authorized(route))
        for route in ROUTES
    ]
    inside = Litestar(
        route_handlers=handlers,
        lifespan=[lifespan],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # the door counts
        exception_handlers=problems.HANDLERS,
    )

    async def links_and_routes(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(downloads.PREFIX):
            await downloads.download(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].startswith(uploads.PREFIX):
            await uploads.upload(scope, receive, send)
        else:
            await inside(scope, receive, send)

    proxies = Proxies(settings)
    door = Door(links_and_routes, proxies=proxies, capacity=Capacity.of(settings, is_exempt=proxies.is_trusted))
    return door


@contextlib.asynccontextmanager
async def open_services(settings: Settings, clock: Clock, *, pulse: bool) -> AsyncIterator[Services]:
    """Everything behind the routes, opened in order and closed in reverse."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(settings.database)
    try:
        secrets = open_secrets(settings.secrets_dir, is_new=bootstrap.is_new(store))
        if await bootstrap.bootstrap(settings, store, secrets.pepper, now_ms=clock.now_ms()):
            log.info("made an organization and its key; they are in %s", settings.credentials_file)
        services = Services(
            settings=settings,
            store=store,
            clock=clock,
            keyring=Keyring(secrets.pepper, store.read(key_rows.all_rows)),
            signer=Signer(secrets),
            pepper=secrets.pepper,
        )
        backups.begin(services)
        await key_lifecycle.refresh(services)
        await legacy_ids.begin(services)
        await deletion.begin(services)
        await sweep.begin(services)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_write_usage, services)
            stack.push_async_callback(services.jobs.close)
            if pulse:
                task = asyncio.create_task(_beat(services), name="pulse")
                task.add_done_callback(_end_loudly)
                stack.push_async_callback(_stopped, task)
            yield services
    finally:
        store.close()


async def _beat(services: Services) -> None:
    """Once a second, tell the leases how long we have lived, and waiting runs why they wait."""
    last_s = services.clock.monotonic_s()
    for beat in itertools.count(1):
        await services.clock.sleep(leases.TICK_S)
        now_s = services.clock.monotonic_s()
        try:
            await leases.tick(services, now_s - last_s)
            await waiting_reasons.update(services)
            if beat % key_lifecycle.REFRESH_BEATS == 0:
                await key_lifecycle.refresh(services)
            if beat % SWEEP_EVERY == 0:
                await key_lifecycle.write_usage(services)
                await audit.sweep(services)
                await deletion.sweep(services)
                await sweep.sweep(services)
                housekeeping.start(services)
        except StoreUnavailable as error:
            log.error("leases could not be looked after: %s", error)
        last_s = now_s


async def _write_usage(services: Services) -> None:
    try:
        await key_lifecycle.write_usage(services)
    except StoreUnavailable as error:
        log.error("the last uses of keys could not be written: %s", error)


def _end_loudly(task: asyncio.Task[None]) -> None:
    """Without a pulse no lost worker is ever noticed, so a server that has none stops instead of seeming well."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the pulse has stopped, so the server stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
