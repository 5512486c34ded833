"""Bounded concurrency of both clients: lazy, and stopped by the first failure."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from vi._concurrency import asynchronous, synchronous


class Watched:
    """Counts the items in progress, and those taken from the list."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way = self.most = self.taken = self.ticks = 0
        self.done: list[int] = []

    def items(self, count: int) -> Iterator[int]:
        for number in range(count):
            self.taken += 1
            yield number

    def begin(self) -> None:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)

    def end(self, number: int) -> None:
        with self.lock:
            self.under_way -= 1
            self.done.append(number)

    def tick(self) -> None:
        self.ticks += 1

    async def async_tick(self) -> None:
        self.ticks += 1


def test_threads_process_every_item_within_the_concurrency_limit() -> None:
    seen = Watched()

    def do(number: int) -> None:
        seen.begin()
        time.sleep(0.002)
        seen.end(number)

    synchronous.for_each(seen.items(50), do, max_concurrency=4, on_tick=seen.tick)
    assert sorted(seen.done) == list(range(50))
    assert seen.most <= 4
    assert seen.ticks > 0


def test_tasks_process_every_item_within_the_concurrency_limit() -> None:
    seen = Watched()

    async def do(number: int) -> None:
        seen.begin()
        await asyncio.sleep(0.001)
        seen.end(number)

    asyncio.run(
        asynchronous.for_each(seen.items(50), do, max_concurrency=4, on_tick=seen.async_tick)
    )
    assert sorted(seen.done) == list(range(50))
    assert seen.most == 4
    assert seen.ticks > 0


def test_the_first_failure_ends_the_threads() -> None:
    seen = Watched()

    def do(number: int) -> None:
        if number == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        synchronous.for_each(seen.items(10_000), do, max_concurrency=1, on_tick=seen.tick)
    assert seen.taken == 6


def test_the_first_failure_ends_the_tasks() -> None:
    seen = Watched()

    async def do(number: int) -> None:
        await asyncio.sleep(0)
        if number == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        asyncio.run(
            asynchronous.for_each(
                seen.items(10_000), do, max_concurrency=1, on_tick=seen.async_tick
            )
        )
    assert seen.taken == 6


def test_an_interrupt_ends_the_threads_at_once() -> None:
    seen, release = Watched(), threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    def hold(number: int) -> None:
        release.wait(10)

    with pytest.raises(KeyboardInterrupt):
        synchronous.for_each(seen.items(100), hold, max_concurrency=2, on_tick=interrupt)
    release.set()
    assert seen.taken <= 4
