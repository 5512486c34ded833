"""The server's time: the one module here that asks the machine for it, so that tests can bring their own.

Wall-clock milliseconds go on the wire and into rows; durations are measured by the monotonic clock alone.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the server needs to know of time."""

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only grow; stands still while the machine is suspended."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
