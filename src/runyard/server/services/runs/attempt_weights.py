"""The weights that an attempt starts from: a checkpoint of another run, pinned at creation.

Its files belong to the new run from then on, so they stay available whatever happens to the run
that made them. The attempt's token opens these files and no others.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

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


def get_weights(services: Services, token: AttemptToken) -> AttemptWeights:
    """Return the files that the attempt's run takes its weights from.

    Raises:
        Refusal: LeaseLost; NotFound (they come from no other run, or from a deleted one).
    """
    return services.store.read(lambda tx: _find_weights(services, tx, token))


def _find_weights(services: Services, tx: Connection, token: AttemptToken) -> AttemptWeights:
    _, row = leases.get_open_attempt(services, tx, token)
    found = list_files(tx, row)
    if not found:
        raise Refusal(
            "NotFound", "this run takes its weights from no other run; there is nothing to fetch"
        )
    return AttemptWeights(
        weights=references.get_weights(decode_run(row.document).spec.flow) or "",
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
