"""Files of imports by signed address: PUT, no key. Acknowledged (204) once they are on the disk.

``/uploads/{token}`` takes one announced file, ``/uploads/{token}/{sha256}`` a pack under its hash, and with the id of a
multipart upload in its place a part of one file. Sending one again is harmless. HEAD tells whether a pack has come.
"""

import re
from collections.abc import AsyncIterator
from typing import Any

from runyard.server.http.capacity import decimal, drain
from runyard.server.http.request import SERVICES
from runyard.server.http.responses import Response
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import imports, multipart

PREFIX = "/uploads/"


async def upload(scope: Any, receive: Any, send: Any) -> None:
    """Answer one upload."""
    services: Services = scope[SERVICES]
    body = _Body(receive)
    try:
        etag = await _received(services, scope, body)
    except Refusal:
        if not body.has_all:
            await drain(receive)
        raise
    headers = [(b"etag", f'"{etag}"'.encode())] if etag else []
    await Response(status=204, headers=headers)(scope, receive, send)


async def _received(services: Services, scope: Any, body: "_Body") -> str | None:
    if scope["method"] not in ("PUT", "HEAD"):
        message = "an upload address takes PUT, and HEAD to ask whether a pack is there"
        raise Refusal("MethodNotAllowed", message, allow=("HEAD", "PUT"))
    token, _, name = scope["path"].removeprefix(PREFIX).partition("/")
    link, row = imports.opened_upload(services, token)
    if scope["method"] == "HEAD":
        imports.check_received(services, row, sha256=name)
        return None
    length = dict(scope["headers"]).get(b"content-length")
    size_bytes = decimal(length) if length is not None else None
    if link.part:
        return await multipart.receive_part(services, row, body.chunks(), link=link, id=name)
    if link.number:
        await imports.receive_file(services, row, body.chunks(), number=link.number, size_bytes=size_bytes)
    elif re.fullmatch(r"[0-9a-f]{64}", name):
        await imports.receive_pack(services, row, body.chunks(), sha256=name, size_bytes=size_bytes)
    else:
        raise Refusal("InvalidId", f"{name[:80]!r} is no SHA-256; put a pack at the address, a slash and its hash")
    return None


class _Body:
    """What is sent, piece by piece; knows whether all of it has come."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self.has_all = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self.has_all:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the sender went away before everything had come")
            self.has_all = not message.get("more_body")
            if chunk := message.get("body"):
                yield chunk
