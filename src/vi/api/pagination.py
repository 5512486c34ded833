"""Lists that come in pages: what ``list`` returns, and what it raises when a list never ends."""

from vi.api._pages._async import AsyncPaginatedResponse
from vi.api._pages._sync import PaginatedResponse
from vi.api._pages.page import Page
from vi.errors import PaginationError

__all__ = ["AsyncPaginatedResponse", "Page", "PaginatedResponse", "PaginationError"]
