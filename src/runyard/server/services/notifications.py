"""Wakes those who wait for something to change: controllers for work, readers for log lines.

A waiter takes its event *before* it looks at the store, so that a change between the look and the wait is not missed.
Only waiters keep events alive; a change nobody waits for costs a dictionary look-up.
"""

import asyncio
from typing import Any
from weakref import WeakValueDictionary

QUEUE = "queue"


def run_topic(org: str, run_id: str) -> str:
    """What changes when a run's state, lines or metrics do."""
    return f"run:{org}/{run_id}"


class Changes:
    """Events by topic; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self.is_closed = False

    def watch(self, topic: str) -> asyncio.Event:
        """The event that the next change of ``topic`` sets."""
        event = self._events.get(topic)
        if event is None:
            event = self._events[topic] = asyncio.Event()
        if self.is_closed:
            event.set()
        return event

    def tell(self, topic: str) -> None:
        """Something about ``topic`` is different now, and on disk."""
        event = self._events.pop(topic, None)
        if event is not None:
            event.set()

    def tell_all(self) -> None:
        """Everything may be different now."""
        for topic in list(self._events):
            self.tell(topic)

    def close(self) -> None:
        """Let every waiter go, now and from now on: the server stops."""
        self.is_closed = True
        for event in list(self._events.values()):
            event.set()

    @staticmethod
    async def wait(event: asyncio.Event, *, timeout_s: float, gone: "asyncio.Future[None] | None" = None) -> bool:
        """Whether the event came in time, and before the client that waits for it had ``gone``."""
        coming: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
        either = {coming} if gone is None else {coming, gone}
        try:
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return coming.done()
        finally:
            coming.cancel()
