"""The gateway: the outermost ASGI layer, through which every request passes.

It denies by default. In this order it checks: the length of URL and headers, that single-valued
headers occur once, that the path is in canonical form, the host that the request names (against DNS
rebinding), the site it comes from, and the caller. Only the paths of ``PUBLIC`` need no key;
download links and upload addresses carry their own signature. After routing, ``access.authorize``
checks organization, ids, role and body size. A resource of another organization gets the same
response as one that does not exist.

A key that ends during a request ends the request too: a long poll within ``access.KEY_CHECK_S``, a
body in either direction with its next chunk. ``services.wrong_keys`` counts and limits requests
without a valid key.

Each request has an id, which its response returns as ``X-Request-Id``, and is one line of the
access log, without query, headers and links, so without secrets.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from runyard import limits
from runyard.server.http import browser
from runyard.server.http.access import authenticate, check_path, has_key_ended, key_ended
from runyard.server.http.capacity import Capacity, Exchange, drain_body
from runyard.server.http.problems import problem_response
from runyard.server.http.proxies import FORWARDED_FOR, Proxies
from runyard.server.http.request import (
    ACTOR,
    ADDRESS,
    HEADERS,
    ORIGIN,
    REQUEST_ID,
    SERVICES,
    SESSION,
    TOKEN,
)
from runyard.server.http.route import JOIN, PUBLIC, SIGN_IN
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.store import StoreUnavailable

access_log = logging.getLogger("runyard.access")
log = logging.getLogger(__name__)

SECRET_PREFIXES = ("/downloads/", "/uploads/")
PUBLIC_PREFIXES = (*SECRET_PREFIXES, "/ui/static/")
UPLOADS = "/uploads/"
# After these the rest of the request body is not read. The web server may still wait for it, so we
# close the connection.
UNREAD_STATUSES, HANG_UP_AFTER_S = (408, 413, 431), 1.0

MAX_URL_BYTES, MAX_HEADERS_BYTES = limits.URL.value, limits.HEADERS.value
MAX_UPLOAD_BYTES = 64 << 30
# Of two values, one layer might read the first and another the last.
SINGLE_HEADERS = frozenset({
    *(b"host", b"authorization", b"organization-id", b"content-length", b"transfer-encoding"),
    *(b"origin", b"if-match", b"range", b"content-type", b"x-forwarded-proto", b"sec-fetch-site"),
    b"cookie",
})  # fmt: skip

RESPONSE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class Gateway:
    """An ASGI application around another one; ``services`` are set before the first request."""

    def __init__(self, app: Any, *, proxies: Proxies, capacity: Capacity) -> None:
        self._app = app
        self._proxies = proxies
        self._capacity = capacity
        self._busy: dict[tuple[str, str], int] = {}
        self.services: Services | None = None
        # Closes the connection of a client. The process sets it, since it alone knows the sockets.
        self.drop_connection: Callable[..., None] | None = None

    def is_busy(self, peer: tuple[str, int]) -> bool:
        """Return whether a request of this client is in progress. Called by another thread."""
        return (peer[0], str(peer[1])) in self._busy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._serve_request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # no route speaks it yet

    async def _serve_request(self, scope: Any, receive: Any, send: Any) -> None:
        services = self.services
        assert services is not None, "requests come after the services are open"  # noqa: S101
        begun_s = services.clock.monotonic_s()
        status = 0
        client = scope.get("client")
        scope[HEADERS] = dict(scope["headers"])
        scope[REQUEST_ID] = request_id = secrets.token_hex(8)
        exchange = Exchange(
            self._capacity, scope, receive, send, drop_connection=self._bind_drop(client)
        )

        async def send_marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 413:
                    await drain_body(receive)
                given = message.get("headers", ())
                further = (
                    browser.list_page_headers(scope["path"], given)
                    if browser.is_page_path(scope["path"])
                    else RESPONSE_HEADERS
                )
                own = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*given, *further, own]}
            elif message.get("more_body") and has_key_ended(scope):
                raise exchange.abandon("the key of this request was revoked or has expired")
            await exchange.send(message)

        async def receive_checked() -> Any:
            message = await exchange.receive()
            if message.get("more_body") and has_key_ended(scope):
                raise key_ended()
            return message

        self._busy[client] = self._busy.get(client, 0) + 1
        try:
            await self._admit(services, scope, exchange)
            await self._app(scope, receive_checked, send_marked)
        except (Refusal, StoreUnavailable) as error:
            if status:
                raise
            response: Any = problem_response(error)
            if isinstance(error, Refusal) and error.code == "Unauthorized":
                response = browser.redirect_to_sign_in(scope) or response
            await response(scope, receive, send_marked)
        except Exception:
            if exchange.abandoned is None:
                raise
            log.info("a response was abandoned: %s", exchange.abandoned)
        finally:
            exchange.close()
            self._release(client, status)
            if access_log.isEnabledFor(logging.INFO):
                _log_access(services, scope, status, begun_s)

    def _release(self, client: Any, status: int) -> None:
        """Count a request as finished; close its connection soon if its body was not read."""
        if (others := self._busy.pop(client) - 1) > 0:
            self._busy[client] = others
        if status in UNREAD_STATUSES:
            drop = self._bind_drop(client, keep_unsent=True)
            if drop is not None:
                asyncio.get_running_loop().call_later(HANG_UP_AFTER_S, drop)

    def _bind_drop(self, client: Any, *, keep_unsent: bool = False) -> Callable[[], None] | None:
        if self.drop_connection is None or not client:
            return None
        return partial(self.drop_connection, (client[0], int(client[1])), keep_unsent=keep_unsent)

    async def _admit(self, services: Services, scope: Any, exchange: Exchange) -> None:
        """Admit a request and write its caller into the scope, or raise Refusal."""
        path, given = scope["path"], scope["headers"]
        headers = scope[HEADERS]
        peer = scope["client"][0] if scope.get("client") else ""
        scope[SERVICES], scope[ADDRESS] = services, peer
        if len(scope.get("raw_path") or path) + len(scope["query_string"]) > MAX_URL_BYTES:
            raise Refusal(
                "UrlTooLong", f"the URL is longer than {MAX_URL_BYTES} bytes; try: a shorter query"
            )
        if sum(len(name) + len(value) for name, value in given) > MAX_HEADERS_BYTES:
            raise Refusal(
                "HeadersTooLarge",
                f"the headers are larger than {MAX_HEADERS_BYTES} bytes; try: send less",
            )
        if len(headers) < len(given):
            _check_single_headers(given)
            # A list: each proxy may add a line of its own.
            headers[FORWARDED_FOR] = b",".join(
                value for name, value in given if name == FORWARDED_FOR
            )
        check_path(scope)
        caller = self._proxies.read_caller(peer, scope.get("scheme", "http"), headers)
        scope[ADDRESS], scope[ORIGIN] = caller.address, caller.origin
        if path in PUBLIC:
            return  # health checks are answered whatever else a client does
        if path in SIGN_IN:
            browser.check_site(scope)
        elif path != JOIN and not path.startswith(PUBLIC_PREFIXES):
            await _authenticate(services, scope)
        actor = scope.get(ACTOR)
        session = scope.get(SESSION)  # several browsers may use the same key
        key = scope.get(TOKEN) or (session and session.id) or (actor and (actor.org, actor.name))
        exchange.admit(address=caller.address, key=key, may_wait=b"wait=" in scope["query_string"])
        if path.startswith(UPLOADS):
            exchange.limit_body(MAX_UPLOAD_BYTES)


async def _authenticate(services: Services, scope: Any) -> None:
    """Write the caller into the scope: that of the key, or else that of a browser's session."""
    headers = scope[HEADERS]
    is_browser = b"authorization" not in headers and (
        browser.has_cookie(headers) or browser.is_page_path(scope["path"])
    )
    if is_browser:
        await browser.admit_session(services, scope)
    else:
        authenticate(services, scope, _parse_bearer(headers.get(b"authorization", b"")))


def _check_single_headers(headers: Any) -> None:
    counts = Counter(name for name, _ in headers)
    repeated = next((name.decode("latin-1") for name in SINGLE_HEADERS if counts[name] > 1), None)
    if repeated is not None:
        raise Refusal(
            "DuplicateHeader", f"the header {repeated!r} occurs more than once; try: send it once"
        )


def _parse_bearer(value: bytes) -> str:
    kind, _, credential = value.decode("latin-1").partition(" ")
    return credential.strip() if kind.lower() == "bearer" else ""


def _log_access(services: Services, scope: Any, status: int, begun_s: float) -> None:
    actor = scope.get(ACTOR)
    path = scope["path"]
    line = {
        "time": services.clock.now_ms(),
        "method": scope["method"],
        # The rest of a signed link is a secret.
        "path": next(
            (f"{prefix}..." for prefix in SECRET_PREFIXES if path.startswith(prefix)), path[:500]
        ),
        "status": status,
        "ms": round((services.clock.monotonic_s() - begun_s) * 1000, 2),
        "actor": actor.name if actor else "",
        "address": scope.get(ADDRESS, ""),
        "request": scope[REQUEST_ID],
    }
    access_log.info(msgspec.json.encode(line).decode())
