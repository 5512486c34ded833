"""Wake those who wait for a change: controllers for runs, readers for log lines and events.

A waiter takes its event *before* it reads the store, so that a change between the read and the wait
is not missed. Only waiters keep events alive; a change nobody waits for costs a dictionary lookup.
A listener follows one organization: its events, and if it wants to, which runs have changed.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from typing import Any
from weakref import WeakValueDictionary

QUEUE = "queue"
RUN_PREFIX = "run:"
MOST_RUNS = 1000  # that a listener remembers; it loses hints of further ones


def run_topic(org: str, run_id: str) -> str:
    """Return the topic of a run's state, lines and metrics."""
    return f"{RUN_PREFIX}{org}/{run_id}"


class Listener:
    """What is new in an organization since its reader has looked.

    ``has_events`` says that there may be new events. ``runs`` are those with new lines, metrics or
    progress, oldest first, each with the number of its newest change; it stays empty for a reader
    of events only.
    """

    def __init__(self, *, with_runs: bool) -> None:
        self.changed = asyncio.Event()
        self.has_events = True
        self.runs: dict[str, int] = {}
        self._with_runs = with_runs

    def add_events(self) -> None:
        self.has_events = True
        self.changed.set()

    def add_run(self, run_id: str, change: int) -> None:
        """Add a run; a reader that has not taken it yet is not woken again."""
        if run_id in self.runs:
            self.runs[run_id] = change
        elif self._with_runs and len(self.runs) < MOST_RUNS:
            self.runs[run_id] = change
            self.changed.set()


class Notifier:
    """Events by topic, and listeners by organization; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._listeners: dict[str, set[Listener]] = {}
        self._change = 0
        self.is_closed = False

    @contextlib.contextmanager
    def listen(self, org: str, *, with_runs: bool = False) -> Iterator[Listener]:
        """Follow an organization while the block runs."""
        listener = Listener(with_runs=with_runs)
        self._listeners.setdefault(org, set()).add(listener)
        try:
            yield listener
        finally:
            self._listeners[org].discard(listener)
            if not self._listeners[org]:
                del self._listeners[org]

    def announce_events(self, orgs: Collection[str]) -> None:
        """Wake the listeners of organizations that have new events."""
        for org in orgs:
            for listener in self._listeners.get(org, ()):
                listener.add_events()

    def watch(self, topic: str) -> asyncio.Event:
        """Return the event that the next change of ``topic`` sets."""
        event = self._events.get(topic)
        if event is None:
            event = self._events[topic] = asyncio.Event()
        if self.is_closed:
            event.set()
        return event

    def notify(self, topic: str) -> None:
        """Wake those who watch ``topic``. Call it after the change is on disk."""
        event = self._events.pop(topic, None)
        if event is not None:
            event.set()
        if self._listeners and topic.startswith(RUN_PREFIX):
            self._change += 1
            org, _, run_id = topic.removeprefix(RUN_PREFIX).partition("/")
            for listener in self._listeners.get(org, ()):
                listener.add_run(run_id, self._change)

    def notify_all(self) -> None:
        """Wake everyone: everything may have changed."""
        for topic in list(self._events):
            self.notify(topic)
        self.announce_events(self._listeners)

    def close(self) -> None:
        """Wake every waiter, now and from now on: the server stops."""
        self.is_closed = True
        for event in list(self._events.values()):
            event.set()
        self.announce_events(self._listeners)

    @staticmethod
    async def wait(
        event: asyncio.Event, *, timeout_s: float, gone: "asyncio.Future[None] | None" = None
    ) -> bool:
        """Wait for the event.

        Return False on timeout, or when the client has disconnected (``gone`` is done).
        """
        coming: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
        either = {coming} if gone is None else {coming, gone}
        try:
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return coming.done()
        finally:
            coming.cancel()
