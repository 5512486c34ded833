"""What the server holds of a run, in numbers: shown before a deletion and in its receipt."""

from dataclasses import dataclass

from sqlalchemy import Connection

from runyard.server.services.context import Services
from runyard.server.services.errors import not_found
from runyard.store import attempts, outputs, tombstones
from runyard.store import runs as rows


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint and its files: path, size in bytes, SHA-256."""

    id: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def size_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes, _ in self.files)


@dataclass(frozen=True, kw_only=True)
class RunContents:
    """Everything that belongs to a run and is deleted with it."""

    checkpoints: tuple[StoredCheckpoint, ...]
    log_lines: int
    log_bytes: int
    metric_points: int
    attempts: int
    has_open_attempt: bool

    @property
    def checkpoint_bytes(self) -> int:
        return sum(checkpoint.size_bytes for checkpoint in self.checkpoints)


async def read(services: Services, *, org: str, run_id: str) -> RunContents:
    """Return what the server holds of a run.

    Raises:
        Refusal: NotFound.
    """

    def count(tx: Connection) -> RunContents:
        key = {"org": org, "run_id": run_id}
        row = rows.get(tx, **key)
        if row is None or row.deleted:
            raise not_found("run", run_id)
        return RunContents(
            checkpoints=tuple(
                StoredCheckpoint(
                    id=output.id,
                    files=tuple(
                        (file.path, file.size_bytes, file.sha256)
                        for file in outputs.list_files(tx, **key, output_id=output.id)
                    ),
                )
                for output in outputs.list_by_run(tx, **key)
            ),
            log_lines=row.log_count,
            log_bytes=row.log_bytes,
            metric_points=row.metric_count,
            attempts=len(attempts.list_by_run(tx, **key)),
            has_open_attempt=attempts.has_open(tx, **key),
        )

    return await services.store.read_in_thread(count)


def is_deleted(services: Services, *, org: str, run_id: str) -> bool:
    """Return whether a run with this id was deleted."""
    return services.store.read(lambda tx: tombstones.exists(tx, org=org, kind="run", id=run_id))


def is_removed(services: Services, *, org: str, run_id: str) -> bool:
    """Return whether no row of a run is left; its bytes are removed before its rows."""
    return services.store.read(lambda tx: rows.get(tx, org=org, run_id=run_id)) is None
