"""Pages of a list: from a page size and a token to encoded items and the next token.

A page ends at its size or at ``limits.PAGE`` bytes, whichever comes first. It is read and encoded
on a reader's thread, since a page of megabytes on the event loop would delay every other request.
A short page is read on the event loop, since handing it to a thread takes longer (see ``run``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.store.tables import AnyRow

DEFAULT_SIZE, MOST = 10, limits.PAGE_ITEMS.value
FIRST_CHUNK = 32
SHORT_SIZE, SHORT_BYTES = 100, 1 << 20  # of a page that is read on the event loop

T = TypeVar("T")
# Rows of a page: (transaction, position after which it begins, how many) -> rows.
Fetch = Callable[[Connection, Any, int], Sequence[AnyRow]]


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """Size and token of a requested page.

    ``question`` names the list and its filters; a token is only valid for the question it was made
    for.
    """

    size: int = DEFAULT_SIZE
    token: str | None = None
    question: str = ""
    most_bytes: int = limits.PAGE.value


class NotShort(Exception):
    """A page of few items turned out to be large."""


def encode_stored(row: AnyRow) -> bytes:
    """Return a document as it is stored."""
    return bytes(row.document)


def position_by_time(row: AnyRow) -> Position:
    """Return the position of a row in a list by time."""
    return Position(row.time_created, row.id)


def parse_position(
    services: Services, *, org: str, page_request: PageRequest
) -> tuple[int, str] | None:
    """Return the (time, id) after which the page begins; None for the first page.

    Raises:
        Refusal: InvalidPageToken.
    """
    if not page_request.token:
        return None
    found = services.signer.verify_page_token(
        page_request.token, org=org, question=page_request.question
    )
    if found is None:
        raise Refusal(
            "InvalidPageToken",
            f"page token {page_request.token[:40]!r} was not made by this server for this list; "
            "try: pass nextPage of the previous page, with the same filters, or omit the token",
        )
    return found.time_ms, found.id


async def run(
    services: Services,
    page_request: PageRequest,
    read: Callable[[Connection, bool], T],
    *,
    org: str,
) -> T:
    """Return what a function reads whose rows come from an index in the order of the page.

    It is called on the event loop if the page is short, and on a reader's thread otherwise. Its
    second argument is whether the page is short. An organization for which it once raised
    ``NotShort`` has large items, so later pages of it are not tried again.
    """
    is_short = page_request.size <= SHORT_SIZE and org not in services.orgs_with_large_items
    if is_short and services.store.is_local:
        try:
            return services.store.read(lambda tx: read(tx, True))
        except NotShort:
            services.orgs_with_large_items.add(org)
    return await services.store.read_in_thread(lambda tx: read(tx, False))


async def read(
    services: Services,
    page_request: PageRequest,
    *,
    org: str,
    fetch: Fetch,
    encode: Callable[[AnyRow], bytes] = encode_stored,
    get_position: Callable[[AnyRow], Position] = position_by_time,
    is_indexed: bool = False,
) -> bytes:
    """Return a page as JSON.

    ``is_indexed``: the rows come from an index in the order of the page, see ``run``.

    Raises:
        Refusal: InvalidPageToken.
    """
    after = parse_position(services, org=org, page_request=page_request)

    def read_items(tx: Connection, is_short: bool) -> bytes:
        items, last, has_more = gather(
            partial(fetch, tx),
            after=after,
            size=page_request.size,
            most_bytes=page_request.most_bytes,
            encode=encode,
            get_position=lambda row: msgspec.structs.astuple(get_position(row)),
            is_short=is_short,
        )
        further = (
            page_token(services, get_position(last), org=org, page_request=page_request)
            if has_more
            else None
        )
        return join(items, further)

    if is_indexed:
        return await run(services, page_request, read_items, org=org)
    return await services.store.read_in_thread(lambda tx: read_items(tx, False))


def gather(
    fetch: Callable[[Any, int], Sequence[Any]],
    *,
    after: Any,
    size: int,
    encode: Callable[[Any], bytes],
    get_position: Callable[[Any], Any],
    most_bytes: int = limits.PAGE.value,
    is_short: bool = False,
) -> tuple[list[bytes], Any, bool]:
    """Return encoded items, the last row, and whether there are more rows after it.

    A page has up to ``size`` items and ``most_bytes``, and at least one item, however large. Rows
    are fetched in chunks whose length follows from the size of the items so far. So a page of large
    documents is not read many times over only to be cut. A short page is one chunk.

    Raises:
        NotShort: ``is_short``, and the items have more than ``SHORT_BYTES``.
    """
    if is_short:
        return _gather_short(fetch(after, size + 1), size, encode, min(most_bytes, SHORT_BYTES))
    items: list[bytes] = []
    total, chunk = 0, FIRST_CHUNK
    last = None
    while True:
        limit = min(chunk, size + 1 - len(items))
        rows = fetch(after, limit)
        for row in rows:
            if len(items) == size:
                return items, last, True
            item = encode(row)
            if items and total + len(item) > most_bytes:
                return items, last, True
            items.append(item)
            total, last = total + len(item) + 1, row
        if len(rows) < limit or last is None:
            return items, last, False
        after = get_position(last)
        chunk = max(1, (most_bytes - total) // (total // len(items)) + 1)


def _gather_short(
    rows: Sequence[Any], size: int, encode: Callable[[Any], bytes], most_bytes: int
) -> tuple[list[bytes], Any, bool]:
    items = list(map(encode, rows[:size]))
    if sum(map(len, items)) + len(items) > most_bytes:
        raise NotShort
    return items, rows[len(items) - 1] if items else None, len(rows) > size


def join(items: Sequence[bytes], next_page: str | None) -> bytes:
    """Return a page of encoded items."""
    return b'{"items":[%b],"nextPage":%b,"prevPage":null}' % (
        b",".join(items),
        msgspec.json.encode(next_page),
    )


def page_token(services: Services, last: Position, *, org: str, page_request: PageRequest) -> str:
    """Return the token of the page after a position."""
    return services.signer.sign_page_token(last, org=org, question=page_request.question)
