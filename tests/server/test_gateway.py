"""The gateway: no request without a key, and no key for the resources of another organization."""

import asyncio
import itertools
import json
import re
from typing import Any

import pytest

from runyard.security.key_format import new_key, parse
from runyard.server.http import gateway
from runyard.server.http.proxies import list_allowed_hosts
from runyard.server.http.route import JOIN, PUBLIC, SIGN_IN
from runyard.server.http.routes import ROUTES
from runyard.server.pages.routes import PAGES
from runyard.server.services.access import keys
from runyard.server.services.access.keys import StoredKey, secret_mac
from tests.support import attempts
from tests.support.server import TestServer

EVERYTHING = ROUTES + PAGES
# What somebody who may only read may post: to sign in, and out.
READERS_POST = ("/ui/sessions", "/ui/codes", "/ui/leave")
PLACES = {
    "run_id": "r1", "flow_id": "f1", "project_id": "p1", "checkpoint": "epoch-1", "version": "v1",
    "dataset": "d1", "import_id": "i1", "asset_id": "a1", "annotation_id": "n1", "session_id": "s1",
    "export_id": "e1", "upload_id": "m1", "part": "1", "filename": "a.png",
    "key_id": "k1", "invitation_id": "k1", "view_id": "v1", "index": "0",
}  # fmt: skip


def fill_path(path: str, org: str) -> str:
    """Return a route's path with a value in each parameter."""
    filled = {**PLACES, "org": org, "machine_id": "m1", "sha256": "ab" * 32}
    return re.sub(r"\{(\w+):\w+\}", lambda found: filled[found.group(1)], path)


def requests(org: str) -> list[tuple[str, str]]:
    return [
        (route.method, fill_path(route.path, org)) for route in EVERYTHING if not route.is_endless
    ]


async def second_organization(server: TestServer, role: str = "admin") -> str:
    """A key of ``org-other``."""
    return add_key(server, "org-other", role)


def add_key(server: TestServer, org: str, role: str) -> str:
    key = new_key()
    parts = parse(key)
    assert parts is not None
    mac = secret_mac(server.services.pepper, parts.secret)
    server.services.keyring.add(
        StoredKey(id=parts.key_id, org=org, role=role, secret_mac=mac, expires=None, revoked=None)
    )
    return key


async def test_no_route_but_the_public_ones_answers_without_a_key(server: TestServer) -> None:
    anonymous = await server.client(None)
    assert PUBLIC == ("/health",)
    for method, path in requests(server.org):
        answer = await anonymous.request(method, path)
        if path in (*SIGN_IN, JOIN):
            assert answer.status_code in (200, 400, 403), (method, path)
            continue
        expected = 200 if path in PUBLIC else 401
        assert answer.status_code == expected, (method, path)
        if expected == 401 and method != "HEAD":
            assert answer.json()["code"] == "Unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in (
        "/",
        "/anything",
        "/internal",
        "/workspaces",
        "/schema",
        "/Health",
        "/health;x",
        "/downloads",
    ):
        assert (await anonymous.get(path)).status_code == 401, path


async def test_every_wrong_key_gets_the_same_response(server: TestServer) -> None:
    answers = set()
    altered = server.key[:-1] + ("x" if server.key[-1] != "x" else "y")
    for wrong in (altered, new_key(), "", "dtvi_", "ryat_1.a.b"):
        client = await server.client(wrong)
        answer = await client.get(server.path("runs"))
        answers.add((answer.status_code, answer.text))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


async def test_each_kind_of_credential_opens_only_its_own_routes(server: TestServer) -> None:
    attempt = await attempts.start(server)
    clients = {
        "user": await server.api(),
        "controller": await server.client(server.controller_key),
        "attempt": attempt.client,
    }
    for method, path in requests(server.org):
        if path in (*PUBLIC, *SIGN_IN, JOIN):
            continue
        kind = "user"
        if path.startswith("/internal/"):
            kind = "attempt" if path.startswith("/internal/v1/attempt/") else "controller"
        for name, client in clients.items():
            if name != kind:
                answer = await client.request(method, path)
                assert answer.status_code == 401, (name, method, path)


async def test_another_organization_looks_like_one_that_does_not_exist(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    api = await server.api()
    await api.put(server.path("flows/f1"), json={"spec": {}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {}})
    stranger = await server.client(await second_organization(server))
    for method, path in requests(server.org):
        if not path.startswith("/workspaces/"):
            continue
        answer = await stranger.request(method, path, json={})
        unknown = await stranger.request(method, path.replace(server.org, "org-nowhere"), json={})
        assert answer.status_code == 404, (method, path)
        assert answer.text.replace(server.org, "org-nowhere") == unknown.text


async def test_ids_of_another_organization_look_like_ids_that_do_not_exist(
    server: TestServer,
) -> None:
    """Another organization requests ids below its own path that exist in the first one."""
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    api = await server.api()
    await api.put(server.path("flows/f1"), json={"spec": {}})
    await api.put(server.path("trainingProjects/p1"), json={"spec": {}})
    stranger = await server.client(await second_organization(server))
    for method, path in requests("org-other"):
        names_one = any(f"/{id}" in path for id in ("r1", "f1", "p1"))
        if not names_one or method == "PUT":
            continue
        answer = await stranger.request(method, path, json={})
        nowhere = path.replace("/r1", "/r9").replace("/f1", "/f9").replace("/p1", "/p9")
        unknown = await stranger.request(method, nowhere, json={})
        assert answer.status_code == unknown.status_code == 404, (method, path)
        assert re.sub("r1|f1|p1", "?", answer.text) == re.sub("r9|f9|p9", "?", unknown.text)
    taken = await stranger.put(
        "/workspaces/org-other/runs/r1", json={"spec": {"flow": {"name": "Mine"}}}
    )
    assert taken.status_code == 201
    assert (await api.get(server.path("runs/r1"))).json()["spec"]["flow"]["name"] != "Mine"
    listed = (await stranger.get("/workspaces/org-other/runs")).json()["items"]
    assert [run["spec"]["flow"]["name"] for run in listed] == ["Mine"]
    by_flow = await stranger.put("/workspaces/org-other/runs/r2", json={"spec": {"flowId": "f1"}})
    assert by_flow.status_code == 404
    by_project = await stranger.put(
        "/workspaces/org-other/runs/r2", json={"spec": {"trainingProject": "p1"}}
    )
    assert by_project.status_code == 400


async def test_the_organization_header_must_match_the_key(server: TestServer) -> None:
    assert (await (await server.client(server.key)).get(server.path("runs"))).status_code == 200
    same = await server.client(server.key, **{"organization-id": server.org})
    assert (await same.get(server.path("runs"))).status_code == 200
    other = await server.client(server.key, **{"organization-id": "org-other"})
    answer = await other.get(server.path("runs"))
    assert answer.status_code == 404
    assert "org-other" in answer.json()["message"]


@pytest.mark.parametrize("role", ["viewer", "member", "admin"])
async def test_a_role_opens_exactly_the_routes_of_its_row(server: TestServer, role: str) -> None:
    client = await server.client(add_key(server, server.org, role))
    for route in EVERYTHING:
        if route.path in SIGN_IN or not route.path.startswith(("/workspaces/", "/ui")):
            assert route.role is None
            continue
        assert route.role is not None, f"the role of {route.path} is not listed"
        if route.is_endless and keys.role_allows(role, route.role):
            continue
        path = fill_path(route.path, server.org)
        answer = await client.request(route.method, path, json={})
        assert (answer.status_code == 403) is not keys.role_allows(role, route.role), (
            role,
            route.method,
            path,
        )


def test_the_documented_roles_exist_and_only_writers_change_anything() -> None:
    assert set(keys.ROLES) == {"viewer", "member", "admin", "controller", "machine"}
    assert not any(
        keys.role_allows("controller", minimum) for minimum in ("viewer", "member", "admin")
    )
    for route in EVERYTHING:
        assert route.role != "viewer" or route.method == "GET" or route.path in READERS_POST, (
            "what a viewer may use changes nothing"
        )
        assert not route.is_operator_only or route.role == "admin"
    managed = {route.path.split("/")[3] for route in ROUTES if route.role == "admin"}
    assert managed == {
        *("keys", "sessions", "audit", "storage"),
        *("machines", "machineInvitations"),
    }


@pytest.mark.settings(allowed_hosts="train.example")
async def test_only_requests_for_known_hosts_are_answered(server: TestServer) -> None:
    for host in ("127.0.0.1:7878", "localhost", "LOCALHOST:1", "[::1]:7878", "train.example"):
        client = await server.client(None, host=host)
        assert (await client.get("/health")).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.", "", "train.example.evil"):
        client = await server.client(None, host=host, **{"x-forwarded-host": "localhost"})
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidHost"), host


async def test_pages_of_other_sites_are_refused(server: TestServer) -> None:
    other_ports_and_schemes = (
        "http://127.0.0.1:7879",
        "https://127.0.0.1:7878",
        "http://127.0.0.1",
    )
    other_hosts = (
        "https://evil.example",
        "http://localhost:7878",
        "http://127.0.0.1:7878.evil.example",
    )
    malformed = (
        "null",
        "",
        "127.0.0.1:7878",
        "http://",
        "http://127.0.0.1:7878@evil.example",
        "file://",
    )
    for origin in (*other_ports_and_schemes, *other_hosts, *malformed):
        client = await server.client(server.key, origin=origin)
        answer = await client.get(server.path("runs"))
        assert (answer.status_code, answer.json()["code"]) == (403, "OriginRefused"), origin
    for origin in ("http://127.0.0.1:7878", "HTTP://127.0.0.1:7878"):
        client = await server.client(server.key, origin=origin)
        assert (await client.get(server.path("runs"))).status_code == 200, origin


async def test_headers_that_occur_once_are_rejected_when_they_occur_twice(
    server: TestServer,
) -> None:
    """A proxy may use one of two values, and the server the other."""
    values = {
        "host": "127.0.0.1:7878",
        "authorization": f"Bearer {server.key}",
        "organization-id": server.org,
    }
    for name in sorted(gateway.SINGLE_HEADERS):
        text = name.decode()
        given = values | {text: values.get(text, "0")}
        for second in (given[text], "other"):
            client = await server.client(None)
            request = client.build_request(
                "GET", server.path("runs"), headers=[*given.items(), (text, second)]
            )
            answer = await client.send(request)
            assert (answer.status_code, answer.json()["code"]) == (400, "DuplicateHeader"), (
                text,
                second,
            )
            assert repr(text) in answer.json()["message"]


def test_a_wildcard_address_is_not_accepted_as_a_host() -> None:
    assert "0.0.0.0" not in list_allowed_hosts("0.0.0.0", "")  # noqa: S104
    assert list_allowed_hosts("::1", "A.example, b") == {
        "localhost",
        "127.0.0.1",
        "[::1]",
        "a.example",
        "b",
    }


async def test_ids_that_could_be_paths_reach_nothing(server: TestServer) -> None:
    api = await server.api()
    encoded = ["a%2Fb", "..%2f..%2fflows", "a%5Cb", "a%00", "%2e%2e", "a%0ab"]
    bad = ["a.b", "a%20b", "%C3%BC", "a" * 256, "a:finish", "a%3Acancel"]
    for noun, id in itertools.product(("runs", "flows", "trainingProjects"), [*encoded, *bad]):
        answer = await api.get(server.path(f"{noun}/{id}"))
        code = "InvalidPath" if id in encoded else "InvalidId"
        assert (answer.status_code, answer.json()["code"]) == (400, code), id
    assert (await api.get(server.path("runs/" + "a" * 255))).json()["code"] == "NotFound"


async def test_too_long_urls_and_headers_are_refused(server: TestServer) -> None:
    api = await server.api()
    assert (await api.get(server.path("runs"), params={"x": "a" * 8192})).json()[
        "code"
    ] == "UrlTooLong"
    answer = await api.get(server.path("runs"), headers={"x-much": "a" * 16_384})
    assert answer.json()["code"] == "HeadersTooLarge"


async def test_bodies_above_a_mebibyte_are_refused_announced_or_not(server: TestServer) -> None:
    api = await server.api()
    announced = await api.put(server.path("runs/r1"), content=b"x" * (2**20 + 1))
    assert (announced.status_code, announced.json()["code"]) == (413, "BodyTooLarge")
    assert "1024 KiB" in announced.json()["message"]

    async def trickle() -> Any:
        for _ in range(33):
            yield b"x" * 32768

    unannounced = await api.put(server.path("runs/r1"), content=trickle())
    assert unannounced.status_code == 413
    fits = await api.put(server.path("runs/r1"), content=b"x" * 2**20)
    assert fits.json()["code"] == "InvalidBody"


@pytest.mark.settings(transfer_timeout_s=0.01)
async def test_a_stalled_body_times_out(server: TestServer) -> None:
    sent: list[Any] = []

    async def stall() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {"host": "localhost", "authorization": f"Bearer {server.key}", "content-length": "10"}
    scope: dict[str, Any] = {
        "type": "http",
        "scheme": "http",
        "method": "PUT",
        "path": server.path("runs/r1"),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "root_path": "",
        "state": {},
    }
    await server.gateway(scope, stall, send)
    assert sent[0]["status"] == 408


async def test_every_response_has_the_security_headers(server: TestServer) -> None:
    api = await server.api()
    for path in ("/health", server.path("runs"), server.path("runs/none"), "/nowhere"):
        headers = (await api.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_each_response_has_an_id_that_the_access_log_names(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runyard.access")
    api = await server.api()
    answers = [await api.get(path) for path in ("/health", server.path("runs/none"), "/nowhere")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [json.loads(line)["request"] for line in caplog.messages] == ids


async def test_the_access_log_names_the_key_and_contains_no_secret(
    server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runyard.access")
    api = await server.api()
    await api.get(server.path("runs"), params={"p": "tokentoken"})
    await api.get("/downloads/linklinklink")
    assert len(caplog.messages) == 2
    log = "\n".join(caplog.messages)
    assert f"key {server.key[7:23]}" in log
    for secret in (server.key, server.key[23:97], "tokentoken", "linklinklink"):
        assert secret not in log
