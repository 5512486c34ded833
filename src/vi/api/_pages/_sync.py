# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""Paginated list that fetches further pages on demand."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from vi._http._sync import Http
from vi._http.requests import QueryValue
from vi.api._arguments import check_pagination
from vi.api._pages.page import Page
from vi.api.responses import Document
from vi.api.types import PaginationParams
from vi.errors import PaginationError, ViConfigurationError

if TYPE_CHECKING:
    import pandas
    import polars

T = TypeVar("T")


class PaginatedResponse(Generic[T]):
    """One page of a list, and access to the following pages.

    Iteration yields pages, starting with this one; ``all_items()`` yields the items of all pages.
    ``items``, ``len()``, indexing and truth value refer to this page only.
    """

    def __init__(self, page: Page[T], *, fetch: Callable[[str], Page[T]]) -> None:
        self.items = page.items
        self.next_page = page.next_page or None
        self.prev_page = page.prev_page or None
        self._fetch = fetch

    def pages(self) -> "Iterator[PaginatedResponse[T]]":
        """Yield this page, then each following page, fetched on demand.

        Raises:
            PaginationError: The server returned a page token twice.
        """
        page, seen = self, set[str]()
        yield page
        while page.next_page is not None:
            if page.next_page in seen:
                raise PaginationError(
                    f"the list repeats itself: the server returned page token {page.next_page!r} "
                    "twice",
                    suggestion="This is a bug of the server; the items so far are valid.",
                )
            seen.add(page.next_page)
            page = PaginatedResponse(self._fetch(page.next_page), fetch=self._fetch)
            yield page

    def all_items(self) -> Iterator[T]:
        """Yield every item from this page to the end of the list."""
        for page in self.pages():
            yield from page.items

    def __iter__(self) -> "Iterator[PaginatedResponse[T]]":
        return self.pages()

    def __len__(self) -> int:
        return len(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self.items[index]

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the items of this page as a pandas data frame with one row per item.

        Raises:
            ImportError: pandas is not installed.
        """
        from vi.api._frames import to_pandas_frame

        return to_pandas_frame(self.items)

    def to_polars(self) -> "polars.DataFrame":
        """Return the items of this page as a polars data frame with one row per item.

        Raises:
            ImportError: polars is not installed.
        """
        from vi.api._frames import to_polars_frame

        return to_polars_frame(self.items)

    def _repr_html_(self) -> str:
        from vi.api._html import render_table

        more = ", and further pages" if self.next_page is not None else ""
        count = "1 item" if len(self.items) == 1 else f"{len(self.items):,} items"
        rows = [item._to_table_row() for item in self.items if isinstance(item, Document)]
        return render_table(rows, title=f"{count}{more}")

    def __reduce__(self) -> NoReturn:
        raise ViConfigurationError(
            "a page with access to further pages cannot be pickled or copied",
            suggestion="try: pickle page.items, which is a list",
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.items)} items, next_page={self.next_page!r})"


def fetch_page(
    http: Http,
    path: str,
    *,
    item: type[T],
    pagination: PaginationParams | dict[str, Any],
    filters: list[tuple[str, QueryValue]] | None = None,
) -> PaginatedResponse[T]:
    """Fetch the page that ``pagination`` names; further pages have the same size and filters."""
    checked = check_pagination(pagination)

    def fetch(token: str | None) -> Page[T]:
        params = [("p", token), ("s", checked.page_size), *(filters or [])]
        return http.call("GET", path, params=params, decode_as=Page[item])  # type: ignore[valid-type]

    return PaginatedResponse(fetch(checked.page_token), fetch=fetch)
