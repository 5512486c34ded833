"""The one door: the outermost layer, through which every request comes, whatever stands behind it.

It denies by default. In this order it looks at: how long URL and headers are, whom the Host header names (a rebound
domain name must not reach us), which site the request comes from, who is asking, whether path and ``Organization-Id``
agree with the key, whether ids are well-formed, and how large the body is. Only the paths of ``PUBLIC`` need no key;
download links and upload addresses carry their own signature. What belongs to another organisation gets the answer of
what does not exist.

It also writes one line per request to the access log: no query, no header, no link, so no secret.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from runyard.server.http import problems
from runyard.server.http.asking import ACTOR, SERVICES, TOKEN
from runyard.server.http.capacity import Capacity, Exchange, decimal, too_large
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal
from runyard.store import StoreUnavailable

access_log = logging.getLogger("runyard.access")
log = logging.getLogger(__name__)

# The only routes without a key. The OpenAPI document is not among them: nothing is public that need not be.
PUBLIC = ("/health",)
PUBLIC_PREFIXES = ("/downloads/", "/uploads/")
# After these the rest of the request's body is not read. The web server may go on waiting for it, so we hang up.
UNREAD_STATUSES, HANG_UP_AFTER_S = (408, 413, 431), 1.0

LONGEST_URL, LONGEST_HEADERS = 8 * 1024, 16 * 1024
LARGEST_BODY, LARGEST_MESSAGE, LARGEST_BACKUP, LARGEST_UPLOAD = 1 << 20, 16 << 20, 2**63, 64 << 30
LARGEST_DRAINED, DRAIN_TIMEOUT_S = 32 * 1024 * 1024, 5.0
# After these the rest of the request body is not read, so the connection serves no other request.
UNREAD_BODIES = ("BodyIncomplete", "BodyTimeout", "BodyTooLarge", "HeadersTooLarge")
ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
ACTION = re.compile(r":[a-zA-Z]+$")  # the last id of a path may say what to do with it
HIDDEN_SEPARATOR = re.compile(rb"%2f|%5c|%00", re.IGNORECASE)
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
ATTEMPT_PREFIX = "/internal/v1/attempt/"
RESTORES = "/storage/restores"
FILES = "assetFiles"
# Lists of files that are to come, thousands in one body.
LARGE_BODIES = ("/assetIngestionSessions", "/files", ":finish")

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class Door:
    """An ASGI application around another one. ``services`` is set by the application's lifespan."""

    def __init__(self, inside: Any, *, allowed_hosts: set[str], capacity: Capacity) -> None:
        self._inside = inside
        self._allowed_hosts = allowed_hosts
        self._capacity = capacity
        self._busy: Counter[tuple[str, str]] = Counter()
        self.services: Services | None = None
        # Closes the connection of a client; the process sets it, since it alone knows the sockets.
        self.drop: Callable[..., None] | None = None

    def is_busy(self, peer: tuple[str, int]) -> bool:
        """Whether a request of this client is being answered. Called by another thread."""
        return (peer[0], str(peer[1])) in self._busy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._inside(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it yet

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        services = self.services
        assert services is not None, "requests come after the lifespan has begun"  # noqa: S101
        begun_s = services.clock.monotonic_s()
        status = 0
        client = scope.get("client")
        exchange = Exchange(self._capacity, scope, receive, send, drop=self._dropping(client))

        async def send_marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await exchange.send(message)

        if client:
            self._busy[client] += 1
        try:
            headers = _headers(scope)
            self._admit(services, scope, headers)
            _take_places(exchange, scope)
            _limit_body(exchange, headers, _body_limit(scope))
            await self._inside(scope, exchange.receive, send_marked)
        except Refusal as refusal:
            if status:
                raise
            if refusal.code == "BodyTooLarge":
                await drain(receive)
            await _refuse(send_marked, refusal)
        except StoreUnavailable as error:
            log.error("the store is unavailable: %s", error)
            if status:
                raise
            await _refuse(send_marked, problems.STORE_UNAVAILABLE)
        except Exception:
            if exchange.abandoned is None:
                raise
            log.info("a response broke off: %s", exchange.abandoned)
        finally:
            exchange.close()
            if status in UNREAD_STATUSES and (drop := self._dropping(client, keep_unsent=True)) is not None:
                asyncio.get_running_loop().call_later(HANG_UP_AFTER_S, drop)
            if client:
                self._busy[client] -= 1
                if not self._busy[client]:
                    del self._busy[client]
            if access_log.isEnabledFor(logging.INFO):
                _log_access(services, scope, status, begun_s)

    def _dropping(self, client: Any, *, keep_unsent: bool = False) -> Callable[[], None] | None:
        drop = self.drop
        return (
            None if drop is None or not client else partial(drop, (client[0], int(client[1])), keep_unsent=keep_unsent)
        )

    def _admit(self, services: Services, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Let a request in, its asker written into the scope, or raise Refusal."""
        path, raw_path = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if len(raw_path) + len(scope["query_string"]) > LONGEST_URL:
            raise Refusal("UrlTooLong", f"the URL is longer than {LONGEST_URL} bytes; send less in it")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEADERS:
            raise Refusal("HeadersTooLarge", f"the headers are larger than {LONGEST_HEADERS} bytes; send less")
        self._check_host(headers.get(b"host", b""))
        self._check_origin(headers.get(b"origin"))
        scope[SERVICES] = services
        if path in PUBLIC or path.startswith(PUBLIC_PREFIXES):
            return
        credential = _bearer(headers.get(b"authorization", b""))
        if path.startswith(ATTEMPT_PREFIX):
            _admit_attempt(services, scope, credential)
        else:
            _admit_key(services, scope, credential, headers.get(b"organization-id"))
        if HIDDEN_SEPARATOR.search(raw_path):
            raise Refusal("InvalidId", "an id in the URL holds a slash; ids are letters, digits, '_' and '-' alone")

    def _check_host(self, given: bytes) -> None:
        host = _without_port(given.decode("latin-1").lower())
        if host not in self._allowed_hosts:
            raise Refusal(
                "InvalidHost",
                f"Host {host[:80]!r} is not one this server answers to; use its address, or name it in "
                "RUNYARD_ALLOWED_HOSTS",
            )

    def _check_origin(self, given: bytes | None) -> None:
        if given is None:
            return
        host = _without_port(given.decode("latin-1").lower().partition("://")[2])
        if host not in self._allowed_hosts:
            raise Refusal("OriginRefused", "this request comes from a page of another site; open Runyard's own pages")


def allowed_hosts(host: str, further: str) -> set[str]:
    """Host names to answer to: loopback, the address we listen on, and what the settings add."""
    named = {part.strip().lower() for part in further.split(",") if part.strip()}
    own = set() if ipaddress_is_any(host) else {_bracketed(host.lower())}
    return {"localhost", "127.0.0.1", "[::1]"} | own | named


def ipaddress_is_any(host: str) -> bool:
    """Whether ``host`` means every address, and so is nobody's name."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _admit_attempt(services: Services, scope: Any, credential: str) -> None:
    token = services.signer.attempt(credential)
    if token is None:
        raise _unauthorized()
    scope[TOKEN] = token
    scope[ACTOR] = Actor(org=token.org, name=f"attempt {token.number}", role="attempt", address=_address(scope))


def _admit_key(services: Services, scope: Any, credential: str, named_org: bytes | None) -> None:
    key = services.keyring.find(credential, now_ms=services.clock.now_ms())
    path, is_internal = scope["path"], scope["path"].startswith("/internal/")
    # A controller's key opens the controller's routes and nothing else, and no other key opens those.
    if key is None or (key.role == "controller") is not is_internal:
        raise _unauthorized()
    scope[ACTOR] = Actor(org=key.org or "", name=f"key {key.id}", role=key.role, address=_address(scope))
    if is_internal:
        return
    segments = path.split("/")
    is_own = key.org == segments[2] if len(segments) > 2 and segments[1] == "workspaces" else True
    if not is_own or (named_org is not None and named_org.decode("latin-1") != key.org):
        named = (named_org or b"").decode("latin-1") if is_own else segments[2]
        raise Refusal("NotFound", f"organization {named[:80]!r} was not found, or this key is not one of its keys")
    segments[-1] = ACTION.sub("", segments[-1])
    for place, segment in zip(segments[3::2], segments[4::2], strict=False):
        # A file's name is no id; that no separator hides in it has been seen to.
        if segment and place != FILES and not ID.fullmatch(segment):
            raise Refusal(
                "InvalidId",
                f"id {segment[:80]!r} is not well-formed; ids are 1 to 255 letters, digits, '_' and '-'",
            )
    if key.role == "viewer" and scope["method"] not in SAFE_METHODS:
        raise Refusal("RoleForbidden", "a viewer's key only reads; use the key of a member or an admin")


def _unauthorized() -> Refusal:
    return Refusal(
        "Unauthorized",
        "the key is missing or wrong; send it as 'Authorization: Bearer dtvi_...', "
        "as it stands in credentials.json of the data folder",
    )


def _headers(scope: Any) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _bearer(value: bytes) -> str:
    kind, _, credential = value.decode("latin-1").partition(" ")
    return credential.strip() if kind.lower() == "bearer" else ""


def _address(scope: Any) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*$", "", host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _body_limit(scope: Any) -> int | None:
    path = scope["path"]
    if path.startswith(f"{ATTEMPT_PREFIX}blobs/"):
        return None  # as long as it announced, which the store checks while it arrives
    if path.startswith("/uploads/"):
        return LARGEST_UPLOAD
    if path.startswith("/workspaces/") and path.endswith(RESTORES):
        return LARGEST_BACKUP
    return LARGEST_MESSAGE if path.startswith("/internal/") or path.endswith(LARGE_BODIES) else LARGEST_BODY


def _take_places(exchange: Exchange, scope: Any) -> None:
    """Count a request that has been admitted. Health checks are answered whatever else a client does."""
    if scope["path"] in PUBLIC:
        return
    actor = scope.get(ACTOR)
    key = scope.get(TOKEN) or (actor and (actor.org, actor.name))
    exchange.admit(
        address=actor.address if actor else _address(scope), key=key, may_wait=b"wait=" in scope["query_string"]
    )


def _limit_body(exchange: Exchange, headers: dict[bytes, bytes], limit: int | None) -> None:
    """Refuse a body above the limit, at once if it was announced."""
    announced = headers.get(b"content-length", b"0")
    if limit is not None and (not announced.isdigit() or decimal(announced) > limit):
        raise too_large(limit)
    exchange.limit_body(limit)


async def drain(receive: Any) -> None:
    """Read on a while: a client that is still sending when its connection closes never sees our answer."""
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while taken < LARGEST_DRAINED:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _refuse(send: Any, refusal: Refusal) -> None:
    body = problems.problem_body(refusal)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    if refusal.code in UNREAD_BODIES:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _log_access(services: Services, scope: Any, status: int, begun_s: float) -> None:
    actor = scope.get(ACTOR)
    path = scope["path"]
    line = {
        "time": services.clock.now_ms(),
        "method": scope["method"],
        "path": next((f"{prefix}..." for prefix in PUBLIC_PREFIXES if path.startswith(prefix)), path[:500]),  # secrets
        "status": status,
        "ms": round((services.clock.monotonic_s() - begun_s) * 1000, 2),
        "actor": actor.name if actor else "",
        "address": _address(scope),
    }
    access_log.info(msgspec.json.encode(line).decode())
