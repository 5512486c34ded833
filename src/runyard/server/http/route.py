"""A route: a row of the table in ``routes``, with the access and body limit that follow from it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from runyard import limits

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
# The kind of credential that a route requires. ``organization`` is any key of an organization.
Access = Literal["public", "organization", "controller", "attempt"]
Role = Literal["viewer", "member", "admin"]

# The only routes without a key. The OpenAPI document is not one of them: it need not be public.
PUBLIC = ("/health",)
# The pages with which a session begins.
SIGN_IN = ("/ui/enter", "/ui/sessions")
# A machine that joins has an invitation instead of a key, which its endpoint checks.
JOIN = "/internal/v1/join"
ATTEMPT_PREFIX = "/internal/v1/attempt/"
SMALL_BODY_BYTES, LARGE_BODY_BYTES = limits.BODY.value, limits.LIST_BODY.value
BACKUP_BODY_BYTES = 2**63


@dataclass(frozen=True)
class Route:
    """One route.

    ``body``: the struct of the request body; ``bytes`` for a file.
    ``returns``: the struct of the response; None for an empty one, ``bytes`` for a file.
    ``statuses``: those of success.
    ``media_types``: of files that it takes or returns, and of representations besides JSON.
    ``role``: the least role that may use it. Default: viewer for reading, member for writing, None
        for
    routes that are not for users.
    ``is_operator_only``: only admins of the organization that the instance began with may use it.
    ``actions``: the words that may follow the last id of the path after a colon.
    ``max_body_bytes``: None leaves the limit to the endpoint.
    ``may_wait``: a long poll, which may be canceled without harm.
    ``is_endless``: a stream, which ends with the connection.
    """

    method: Method
    path: str
    endpoint: Callable[..., Awaitable[Any]]
    summary: str
    body: Any = None
    returns: Any = None
    is_page: bool = False
    is_operator_only: bool = False
    query: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    max_body_bytes: int | None = SMALL_BODY_BYTES
    statuses: tuple[int, ...] = (200,)
    media_types: tuple[str, ...] = ()
    role: Role | None = None
    may_wait: bool = False
    is_endless: bool = False

    def __post_init__(self) -> None:
        if self.role is None and self.path.startswith("/workspaces/"):
            object.__setattr__(
                self, "role", "viewer" if self.method in ("GET", "HEAD") else "member"
            )

    @cached_property
    def access(self) -> Access:
        if self.path in (*PUBLIC, *SIGN_IN, JOIN):
            return "public"
        if self.path.startswith(ATTEMPT_PREFIX):
            return "attempt"
        return "controller" if self.path.startswith("/internal/") else "organization"
