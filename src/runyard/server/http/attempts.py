"""Routes of controllers and supervisors; ``runyard.protocol`` tells what they say."""

import asyncio
import json
import re
from functools import partial
from typing import cast

import msgspec

from runyard import limits, protocol
from runyard.server.http.capacity import waiting
from runyard.server.http.request import TOKEN, Answer, Asked, Id, T, actor_of, answer, empty, services_of
from runyard.server.http.responses import Response, StreamedResponse
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import attempt_dataset, attempt_weights, leases, models, resume, telemetry
from runyard.server.services.validation import LONGEST_HOST, check_id, check_text

CHUNK_BYTES = 1 << 20
UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # NUL and surrogates, as JSON escapes them


async def post_claim(request: Asked) -> Answer:
    offer = await _message(request, protocol.Claim)
    async with waiting(request.scope, offer.wait_s) as gone:
        return answer(await leases.claim(services_of(request), actor_of(request), offer, gone=gone))


async def get_machine(request: Asked, machine_id: Id) -> Answer:
    return answer(await leases.placed(services_of(request), check_id("machine", machine_id)))


async def put_machine(request: Asked, machine_id: Id) -> Answer:
    report = await _message(request, protocol.MachineReport)
    services = services_of(request)
    check_id("machine", machine_id)
    check_text("host", report.host, most=LONGEST_HOST)
    services.machines.hear(machine_id, report, now_ms=services.clock.now_ms(), lived_s=services.clock.monotonic_s())
    return empty()


async def post_process(request: Asked) -> Answer:
    report = await _message(request, protocol.ProcessReport)
    return answer(await leases.report_process(services_of(request), _token(request), report))


async def post_renewal(request: Asked) -> Answer:
    renewal = await _message(request, protocol.Renewal)
    return answer(await leases.renew(services_of(request), _token(request), renewal))


async def post_lines(request: Asked) -> Answer:
    shipped = await _message(request, protocol.Lines)
    return answer(await telemetry.accept(services_of(request), _token(request), shipped))


async def head_blob(request: Asked, sha256: Id) -> Answer:
    has_it = models.has_blob(services_of(request), _token(request), _checked_hash(sha256))
    return empty(200 if has_it else 404)


async def put_blob(request: Asked, sha256: Id) -> Answer:
    size_bytes = request.content_length
    if size_bytes is None:
        raise Refusal("InvalidBody", "a blob's length must be announced; send Content-Length")
    receiving = models.receiving_blob(
        services_of(request), _token(request), sha256=_checked_hash(sha256), size_bytes=size_bytes
    )
    # Hashing and writing block, so they run on a thread; entering and leaving does as well, since it fsyncs.
    upload = await asyncio.to_thread(receiving.__enter__)
    try:
        async for chunk in request.stream():
            if chunk:
                await asyncio.to_thread(upload.write, chunk)
    except BaseException as error:
        if not await asyncio.to_thread(receiving.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await asyncio.to_thread(receiving.__exit__, None, None, None)
    return empty(201)


async def get_blob(request: Asked, sha256: Id) -> Answer:
    blob, size_bytes = await resume.opened_blob(services_of(request), _token(request), _checked_hash(sha256))
    return StreamedResponse(
        iter(partial(blob.read, CHUNK_BYTES), b""),
        size_bytes=size_bytes,
        headers=[(b"content-type", b"application/octet-stream")],
        what=f"blob {sha256}",
        close=blob.close,
    )


async def get_resume(request: Asked) -> Answer:
    return answer(resume.offered(services_of(request), _token(request)))


async def get_weights(request: Asked) -> Answer:
    return answer(attempt_weights.offered(services_of(request), _token(request)))


async def get_dataset(request: Asked) -> Answer:
    return answer(await asyncio.to_thread(attempt_dataset.offered, services_of(request), _token(request)))


async def get_dataset_contents(request: Asked) -> Answer:
    lines = await asyncio.to_thread(attempt_dataset.offered_places, services_of(request), _token(request))
    return Response(lines, media_type=b"application/x-ndjson")


async def post_checkpoint(request: Asked) -> Answer:
    report = await _message(request, protocol.CheckpointReport)
    return answer(await models.register(services_of(request), _token(request), report), status=201)


async def post_finish(request: Asked) -> Answer:
    report = await _message(request, protocol.ExitReport)
    await leases.finish(services_of(request), _token(request), report)
    return empty()


async def _message(request: Asked, kind: type[T]) -> T:
    """Read a message. Texts that no store keeps are replaced, not refused: nothing that was reported may be lost."""
    body = await request.body()
    try:
        if UNSTORABLE.search(body):
            return msgspec.convert(limits.clean_all(json.loads(body, parse_constant=_refuse_constant)), kind)
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refusal("InvalidBody", f"the body is no {kind.__name__}: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _token(request: Asked) -> AttemptToken:
    return cast(AttemptToken, request.scope[TOKEN])  # type: ignore[literal-required]


def _checked_hash(sha256: str) -> str:
    return check_id("blob", sha256)
