"""Checkpoints that an attempt may resume from, served to the supervisor that prepares it.

A run may resume from a checkpoint of another run of its organization. The files are recorded as the
new run's own in the transaction that inserts it, so neither deleting nor pruning the other run
removes them. A supervisor that finds nothing newer on its machine fetches them here, or those of
the run's own newest checkpoint, if an earlier attempt ran elsewhere. Its token opens no other
bytes.
"""

import asyncio
from typing import Any, BinaryIO

from sqlalchemy import Connection

from runyard.blobs import BlobMissing
from runyard.protocol import CheckpointFile, ResumeCandidates, ResumeCheckpoint
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import attempt_dataset, attempt_weights, leases
from runyard.server.services.runs.runs import decode_run
from runyard.store import blobs as blob_rows
from runyard.store import outputs


def list_candidates(services: Services, token: AttemptToken) -> ResumeCandidates:
    """Return every checkpoint the attempt may resume from, the best choice first.

    The run's own checkpoints come before the one that it was created from.

    Raises:
        Refusal: LeaseLost.
    """
    return services.store.read(lambda tx: _find_checkpoints(services, tx, token))


def _find_checkpoints(services: Services, tx: Connection, token: AttemptToken) -> ResumeCandidates:
    _, row = leases.get_open_attempt(services, tx, token)
    key = {"org": token.org, "run_id": row.id}
    own = sorted(
        outputs.list_by_run(tx, **key),
        key=lambda output: (output.step, output.number),
        reverse=True,
    )
    found = [
        ResumeCheckpoint(
            run_id=row.id,
            checkpoint_id=output.id,
            step=output.step,
            epoch=output.epoch,
            time=output.time,
            files=_to_checkpoint_files(outputs.list_files(tx, **key, output_id=output.id)),
        )
        for output in own
    ]
    origin = decode_run(row.document).spec.resume_from
    if origin is not None:
        found.append(
            ResumeCheckpoint(
                run_id=origin.run_id,
                checkpoint_id=origin.checkpoint,
                step=origin.step,
                epoch=origin.epoch,
                time=row.time_created,
                files=_to_checkpoint_files(blob_rows.list_resume_files(tx, **key)),
            )
        )
    return ResumeCandidates(checkpoints=found)


async def open_blob(services: Services, token: AttemptToken, sha256: str) -> tuple[BinaryIO, int]:
    """Return a file that the attempt may read, and its length.

    The blob is verified first, so that damaged bytes are reported and not sent.

    Raises:
        Refusal: LeaseLost, NotFound (it belongs to no checkpoint, weights or dataset of this run),
            BlobMissing (gone, damaged, or changed).
    """

    def is_allowed(tx: Connection) -> bool:
        _, row = leases.get_open_attempt(services, tx, token)
        return blob_rows.is_needed_by_run(tx, org=token.org, run_id=row.id, sha256=sha256) or any(
            file.sha256 == sha256 for file in attempt_weights.list_files(tx, row)
        )

    if not services.store.read(is_allowed) and not attempt_dataset.has_blob(
        services, token, sha256
    ):
        if (opened := await attempt_weights.open_file(services, token, sha256)) is not None:
            return opened
        raise Refusal(
            "NotFound",
            f"file {sha256} belongs to no checkpoint, weights or dataset of this run; try: list "
            "the candidates again",
        )
    blobs = services.blobs(token.org)
    try:
        if not await asyncio.to_thread(blobs.verify, sha256):
            raise BlobMissing(sha256)
        return await asyncio.to_thread(blobs.open, sha256), blobs.size_bytes(sha256)
    except BlobMissing as error:
        raise Refusal(
            "BlobMissing",
            f"file {sha256} is lost or damaged on the server; try: resume from another checkpoint",
        ) from error


def _to_checkpoint_files(files: Any) -> list[CheckpointFile]:
    return [
        CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        for file in files
    ]
