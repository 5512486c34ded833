"""Slices of a list, newest first: from a page size and a token to rows and the next token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.signing import Position

DEFAULT_SIZE, MOST = 10, 1000


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """``question`` names the list and its filters; a token is only good for the question it was made for."""

    size: int = DEFAULT_SIZE
    token: str | None = None
    question: str = ""


def position(services: Services, *, org: str, wanted: PageRequest) -> tuple[int, str] | None:
    """Where the page begins: after this (time, id); None for the first page.

    Raises:
        Refusal: InvalidPageToken.
    """
    if not wanted.token:
        return None
    found = services.signer.position(wanted.token, org=org, question=wanted.question)
    if found is None:
        raise Refusal(
            "InvalidPageToken",
            f"page token {wanted.token[:40]!r} was not made by this server for this list; "
            "pass on nextPage of the page before, with the same filters, or begin without a token",
        )
    return found.time_ms, found.id


def encoded(services: Services, rows: Sequence[Any], *, org: str, wanted: PageRequest) -> bytes:
    """The page as JSON. ``rows`` holds one more than the page if there is a next one; documents go out as stored."""
    shown = rows[: wanted.size]
    token = None
    if len(rows) > wanted.size:
        last = shown[-1]
        token = services.signer.page_token(Position(last.time_created, last.id), org=org, question=wanted.question)
    return b'{"items":[%b],"nextPage":%b,"prevPage":null}' % (
        b",".join(row.document for row in shown),
        msgspec.json.encode(token),
    )
