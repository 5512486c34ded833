"""Who may call which route: a credential is authenticated before routing, the call is authorized after it.

Before routing, nothing but the credential counts: every path except the public ones needs a valid key or attempt token,
whatever it names. After routing, ``authorize`` runs as the guard of every route, with the route that was matched and
the path parameters that its function is going to receive. Therefore the organization that is checked is the one that is
read: there is no second reading of the path that could disagree with the router's.

The path itself has one spelling only (``check_path``): empty and dot segments and encoded separators are rejected
before anything else, so that no proxy, router or log understands a path differently.
"""

import re
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from runyard.server.http.asking import ACTOR, ADDRESS, TOKEN
from runyard.server.http.route import Route
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal

ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
# Each role may do what the ones before it may.
USER_ROLES = ("viewer", "member", "admin")
# Parameters that are not ids; their routes check them.
FREE_PARAMETERS = frozenset({"org", "filename", "sha256"})
# A slash, a backslash or NUL that becomes part of a segment by decoding.
ENCODED_SEPARATOR = re.compile(rb"%2f|%5c|%00", re.IGNORECASE)
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\]")
# Where a request's body limit is kept in its scope, for the gateway that counts the body.
BODY_LIMIT = "runyard.body_limit"


def check_path(scope: Any) -> None:
    """Raise unless the path is written in its canonical form.

    Raises:
        Refusal: InvalidPath.
    """
    path = scope["path"]
    segments = path.split("/")[1:]
    is_canonical = path == "/" or (path.startswith("/") and not {"", ".", ".."}.intersection(segments))
    if not is_canonical or CONTROL_CHARACTER.search(path) or ENCODED_SEPARATOR.search(scope.get("raw_path") or b""):
        raise Refusal(
            "InvalidPath",
            f"the path {path[:200]!r} is not in canonical form; try: one slash between segments, none at the end, "
            "no '.' or '..' segment, no backslash, no encoded slash",
        )


def authenticate(services: Services, scope: Any, credential: str) -> None:
    """Note in the scope who is calling.

    Raises:
        Refusal: Unauthorized.
    """
    if (token := services.signer.attempt(credential)) is not None:
        scope[TOKEN] = token
        scope[ACTOR] = Actor(org=token.org, name=f"attempt {token.number}", role="attempt", address=scope[ADDRESS])
        return
    key = services.keyring.find(credential, now_ms=services.clock.now_ms())
    if key is None:
        raise _unauthorized()
    scope[ACTOR] = Actor(org=key.org or "", name=f"key {key.id}", role=key.role, address=scope[ADDRESS])


def authorize(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Raise unless the caller may call the matched route with the resolved path parameters; the guard of every route.

    What belongs to another organization is answered like what does not exist.

    Raises:
        Refusal: Unauthorized (a credential of another kind), NotFound, InvalidId, RoleForbidden, BodyTooLarge.
    """
    scope: Any = connection.scope
    route: Route = handler.opt["route"]
    scope[BODY_LIMIT] = route.largest_body
    if route.access != "public":
        actor: Actor = scope[ACTOR]
        if route.access != ("organization" if actor.role in USER_ROLES else actor.role):
            raise _unauthorized()
        if route.access == "organization":
            _check_organization(actor, scope, connection.headers.getall("organization-id", []))
        _check_ids(route, scope["path_params"])
        if route.access == "organization" and USER_ROLES.index(actor.role) < USER_ROLES.index(route.required_role):
            raise _forbidden(actor.role, route.required_role)
    check_announced(scope)


def check_announced(scope: Any) -> None:
    """Raise when the announced length of the body is above the limit in the scope.

    Raises:
        Refusal: BodyTooLarge.
    """
    limit = scope[BODY_LIMIT]
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    # More digits than any limit has: reading them as a number could cost time, and Python refuses thousands.
    if limit is not None and (not announced.isdigit() or len(announced) > 19 or int(announced) > limit):
        raise body_too_large(limit)


def body_too_large(limit: int) -> Refusal:
    return Refusal("BodyTooLarge", f"the request body is larger than {limit // 1024} KiB; send less at once")


def _check_organization(actor: Actor, scope: Any, named: list[str]) -> None:
    org = scope["path_params"].get("org", actor.org)
    if org == actor.org and all(name == actor.org for name in named):
        return
    wrong = org if org != actor.org else named[0]
    raise Refusal("NotFound", f"organization {wrong[:80]!r} was not found, or this key is not one of its keys")


def _check_ids(route: Route, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        if name in FREE_PARAMETERS:
            continue
        id, separator, action = value.partition(":")
        if not ID.fullmatch(id) or (separator and action not in route.actions):
            raise Refusal(
                "InvalidId",
                f"id {value[:80]!r} is not well-formed; ids are 1 to 255 letters, digits, '_' and '-'",
            )


def _unauthorized() -> Refusal:
    return Refusal(
        "Unauthorized",
        "the key is missing or wrong; send it as 'Authorization: Bearer dtvi_...', "
        "as it stands in credentials.json of the data folder",
    )


def _forbidden(role: str, required: str) -> Refusal:
    if role == "viewer" and required == "member":
        return Refusal("RoleForbidden", "a viewer's key only reads; use the key of a member or an admin")
    return Refusal("RoleForbidden", f"this route needs the role {required!r}, and the key is a {role}'s")
