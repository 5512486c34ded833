"""Time, randomness, and network of a simulated world: one event queue with one seed.

Everything that happens is an event on this queue. All randomness comes from one generator, so a
seed determines a whole history, and a hash over the history shows whether two are equal. Only
events with an effect are counted: not the timer of an answered call, and not the events of a dead
process.
"""

# ruff: noqa: S311 - repeatable, not secret

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

Event = Callable[[], None]
CALL_TIMEOUT_MS = 10_000


class InvariantViolation(AssertionError):
    """An invariant of the run protocol is violated; ``invariant`` is its number."""

    def __init__(self, invariant: int, text: str):
        super().__init__(invariant, text)
        self.invariant, self.text = invariant, text

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.text}"


class Host:
    """A computer.

    While it is suspended, nothing runs and its monotonic clock stops, as on Linux.
    """

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
                process.update_runtime()
            self._suspended_at_ms = self.world.now_ms

    def resume(self) -> None:
        if self._suspended_at_ms is None:
            return
        self.processes = [process for process in self.processes if process.is_alive]
        for process in self.processes:
            process.update_runtime()
        self._slept_ms += self.world.now_ms - self._suspended_at_ms
        self._suspended_at_ms = None
        for process in list(self.processes):
            process.run_deferred()


class Process:
    """A process. While it is paused its events are deferred; after its death they never happen."""

    def __init__(self, world: "World", name: str, host: Host):
        self.world, self.name, self.host = world, name, host
        self.is_alive, self.is_paused = True, False
        self.is_hung = False  # in the kernel: it does nothing, and dies late
        self._waiting: list[Timer] = []
        self._runtime_ms, self._counted_at_ms = 0, world.now_ms
        host.processes.append(self)

    @property
    def is_stopped(self) -> bool:
        return self.is_paused or self.is_hung or self.host.is_suspended

    def deliver(self, event: Event) -> None:
        """Run ``event`` in this process: now, after it resumes, or never."""
        if self.is_alive and self.is_stopped:
            self.defer(Timer(event, self))
        elif self.is_alive:
            event()

    def defer(self, timer: "Timer") -> None:
        self._waiting.append(timer)

    def schedule(self, delay_ms: int, event: Event) -> "Timer":
        return self.world.schedule(delay_ms, event, owner=self)

    def update_runtime(self) -> None:
        """Add the time since the last call; call before the process stops or resumes."""
        if not self.is_stopped:
            self._runtime_ms += self.world.now_ms - self._counted_at_ms
        self._counted_at_ms = self.world.now_ms

    @property
    def runtime_ms(self) -> int:
        """How long it has run, without the time in which it was stopped."""
        self.update_runtime()
        return self._runtime_ms

    def hang(self) -> None:
        self.update_runtime()
        self.is_hung = True

    def pause(self) -> None:
        self.update_runtime()
        self.is_paused = True

    def resume(self) -> None:
        self.update_runtime()
        self.is_paused = False
        self.run_deferred()

    def run_deferred(self) -> None:
        """Run the deferred events."""
        if self.is_stopped:
            return
        waiting, self._waiting = self._waiting, []
        for timer in waiting:
            if timer.event is not None and self.is_alive:
                self.world.events += 1
                self.deliver(timer.event)

    def die(self) -> None:
        self.is_alive = False
        self._waiting = []


class Timer:
    """A future event, unless it is canceled or its process has died."""

    __slots__ = ("event", "owner")

    def __init__(self, event: Event, owner: Process | None):
        self.event: Event | None = event
        self.owner = owner

    def cancel(self) -> None:
        self.event = None


class World:
    """The event queue, the random generator, and the hash over the history."""

    def __init__(self, seed: int):
        self.seed, self.random = seed, random.Random(seed)
        self.now_ms = 0
        self.events = 0
        self._queue: list[tuple[int, int, Timer]] = []
        self._number = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self.log: list[str] = []
        self.is_logging = False
        self.loss = 0.0
        self.is_lossless = False

    def schedule(self, delay_ms: int, event: Event, *, owner: Process | None = None) -> Timer:
        self._number += 1
        at_ms = self.now_ms + max(0, delay_ms)
        timer = Timer(event, owner)
        heapq.heappush(self._queue, (at_ms, self._number, timer))
        return timer

    def run(self, *, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, number, timer = heapq.heappop(self._queue)
            event, owner = timer.event, timer.owner
            if event is None or (owner is not None and not owner.is_alive):
                continue
            if owner is not None and owner.is_stopped:
                owner.defer(timer)
                continue
            self.events += 1
            self._trace.update(b"%d,%d;" % (self.now_ms, number))
            event()
        self.now_ms = max(self.now_ms, until_ms)

    def record(self, *words: object) -> None:
        """Add one line of history to the hash, and to the log if that is enabled."""
        line = " ".join(map(str, words))
        self._trace.update(line.encode())
        if self.is_logging:
            self.log.append(f"{self.now_ms / 1000:9.3f} {line}")

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def draw_bool(self, likelihood: float) -> bool:
        return self.random.random() < likelihood

    def draw_int(self, low: int, high: int) -> int:
        return self.random.randrange(low, high)

    def draw_delay_ms(self) -> int:
        """Return the delay of a message: mostly short, sometimes long enough to be overtaken."""
        return (
            self.draw_int(200, 15_000)
            if not self.is_lossless and self.draw_bool(0.01)
            else self.draw_int(1, 30)
        )

    def loses_message(self) -> bool:
        return not self.is_lossless and self.draw_bool(self.loss)


class Link:
    """One machine's link to the server; each direction can be cut separately."""

    def __init__(self) -> None:
        self.carries_requests = self.carries_answers = True

    def heal(self) -> None:
        self.carries_requests = self.carries_answers = True


def send_request(
    world: World,
    link: Link,
    server: Any,
    sender: Process,
    request: Callable[[Any], Any],
    on_outcome: Callable[[Any], None],
    *,
    timeout_ms: int = CALL_TIMEOUT_MS,
) -> None:
    """Send ``request``, and deliver its outcome to the sender: an answer, a ``Refusal``, or None on
    timeout.

    The request may be lost, late, or arrive twice, and so may the answer; the sender gets one
    outcome.
    """
    is_over = False

    def deliver(outcome: Any) -> None:
        nonlocal is_over
        if not is_over:
            is_over = True
            timeout.cancel()
            on_outcome(outcome)

    def answer(outcome: Any) -> None:
        if link.carries_answers and not world.loses_message():
            sender.schedule(world.draw_delay_ms(), lambda: deliver(outcome))

    def arrive() -> None:
        if link.carries_requests and not world.loses_message():
            server.handle(request, answer)

    world.schedule(world.draw_delay_ms(), arrive)
    if not world.is_lossless and world.draw_bool(world.loss / 2):
        # A second copy, perhaps much later
        world.schedule(world.draw_delay_ms() + world.draw_int(0, 40_000), arrive)
    timeout = sender.schedule(timeout_ms, lambda: deliver(None))
