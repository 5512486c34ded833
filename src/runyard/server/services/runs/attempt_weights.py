"""What an attempt begins from: the checkpoint of another run that its own run was pinned to when it was created.

Its files belong to the run from that moment on, so they are there whatever has become of the run that made them. The
attempt's token opens these and no others.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from runyard.ids import MODEL_REFERENCE
from runyard.protocol import AttemptWeights, CheckpointFile
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import leases, references
from runyard.server.services.runs.runs import decoded
from runyard.store import blobs as blob_rows
from runyard.store import outputs
from runyard.store.tables import AnyRow


def offered(services: Services, token: AttemptToken) -> AttemptWeights:
    """Return the files that the attempt's run takes its weights from.

    Raises:
        Refusal: LeaseLost; NotFound (they come from no other run, or from one that has gone).
    """

    def work(connection: Connection) -> AttemptWeights:
        _, row = leases.open_attempt(connection, token)
        found = files(connection, row)
        if not found:
            raise Refusal("NotFound", "this run takes its weights from no other run; there is nothing to fetch")
        return AttemptWeights(
            weights=references.weights_of(decoded(row.document).spec.flow) or "",
            files=[CheckpointFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in found],
        )

    return services.store.read(work)


def files(connection: Connection, run: AnyRow) -> Sequence[AnyRow]:
    """Return the files kept for a run; of one created before they were kept, those that its flow names today."""
    kept = blob_rows.list_weight_files(connection, org=run.org, run_id=run.id)
    named = None if kept else MODEL_REFERENCE.fullmatch(references.weights_of(decoded(run.document).spec.flow) or "")
    if named is None:
        return kept
    return references.only_weights(outputs.list_files(connection, org=run.org, run_id=named[1], output_id=named[2]))
