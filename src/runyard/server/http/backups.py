"""Routes of backup and restore: one tar out, one tar in, both streamed; for the operator alone."""

import asyncio
from typing import Any

from litestar import Response

from runyard.server.http.asking import Answer, Asked, Id, Query, actor_of, answer, services_of
from runyard.server.http.door import drain
from runyard.server.http.downloads import send_bytes
from runyard.server.services import backups
from runyard.server.services.errors import Refusal


async def get_contents(request: Asked, org: Id) -> Answer:
    since_ms = Query(request).integer("since", 0) or 0
    return answer(await backups.contents(services_of(request), actor_of(request), since_ms=since_ms))


async def post_backup(request: Asked, org: Id) -> Answer:
    return _Tar(await backups.prepare(services_of(request), actor_of(request)))


async def post_restore(request: Asked, org: Id) -> Answer:
    actor, has_all = actor_of(request), False
    try:
        async with backups.receiving(services_of(request), actor) as incoming:
            async for chunk in request.stream():
                if chunk:  # hashing and writing block
                    await asyncio.to_thread(incoming.feed, chunk)
            has_all = True
            return answer(await incoming.commit(actor))
    except Refusal:
        if not has_all:
            await drain(request.receive)
        raise


class _Tar(Response[bytes]):
    """Sends a backup, and lets go of it however that ends."""

    def __init__(self, outgoing: backups.Outgoing) -> None:
        super().__init__(content=b"")
        self._outgoing = outgoing

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        return self._send

    async def _send(self, scope: Any, receive: Any, send: Any) -> None:
        outgoing = self._outgoing
        headers = [
            (b"content-type", b"application/x-tar"),
            (b"content-length", str(outgoing.size_bytes).encode()),
            (b"content-disposition", b'attachment; filename="runyard.backup"'),
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send_bytes(send, outgoing.pieces(), what="a backup")
        finally:
            outgoing.close()
