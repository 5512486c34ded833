"""What one route is: the row of the table in ``routes``, and what follows from it for access and body."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from runyard import limits

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
# Whose credential opens a route. ``organization`` is a key of an organization, whatever its role.
Access = Literal["public", "organization", "controller", "attempt"]
Role = Literal["viewer", "member", "admin"]

# The only routes without a key. The OpenAPI document is not among them: nothing is public that need not be.
PUBLIC = ("/health",)
ATTEMPT_PREFIX = "/internal/v1/attempt/"
SMALL_BODY_BYTES, LARGE_BODY_BYTES, BACKUP_BODY_BYTES = limits.BODY.value, limits.LIST_BODY.value, 2**63


@dataclass(frozen=True)
class Route:
    """One route. ``takes`` is the struct of its body; ``gives`` of its answer, None for an empty one, ``bytes`` for a
    file.

    ``status``: those of success. ``media``: the types of a file that it gives or takes, and of what it gives besides
    JSON. ``role`` is the least role whose keys may use it; by default a viewer's for reading, a member's for the
    rest, and None for routes that are not users'. ``is_operators`` says that only admins of the organization that the
    instance began with may use it. ``actions`` are the words that may follow the last id of the path after a colon;
    no other route takes any. ``largest_body`` is in bytes; None leaves the limit to the route's function.
    ``may_wait`` marks a long poll, which may be cancelled without harm.
    """

    method: Method
    path: str
    answer: Callable[..., Awaitable[Any]]
    summary: str
    takes: Any = None
    gives: Any = None
    is_page: bool = False
    is_operators: bool = False
    query: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    largest_body: int | None = SMALL_BODY_BYTES
    status: tuple[int, ...] = (200,)
    media: tuple[str, ...] = ()
    role: Role | None = None
    may_wait: bool = False

    def __post_init__(self) -> None:
        if self.role is None and self.path.startswith("/workspaces/"):
            object.__setattr__(self, "role", "viewer" if self.method in ("GET", "HEAD") else "member")

    @cached_property
    def access(self) -> Access:
        if self.path in PUBLIC:
            return "public"
        if self.path.startswith(ATTEMPT_PREFIX):
            return "attempt"
        return "controller" if self.path.startswith("/internal/") else "organization"
