"""Uploads of import files to signed addresses: PUT, without a key.

204 means that the file is on disk.

``/uploads/{token}`` takes one announced file, ``/uploads/{token}/{sha256}`` a pack under its hash.
With the id of a multipart upload instead of the hash it takes a part of one file. A PUT may be
repeated. HEAD checks whether a pack has arrived.
"""

import re
from collections.abc import AsyncIterator
from typing import Any

from runyard.server.http.capacity import drain_body, parse_decimal
from runyard.server.http.request import SERVICES
from runyard.server.http.responses import Response
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import imports, multipart

PREFIX = "/uploads/"


async def receive_upload(scope: Any, receive: Any, send: Any) -> None:
    """Receive one upload."""
    services: Services = scope[SERVICES]
    body = _BodyReader(receive)
    try:
        etag = await _receive(services, scope, body)
    except Refusal:
        if not body.has_all:
            await drain_body(receive)
        raise
    headers = [(b"etag", f'"{etag}"'.encode())] if etag else []
    await Response(status=204, headers=headers)(scope, receive, send)


async def _receive(services: Services, scope: Any, body: "_BodyReader") -> str | None:
    if scope["method"] not in ("PUT", "HEAD"):
        message = "an upload address takes PUT, and HEAD to check whether a pack has arrived"
        raise Refusal("MethodNotAllowed", message, allow=("HEAD", "PUT"))
    token, _, name = scope["path"].removeprefix(PREFIX).partition("/")
    link, row = imports.open_upload(services, token)
    if scope["method"] == "HEAD":
        imports.check_received(services, row, sha256=name)
        return None
    length = dict(scope["headers"]).get(b"content-length")
    size_bytes = parse_decimal(length) if length is not None else None
    if link.part:
        return await multipart.receive_part(services, row, body.chunks(), link=link, id=name)
    if link.number:
        await imports.receive_file(
            services, row, body.chunks(), number=link.number, size_bytes=size_bytes
        )
    elif re.fullmatch(r"[0-9a-f]{64}", name):
        await imports.receive_pack(services, row, body.chunks(), sha256=name, size_bytes=size_bytes)
    else:
        raise Refusal(
            "InvalidId",
            f"{name[:80]!r} is not a SHA-256; try: PUT the pack at the address, a slash and its "
            "hash",
        )
    return None


class _BodyReader:
    """The request body in chunks; ``has_all`` is set after the last one."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self.has_all = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self.has_all:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client disconnected before the end of the body")
            self.has_all = not message.get("more_body")
            if chunk := message.get("body"):
                yield chunk
