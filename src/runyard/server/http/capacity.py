"""How much of the server one client may use at once: requests, waiting requests, and time per byte.

Requests count by key and by address, requests that wait (long polls) by key and in total. Beyond a cap the answer is
``TooManyRequests`` at once: a queue would hold memory for whoever sends most. ``Exchange`` is one request while it is
answered. It gives its places back as soon as the request ends, paces both bodies, and notices a client that has left.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
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
# Larger responses are sent in pieces, so that one that is not read is noticed and holds its request's place.
PIECE_BYTES = 64 * 1024
MAX_DRAINED_BYTES, DRAIN_TIMEOUT_S = 32 * 1024 * 1024, 5.0
END_OF_NO_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}


class Slots:
    """Counted places: at most ``each`` per owner and, if given, ``most`` in total."""

    def __init__(self, what: str, each: int, most: int | None = None) -> None:
        self._what, self._each, self._most = what, each, most
        self._taken: Counter[Hashable] = Counter()
        self._total = 0

    def take(self, owner: Hashable) -> None:
        """Take one of the owner's places.

        Raises:
            Refusal: TooManyRequests, all of them are taken.
        """
        self.check(owner)
        self._taken[owner] += 1
        self._total += 1

    def check(self, owner: Hashable) -> None:
        """Check that the owner could take a place.

        Raises:
            Refusal: TooManyRequests.
        """
        taken = self._taken.get(owner, 0)
        if taken >= self._each:
            raise _too_many(f"{self._what} in progress: {taken}, the most allowed")
        if self._most is not None and self._total >= self._most:
            raise _too_many(f"{self._what} in progress: {self._total} of all clients, the most allowed")

    def free(self, owner: Hashable) -> None:
        self._total -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]  # owners come and go


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The caps of one server; addresses that ``is_exempt`` (trusted proxies) have no cap of their own."""

    per_key: Slots
    per_address: Slots
    waits: Slots
    transfer_timeout_s: float
    least_bytes_per_s: float
    is_exempt: Callable[[str], bool] = lambda address: False

    @classmethod
    def of(cls, settings: Settings, *, is_exempt: Callable[[str], bool] = lambda address: False) -> "Capacity":
        return cls(
            per_key=Slots("requests of this key", settings.requests_per_key),
            per_address=Slots("requests of this address", settings.requests_per_address),
            waits=Slots("waiting requests of this key", settings.waits_per_key, settings.max_waits),
            transfer_timeout_s=settings.transfer_timeout_s,
            least_bytes_per_s=settings.min_kib_per_s * 1024,
            is_exempt=is_exempt,
        )


class Pace:
    """Time that a client may keep us waiting for its bytes: ``idle_s`` plus what they take at the lowest rate.

    Only the time spent waiting counts, so work between two waits costs the client nothing.
    """

    def __init__(self, idle_s: float, least_bytes_per_s: float) -> None:
        self._left_s, self._idle_s, self._rate = idle_s, idle_s, least_bytes_per_s

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Wait, as long as the client may still take.

        Raises:
            TimeoutError: it is too slow.
        """
        begun_s = time.monotonic()
        try:
            async with asyncio.timeout(min(self._idle_s, max(0.0, self._left_s))):
                return await awaitable
        finally:
            self._left_s -= time.monotonic() - begun_s

    def earn(self, size_bytes: int) -> None:
        """Account for bytes that have been transferred."""
        self._left_s += size_bytes / self._rate


class Exchange:
    """One request and its answer: an ASGI ``receive`` and ``send`` with limits.

    ``drop`` closes the connection of a client that does not read; without it the connection is left to the web server.
    """

    def __init__(
        self, capacity: Capacity, scope: Any, receive: Any, send: Any, *, drop: Callable[[], None] | None = None
    ) -> None:
        self._capacity, self._receive, self._send, self._drop = capacity, receive, send, drop
        self._held: list[tuple[Slots, Hashable]] = []
        self._key: Hashable = None
        self._limit: int | None = SMALL_BODY_BYTES
        self._announced: bytes = scope[HEADERS].get(b"content-length", b"0")
        self._taken = 0
        self._has_begun, self._has_ended, self._is_broken = False, not _has_body(scope[HEADERS]), False
        self._gone: asyncio.Task[None] | None = None
        self._receive_pace: Pace | None = None
        self._send_pace: Pace | None = None
        self.abandoned: str | None = None  # why a response was not sent whole
        scope[EXCHANGE] = self

    def admit(self, *, address: str, key: Hashable, may_wait: bool = False) -> None:
        """Take this request's places; ``key`` is None for requests without one.

        With ``may_wait``, one that could not wait is refused here already: before routing, that costs a third.

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

    def limit_body(self, most_bytes: int | None) -> None:
        """Set how large the body may be, in bytes.

        Raises:
            Refusal: BodyTooLarge; it was announced larger.
        """
        self._limit = most_bytes
        if most_bytes is not None and (not self._announced.isdigit() or decimal(self._announced) > most_bytes):
            raise too_large(most_bytes)

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator["asyncio.Future[None]"]:
        """Count as a request that waits; yield a future that is done when the client has left.

        Raises:
            Refusal: TooManyRequests.
        """
        waits = self._capacity.waits
        waits.take(self._key)
        try:
            self._free()
            yield self.gone()
        finally:
            waits.free(self._key)

    def gone(self) -> "asyncio.Future[None]":
        """A future that is done when the client has left. The request body must have been read."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._watch())
        return self._gone

    async def receive(self) -> Message:
        """The next piece of the request body, then ``http.disconnect`` when the client leaves, however late.

        Raises:
            Refusal: BodyTooLarge; BodyTimeout, it comes too slowly; BodyIncomplete, it broke off.
        """
        if self._has_ended:
            if not self._has_begun:
                self._has_begun = True
                return dict(END_OF_NO_BODY)
            await asyncio.shield(self.gone())
            return {"type": "http.disconnect"}
        self._has_begun = True
        message = await self._next_piece()
        size = len(message.get("body", b""))
        self._taken += size
        if self._limit is not None and self._taken > self._limit:
            raise too_large(self._limit)
        assert self._receive_pace is not None  # noqa: S101 - made by the first piece
        self._receive_pace.earn(size)
        self._has_ended = not message.get("more_body")
        return message

    async def send(self, message: Message) -> None:
        """Send a message; a large body in pieces, each of which the client must read in time.

        Raises:
            ConnectionResetError: the client has left or does not read.
        """
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body, has_more = message.get("body", b""), message.get("more_body", False)
        if not has_more and len(body) <= PIECE_BYTES:
            await self._send(message)
            return
        view = memoryview(body)
        for start in range(0, max(len(body), 1), PIECE_BYTES):
            piece = bytes(view[start : start + PIECE_BYTES])
            is_last = start + PIECE_BYTES >= len(body) and not has_more
            await self._send_piece({"type": "http.response.body", "body": piece, "more_body": not is_last}, len(piece))

    def abandon(self, why: str) -> ConnectionResetError:
        """Note why the response is not sent whole; return what the caller raises, as if the client had left."""
        self.abandoned = why
        return ConnectionResetError(why)

    def close(self) -> None:
        """Give back what the request held."""
        self._free()
        if self._gone is not None:
            self._gone.cancel()

    def _hold(self, slots: Slots, owner: Hashable) -> None:
        slots.take(owner)
        self._held.append((slots, owner))

    def _free(self) -> None:
        while self._held:
            slots, owner = self._held.pop()
            slots.free(owner)

    async def _next_piece(self) -> Message:
        if self._is_broken:
            raise _broken_off()
        if self._receive_pace is None:
            self._receive_pace = self._new_pace()
        try:
            message = await self._receive_pace.wait(self._receive())
        except TimeoutError:
            self._is_broken = True
            raise Refusal(
                "BodyTimeout",
                f"the request body came too slowly: {self._taken} bytes, then nothing for "
                f"{self._capacity.transfer_timeout_s:g} s or less than {self._capacity.least_bytes_per_s / 1024:g} KiB "
                "per second on average; try: send it again over a faster connection",
            ) from None
        if message["type"] == "http.disconnect":
            self._is_broken = True
            raise _broken_off()
        return cast(Message, message)

    async def _send_piece(self, message: Message, size: int) -> None:
        if self._send_pace is None:
            self._send_pace = self._new_pace()
        if self._has_ended and self.gone().done():
            raise self.abandon("the client has left")
        try:
            await self._send_pace.wait(self._send(message))
        except TimeoutError:
            if self._drop is not None:
                self._drop()
            raise self.abandon("the client does not read the response") from None
        self._send_pace.earn(size)

    def _new_pace(self) -> Pace:
        return Pace(self._capacity.transfer_timeout_s, self._capacity.least_bytes_per_s)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)  # a web server that repeats the end of the body must not keep others waiting


@contextlib.asynccontextmanager
async def waiting(scope: Any, wait_s: float) -> AsyncIterator["asyncio.Future[None] | None"]:
    """Count a request as waiting while it may wait; yield a future that is done when its client has left.

    Raises:
        Refusal: TooManyRequests.
    """
    if wait_s <= 0:
        yield None
        return
    exchange: Exchange = scope[EXCHANGE]
    async with exchange.waiting() as gone:
        yield gone


async def drain(receive: Any) -> None:
    """Read on a while: a client that is still sending when its connection closes never sees our answer."""
    taken = 0
    with contextlib.suppress(TimeoutError, Refusal):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while taken < MAX_DRAINED_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def decimal(digits: bytes) -> int:
    """The value of ASCII digits; 2**63 for one that large or larger, however many digits it has."""
    kept = digits.lstrip(b"0")
    return min(int(kept or b"0"), 2**63) if len(kept) < 20 else 2**63


def too_large(limit: int) -> Refusal:
    return Refusal("BodyTooLarge", f"the request body is larger than {limit // 1024} KiB; send less at once")


def _too_many(what: str) -> Refusal:
    message = f"{what}; try: repeat the request after {RETRY_AFTER_S} s, and send fewer at once"
    return Refusal("TooManyRequests", message, retry_after_s=RETRY_AFTER_S)


def _broken_off() -> Refusal:
    return Refusal("BodyIncomplete", "the request body ended early or is not encoded as announced; send it again")


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or bool(headers.get(b"content-length", b"0").strip(b"0"))
