"""The weights that an attempt starts from: a checkpoint of another run, or a base model.

The files of a checkpoint belong to the new run from its creation on, so they stay available
whatever happens to the run that made them. A base model is in the model folders of the server's
machine; a machine that lacks it fetches it. The attempt's token opens these files and no others.
"""

from collections.abc import Sequence
from typing import BinaryIO

from sqlalchemy import Connection

from runyard.base_models import ModelMissing, get_base_weights
from runyard.flows import FlowProblems, resolve
from runyard.ids import MODEL_REFERENCE
from runyard.protocol import AttemptWeights, CheckpointFile
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import leases, references
from runyard.server.services.runs.runs import decode_run
from runyard.store import blobs as blob_rows
from runyard.store import outputs
from runyard.store.tables import AnyRow


async def get_weights(services: Services, token: AttemptToken) -> AttemptWeights:
    """Return the files that the attempt's run takes its weights from.

    Raises:
        Refusal: LeaseLost; NotFound (they come from a deleted run, or the server has no such
            model); InvalidFlow (a file of the model may not be fetched); StorageUnavailable (the
            model is being hashed).
    """
    found = services.store.read(lambda tx: _find_weights(services, tx, token))
    if isinstance(found, AttemptWeights):
        return found
    if found is not None:
        try:
            files = await services.base_models.list_files(services.settings, found)
            return AttemptWeights(weights=found, files=files)
        except ModelMissing as error:
            raise Refusal("NotFound", f"{error} of the server's machine") from error
    raise Refusal("NotFound", "this run loads no weights; there is nothing to fetch")


async def open_file(
    services: Services, token: AttemptToken, sha256: str
) -> tuple[BinaryIO, int] | None:
    """Return an open file of the base model of the attempt's run, and its length.

    None if no file of it has this hash.

    Raises:
        Refusal: LeaseLost; BlobMissing (the file has changed since it was hashed).
    """
    found = services.store.read(lambda tx: _find_weights(services, tx, token))
    if not isinstance(found, str):
        return None
    return await services.base_models.open_file(services.settings, found, sha256)


def _find_weights(
    services: Services, tx: Connection, token: AttemptToken
) -> AttemptWeights | str | None:
    """Return the files of another run's checkpoint, or the name of a base model."""
    _, row = leases.get_open_attempt(services, tx, token)
    flow, found = decode_run(row.document).spec.flow, list_files(tx, row)
    if not found:
        try:
            return get_base_weights(resolve(flow).model.architecture)
        except FlowProblems:  # of an earlier version; the trainer reports them
            return None
    return AttemptWeights(
        weights=references.get_weights(flow) or "",
        files=[
            CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in found
        ],
    )


def list_files(tx: Connection, run: AnyRow) -> Sequence[AnyRow]:
    """Return the files kept for a run.

    For a run created before files were kept, return those that its flow names today.
    """
    kept = blob_rows.list_weight_files(tx, org=run.org, run_id=run.id)
    named = (
        None
        if kept
        else MODEL_REFERENCE.fullmatch(
            references.get_weights(decode_run(run.document).spec.flow) or ""
        )
    )
    if named is None:
        return kept
    return references.select_weight_files(
        outputs.list_files(tx, org=run.org, run_id=named[1], output_id=named[2])
    )
