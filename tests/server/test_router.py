"""The router: which endpoint serves a path, and what other requests get."""

import logging
from typing import Any

import pytest

from runyard.server.http import problems
from runyard.server.http.request import HEADERS, Request
from runyard.server.http.responses import Response
from runyard.server.http.route import Method, Route
from runyard.server.http.router import Router
from runyard.server.services.errors import not_found


def route(method: Method, path: str) -> Route:
    async def endpoint(request: Request) -> Response:
        parameters = sorted(request.path_params.items())
        if ("run_id", "missing") in parameters:
            raise not_found("run", "missing")
        if ("run_id", "broken") in parameters:
            raise ValueError("a bug")
        return Response(f"{method} {path} {parameters} {request.state}".encode())

    return Route(method, path, endpoint, "")


ROUTER = Router(
    [
        route("GET", "/runs"),
        route("GET", "/runs:count"),
        route("GET", "/runs/new"),
        route("GET", "/runs/{run_id:str}"),
        route("PUT", "/runs/{run_id:str}"),
        route("GET", "/runs/{run_id:str}/files/{name:str}"),
    ],
    wrap=lambda route: route.endpoint,
    answer_error=problems.answer_error,
    state={"x": 1},
)


async def send(method: str, path: str) -> tuple[int, dict[bytes, bytes], str]:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def keep(message: Any) -> None:
        messages.append(message)

    await ROUTER({"method": method, "path": path, HEADERS: {}}, receive, keep)
    start, body = messages
    return start["status"], dict(start["headers"]), body["body"].decode()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/runs", "GET /runs []"),
        ("GET", "/runs:count", "GET /runs:count []"),
        ("GET", "/runs/new", "GET /runs/new []"),
        ("GET", "/runs/r1", "GET /runs/{run_id:str} [('run_id', 'r1')]"),
        ("PUT", "/runs/r1", "PUT /runs/{run_id:str} [('run_id', 'r1')]"),
        (
            "GET",
            "/runs/r1/files/new",
            "GET /runs/{run_id:str}/files/{name:str} [('name', 'new'), ('run_id', 'r1')]",
        ),
    ],
)
async def test_the_endpoint_of_a_path_gets_its_parameters(
    method: str, path: str, expected: str
) -> None:
    assert (await send(method, path))[::2] == (200, f"{expected} {{'x': 1}}")


@pytest.mark.parametrize(
    "path", ["/", "/run", "/runs/r1/files", "/runs/r1/files/a/b", "/runs/", "*"]
)
async def test_a_path_without_a_route_is_not_found(path: str) -> None:
    for method in ("GET", "OPTIONS", "BREW"):
        status, _, body = await send(method, path)
        assert (status, "there is no route" in body) == (404, True)


@pytest.mark.parametrize(
    ("path", "allow"), [("/runs", b"GET, OPTIONS"), ("/runs/r1", b"GET, OPTIONS, PUT")]
)
async def test_another_method_is_refused_with_the_methods_of_the_path(
    path: str, allow: bytes
) -> None:
    status, headers, body = await send("BREW", path)
    assert (status, headers[b"allow"], "MethodNotAllowed" in body) == (405, allow, True)
    status, headers, body = await send("OPTIONS", path)
    assert (status, headers[b"allow"], body) == (204, allow, "")


async def test_an_error_of_an_endpoint_is_answered_and_a_bug_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        assert (await send("GET", "/runs/missing"))[0] == 404
        assert caplog.text == ""
        status, _, body = await send("GET", "/runs/broken")
    assert (status, "a bug" in body, "ValueError: a bug" in caplog.text) == (500, False, True)
