"""The stream of an organization as server-sent events: events, and hints in between.

Events come from the store by number, so a slow or interrupted reader misses none. Hints say that a
run has new lines, metrics or progress, at most once a second for each run unless the reader wants
fewer; those that it cannot take in time are merged. Nothing here waits for a reader but its own
stream.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial

import msgspec
from sqlalchemy import Connection

from runyard.server.services import events
from runyard.server.services.context import Services
from runyard.server.services.events import EVERYTHING, EventFilter, FoundEvents
from runyard.server.services.notifications import Listener
from runyard.store import runs as run_rows
from runyard.store.tables import AnyRow
from vi.api.resources.events.responses import RunHint

HEARTBEAT_S = 15.0
HEARTBEAT = b": heartbeat\n\n"
HINT_EVERY_S = 1.0
EVENTS_AT_ONCE = 200
RETRY_MS = 1000  # after which a browser connects again


async def iterate(
    services: Services,
    org: str,
    after: int | None,
    *,
    filter: EventFilter = EVERYTHING,
    from_oldest: bool = False,
    hint_every_s: float = HINT_EVERY_S,
) -> AsyncGenerator[bytes]:
    """Yield an organization's events above a number, then those that follow.

    It ends when the server stops. Without ``after``: from now on, or ``from_oldest`` those that are
    kept. Each chunk is complete server-sent events; an event has its number as id, and a hint has
    none.
    """
    with services.notifier.listen(org, with_runs=filter.kind in (None, "run")) as listener:
        if after is None and not from_oldest:
            after = events.read_newest_number(services, org=org)
        yield b"retry: %d\n\n" % RETRY_MS if after is None else _start(after)
        hints = _Hints(services, org, listener, filter.run_id, every_s=hint_every_s)
        loop = asyncio.get_running_loop()
        last_sent_s = last_read_s = loop.time()
        while not services.notifier.is_closed:
            listener.changed.clear()
            chunk = b""
            if listener.has_events or loop.time() - last_read_s >= events.POLL_S:
                listener.has_events, last_read_s = False, loop.time()
                found = await services.store.read_in_thread(
                    partial(
                        events.find,
                        org=org,
                        after=after,
                        limit=EVENTS_AT_ONCE,
                        filter=filter,
                        encode=_encode_event,
                    )
                )
                chunk, after = _format(found), found.next
                listener.has_events |= found.has_more
            chunk += b"".join(await hints.take(loop.time()))
            if not chunk and loop.time() - last_sent_s >= HEARTBEAT_S:
                chunk = HEARTBEAT
            if chunk:
                yield chunk
                last_sent_s = loop.time()
            if not listener.has_events:
                due_s = (hints.due_s, last_sent_s + HEARTBEAT_S, last_read_s + events.POLL_S)
                await _wait(listener, min(due_s) - loop.time())


def _start(after: int) -> bytes:
    # An id without data sets what a browser sends as Last-Event-ID when it connects again.
    return b"retry: %d\nid: %d\n\n" % (RETRY_MS, after)


def _format(found: FoundEvents) -> bytes:
    if found.is_reset:
        return b'id: %d\nevent: reset\ndata: {"next":%d}\n\n' % (found.next, found.next)
    return b"".join(found.items)


def _encode_event(row: AnyRow) -> bytes:
    return b"id: %d\nevent: change\ndata: %b\n\n" % (row.number, events.encode_event(row))


async def _wait(listener: Listener, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, timeout_s)):
            await listener.changed.wait()


class _Hints:
    """The hints of one stream. ``due_s`` is when the next one may be sent, if one is waiting."""

    def __init__(
        self,
        services: Services,
        org: str,
        listener: Listener,
        run_id: str | None,
        *,
        every_s: float,
    ) -> None:
        self._services, self._org, self._listener, self._run_id = services, org, listener, run_id
        self._every_s = every_s
        self._sent_s: dict[str, float] = {}
        self.due_s = float("inf")

    async def take(self, now_s: float) -> Sequence[bytes]:
        """Return the hints that may be sent now."""
        self._sent_s = {
            run_id: sent_s
            for run_id, sent_s in self._sent_s.items()
            if now_s - sent_s < self._every_s
        }
        waiting = self._listener.runs
        if self._run_id is not None:
            for other in waiting.keys() - {self._run_id}:
                del waiting[other]
        due = [run_id for run_id in waiting if run_id not in self._sent_s]
        for run_id in due:
            del waiting[run_id]
            self._sent_s[run_id] = now_s
        self.due_s = min((self._sent_s[run_id] for run_id in waiting), default=float("inf"))
        self.due_s += self._every_s
        if not due:
            return ()
        return await self._services.store.read_in_thread(partial(self._read, due))

    def _read(self, run_ids: Sequence[str], tx: Connection) -> list[bytes]:
        return list(_iter_hints(tx, self._org, run_ids))


class _Progress(msgspec.Struct, rename="camel"):
    step: int = 0
    total_steps: int = 0


class _StatusOutline(msgspec.Struct):
    progress: _Progress | None = None


class _RunOutline(msgspec.Struct):
    """The part of a run's document that a hint needs."""

    status: _StatusOutline


_decode_outline = msgspec.json.Decoder(_RunOutline).decode


def _iter_hints(tx: Connection, org: str, run_ids: Sequence[str]) -> Iterator[bytes]:
    for run_id in run_ids:
        row = run_rows.get(tx, org=org, run_id=run_id)
        if row is None or row.deleted:
            continue
        progress = _decode_outline(row.document).status.progress or _Progress()
        hint = RunHint(
            run=run_id,
            points=row.metric_count,
            lines=row.log_count,
            step=progress.step,
            total_steps=progress.total_steps,
            etag=row.etag,
        )
        yield b"event: hint\ndata: %b\n\n" % msgspec.json.encode(hint)
