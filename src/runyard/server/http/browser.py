"""What the gateway does for browsers: admit cookies, refuse foreign pages, set the pages' headers.

A browser sends its cookies with requests of any page, so a request with one must come from our own
pages. Browsers state that in ``Sec-Fetch-Site``; one that does not (an old one, or plain HTTP to
another machine) names the site in ``Origin`` when the method is unsafe, and ``proxies`` compares
it. Cookies never admit to ``/internal/``.
"""

from typing import Any
from urllib.parse import quote

from runyard.server.http.request import ACTOR, ADDRESS, HEADERS, ORIGIN, SESSION
from runyard.server.http.responses import Response
from runyard.server.services.access import session_lifecycle
from runyard.server.services.access.keys import Rejection
from runyard.server.services.access.sessions import COOKIE_PREFIX, Session, parse_cookies
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, unauthorized

PREFIX, PREFIX_OF_PARTS, STATIC_PREFIX = "/ui", "/ui/", "/ui/static/"
DOCUMENTS = (".svg", "-worker.js")  # static files that a policy of their own governs
MOST_COOKIES = 8  # of other organizations on the same host
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

FILE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
PAGE_HEADERS = [
    *FILE_HEADERS,
    # Not no-referrer: with it Chromium sends ``Origin: null`` with our own forms.
    (b"referrer-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
        b"img-src 'self' blob:; connect-src 'self'; worker-src 'self'; form-action 'self'; "
        b"base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
]
NO_STORE = (b"cache-control", b"no-store")


def is_page_path(path: str) -> bool:
    """Return whether a path belongs to the pages."""
    return path == PREFIX or path.startswith(PREFIX_OF_PARTS)


def has_cookie(headers: dict[bytes, bytes]) -> bool:
    """Return whether a request has a cookie of ours."""
    return COOKIE_PREFIX.encode() in headers.get(b"cookie", b"")


def list_page_headers(path: str, given: Any) -> list[tuple[bytes, bytes]]:
    """Return the headers of a page's response besides those that it has.

    Files that a page loads have few: the page's policy governs them.
    """
    is_file = path.startswith(STATIC_PREFIX) and not path.endswith(DOCUMENTS)
    headers = FILE_HEADERS if is_file else PAGE_HEADERS
    is_cached = any(name == b"cache-control" for name, _ in given)
    return headers if is_cached else [*headers, NO_STORE]


def check_site(scope: Any) -> None:
    """Raise unless a request that a browser vouches for comes from our own pages.

    Raises:
        Refusal: OriginRefused.
    """
    headers, is_safe = scope[HEADERS], scope["method"] in SAFE_METHODS
    site = headers.get(b"sec-fetch-site")
    if site is None:
        # ``proxies`` has compared the Origin, if there is one.
        is_ours = is_safe or b"origin" in headers
    elif is_safe:
        is_ours = site in (b"same-origin", b"none") or _is_navigation(headers)
    else:
        is_ours = site == b"same-origin"
    if not is_ours:
        raise Refusal(
            "OriginRefused",
            "this request comes from a page of another site; try: Runyard's own pages",
        )


async def admit_session(services: Services, scope: Any) -> None:
    """Admit a request by the session of its cookie, and write its caller into the scope.

    Raises:
        Refusal: Unauthorized, OriginRefused, TooManyRequests.
    """
    session = await find_session(services, scope)
    if session is None:
        raise unauthorized()
    check_site(scope)
    key = services.keyring.get(session.key_id, now_ms=services.clock.now_ms())
    if key is None or scope["path"].startswith("/internal/"):
        raise unauthorized()
    scope[SESSION] = session
    scope[ACTOR] = Actor(
        org=session.org,
        name=f"key {key.id} in a browser",
        role=key.role,
        address=scope[ADDRESS],
    )


async def find_session(services: Services, scope: Any) -> Session | None:
    """Return the session of a request's cookies: that of the organization in its path, or any.

    Raises:
        Refusal: TooManyRequests; too many wrong cookies came from this address.
    """
    header = scope[HEADERS].get(b"cookie", b"").decode("latin-1")
    cookies = parse_cookies(header, is_secure=is_secure(scope))
    if not cookies:
        return None
    parts = scope["path"].split("/", 3)
    named = parts[2] if parts[1] == "workspaces" and len(parts) > 2 else None
    if named in cookies:
        cookies = {named: cookies[named]}
    address = scope[ADDRESS]
    for org, secret in list(cookies.items())[:MOST_COOKIES]:
        session = await session_lifecycle.find(services, secret)
        if session is not None and session.org == org:
            return session
    clock = services.clock
    refusal = services.wrong_keys.reject(
        address,
        Rejection(org=None, key_id=None, reason="ended or unknown session"),
        now_ms=clock.now_ms(),
        now_s=clock.monotonic_s(),
    )
    if refusal.code == "TooManyRequests":
        raise refusal
    return None


def is_secure(scope: Any) -> bool:
    """Return whether the browser reached us by TLS."""
    return str(scope[ORIGIN]).startswith("https://")


def redirect_to_sign_in(scope: Any) -> Response | None:
    """Return the redirection for a page that was opened without a session; None for others.

    Fragments, streams and forms get the refusal: their script goes to sign in.
    """
    headers, path = scope[HEADERS], scope["path"]
    is_document = headers.get(b"sec-fetch-dest", b"document") == b"document"
    if (
        scope["method"] != "GET"
        or not is_page_path(path)
        or b"hx-request" in headers
        or not is_document
        or b"text/html" not in headers.get(b"accept", b"")
    ):
        return None
    query = scope["query_string"].decode("latin-1")
    target = quote(f"{path}?{query}" if query else path, safe="")
    location = f"{PREFIX}/enter?next={target}".encode()
    return Response(status=303, headers=[(b"location", location)])


def _is_navigation(headers: dict[bytes, bytes]) -> bool:
    """Return whether somebody follows a link, as opposed to a frame or a script."""
    return (
        headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest", b"document") == b"document"
    )
