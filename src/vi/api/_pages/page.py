"""One page of a list on the wire."""

from typing import Generic, TypeVar

from vi.api.responses import Document

T = TypeVar("T")


class Page(Document, Generic[T]):
    """Page of a list. ``next_page`` is an opaque token; null, absent or empty on the last page."""

    items: list[T] = []
    next_page: str | None = None
    prev_page: str | None = None
