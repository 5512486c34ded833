"""What a run goes on from: frozen when it is accepted, handed to the supervisor that prepares an attempt.

A run may go on from a checkpoint of another run of its organisation. The files are put down as the new run's own in the
transaction that accepts it, so neither deleting nor pruning the other run takes a byte away. A supervisor that finds
nothing newer on its machine fetches them here, or those of the run's own newest checkpoint, if an earlier attempt ran
elsewhere; its token opens no other bytes.
"""

import asyncio
from typing import Any, BinaryIO

from sqlalchemy import Connection

from runyard.blobs import BlobMissing
from runyard.protocol import CheckpointFile, Resumable, ResumeCheckpoint
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import attempt_dataset, attempt_weights, leases
from runyard.server.services.runs.runs import decoded
from runyard.store import blobs as blob_rows
from runyard.store import outputs


def offered(services: Services, token: AttemptToken) -> Resumable:
    """Every checkpoint the attempt may go on from, the best choice first: the run's own, then what it was made from.

    Raises:
        Refusal: LeaseLost.
    """

    def work(connection: Connection) -> Resumable:
        _, row = leases.open_attempt(connection, token)
        place = {"org": token.org, "run_id": row.id}
        own = sorted(
            outputs.list_by_run(connection, **place), key=lambda output: (output.step, output.number), reverse=True
        )
        found = [
            ResumeCheckpoint(
                run_id=row.id,
                checkpoint_id=output.id,
                step=output.step,
                epoch=output.epoch,
                time=output.time,
                files=_told(outputs.list_files(connection, **place, output_id=output.id)),
            )
            for output in own
        ]
        origin = decoded(row.document).spec.resume_from
        if origin is not None:
            found.append(
                ResumeCheckpoint(
                    run_id=origin.run_id,
                    checkpoint_id=origin.checkpoint,
                    step=origin.step,
                    epoch=origin.epoch,
                    time=row.time_created,
                    files=_told(blob_rows.list_resume_files(connection, **place)),
                )
            )
        return Resumable(checkpoints=found)

    return services.store.read(work)


async def opened_blob(services: Services, token: AttemptToken, sha256: str) -> tuple[BinaryIO, int]:
    """A file that the attempt may read, and its length. Read whole before it is handed out: a flip is told, not sent.

    Raises:
        Refusal: LeaseLost, NotFound (it belongs to no checkpoint, weights or dataset of this run), BlobMissing (gone or
            damaged).
    """

    def is_allowed(connection: Connection) -> bool:
        _, row = leases.open_attempt(connection, token)
        return blob_rows.is_needed_by_run(connection, org=token.org, run_id=row.id, sha256=sha256) or any(
            file.sha256 == sha256 for file in attempt_weights.files(connection, row)
        )

    if not services.store.read(is_allowed) and not attempt_dataset.has_blob(services, token, sha256):
        raise Refusal(
            "NotFound",
            f"file {sha256} belongs to no checkpoint of this run, not to its weights and not to its dataset; "
            "ask again what there is",
        )
    blobs = services.blobs(token.org)
    try:
        if not await asyncio.to_thread(blobs.verify, sha256):
            raise BlobMissing(sha256)
        return await asyncio.to_thread(blobs.open, sha256), blobs.size_bytes(sha256)
    except BlobMissing as error:
        raise Refusal("BlobMissing", f"file {sha256} is lost or damaged here; go on from another checkpoint") from error


def _told(files: Any) -> list[CheckpointFile]:
    return [CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in files]
