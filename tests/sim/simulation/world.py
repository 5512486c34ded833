"""Time, chance and the network of a simulated world: one queue of events, drawn from one seed.

Everything that happens is an event on this queue. Chance comes from one generator, so a seed is a whole history, and
the hash over that history says whether two of them were the same.
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


class Process:
    """Something that runs: it may be paused, when what happens to it waits, and killed, when it never happens."""

    def __init__(self, world: "World", name: str):
        self.world, self.name = world, name
        self.is_alive, self.is_paused = True, False
        self._waiting: list[Event] = []

    def take(self, event: Event) -> None:
        """Let this process do ``event``: now, when it goes on, or never."""
        if self.is_alive and self.is_paused:
            self._waiting.append(event)
        elif self.is_alive:
            event()

    def after(self, delay_ms: int, event: Event) -> None:
        self.world.after(delay_ms, lambda: self.take(event))

    def pause(self) -> None:
        self.is_paused = True

    def go_on(self) -> None:
        self.is_paused = False
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.take(event)

    def die(self) -> None:
        self.is_alive = False
        self._waiting = []


class World:
    """The queue of what will happen, the one source of chance, and the hash over all that has happened."""

    def __init__(self, seed: int):
        self.seed, self.chance = seed, random.Random(seed)
        self.now_ms = 0
        self.events = 0
        self._queue: list[tuple[int, int, Event]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self.log: list[str] = []
        self.is_logging = False
        self.loss = 0.0
        self.is_lossless = False

    def after(self, delay_ms: int, event: Event) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now_ms + max(0, delay_ms), self._number, event))

    def run(self, *, until_ms: int, most_events: int = 1 << 60) -> None:
        while self._queue and self.events < most_events and self._queue[0][0] <= until_ms:
            self.now_ms, number, event = heapq.heappop(self._queue)
            self.events += 1
            self._trace.update(b"%d,%d;" % (self.now_ms, number))
            event()
        if self.events < most_events:
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
    sender.after(timeout_ms, lambda: hear(None))
