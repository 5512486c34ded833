"""Access control: a credential is authenticated before routing, a call is authorized after it.

Before routing, only the credential counts: every path except the public ones needs a valid key or
attempt token. After routing, ``authorize`` runs before every endpoint, with the matched route and
the same path parameters that the endpoint receives. So the organization that is checked is the one
that is read: no second parser of the path can disagree with the router.

A path has only one spelling (``check_path``). Empty and dot segments and encoded separators are
rejected first, so that proxy, router and log all understand a path in the same way.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from runyard import protocol
from runyard.ids import is_id
from runyard.server.http.capacity import EXCHANGE, Exchange
from runyard.server.http.request import (
    ACTOR,
    ADDRESS,
    HEADERS,
    KEY_ID,
    SERVICES,
    SESSION,
    TOKEN,
    Request,
)
from runyard.server.http.responses import Response
from runyard.server.http.route import Route
from runyard.server.services.access import invitations, session_lifecycle
from runyard.server.services.access.keys import Rejection, role_allows
from runyard.server.services.access.signing import ATTEMPT_TOKEN_PREFIX
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, unauthorized

T = TypeVar("T")

CONTROLLERS = ("controller", "machine")  # roles of their keys
PROTOCOL_HEADER = protocol.PROTOCOL_HEADER.lower().encode()
KEY_CHECK_S = 3.0  # how often a waiting request checks that its key is still valid
# Parameters that are not ids; their routes check them.
FREE_PARAMETERS = frozenset({"org", "filename", "sha256"})
# Segments that are not empty, not ``.`` or ``..``, and without backslashes and control characters.
CANONICAL_PATH = re.compile(r"/|(?:/(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f]+)+")
# A slash, a backslash or NUL that becomes part of a segment by decoding.
ENCODED_SEPARATOR = re.compile(rb"%2f|%5c|%00", re.IGNORECASE)


def check_path(scope: Any) -> None:
    """Raise unless the path is written in its canonical form.

    Raises:
        Refusal: InvalidPath.
    """
    path, raw_path = scope["path"], scope.get("raw_path") or b""
    # The usual path needs no regular expression.
    is_plain = (
        path.isascii()
        and path.isprintable()
        and "/." not in path
        and "//" not in path
        and "\\" not in path
    )
    if is_plain and path[:1] == "/" and path[1:2] and path[-1] != "/" and b"%" not in raw_path:
        return
    if not CANONICAL_PATH.fullmatch(path) or ENCODED_SEPARATOR.search(raw_path):
        raise Refusal(
            "InvalidPath",
            f"the path {path[:200]!r} is not in canonical form; try: one slash between segments, "
            "none at the end, no '.' or '..' segment, no backslash, no encoded slash",
        )


def authenticate(services: Services, scope: Any, credential: str) -> None:
    """Write the caller into the scope.

    Raises:
        Refusal: Unauthorized, TooManyRequests, IncompatibleVersion.
    """
    address = scope[ADDRESS]
    if credential.startswith(ATTEMPT_TOKEN_PREFIX):
        token = services.signer.verify_attempt_token(credential)
        if token is None:
            raise _count_rejection(
                services, address, Rejection(org=None, key_id=None, reason="invalid attempt token")
            )
        scope[TOKEN] = token
        scope[ACTOR] = Actor(
            org=token.org, name=f"attempt {token.number}", role="attempt", address=address
        )
        return
    key = services.keyring.find(credential, now_ms=services.clock.now_ms())
    if key is None:
        raise _count_rejection(services, address, services.keyring.explain(credential))
    if key.role in CONTROLLERS:
        _check_protocol(scope)
    scope[KEY_ID] = key.id
    scope[ACTOR] = Actor(
        org=key.org or "",
        name=f"key {key.id}",
        role=key.role,
        address=address,
        machine_id=services.memberships.find_by_key(key.id) if key.role == "machine" else None,
    )


def _check_protocol(scope: Any) -> None:
    """Check the version of a controller that sends it; earlier ones do not.

    Raises:
        Refusal: IncompatibleVersion.
    """
    number, _, version = scope[HEADERS].get(PROTOCOL_HEADER, b"").decode("latin-1").partition(" ")
    if number.isdigit():
        invitations.check_protocol(int(number[:9]), version)


def has_key_ended(scope: Any) -> bool:
    """Return whether the key or the session of an admitted request is no longer valid."""
    key_id, services = scope.get(KEY_ID), scope[SERVICES]
    if (session := scope.get(SESSION)) is not None:
        return not session_lifecycle.is_valid(services, session)
    return key_id is not None and not services.keyring.is_valid(
        key_id, now_ms=services.clock.now_ms()
    )


def key_ended() -> Refusal:
    return Refusal(
        "Unauthorized", "the key was revoked or has expired while this request was in progress"
    )


def require_authorization(route: Route) -> Callable[[Request], Awaitable[Response]]:
    """Return a route's endpoint with ``authorize`` in front."""

    async def call_endpoint(request: Request) -> Response:
        parameters = request.path_params
        authorize(route, request.scope, parameters)
        responding: Awaitable[Response] = route.endpoint(request, **parameters)
        if route.may_wait:
            return await _run_while_key_is_valid(request.scope, responding)
        return await responding

    return call_endpoint


def authorize(route: Route, scope: Any, parameters: dict[str, str]) -> None:
    """Raise unless the caller may call the matched route with these path parameters.

    A resource of another organization gets the same error as one that does not exist.

    Raises:
        Refusal: Unauthorized (a credential of another kind), NotFound, InvalidId, RoleForbidden,
            BodyTooLarge.
    """
    if route.access != "public":
        actor: Actor = scope[ACTOR]
        kind = "controller" if actor.role in CONTROLLERS else actor.role
        if route.access != (kind if kind in ("controller", "attempt") else "organization"):
            raise unauthorized()
        if route.access == "organization":
            _check_organization(actor, scope, parameters.get("org", actor.org))
        _check_ids(route, parameters)
        if route.role is not None and not role_allows(actor.role, route.role):
            raise _role_forbidden(actor.role, route.role)
    exchange: Exchange = scope[EXCHANGE]
    exchange.limit_body(route.max_body_bytes)


async def _run_while_key_is_valid(scope: Any, responding: Awaitable[T]) -> T:
    """Run an endpoint that waits, and cancel it when the key ends.

    A claim that is cancelled after its commit is repeated by the controller under the same claim
    id.

    Raises:
        Refusal: Unauthorized; the key has ended.
    """
    task = asyncio.ensure_future(responding)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=KEY_CHECK_S)
            if not task.done() and has_key_ended(scope):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                raise key_ended()
        return await task
    finally:
        task.cancel()


def _check_organization(actor: Actor, scope: Any, org: str) -> None:
    header = scope[HEADERS].get(b"organization-id")
    for named in (org, actor.org if header is None else header.decode("latin-1")):
        if named != actor.org:
            raise Refusal(
                "NotFound",
                f"organization {named[:80]!r} was not found, or this key is not one of its keys",
            )


def _check_ids(route: Route, parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        if name in FREE_PARAMETERS:
            continue
        id, separator, action = value.partition(":")
        if not is_id("run", id) or (separator and action not in route.actions):
            raise Refusal(
                "InvalidId",
                f"id {value[:80]!r} is not well-formed; ids are 1 to 255 letters, digits, '_' and "
                "'-'",
            )


def _count_rejection(services: Services, address: str, rejection: Rejection) -> Refusal:
    clock = services.clock
    return services.wrong_keys.reject(
        address, rejection, now_ms=clock.now_ms(), now_s=clock.monotonic_s()
    )


def _role_forbidden(role: str, required: str) -> Refusal:
    if role == "viewer" and required == "member":
        return Refusal(
            "RoleForbidden", "a viewer's key may only read; try: the key of a member or an admin"
        )
    return Refusal(
        "RoleForbidden", f"this route needs the role {required!r}, and the key is a {role}'s"
    )
