"""Time, chance and the network of a simulated world: one queue of events, drawn from one seed.

Everything that happens is an event on this queue. Chance comes from one generator, so a seed is a whole history, and
the hash over that history says whether two of them were the same. Only what really happens is counted: not the timer of
a call that was answered, and not what a dead process would have done.
"""

# ruff: noqa: S311 - chance here shall be repeatable, not secret

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

Event = Callable[[], None]
CALL_TIMEOUT_MS = 10_000


class Broken(AssertionError):
    """A promise of the run protocol does not hold; ``promise`` is the number of the invariant."""

    def __init__(self, promise: int, text: str):
        super().__init__(promise, text)
        self.promise, self.text = promise, text

    def __str__(self) -> str:
        return f"invariant {self.promise}: {self.text}"


class Host:
    """A computer. While it is suspended nothing on it runs, and its monotonic clock stands still, as Linux has it."""

    def __init__(self, world: "World"):
        self.world = world
        self.processes: list[Process] = []
        self._slept_ms = 0
        self._suspended_at_ms: int | None = None

    @property
    def is_suspended(self) -> bool:
        return self._suspended_at_ms is not None

    @property
    def monotonic_ms(self) -> int:
        now_ms = self.world.now_ms if self._suspended_at_ms is None else self._suspended_at_ms
        return now_ms - self._slept_ms

    def suspend(self) -> None:
        if not self.is_suspended:
            for process in self.processes:
                process.count_time()
            self._suspended_at_ms = self.world.now_ms

    def resume(self) -> None:
        if self._suspended_at_ms is None:
            return
        self.processes = [process for process in self.processes if process.is_alive]
        for process in self.processes:
            process.count_time()
        self._slept_ms += self.world.now_ms - self._suspended_at_ms
        self._suspended_at_ms = None
        for process in list(self.processes):
            process.catch_up()


class Process:
    """Something that runs: it may be paused, when what happens to it waits, and killed, when it never happens."""

    def __init__(self, world: "World", name: str, host: Host):
        self.world, self.name, self.host = world, name, host
        self.is_alive, self.is_paused = True, False
        self.is_stuck = False  # in the kernel: it does nothing, and dies late
        self._waiting: list[Timer] = []
        self._ran_ms, self._counted_at_ms = 0, world.now_ms
        host.processes.append(self)

    @property
    def is_stopped(self) -> bool:
        return self.is_paused or self.is_stuck or self.host.is_suspended

    def take(self, event: Event) -> None:
        """Let this process do ``event``: now, when it goes on, or never."""
        if self.is_alive and self.is_stopped:
            self.wait_with(Timer(event, self))
        elif self.is_alive:
            event()

    def wait_with(self, timer: "Timer") -> None:
        self._waiting.append(timer)

    def after(self, delay_ms: int, event: Event) -> "Timer":
        return self.world.after(delay_ms, event, by=self)

    def count_time(self) -> None:
        """To be called before it stops or goes on."""
        if not self.is_stopped:
            self._ran_ms += self.world.now_ms - self._counted_at_ms
        self._counted_at_ms = self.world.now_ms

    @property
    def ran_ms(self) -> int:
        """How long it has run, without the time in which it was stopped."""
        self.count_time()
        return self._ran_ms

    def get_stuck(self) -> None:
        self.count_time()
        self.is_stuck = True

    def pause(self) -> None:
        self.count_time()
        self.is_paused = True

    def go_on(self) -> None:
        self.count_time()
        self.is_paused = False
        self.catch_up()

    def catch_up(self) -> None:
        """Do what has waited."""
        if self.is_stopped:
            return
        waiting, self._waiting = self._waiting, []
        for timer in waiting:
            if timer.event is not None and self.is_alive:
                self.world.events += 1
                self.take(timer.event)

    def die(self) -> None:
        self.is_alive = False
        self._waiting = []


class Timer:
    """Something that will happen, unless it is cancelled or the process that would do it has died."""

    __slots__ = ("by", "event")

    def __init__(self, event: Event, by: Process | None):
        self.event: Event | None = event
        self.by = by

    def cancel(self) -> None:
        self.event = None


class World:
    """The queue of what will happen, the one source of chance, and the hash over all that has happened."""

    def __init__(self, seed: int):
        self.seed, self.chance = seed, random.Random(seed)
        self.now_ms = 0
        self.events = 0
        self._queue: list[tuple[int, int, Timer]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self.log: list[str] = []
        self.is_logging = False
        self.loss = 0.0
        self.is_lossless = False

    def after(self, delay_ms: int, event: Event, *, by: Process | None = None) -> Timer:
        self._number += 1
        at_ms = self.now_ms + max(0, delay_ms)
        timer = Timer(event, by)
        heapq.heappush(self._queue, (at_ms, self._number, timer))
        return timer

    def run(self, *, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, number, timer = heapq.heappop(self._queue)
            event, by = timer.event, timer.by
            if event is None or (by is not None and not by.is_alive):
                continue
            if by is not None and by.is_stopped:
                by.wait_with(timer)
                continue
            self.events += 1
            self._trace.update(b"%d,%d;" % (self.now_ms, number))
            event()
        self.now_ms = max(self.now_ms, until_ms)

    def say(self, *words: object) -> None:
        """One line of history: it goes into the hash, and into the log when somebody reads along."""
        line = " ".join(map(str, words))
        self._trace.update(line.encode())
        if self.is_logging:
            self.log.append(f"{self.now_ms / 1000:9.3f} {line}")

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def happens(self, likelihood: float) -> bool:
        return self.chance.random() < likelihood

    def between(self, low: int, high: int) -> int:
        return self.chance.randrange(low, high)

    def delay_ms(self) -> int:
        """How long a message travels: mostly a blink, sometimes long enough to be overtaken."""
        return self.between(200, 15_000) if not self.is_lossless and self.happens(0.01) else self.between(1, 30)

    def loses(self) -> bool:
        return not self.is_lossless and self.happens(self.loss)


class Link:
    """One machine's way to the server; each direction can be cut by itself."""

    def __init__(self) -> None:
        self.carries_requests = self.carries_answers = True

    def heal(self) -> None:
        self.carries_requests = self.carries_answers = True


def call(
    world: World,
    link: Link,
    server: Any,
    sender: Process,
    request: Callable[[Any], Any],
    on_outcome: Callable[[Any], None],
    *,
    timeout_ms: int = CALL_TIMEOUT_MS,
) -> None:
    """Send ``request`` and hand its outcome to the sender: an answer, a ``Refusal``, or None when none came in time.

    The request may be lost, late, or arrive twice, and so may the answer; the sender hears one outcome and never more.
    """
    is_over = False

    def hear(outcome: Any) -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            timeout.cancel()
            on_outcome(outcome)

    def answer(outcome: Any) -> None:
        if link.carries_answers and not world.loses():
            sender.after(world.delay_ms(), lambda: hear(outcome))

    def arrive() -> None:
        if link.carries_requests and not world.loses():
            server.handle(request, answer)

    world.after(world.delay_ms(), arrive)
    if not world.is_lossless and world.happens(world.loss / 2):
        world.after(world.delay_ms() + world.between(0, 40_000), arrive)  # a second copy, perhaps much later
    timeout = sender.after(timeout_ms, lambda: hear(None))
