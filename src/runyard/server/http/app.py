"""The assembly of the server: store, secrets, services, and routes behind the gateway.

What endpoints need of the list of routes (the OpenAPI document) is handed to them here, so that
they do not import ``routes``, which imports them.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import signal
import threading
from collections.abc import AsyncIterator, Collection
from typing import Any

from runyard.server.clock import AsyncClock
from runyard.server.http import access, browser, downloads, problems, uploads
from runyard.server.http.capacity import Capacity
from runyard.server.http.gateway import Gateway
from runyard.server.http.openapi import encode_document
from runyard.server.http.proxies import Proxies
from runyard.server.http.router import Router
from runyard.server.http.routes import ROUTES
from runyard.server.services import events, machine_failures, membership
from runyard.server.services.access import bootstrap, key_lifecycle, session_lifecycle
from runyard.server.services.access.keys import Keyring
from runyard.server.services.access.secrets import open_secrets
from runyard.server.services.access.signing import Signer
from runyard.server.services.context import Services
from runyard.server.services.imports import sweep
from runyard.server.services.machines import Memberships
from runyard.server.services.operations import audit, backups, housekeeping, legacy_ids
from runyard.server.services.runs import deletion, leases, listing, waiting_reasons
from runyard.settings import Settings
from runyard.store import Store, StoreUnavailable
from runyard.store.access import keys as key_rows
from runyard.store.access import machines as machine_rows

log = logging.getLogger(__name__)

TICKS_PER_SWEEP = 60
_building_pages = threading.Lock()


def create_app(settings: Settings) -> Gateway:
    """Return the ASGI application, which needs services before its first request.

    It has no lifespan of its own: who opens the services closes them.
    """
    proxies = Proxies(settings)
    capacity = Capacity.from_settings(settings, is_exempt=proxies.is_trusted)
    return Gateway(_links_and_routes, proxies=proxies, capacity=capacity)


async def _links_and_routes(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    if path.startswith(downloads.PREFIX):
        await downloads.serve_download(scope, receive, send)
    elif path.startswith(uploads.PREFIX):
        await uploads.receive_upload(scope, receive, send)
    elif browser.is_page_path(path):
        if not _build_pages.cache_info().currsize:
            await asyncio.to_thread(build_pages)
        await build_pages()(scope, receive, send)
    else:
        await build_api()(scope, receive, send)


def build_pages() -> Any:
    """Return what answers the pages; several threads may ask at once."""
    with _building_pages:
        return _build_pages()


@functools.cache
def _build_pages() -> Any:
    """Build what answers the pages, and their static files.

    Their modules are imported here, on a thread when the first page is asked for: the server starts
    as fast as without them.
    """
    from runyard.server.pages import assets, templates
    from runyard.server.pages.problems import answer_error
    from runyard.server.pages.routes import PAGES

    pages = Router(PAGES, wrap=access.require_authorization, answer_error=answer_error)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith(assets.PREFIX):
            await assets.serve(scope, receive, send)
        else:
            templates.note_event_number(scope)
            await pages(scope, receive, send)

    return answer


@functools.cache
def build_api() -> Router:
    """Build what answers the routes. It keeps nothing of a request, so one serves a process."""
    return Router(
        ROUTES,
        wrap=access.require_authorization,
        answer_error=problems.answer_error,
        state={"encode_openapi": encode_document},
    )


@contextlib.asynccontextmanager
async def open_services(
    settings: Settings, clock: AsyncClock, *, run_ticker: bool
) -> AsyncIterator[Services]:
    """Open everything behind the routes in order, and close it in reverse.

    Without ``run_ticker`` leases expire only through explicit calls of ``leases.tick``.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(settings.database)
    try:
        secrets = open_secrets(settings.secrets_dir, is_new=bootstrap.is_new(store))
        if await bootstrap.bootstrap(settings, store, secrets.pepper, now_ms=clock.now_ms()):
            log.info("created an organization and its key, see %s", settings.credentials_file)
        services = Services(
            settings=settings,
            store=store,
            clock=clock,
            keyring=Keyring(secrets.pepper, store.read(key_rows.list_all)),
            memberships=Memberships(store.read(machine_rows.list_all)),
            signer=Signer(secrets),
            pepper=secrets.pepper,
        )
        _announce_events(services)
        backups.remove_leftovers(services)
        await key_lifecycle.refresh(services)
        await legacy_ids.rename_invalid(services)
        await deletion.resume_removals(services)
        await sweep.resume_jobs(services)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_write_usage, services)
            stack.push_async_callback(services.jobs.close)
            if run_ticker:
                task = asyncio.create_task(_run_ticker(services), name="ticker")
                task.add_done_callback(_stop_server_on_failure)
                stack.push_async_callback(_cancel, task)
            yield services
    finally:
        store.close()


def _announce_events(services: Services) -> None:
    """Wake listeners whenever the store has committed events."""
    loop = asyncio.get_running_loop()

    def announce(orgs: Collection[str]) -> None:
        if orgs:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(services.notifier.announce_events, orgs)

    services.store.announce_events = announce


async def _run_ticker(services: Services) -> None:
    """Once a second, advance the lease clock and update why runs wait; once a minute, sweep."""
    last_s = services.clock.monotonic_s()
    for tick in itertools.count(1):
        await services.clock.sleep(leases.TICK_S)
        now_s = services.clock.monotonic_s()
        try:
            await leases.tick(services, now_s - last_s)
            await waiting_reasons.refresh(services)
            await listing.index_texts(services)
            if tick % key_lifecycle.REFRESH_BEATS == 0:
                await key_lifecycle.refresh(services)
                await membership.refresh(services)
            if tick % TICKS_PER_SWEEP == 0:
                await key_lifecycle.write_usage(services)
                await session_lifecycle.sweep(services)
                await machine_failures.sweep(services)
                await audit.sweep(services)
                await events.sweep(services)
                await deletion.sweep(services)
                await sweep.sweep(services)
                housekeeping.start(services)
        except StoreUnavailable as error:
            log.error("the lease clock was not advanced: %s", error)
        last_s = now_s


async def _write_usage(services: Services) -> None:
    try:
        await key_lifecycle.write_usage(services)
        await session_lifecycle.write_usage(services)
    except StoreUnavailable as error:
        log.error("the last uses of keys could not be written: %s", error)


def _stop_server_on_failure(task: asyncio.Task[None]) -> None:
    """Stop the server when its ticker has failed: without it no lost worker would be noticed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the ticker has failed, so the server stops", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
