"""How pages and their static files are sent: headers, compression, caching, errors."""

from collections.abc import Callable
from typing import Any

import pytest

from runyard.server.pages import assets, templates
from tests.server.test_access import send
from tests.support.server import TestServer

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HTML = {"accept": "text/html"}


async def test_pages_have_the_headers_of_pages_and_the_api_its_own(server: TestServer) -> None:
    api = await server.api()
    worker, icon = assets.build_url("live-worker.js"), assets.build_url("icon.svg")
    for path in ("/ui/runs", "/ui/enter", "/ui/nothing", "/ui", worker, icon):
        headers = (await api.get(path, headers=HTML)).headers
        assert headers["content-security-policy"] == POLICY, path
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        if path not in (worker, icon):
            assert headers["cache-control"] == "no-store", path
    for path in (assets.build_url("app.css"), "/ui/static/x/none.js"):
        headers = (await api.get(path)).headers
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert headers["x-content-type-options"] == "nosniff", path
        assert "content-security-policy" not in headers, path
    for path in ("/uix", server.path("runs"), "/health"):
        headers = (await api.get(path)).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["cache-control"] == "no-store", path


async def test_a_page_is_compressed_for_those_who_take_it(server: TestServer) -> None:
    api = await server.api()
    packed = await api.get("/ui/runs/new", headers={"accept-encoding": "gzip"})
    plain = await api.get("/ui/runs/new", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert "content-encoding" not in plain.headers
    assert "accept-encoding" in packed.headers["vary"]


async def test_static_files_are_kept_for_a_year_under_their_hash(server: TestServer) -> None:
    anybody = await server.client(None)
    url = assets.build_url("live.js")
    found = await anybody.get(url)
    assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert found.headers["content-type"].startswith("text/javascript")
    # A page from before an upgrade still loads what it asks for.
    older = await anybody.get("/ui/static/0123456789ab/live.js")
    assert (older.content, older.headers["cache-control"]) == (found.content, "no-cache")
    font = await anybody.get(assets.build_url("vendor/inter.woff2"))
    assert (font.headers["content-type"], font.content[:4]) == ("font/woff2", b"wOF2")
    assert (await anybody.post(url)).status_code == 405
    head = await anybody.head(url)
    assert (head.status_code, head.content) == (200, b"")


async def test_static_files_are_compressed_as_browsers_accept(server: TestServer) -> None:
    anybody = await server.client(None)
    sizes = {}
    for accepted in ("identity", "gzip", "gzip, deflate, br, zstd", "br;q=0, gzip"):
        headers = {"accept-encoding": accepted}
        found = await anybody.head(assets.build_url("vendor/uplot.js"), headers=headers)
        encoding = found.headers.get("content-encoding")
        sizes.setdefault(encoding, int(found.headers["content-length"]))
    assert list(sizes) == [None, "gzip", "br"]
    assert sizes[None] > 2 * sizes["gzip"] > 2 * sizes["br"]


@pytest.mark.parametrize(
    "path",
    [
        "x/none.js",
        "x",
        "",
        "x/../../views.py",
        "x/%2e%2e/views.py",
        "x/..%2fviews.py",
        "x//app.css",
    ],
)
async def test_nothing_else_is_a_static_file(server: TestServer, path: str) -> None:
    status, body = await send(server, "GET", f"/ui/static/{path}", None)
    assert status in (400, 404)
    assert b"import" not in body


async def test_an_error_is_a_page_for_browsers_and_json_for_scripts(server: TestServer) -> None:
    api = await server.api()
    for path, status, words in (
        ("/ui/runs/none", 404, "was not found"),
        ("/ui/nothing", 404, "there is no route"),
        ("/ui/runs/new?from=a%00", 400, "query parameter"),
    ):
        page = await api.get(path, headers=HTML)
        assert (page.status_code, page.headers["content-type"]) == (
            status,
            "text/html; charset=utf-8",
        ), path
        assert words in page.text
        assert "</html>" in page.text
        document = await api.get(path)
        assert document.status_code == status
        assert document.json()["message"]


async def test_without_the_libraries_a_page_says_what_to_run(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = assets.load()
    files = {name: file for name, file in found.files.items() if not name.startswith("vendor/")}
    without: Callable[[], Any] = lambda: assets.Assets(found.hash, files)  # noqa: E731
    monkeypatch.setattr(assets, "load", without)
    answer = await (await server.api()).get("/ui/runs/new", headers=HTML)
    assert (answer.status_code, answer.text) == (503, templates.MISSING)
    assert "scripts/assets" in answer.text
