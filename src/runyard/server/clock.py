"""The server's clock: a port, so that tests can replace it.

Wall-clock milliseconds are used on the wire and in rows; only the monotonic clock measures
durations.
"""

import asyncio
import time
from typing import Protocol


class AsyncClock(Protocol):
    """The port through which the server reads time and sleeps."""

    def now_ms(self) -> int:
        """Return epoch milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that only increase; they stop while the machine is suspended."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class AsyncSystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
