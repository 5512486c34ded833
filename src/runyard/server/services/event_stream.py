"""The stream of an organization as server-sent events: events, and hints in between.

Events come from the store by number, so a slow or interrupted reader misses none. Hints say that a
run has new lines, metrics or progress, at most once a second for each run unless the reader wants
fewer; those that it cannot take in time are merged. Nothing here waits for a reader but its own
stream.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Collection
from functools import partial

from runyard.server.services import events
from runyard.server.services.context import Services
from runyard.server.services.events import EVERYTHING, EventFilter, FoundEvents
from runyard.server.services.notifications import Listener
from runyard.store.tables import AnyRow

HEARTBEAT_S = 15.0
HEARTBEAT = b": heartbeat\n\n"
HINT_EVERY_S = 1.0
LATE_S = 0.1  # a hint that was due so long ago was not waiting
EVENTS_AT_ONCE = 200
RETRY_MS = 1000  # after which a browser connects again


async def iterate(
    services: Services,
    org: str,
    after: int | None,
    *,
    filter: EventFilter = EVERYTHING,
    from_oldest: bool = False,
    watched: Collection[str] = (),
    hint_every_s: float = HINT_EVERY_S,
) -> AsyncGenerator[bytes]:
    """Yield an organization's events above a number, then those that follow.

    It ends when the server stops. Without ``after``: from now on, or ``from_oldest`` those that are
    kept. Each chunk is complete server-sent events; an event has its number as id, and a hint has
    none. Before the hint of a ``watched`` run comes an event ``points``, ``hints.NewPoints``, if
    they are few.
    """
    with (
        services.notifier.listen(org, with_runs=filter.kind in (None, "run")) as listener,
        services.hints.watch(org, watched),
    ):
        if after is None and not from_oldest:
            after = events.read_newest_number(services, org=org)
        yield b"retry: %d\n\n" % RETRY_MS if after is None else _start(after)
        hints = _DueHints(
            services, org, listener, filter.run_id, watched=watched, every_s=hint_every_s
        )
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
            chunk += await hints.take(loop.time())
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


class _DueHints:
    """Which hints one stream takes when. ``due_s`` is when it may take the next that waits.

    Of a run that changes all the time, hints are due at multiples of the period, for all streams at
    once, so that they share what is read.
    """

    def __init__(
        self,
        services: Services,
        org: str,
        listener: Listener,
        run_id: str | None,
        *,
        watched: Collection[str],
        every_s: float,
    ) -> None:
        self._services, self._org, self._listener, self._run_id = services, org, listener, run_id
        self._watched, self._every_s = watched, every_s
        self._next_s: dict[str, float] = {}  # of runs that had one lately
        self.due_s = math.inf

    async def take(self, now_s: float) -> bytes:
        """Return the hints that may be sent now."""
        waiting = self._listener.runs
        if self._run_id is not None:
            for other in waiting.keys() - {self._run_id}:
                del waiting[other]
        self._next_s = {
            run_id: next_s
            for run_id, next_s in self._next_s.items()
            if now_s < next_s + self._every_s
        }
        due = {
            run_id: version
            for run_id, version in waiting.items()
            if self._next_s.get(run_id, now_s) <= now_s
        }
        for run_id in due:
            del waiting[run_id]
            self._next_s[run_id] = self._find_next(self._next_s.get(run_id), now_s)
        self.due_s = min((self._next_s[run_id] for run_id in waiting), default=math.inf)
        if not due:
            return b""
        updates = await self._services.hints.read(self._services.store, self._org, due)
        return b"".join(
            update.points + update.hint if update.run_id in self._watched else update.hint
            for update in updates
        )

    def _find_next(self, due_s: float | None, now_s: float) -> float:
        """Return the first multiple of the period that is a period after this hint."""
        was_waiting = due_s is not None and now_s - due_s < LATE_S
        begin = due_s if due_s is not None and was_waiting else now_s
        return math.ceil(begin / self._every_s + 1 - 1e-6) * self._every_s
