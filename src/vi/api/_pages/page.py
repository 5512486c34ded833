"""One page of a list, as it is on the wire."""

from typing import Generic, TypeVar

from vi.api.responses import Document

T = TypeVar("T")


class Page(Document, Generic[T]):
    """``next_page`` is an opaque token; null, absent or empty, it ends the list."""

    items: list[T] = []
    next_page: str | None = None
    prev_page: str | None = None
