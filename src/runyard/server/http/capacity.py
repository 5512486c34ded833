"""Limits on what one client uses at once: requests, waiting requests, streams, and time per byte.

Requests count by key and by address; waiting requests (long polls) count by key and in total.
Beyond a cap the response is ``TooManyRequests`` at once: a queue would hold memory for the client
that sends most. Streams count by key as well, but a new one ends the oldest: a client that lost its
connection may connect again before the server has noticed. ``Exchange`` is one request in progress.
It releases its slots when the request ends, enforces the pace of both bodies, and notices a client
that has disconnected.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from runyard.server.http.request import HEADERS
from runyard.server.http.route import SMALL_BODY_BYTES
from runyard.server.services.errors import Refusal
from runyard.settings import Settings

T = TypeVar("T")
Message = dict[str, Any]

EXCHANGE = "runyard.exchange"
RETRY_AFTER_S = 2
# Larger responses are sent in chunks, so that an unread one is noticed and keeps the slot of its
# request.
CHUNK_BYTES = 64 * 1024
MAX_DRAINED_BYTES, DRAIN_TIMEOUT_S = 32 * 1024 * 1024, 5.0
STREAMS_PER_KEY = 64
EMPTY_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}


class Slots:
    """Counted slots: at most ``per_owner`` for each owner and, if given, ``total`` for all."""

    def __init__(self, what: str, per_owner: int, total: int | None = None) -> None:
        self._what, self._max_per_owner, self._max_total = what, per_owner, total
        self._taken: dict[Hashable, int] = {}
        self._total = 0

    def acquire(self, owner: Hashable) -> None:
        """Take one of the owner's slots.

        Raises:
            Refusal: TooManyRequests; all of them are taken.
        """
        self._taken[owner] = self.check(owner) + 1
        self._total += 1

    def check(self, owner: Hashable) -> int:
        """Check that the owner could take a slot; return how many it has.

        Raises:
            Refusal: TooManyRequests.
        """
        taken = self._taken.get(owner, 0)
        if taken >= self._max_per_owner:
            raise _too_many(f"{self._what} in progress: {taken}, the maximum")
        if self._max_total is not None and self._total >= self._max_total:
            raise _too_many(f"{self._what} in progress: {self._total} of all clients, the maximum")
        return taken

    def release(self, owner: Hashable) -> None:
        self._total -= 1
        if (others := self._taken.pop(owner) - 1) > 0:  # owners come and go
            self._taken[owner] = others


class Streams:
    """Responses that never end by themselves, at most ``per_owner`` for each owner.

    One more ends the owner's oldest.
    """

    def __init__(self, per_owner: int, total: int) -> None:
        self._max_per_owner, self._slots = per_owner, Slots("streams", total, total)
        self._ends: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @contextlib.contextmanager
    def hold(self, owner: Hashable) -> Iterator["asyncio.Future[None]"]:
        """Count as a stream; yield a future that is done when the stream must end.

        Raises:
            Refusal: TooManyRequests; all owners together have too many.
        """
        self._slots.acquire(owner)
        ends = self._ends.setdefault(owner, deque())
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ends.append(end)
        running = [each for each in ends if not each.done()]
        for oldest in running[: -self._max_per_owner]:
            oldest.set_result(None)
        try:
            yield end
        finally:
            ends.remove(end)
            if not ends:
                del self._ends[owner]
            self._slots.release(owner)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The caps of one server.

    Addresses that ``is_exempt`` (trusted proxies) have no cap of their own.
    """

    per_key: Slots
    per_address: Slots
    waits: Slots
    streams: Streams
    transfer_timeout_s: float
    min_bytes_per_s: float
    is_exempt: Callable[[str], bool] = lambda address: False

    @classmethod
    def from_settings(
        cls, settings: Settings, *, is_exempt: Callable[[str], bool] = lambda address: False
    ) -> "Capacity":
        return cls(
            per_key=Slots("requests of this key", settings.requests_per_key),
            per_address=Slots("requests of this address", settings.requests_per_address),
            waits=Slots("waiting requests of this key", settings.waits_per_key, settings.max_waits),
            streams=Streams(STREAMS_PER_KEY, settings.max_waits),
            transfer_timeout_s=settings.transfer_timeout_s,
            min_bytes_per_s=settings.min_kib_per_s * 1024,
            is_exempt=is_exempt,
        )


class Pace:
    """The time that a client may take for its bytes: ``idle_s`` plus their time at the lowest rate.

    Only the time spent waiting counts, so work between two waits costs the client nothing.
    """

    def __init__(self, idle_s: float, min_bytes_per_s: float) -> None:
        self._left_s, self._idle_s, self._rate = idle_s, idle_s, min_bytes_per_s

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Wait for at most the time that the client has left.

        Raises:
            TimeoutError: it is too slow.
        """
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(min(self._idle_s, max(0.0, self._left_s))):
                return await awaitable
        finally:
            self._left_s -= time.monotonic() - begun_s

    def add_bytes(self, size_bytes: int) -> None:
        """Account for bytes that have been transferred."""
        self._left_s += size_bytes / self._rate


class Exchange:
    """One request and its response: an ASGI ``receive`` and ``send`` with limits.

    ``drop_connection`` closes the connection of a client that does not read. Without it the web
    server keeps the connection.
    """

    def __init__(
        self,
        capacity: Capacity,
        scope: Any,
        receive: Any,
        send: Any,
        *,
        drop_connection: Callable[[], None] | None = None,
    ) -> None:
        self._capacity, self._receive, self._send = capacity, receive, send
        self._drop_connection = drop_connection
        self._held: list[tuple[Slots, Hashable]] = []
        self._key: Hashable = None
        self._limit: int | None = SMALL_BODY_BYTES
        self._announced: bytes = scope[HEADERS].get(b"content-length", b"0")
        self._taken = 0
        self._has_begun, self._has_ended, self._is_broken = (
            False,
            not _has_body(scope[HEADERS]),
            False,
        )
        self._disconnect: asyncio.Task[None] | None = None
        self._receive_pace: Pace | None = None
        self._send_pace: Pace | None = None
        self._is_stream = False
        self.abandoned: str | None = None  # why a response was not sent whole
        scope[EXCHANGE] = self

    def admit(self, *, address: str, key: Hashable, may_wait: bool = False) -> None:
        """Take this request's slots; ``key`` is None for requests without one.

        With ``may_wait``, a request that could not wait is refused here: before routing, that costs
        a third.

        Raises:
            Refusal: TooManyRequests.
        """
        self._key = key if key is not None else address
        if may_wait:
            self._capacity.waits.check(self._key)
        if key is not None:
            self._hold(self._capacity.per_key, key)
        if not self._capacity.is_exempt(address):
            self._hold(self._capacity.per_address, address)

    def limit_body(self, max_bytes: int | None) -> None:
        """Set how large the body may be, in bytes.

        Raises:
            Refusal: BodyTooLarge; it was announced larger.
        """
        self._limit = max_bytes
        if max_bytes is not None and (
            not self._announced.isdigit() or parse_decimal(self._announced) > max_bytes
        ):
            raise body_too_large(max_bytes)

    @contextlib.asynccontextmanager
    async def hold_wait_slot(self) -> AsyncIterator["asyncio.Future[None]"]:
        """Count as a waiting request; yield a future that is done when the client has disconnected.

        Raises:
            Refusal: TooManyRequests.
        """
        waits = self._capacity.waits
        waits.acquire(self._key)
        try:
            self._release_slots()
            yield self.watch_disconnect()
        finally:
            waits.release(self._key)

    @contextlib.contextmanager
    def hold_stream(self) -> Iterator["asyncio.Future[None]"]:
        """Count as a stream instead of a request; yield a future that is done when it must end.

        Raises:
            Refusal: TooManyRequests.
        """
        with self._capacity.streams.hold(self._key) as end:
            self._release_slots()
            self._is_stream = True
            yield end

    def watch_disconnect(self) -> "asyncio.Future[None]":
        """Return a future that is done when the client has disconnected.

        Needs the body to be read.
        """
        if self._disconnect is None:
            self._disconnect = asyncio.ensure_future(self._wait_for_disconnect())
        return self._disconnect

    async def receive(self) -> Message:
        """Return the next chunk of the request body.

        After the last one, wait for ``http.disconnect``.

        Raises:
            Refusal: BodyTooLarge; BodyTimeout, it comes too slowly; BodyIncomplete, it ended early.
        """
        if self._has_ended:
            if not self._has_begun:
                self._has_begun = True
                return dict(EMPTY_BODY)
            await asyncio.shield(self.watch_disconnect())
            return {"type": "http.disconnect"}
        self._has_begun = True
        message = await self._next_chunk()
        size = len(message.get("body", b""))
        self._taken += size
        if self._limit is not None and self._taken > self._limit:
            raise body_too_large(self._limit)
        assert self._receive_pace is not None  # noqa: S101 - set by the first chunk
        self._receive_pace.add_bytes(size)
        self._has_ended = not message.get("more_body")
        return message

    async def send(self, message: Message) -> None:
        """Send a message; a large body in chunks, each of which the client must read in time.

        Raises:
            ConnectionResetError: the client has disconnected or does not read.
        """
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        if not has_more and len(body) <= CHUNK_BYTES:
            await self._send(message)
            return
        view = memoryview(body)
        for start in range(0, max(len(body), 1), CHUNK_BYTES):
            chunk = bytes(view[start : start + CHUNK_BYTES])
            is_last = start + CHUNK_BYTES >= len(body) and not has_more
            await self._send_chunk(
                {"type": "http.response.body", "body": chunk, "more_body": not is_last}, len(chunk)
            )

    def abandon(self, why: str) -> ConnectionResetError:
        """Record why the response is incomplete.

        Return the error to raise, as if the client had left.
        """
        self.abandoned = why
        return ConnectionResetError(why)

    def close(self) -> None:
        """Release the request's slots."""
        self._release_slots()
        if self._disconnect is not None:
            self._disconnect.cancel()

    def _hold(self, slots: Slots, owner: Hashable) -> None:
        slots.acquire(owner)
        self._held.append((slots, owner))

    def _release_slots(self) -> None:
        while self._held:
            slots, owner = self._held.pop()
            slots.release(owner)

    async def _next_chunk(self) -> Message:
        if self._is_broken:
            raise _body_incomplete()
        if self._receive_pace is None:
            self._receive_pace = self._new_pace()
        try:
            message = await self._receive_pace.wait(self._receive())
        except TimeoutError:
            self._is_broken = True
            raise Refusal(
                "BodyTimeout",
                f"the request body came too slowly: {self._taken} bytes, then nothing for "
                f"{self._capacity.transfer_timeout_s:g} s or less than "
                f"{self._capacity.min_bytes_per_s / 1024:g} KiB per second on average; try: send "
                "it again over a faster connection",
            ) from None
        if message["type"] == "http.disconnect":
            self._is_broken = True
            raise _body_incomplete()
        return cast(Message, message)

    async def _send_chunk(self, message: Message, size: int) -> None:
        # A stream sends little for long: each of its chunks has the whole time.
        if self._send_pace is None or self._is_stream:
            self._send_pace = self._new_pace()
        if self._has_ended and self.watch_disconnect().done():
            raise self.abandon("the client has disconnected")
        try:
            await self._send_pace.wait(self._send(message))
        except TimeoutError:
            if self._drop_connection is not None:
                self._drop_connection()
            raise self.abandon("the client does not read the response") from None
        self._send_pace.add_bytes(size)

    def _new_pace(self) -> Pace:
        return Pace(self._capacity.transfer_timeout_s, self._capacity.min_bytes_per_s)

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            # A web server that repeats the end of the body must not keep others waiting.
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def hold_wait_slot(scope: Any, wait_s: float) -> AsyncIterator["asyncio.Future[None] | None"]:
    """Count a request as waiting; yield a future that is done when its client has disconnected.

    Raises:
        Refusal: TooManyRequests.
    """
    if wait_s <= 0:
        yield None
        return
    exchange: Exchange = scope[EXCHANGE]
    async with exchange.hold_wait_slot() as disconnect:
        yield disconnect


async def drain_body(receive: Any) -> None:
    """Read the rest of a body, since a client that is still sending may miss the response."""
    taken = 0
    with contextlib.suppress(TimeoutError, Refusal):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while taken < MAX_DRAINED_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def parse_decimal(digits: bytes) -> int:
    """Return the value of ASCII digits, at most 2**63."""
    kept = digits.lstrip(b"0")
    return min(int(kept or b"0"), 2**63) if len(kept) < 20 else 2**63


def body_too_large(limit: int) -> Refusal:
    return Refusal(
        "BodyTooLarge",
        f"the request body is larger than {limit // 1024} KiB; try: send less at once",
    )


def _too_many(what: str) -> Refusal:
    message = f"{what}; try: repeat the request after {RETRY_AFTER_S} s, and send fewer at once"
    return Refusal("TooManyRequests", message, retry_after_s=RETRY_AFTER_S)


def _body_incomplete() -> Refusal:
    return Refusal(
        "BodyIncomplete",
        "the request body ended early or is not encoded as announced; try: send it again",
    )


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or bool(headers.get(b"content-length", b"0").strip(b"0"))
