"""The authorized path is the routed path: every route, kind of credential and spelling.

Requests go into the application as raw ASGI messages, since HTTP clients normalize paths before
they send them.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import Connection

from runyard.security.key_format import new_key
from runyard.server.services.access.keys import role_allows
from runyard.store.tables import metadata
from tests.server.test_gateway import EVERYTHING, add_key, fill_path
from tests.support import attempts
from tests.support.server import TestServer

HOSTILE_SUFFIXES = (
    "/",
    "//",
    "/.",
    "/..",
    "/%2e",
    "/%2e%2e",
    "%2f",
    "%2F..",
    "%5c",
    "%00",
    "%0a",
    ";a=b",
    "%252f",
    "\t",
)
PUBLIC_DETOURS = ("/health", "/downloads/x", "/uploads/x", "/downloads", "/uploads")


async def send(
    server: TestServer, method: str, raw_path: str, credential: str | None, **headers: str
) -> tuple[int, bytes]:
    """Return status and body of a request whose path is sent unchanged."""
    given = {"host": "127.0.0.1:7878", "content-length": "2", **headers}
    if credential is not None:
        given["authorization"] = f"Bearer {credential}"
    path, _, query = raw_path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 7878),
        "root_path": "",
        "state": {},
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def collect(message: Any) -> None:
        sent.append(message)

    await server.gateway(scope, receive, collect)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def list_spellings(path: str, own_org: str) -> Iterator[str]:
    """Return ``path``, and every spelling that a router, proxy or file system might equate."""
    yield path
    segments = path.split("/")[1:]
    middle = len(segments) // 2
    for position in {0, 1, middle, len(segments) - 1}:
        before, after = "/" + "/".join(segments[:position]), "/".join(segments[position:])
        before = before.rstrip("/")
        for inserted in (
            "//",
            "/./",
            "/%2e/",
            "/x/../",
            "/x/%2e%2e/",
            "/x/..%2f",
            "%2f",
            "%2F",
            "%5c",
            "\\",
            "/%00/",
        ):
            yield f"{before}{inserted}{after}"
    for suffix in HOSTILE_SUFFIXES:
        yield path + suffix
    yield f"/workspaces/{own_org}/..{path.removeprefix('/workspaces')}"
    yield f"/workspaces/{own_org}/../..{path}"
    yield f"/workspaces/{own_org}/%2e%2e/%2e%2e{path}"
    yield f"/workspaces/{own_org}/..%2f..{path}"
    for detour in PUBLIC_DETOURS:
        yield f"{detour}/..{path}"
        yield f"{detour}/../..{path}"
        yield f"{detour}/{path}"
    yield f"http://127.0.0.1:7878{path}"
    yield path.upper()
    yield "".join(f"%{ord(letter):02x}" if letter != "/" else letter for letter in path)


def read_rows(server: TestServer) -> dict[str, Any]:
    """Return all rows of the database, except rejected keys and times of last use."""

    def read(connection: Connection) -> dict[str, Any]:
        return {
            table.name: connection.execute(
                table.select().with_only_columns(
                    *(column for column in table.c if column.name != "last_used")
                )
            ).all()
            for table in metadata.sorted_tables
            if table.name != "audit"
        }

    found: dict[str, Any] = server.services.store.read(read)
    return found


async def test_no_spelling_of_a_path_widens_the_access_of_a_credential(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.checkpoint()
    credentials: dict[str, str | None] = {
        role: add_key(server, "org-other", role) for role in ("viewer", "admin")
    }
    credentials |= {
        "none": None,
        "unknown": new_key(),
        "attempt": attempt.assignment["token"],
        "controller": server.controller_key,
    }
    credentials |= {"own admin": server.key}
    before = read_rows(server)
    reached: set[str] = set()
    for route in EVERYTHING:
        if route.access == "public":
            continue
        entitled = {"organization": "own admin"}.get(route.access, route.access)
        for name, credential in credentials.items():
            if name == entitled:
                continue
            for path in list_spellings(fill_path(route.path, server.org), "org-other"):
                # The document is the same for every key of an organization.
                # So are pages, which show that organization.
                is_shared = route.path == "/openapi.json" or route.path.startswith("/ui")
                if is_shared and name in ("viewer", "admin", "own admin"):
                    continue
                status, body = await send(server, route.method, path, credential)
                assert 400 <= status < 500, (route.method, path, name, status, body)
        if route.method == "GET" and route.access == "organization" and not route.is_endless:
            status, _ = await send(server, "GET", fill_path(route.path, server.org), server.key)
            reached.update({route.path} if status == 200 else ())
    assert read_rows(server) == before
    # The paths above exist when the credential is valid.
    assert len(reached) > 15


async def test_a_path_in_another_spelling_is_rejected_before_authentication(
    server: TestServer,
) -> None:
    path = server.path("runs")
    for spelled in (
        f"/{path}",
        f"{path}/",
        f"/.{path}",
        f"{path}/../runs",
        f"{path}%2f",
        f"{path}%5Cr",
        "*",
        "",
    ):
        for credential in (None, server.key):
            status, body = await send(server, "GET", spelled, credential)
            assert (status, b"InvalidPath" in body, b"try: " in body) == (400, True, True), (
                spelled,
                credential,
            )


@pytest.mark.parametrize("role", ["viewer", "member", "admin"])
async def test_no_spelling_of_a_path_gives_a_key_more_than_its_role(
    server: TestServer, role: str
) -> None:
    key = add_key(server, server.org, role)
    before = read_rows(server)
    for route in EVERYTHING:
        if route.role is None or role_allows(role, route.role):
            continue
        for path in list_spellings(fill_path(route.path, server.org), server.org):
            status, body = await send(server, route.method, path, key)
            assert status in (400, 403, 404), (route.method, path, status, body)
    assert read_rows(server) == before


async def test_the_route_decides_the_body_limit_not_the_text_of_the_path(
    server: TestServer,
) -> None:
    """A run may be called ``files``; that does not make its body a list of files."""
    for id in ("files", "assetIngestionSessions", "restores"):
        length = str(2 * 2**20)
        status, body = await send(
            server, "PUT", server.path(f"runs/{id}"), server.key, **{"content-length": length}
        )
        assert (status, b"1024 KiB" in body) == (413, True), id
    status, body = await send(
        server, "PUT", server.path("runs/r"), server.key, **{"content-length": "9" * 5000}
    )
    assert status == 413
