"""Routes of controllers and supervisors; ``runyard.protocol`` defines their messages."""

import asyncio
import json
import re
from functools import partial
from typing import cast

import msgspec

from runyard import limits, protocol
from runyard.server.http.capacity import hold_wait_slot
from runyard.server.http.request import (
    KEY_ID,
    TOKEN,
    Id,
    Query,
    Request,
    T,
    get_actor,
    get_services,
)
from runyard.server.http.responses import (
    Response,
    StreamedResponse,
    empty_response,
    encode_response,
)
from runyard.server.services import machine_failures, membership
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import SUSPECT
from runyard.server.services.operations import machine_folders
from runyard.server.services.runs import (
    attempt_dataset,
    attempt_weights,
    leases,
    models,
    resume,
)
from runyard.server.services.runs.telemetry import ingest
from runyard.server.services.validation import LONGEST_HOST, check_id, check_text

CHUNK_BYTES = 1 << 20
UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # NUL and surrogates, as JSON escapes them


async def post_claim(request: Request) -> Response:
    offer = await _parse_message(request, protocol.Claim)
    membership.check_caller(get_services(request), get_actor(request), offer.machine_id)
    async with hold_wait_slot(request.scope, offer.wait_s) as disconnect:
        return encode_response(
            await leases.claim(get_services(request), get_actor(request), offer, gone=disconnect)
        )


async def get_machine(request: Request, machine_id: Id) -> Response:
    membership.check_caller(get_services(request), get_actor(request), machine_id)
    return encode_response(
        await leases.list_placed(get_services(request), check_id("machine", machine_id))
    )


async def put_machine(request: Request, machine_id: Id) -> Response:
    report = await _parse_message(request, protocol.MachineReport)
    services = get_services(request)
    check_id("machine", machine_id)
    check_text("host", report.host, most=LONGEST_HOST)
    actor = get_actor(request)
    membership.check_caller(services, actor, machine_id)
    if actor.role == "controller":
        await membership.record_own(
            services, machine_id, host=report.host, key_id=request.scope[KEY_ID]
        )
    report.labels = services.memberships.add_labels(machine_id, report.labels)
    services.machines.record_report(
        machine_id, report, now_ms=services.clock.now_ms(), uptime_s=services.clock.monotonic_s()
    )
    if report.self_test is not None:
        await machine_failures.record_self_test(services, machine_id, report.self_test)
    instructions = await machine_folders.choose_removals(
        services, machine_id=machine_id, report=report
    )
    instructions.self_test = services.memberships.get_state(machine_id) == SUSPECT
    return encode_response(instructions)


async def post_process(request: Request) -> Response:
    report = await _parse_message(request, protocol.ProcessReport)
    return encode_response(
        await leases.report_process(get_services(request), _get_token(request), report)
    )


async def post_renewal(request: Request) -> Response:
    renewal = await _parse_message(request, protocol.Renewal)
    return encode_response(await leases.renew(get_services(request), _get_token(request), renewal))


async def post_lines(request: Request) -> Response:
    shipped = await _parse_message(request, protocol.Lines)
    return encode_response(await ingest.accept(get_services(request), _get_token(request), shipped))


async def head_blob(request: Request, sha256: Id) -> Response:
    has_it = models.has_blob(get_services(request), _get_token(request), _check_hash(sha256))
    return empty_response(200 if has_it else 404)


async def put_blob(request: Request, sha256: Id) -> Response:
    size_bytes = request.content_length
    if size_bytes is None:
        raise Refusal("InvalidBody", "the length of the blob is missing; try: send Content-Length")
    receiving = models.receive_blob(
        get_services(request),
        _get_token(request),
        sha256=_check_hash(sha256),
        size_bytes=size_bytes,
    )
    # Hashing and writing block, so they run on a thread; so do entering and leaving, which fsync.
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
    return empty_response(201)


async def get_blob(request: Request, sha256: Id) -> Response:
    blob, size_bytes = await resume.open_blob(
        get_services(request), _get_token(request), _check_hash(sha256)
    )
    return StreamedResponse(
        iter(partial(blob.read, CHUNK_BYTES), b""),
        size_bytes=size_bytes,
        headers=[(b"content-type", b"application/octet-stream")],
        what=f"blob {sha256}",
        close=blob.close,
    )


async def get_resume(request: Request) -> Response:
    return encode_response(resume.list_candidates(get_services(request), _get_token(request)))


async def get_weights(request: Request) -> Response:
    return encode_response(
        await attempt_weights.get_weights(get_services(request), _get_token(request))
    )


async def get_dataset(request: Request) -> Response:
    return encode_response(
        await asyncio.to_thread(
            attempt_dataset.get_version,
            get_services(request),
            _get_token(request),
            dataset_id=Query(request).text("dataset"),
        )
    )


async def get_dataset_contents(request: Request) -> Response:
    lines = await asyncio.to_thread(
        attempt_dataset.list_blob_spans,
        get_services(request),
        _get_token(request),
        dataset_id=Query(request).text("dataset"),
    )
    return Response(lines, media_type=b"application/x-ndjson")


async def post_checkpoint(request: Request) -> Response:
    report = await _parse_message(request, protocol.CheckpointReport)
    return encode_response(
        await models.register(get_services(request), _get_token(request), report), status=201
    )


async def post_finish(request: Request) -> Response:
    report = await _parse_message(request, protocol.ExitReport)
    await leases.finish(get_services(request), _get_token(request), report)
    return empty_response()


async def _parse_message(request: Request, kind: type[T]) -> T:
    """Parse a message.

    Characters that no store keeps are replaced, not refused: a report must never be lost.
    """
    body = await request.body()
    try:
        if UNSTORABLE.search(body):
            return msgspec.convert(
                limits.clean_json(json.loads(body, parse_constant=_reject_constant)), kind
            )
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refusal("InvalidBody", f"the body is not a valid {kind.__name__}: {error}") from error


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _get_token(request: Request) -> AttemptToken:
    return cast(AttemptToken, request.scope[TOKEN])


def _check_hash(sha256: str) -> str:
    return check_id("blob", sha256)
