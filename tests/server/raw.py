"""Requests whose path is sent unchanged: an HTTP client would normalize it first."""

import json
from typing import Any
from urllib.parse import quote, unquote

from tests.support.server import TestServer


async def send_raw(
    server: TestServer, method: str, path: str, body: Any = None, *, key: str | None = None
) -> tuple[int, Any]:
    """Send a request to the application; return the status, and the body as JSON or None.

    ``path`` may have percent-encoded parts; characters that a path cannot contain are encoded.
    """
    content = b"" if body is None else json.dumps(body).encode()
    raw = quote(path, safe="/%:", errors="surrogatepass").encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    answered: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw.decode(), errors="replace"),
        "raw_path": raw,
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1:7878"),
            (b"authorization", b"Bearer " + (key or server.key).encode()),
            (b"content-length", str(len(content)).encode()),
        ],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 7878),
        "state": {},
    }
    await server.gateway(scope, receive, send)
    text = b"".join(message.get("body", b"") for message in answered[1:])
    try:
        return answered[0]["status"], json.loads(text)
    except ValueError:
        return answered[0]["status"], None
