"""Wake those who wait for a change: controllers for runs, readers for log lines.

A waiter takes its event *before* it reads the store, so that a change between the read and the wait
is not missed. Only waiters keep events alive; a change nobody waits for costs a dictionary lookup.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

QUEUE = "queue"


def run_topic(org: str, run_id: str) -> str:
    """Return the topic of a run's state, lines and metrics."""
    return f"run:{org}/{run_id}"


class Notifier:
    """Events by topic; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self.is_closed = False
        self.listeners: set[Callable[[str], None]] = set()  # called with each topic

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
        for listener in self.listeners:
            listener(topic)
        event = self._events.pop(topic, None)
        if event is not None:
            event.set()

    def notify_all(self) -> None:
        """Wake everyone: everything may have changed."""
        for topic in list(self._events):
            self.notify(topic)

    def close(self) -> None:
        """Wake every waiter, now and from now on: the server stops."""
        self.is_closed = True
        for event in list(self._events.values()):
            event.set()
        for listener in self.listeners:
            listener("")

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
