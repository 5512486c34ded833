"""Routes of backup and restore, for operators: one tar is downloaded or uploaded, both streamed."""

import asyncio

from runyard.server.http.capacity import drain_body
from runyard.server.http.request import Id, Query, Request, get_actor, get_services
from runyard.server.http.responses import Response, StreamedResponse, encode_response
from runyard.server.services.errors import Refusal
from runyard.server.services.operations import backups


async def get_contents(request: Request, org: Id) -> Response:
    since_ms = Query(request).integer("since", 0) or 0
    return encode_response(
        await backups.get_contents(get_services(request), get_actor(request), since_ms=since_ms)
    )


async def post_backup(request: Request, org: Id) -> Response:
    outgoing = await backups.prepare(get_services(request), get_actor(request))
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


async def post_restore(request: Request, org: Id) -> Response:
    actor, has_all = get_actor(request), False
    try:
        async with backups.receive(get_services(request), actor) as incoming:
            async for chunk in request.stream():
                if chunk:  # hashing and writing block
                    await asyncio.to_thread(incoming.feed, chunk)
            has_all = True
            return encode_response(await incoming.commit(actor))
    except Refusal:
        if not has_all:
            await drain_body(request.receive)
        raise
