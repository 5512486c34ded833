"""Sessions of browsers: who may begin one, what a cookie admits, and when it ends."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runyard.server.http import event_streams
from runyard.server.http.browser import SAFE_METHODS
from runyard.server.services.access import session_lifecycle, sessions
from tests.server.test_access import send
from tests.server.test_gateway import add_key
from tests.support.server import MakeServer, TestServer, open_server

OWN, FOREIGN = "http://127.0.0.1:7878", "http://127.0.0.1:7879"
OUR_PAGE = {"sec-fetch-site": "same-origin"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


async def sign_in(server: TestServer, key: str = "", **headers: str) -> httpx2.AsyncClient:
    """Return a browser with a session."""
    browser = await server.client(None, **OUR_PAGE, **headers)
    answer = await browser.post("/ui/sessions", json={"key": key or server.key})
    assert answer.status_code == 201, answer.text
    return browser


def read_cookie(browser: httpx2.AsyncClient) -> str:
    [(name, value)] = browser.cookies.items()
    return f"{name}={value}"


async def make_code(server: TestServer) -> str:
    code: str = (await (await server.api()).post("/ui/codes")).json()["code"]
    return code


def is_admitted(
    method: str, credential: str, site: str | None, origin: str | None, *, is_navigation: bool
) -> bool:
    """Return whether section 'Sessions' of docs/pages.md admits a request."""
    if origin not in (None, OWN):
        return False
    if credential == "key":
        return True
    if site is None:
        return method in SAFE_METHODS or origin == OWN
    if method in SAFE_METHODS:
        return site in ("same-origin", "none") or is_navigation
    return site == "same-origin"


async def test_a_cookie_admits_only_requests_of_our_own_pages(server: TestServer) -> None:
    cookie = read_cookie(await sign_in(server))
    sites = (None, "same-origin", "same-site", "cross-site", "none")
    origins = (None, OWN, FOREIGN, "https://evil.example", "null")
    modes: tuple[dict[str, str], ...] = (
        {},
        {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    )
    framed = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    admitted = 0
    for method, credential, site, origin, mode in itertools.product(
        METHODS, ("cookie", "key", "none"), sites, origins, (*modes, framed)
    ):
        headers = dict(mode)
        headers |= {"cookie": cookie} if credential == "cookie" else {}
        headers |= {"sec-fetch-site": site} if site is not None else {}
        headers |= {"origin": origin} if origin is not None else {}
        key = server.key if credential == "key" else None
        status, body = await send(server, method, server.path("flows/f1"), key, **headers)
        what = (method, credential, site, origin, mode, status, body)
        if credential == "none":
            assert status == (401 if origin in (None, OWN) else 403), what
            continue
        expected = is_admitted(method, credential, site, origin, is_navigation=mode == modes[1])
        assert (status not in (401, 403)) is expected, what
        admitted += expected
    assert 100 < admitted < 500


async def test_a_key_counts_before_a_cookie(server: TestServer) -> None:
    cookie = read_cookie(await sign_in(server, add_key(server, server.org, "viewer")))
    path = server.path("keys")
    assert (await send(server, "GET", path, None, cookie=cookie))[0] == 403
    assert (await send(server, "GET", path, server.key, cookie=cookie))[0] == 200
    assert (await send(server, "GET", path, "dtvi_wrong", cookie=cookie))[0] == 401


async def test_a_cookie_never_admits_to_internal_routes(server: TestServer) -> None:
    cookie = read_cookie(await sign_in(server))
    for path in ("/internal/v1/claims", "/internal/v1/attempt/process", "/internal/x"):
        status, _ = await send(
            server, "POST", path, None, cookie=cookie, **{"sec-fetch-site": "same-origin"}
        )
        assert status == 401, path


async def test_a_cookie_opens_only_its_organization(server: TestServer) -> None:
    stranger = await sign_in(server, add_key(server, "org-other", "admin"))
    answer = await stranger.get(server.path("runs"))
    assert answer.status_code == 404
    assert (await stranger.get("/workspaces/org-other/runs")).status_code == 200
    # Both cookies together: each organization gets its own.
    own = await sign_in(server)
    both = f"{read_cookie(stranger)}; {read_cookie(own)}"
    for org in ("org-other", server.org):
        status, _ = await send(server, "GET", f"/workspaces/{org}/runs", None, cookie=both)
        assert status == 200, org
    # A secret under the name of another organization is no session.
    swapped = read_cookie(own).replace(server.org, "org-other")
    assert (await send(server, "GET", server.path("runs"), None, cookie=swapped))[0] == 401


@pytest.mark.parametrize("role", ["viewer", "member", "admin"])
async def test_a_session_may_what_its_key_may(server: TestServer, role: str) -> None:
    browser = await sign_in(server, add_key(server, server.org, role))
    assert (await browser.get(server.path("runs"))).status_code == 200
    put = await browser.put(server.path("flows/f1"), json={"spec": {}})
    assert put.status_code == (403 if role == "viewer" else 201)
    keys = await browser.get(server.path("keys"))
    assert keys.status_code == (200 if role == "admin" else 403)


async def test_a_code_begins_one_session(server: TestServer) -> None:
    code = await make_code(server)
    browsers = [await server.client(None, **OUR_PAGE) for _ in range(5)]
    answers = await asyncio.gather(
        *(browser.post("/ui/sessions", json={"code": code}) for browser in browsers)
    )
    assert sorted(answer.status_code for answer in answers) == [201, 401, 401, 401, 401]
    refused = next(answer for answer in answers if answer.status_code == 401)
    assert refused.json()["code"] == "InvalidCode"
    assert "runyard open" in refused.json()["message"]
    assert code not in refused.text


async def test_a_code_expires_after_ten_minutes(server: TestServer) -> None:
    early, late = await make_code(server), await make_code(server)
    browser = await server.client(None, **OUR_PAGE)
    server.clock.forward(sessions.CODE_MS / 1000 - 1)
    assert (await browser.post("/ui/sessions", json={"code": early})).status_code == 201
    server.clock.forward(2)
    assert (await browser.post("/ui/sessions", json={"code": late})).status_code == 401


async def test_a_code_ends_with_its_key(server: TestServer) -> None:
    api = await server.api()
    issued = (await api.post(server.path("keys"), json={"spec": {"name": "x"}})).json()
    maker = await server.client(issued["secretKey"])
    code = (await maker.post("/ui/codes")).json()["code"]
    await api.delete(server.path(f"keys/{issued['keyId']}"))
    browser = await server.client(None, **OUR_PAGE)
    assert (await browser.post("/ui/sessions", json={"code": code})).status_code == 401


async def test_codes_and_sessions_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    async with open_server(tmp_path / "data") as server:
        code = await make_code(server)
        cookie = read_cookie(await sign_in(server))
    async with open_server(tmp_path / "data") as server:
        assert (await send(server, "GET", server.path("runs"), None, cookie=cookie))[0] == 200
        browser = await server.client(None, **OUR_PAGE)
        assert (await browser.post("/ui/sessions", json={"code": code})).status_code == 201


async def test_a_session_makes_no_codes_that_would_outlive_it(server: TestServer) -> None:
    browser = await sign_in(server)
    answer = await browser.post("/ui/codes")
    assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")


async def test_a_key_has_a_limited_number_of_codes(server: TestServer) -> None:
    api = await server.api()
    for _ in range(sessions.MOST_PER_KEY):
        assert (await api.post("/ui/codes")).status_code == 201
    assert (await api.post("/ui/codes")).status_code == 429
    server.clock.forward(sessions.CODE_MS / 1000)
    assert (await api.post("/ui/codes")).status_code == 201


@pytest.mark.parametrize("given", [{"code": "x" * 43}, {"code": "x"}, {"key": "dtvi_wrong"}])
async def test_wrong_codes_and_keys_are_limited_by_address(
    server: TestServer, given: dict[str, str]
) -> None:
    browser = await server.client(None, **OUR_PAGE)
    statuses = [(await browser.post("/ui/sessions", json=given)).status_code for _ in range(301)]
    assert (set(statuses[:300]), statuses[300]) == ({401}, 429)
    await sign_in(server)  # what is valid is not limited


async def test_wrong_cookies_are_limited_by_address(server: TestServer) -> None:
    statuses = [
        (
            await send(
                server,
                "GET",
                server.path("runs"),
                None,
                cookie=f"runyard_{server.org}={number:043d}",
            )
        )[0]
        for number in range(301)
    ]
    assert (set(statuses[:300]), statuses[300]) == ({401}, 429)


async def test_another_site_cannot_sign_a_browser_in(server: TestServer) -> None:
    for site in ("cross-site", "same-site", "none"):
        browser = await server.client(None, **{"sec-fetch-site": site})
        answer = await browser.post("/ui/sessions", json={"key": server.key})
        assert (answer.status_code, answer.json()["code"]) == (403, "OriginRefused"), site
    plain = await server.client(None)
    assert (await plain.post("/ui/sessions", json={"key": server.key})).status_code == 403
    ours = await server.client(None, origin=OWN)
    assert (await ours.post("/ui/sessions", json={"key": server.key})).status_code == 201


async def test_a_session_ends_with_its_time_its_key_or_its_revocation(server: TestServer) -> None:
    api = await server.api()
    issued = (await api.post(server.path("keys"), json={"spec": {"name": "x"}})).json()
    by_key = await sign_in(server, issued["secretKey"])
    revoked, expiring = await sign_in(server), await sign_in(server)
    listed = (await api.get(server.path("sessions"), params={"s": 10})).json()["items"]
    assert [item["keyId"] for item in listed].count(issued["keyId"]) == 1
    assert all(item["kind"] == "Session" and item["address"] for item in listed)
    assert (await by_key.get(server.path("runs"))).status_code == 200
    await api.delete(server.path(f"keys/{issued['keyId']}"))
    assert (await by_key.get(server.path("runs"))).status_code == 401
    server.clock.forward(1)
    own = {item["sessionId"] for item in listed if item["keyId"] != issued["keyId"]}
    for session_id in own:
        assert (await api.delete(server.path(f"sessions/{session_id}"))).status_code == 204
        assert (await api.delete(server.path(f"sessions/{session_id}"))).status_code == 404
    for browser in (revoked, expiring):
        assert (await browser.get(server.path("runs"))).status_code == 401
    later = await sign_in(server)
    server.clock.forward(sessions.SESSION_MS / 1000 - 1)
    assert (await later.get(server.path("runs"))).status_code == 200
    server.clock.forward(1)
    assert (await later.get(server.path("runs"))).status_code == 401
    await session_lifecycle.sweep(server.services)
    assert (await api.get(server.path("sessions"))).json()["items"] == []


async def test_a_session_lives_no_longer_than_its_key(server: TestServer) -> None:
    api = await server.api()
    expires = server.clock.now_ms() + 60_000
    issued = await api.post(server.path("keys"), json={"spec": {"name": "x", "expires": expires}})
    browser = await server.client(None, **OUR_PAGE)
    answer = await browser.post("/ui/sessions", json={"key": issued.json()["secretKey"]})
    assert "Max-Age=60;" in answer.headers["set-cookie"]


async def test_leaving_ends_the_session_and_removes_the_cookie(server: TestServer) -> None:
    browser = await sign_in(server)
    cookie = read_cookie(browser)
    answer = await browser.post("/ui/leave")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/enter")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert (await send(server, "GET", server.path("runs"), None, cookie=cookie))[0] == 401


async def test_another_server_of_the_store_notices_within_ten_seconds(tmp_path: Path) -> None:
    async with open_server(tmp_path / "data") as first, open_server(tmp_path / "data") as second:
        cookie = read_cookie(await sign_in(first))

        async def get() -> int:
            return (await send(second, "GET", second.path("runs"), None, cookie=cookie))[0]

        assert await get() == 200
        api = await first.api()
        [session] = (await api.get(first.path("sessions"))).json()["items"]
        await api.delete(first.path(f"sessions/{session['sessionId']}"))
        second.clock.forward(sessions.RECHECK_S)
        assert await get() == 401


@pytest.mark.parametrize(
    ("headers", "name", "is_secure"),
    [
        ({"host": "127.0.0.1:7878"}, "runyard_", False),
        ({"host": "train.example", "x-forwarded-proto": "https"}, "__Host-runyard_", True),
        ({"host": "train.example"}, "__Host-runyard_", True),
    ],
)
async def test_cookies_behind_a_proxy_with_tls_are_secure(
    make_server: MakeServer, headers: dict[str, str], name: str, is_secure: bool
) -> None:
    settings = {"public_url": "https://train.example", "trusted_proxies": "127.0.0.1"}
    async with make_server(**settings) as server:
        browser = await server.client(None, **OUR_PAGE, **headers)
        answer = await browser.post("/ui/sessions", json={"key": server.key})
        header = answer.headers["set-cookie"]
        assert header.startswith(f"{name}{server.org}=")
        assert ("; Secure" in header) is is_secure
        assert "; HttpOnly; SameSite=Strict" in header
        assert "; Path=/;" in header
        assert "Domain" not in header
        cookie = header.partition(";")[0]
        path = server.path("runs")
        assert (await send(server, "GET", path, None, cookie=cookie, **headers))[0] == 200
        # Without the prefix, another host of the domain could have set it.
        bare = cookie.removeprefix("__Host-")
        status, _ = await send(server, "GET", path, None, cookie=bare, **headers)
        assert status == (401 if is_secure else 200)


async def test_pages_without_a_session_lead_to_the_form_to_sign_in(server: TestServer) -> None:
    html = {"accept": "text/html,*/*;q=0.8"}
    nobody = await server.client(None)
    answer = await nobody.get("/ui/runs?q=a%26b&p=1", headers=html)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/ui/enter?next=%2Fui%2Fruns%3Fq%3Da%2526b%26p%3D1"
    for headers in ({}, html | {"hx-request": "true"}, html | {"sec-fetch-dest": "empty"}):
        answer = await nobody.get("/ui/runs", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
    assert (await nobody.get("/ui/stream", headers=html)).status_code in (303, 401)
    assert (await nobody.post("/ui/leave", headers=html)).status_code == 401


async def test_the_sign_in_page_tells_whether_the_browser_is_signed_in(server: TestServer) -> None:
    nobody = await server.client(None)
    assert (await nobody.get("/ui/sessions")).json()["signedIn"] is False
    browser = await sign_in(server)
    assert (await browser.get("/ui/sessions")).json()["signedIn"] is True


async def test_no_secret_of_a_session_is_stored_or_logged(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    code = await make_code(server)
    browser = await server.client(None, **OUR_PAGE)
    await browser.post("/ui/sessions", json={"code": code})
    secret = read_cookie(browser).partition("=")[2]
    await browser.get(server.path("runs"))
    stored = b"".join(path.read_bytes() for path in server.settings.data_dir.glob("server.db*"))
    for text in (code, secret):
        assert text.encode() not in stored
        assert text not in caplog.text


async def collect_stream(
    server: TestServer, cookie: str, received: list[bytes], statuses: list[int]
) -> None:
    """Read ``/ui/stream`` as the web server would, until it ends."""
    scope = {
        "type": "http", "http_version": "1.1", "scheme": "http", "method": "GET",
        "path": "/ui/stream", "raw_path": b"/ui/stream", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:7878"), (b"cookie", cookie.encode())],
        "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 7878),
        "root_path": "", "state": {},
    }  # fmt: skip

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def collect(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            received.append(message.get("body", b""))

    await server.gateway(scope, receive, collect)


@pytest.fixture
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a stream's session many times a second."""
    monkeypatch.setattr(event_streams, "KEY_CHECK_S", 0.02)


@pytest.mark.usefixtures("short_checks")
async def test_a_stream_reports_changes_and_ends_with_its_session(server: TestServer) -> None:
    browser, api = await sign_in(server), await server.api()
    received: list[bytes] = []
    statuses: list[int] = []
    reading = asyncio.create_task(collect_stream(server, read_cookie(browser), received, statuses))
    async with asyncio.timeout(10):
        while not received:
            await asyncio.sleep(0.01)
        assert statuses == [200]
        assert b"event: hello" in received[0]
        await api.put(server.path("runs/r1"), json={"spec": {"flow": {"name": "x"}}})
        # A hint about the run may come before its event.
        while b"event: change" not in b"".join(received):
            await asyncio.sleep(0.01)
        assert b"r1" in b"".join(received)
        [session] = (await api.get(server.path("sessions"))).json()["items"]
        await api.delete(server.path(f"sessions/{session['sessionId']}"))
        await reading
    assert received[-1] == b""
