"""Paginated lists: the return type of ``list``, and the exception for a list that never ends."""

from vi.api._pages._async import AsyncPaginatedResponse
from vi.api._pages._sync import PaginatedResponse
from vi.api._pages.page import Page
from vi.errors import PaginationError

__all__ = ["AsyncPaginatedResponse", "Page", "PaginatedResponse", "PaginationError"]
