"""Routes of backup and restore: one tar out, one tar in, both streamed; for the operator alone."""

import asyncio

from runyard.server.http.capacity import drain
from runyard.server.http.request import Answer, Asked, Id, Query, actor_of, answer, services_of
from runyard.server.http.responses import StreamedResponse
from runyard.server.services.errors import Refusal
from runyard.server.services.operations import backups


async def get_contents(request: Asked, org: Id) -> Answer:
    since_ms = Query(request).integer("since", 0) or 0
    return answer(await backups.contents(services_of(request), actor_of(request), since_ms=since_ms))


async def post_backup(request: Asked, org: Id) -> Answer:
    outgoing = await backups.prepare(services_of(request), actor_of(request))
    return StreamedResponse(
        outgoing.pieces(),
        size_bytes=outgoing.size_bytes,
        headers=[
            (b"content-type", b"application/x-tar"),
            (b"content-disposition", b'attachment; filename="runyard.backup"'),
        ],
        what="a backup",
        close=outgoing.close,
    )


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
