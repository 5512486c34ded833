"""Argument types that several resources share."""

import msgspec


class PaginationParams(msgspec.Struct, frozen=True):
    """Page of a list to request.

    ``page_size`` is from 1 to 1000. ``page_token`` is the ``next_page`` of an earlier response to
    the same request.
    """

    page_token: str | None = None
    page_size: int = 10
