"""Arguments that several resources take."""

import msgspec


class PaginationParams(msgspec.Struct, frozen=True):
    """Which slice of a list to ask for.

    ``page_size`` is between 1 and 1000; ``page_token`` is the ``next_page`` of an earlier answer to the same question.
    """

    page_token: str | None = None
    page_size: int = 10
