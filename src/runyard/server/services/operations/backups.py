"""Backup and restore of the whole instance, while it serves.

A backup is one consistent snapshot: rows come from one read transaction, and the blobs they need
are held, under the lock of those who delete, before anybody can remove them. The rows are written
to a file first. So the transaction is over long before a slow client has its last byte, and the
total length is known before the first.

A restore changes nothing until everything has arrived and is verified: blobs are stored by hash, as
bytes without a row, and rows in files. Then one transaction replaces all rows and begins a new
store incarnation. Whatever kills the server leaves the old state or the new one; bytes without a
row are removed by a garbage collection.

Both are reserved to the operator, an admin of the organization that the instance began with, since
they reach across organizations.
"""

import asyncio
import contextlib
import hashlib
import hmac
import itertools
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import backup_rows, ids
from runyard.backup_file import (
    CHUNK_BYTES,
    FORMAT,
    VERSION,
    BackupFileError,
    BackupManifest,
    BackupMember,
    BackupReader,
    BlobPart,
    Sink,
    TablePart,
    Write,
    compute_size,
    encode_blobs,
    iter_chunks,
)
from runyard.backup_rows import InvalidRows
from runyard.blobs import BlobMissing, Hold
from runyard.rundir import free_bytes
from runyard.server.services.access import bootstrap
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal
from runyard.server.services.imports import sweep
from runyard.server.services.operations import legacy_ids
from runyard.server.services.runs import leases
from runyard.store import StoreUnavailable, organizations
from runyard.store import backup as rows
from runyard.store.access import keys as key_rows
from runyard.store.access import machines as machine_rows
from runyard.version import VERSION as OWN_VERSION

FOLDER = "backups"


class StoreContents(msgspec.Struct, rename="camel", kw_only=True):
    """What the instance holds now: rows by table, and how many runs are newer than a given time."""

    epoch: str
    operator: str
    rows: dict[str, int]
    runs_since: int


class Restored(msgspec.Struct, rename="camel", kw_only=True):
    """The state after a restore. ``organization_id`` is that of the calling key now."""

    organization_id: str
    epoch: str
    rows: dict[str, int]
    blobs: int


def remove_leftovers(services: Services) -> None:
    """Remove what interrupted backups, restores and copies left behind.

    Runs before anything is served. Copies of the database from before its upgrades are files there,
    and stay.
    """
    folder = _get_folder(services)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)


async def get_contents(services: Services, actor: Actor, *, since_ms: int) -> StoreContents:
    """Return what a restore would replace.

    Raises:
        Refusal: RoleForbidden.
    """
    _check_operator(services, actor)

    def count_rows(tx: Connection) -> StoreContents:
        return StoreContents(
            epoch=organizations.get_meta(tx, organizations.STORE_ID) or "",
            operator=organizations.list_ids(tx)[0],
            rows=rows.count_rows(tx),
            runs_since=rows.count_runs_since(tx, time_ms=since_ms),
        )

    return await services.store.read_in_thread(count_rows)


class OutgoingBackup:
    """A backup that is ready to be sent. ``close`` releases its blobs and removes its files."""

    def __init__(self, services: Services) -> None:
        _get_folder(services).mkdir(mode=0o700, exist_ok=True)
        self.manifest: BackupManifest
        self.size_bytes = 0
        self._services = services
        self._folder = Path(tempfile.mkdtemp(dir=_get_folder(services)))
        self._blobs: list[BlobPart] = []
        self._holds: list[Hold] = []

    def pieces(self) -> Iterator[bytes]:
        """Return the bytes of the file. Raises BlobDamaged when a blob is damaged."""
        return iter_chunks(self.manifest, self._blobs, self._open)

    def close(self) -> None:
        for hold in self._holds:
            hold.release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def hold_blobs(self, tx: Connection) -> int:
        """Hold every blob that a row of the snapshot needs; return how many are lost."""
        missing = 0
        for row in rows.list_blobs(tx):
            try:
                length = self._services.blobs(row.org).size_bytes(row.sha256)
            except BlobMissing:
                missing += 1
            else:
                self._blobs.append(BlobPart(row.org, row.sha256, length))
        self._holds = _hold_blobs(self._services, self._blobs)
        return missing

    def write_tables(self, tx: Connection) -> list[TablePart]:
        return [self._write_table(tx, name) for name in rows.TABLES]

    def finish(self, manifest: BackupManifest) -> None:
        listed = encode_blobs(self._blobs)
        manifest.blob_count = len(self._blobs)
        manifest.blob_bytes = sum(blob.size_bytes for blob in self._blobs)
        manifest.blob_list_size_bytes = len(listed)
        manifest.blob_list_sha256 = hashlib.sha256(listed).hexdigest()
        self.manifest, self.size_bytes = manifest, compute_size(manifest, self._blobs)

    def _write_table(self, tx: Connection, name: str) -> TablePart:
        table, digest, count = rows.TABLES[name], hashlib.sha256(), 0
        with open(self._folder / name, "wb") as file:
            for line in rows.iter_checked_rows(tx, table):
                file.write(line)
                digest.update(line)
                count += 1
            length = file.tell()
        return TablePart(
            name=name,
            columns=rows.list_columns(table),
            rows=count,
            size_bytes=length,
            sha256=digest.hexdigest(),
        )

    def _open(self, member: BackupMember) -> Iterator[bytes]:
        if member.table is not None:
            # Closed two lines below.
            file: Any = open(self._folder / member.table, "rb")  # noqa: SIM115
        else:
            file = self._services.blobs(member.org or "").open(member.sha256)
        with file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


async def prepare(services: Services, actor: Actor) -> OutgoingBackup:
    """Take the snapshot of a backup; the caller closes it.

    Raises:
        Refusal: RoleForbidden, BackupImpossible (a row that no restore would accept).
        StoreUnavailable: the disk has no space for the rows, or they cannot be read.
    """
    _check_operator(services, actor)
    await services.store.write(services.audit(actor, "make backup", actor.org))
    outgoing = await asyncio.to_thread(OutgoingBackup, services)
    # Before the snapshot: a run that a restore would lose must count as newer, not the reverse.
    time_ms = services.clock.now_ms()
    try:
        with contextlib.ExitStack() as stack:
            # The lock spans the first read and the hold: no blob of the snapshot is deleted
            # between.
            async with services.blob_lock:
                tx = await asyncio.to_thread(stack.enter_context, services.store.snapshot())
                missing = await asyncio.to_thread(outgoing.hold_blobs, tx)
            await asyncio.to_thread(_write_backup_rows, services, outgoing, tx, missing, time_ms)
    except OSError as error:
        outgoing.close()
        raise StoreUnavailable(f"the rows of a backup cannot be written: {error}") from error
    except InvalidRows as error:
        outgoing.close()
        raise Refusal(
            "BackupImpossible", f"the backup was not written: {error}; try: {_suggest_fix(error)}"
        ) from error
    except BaseException:
        outgoing.close()
        raise
    return outgoing


def _write_backup_rows(
    services: Services, outgoing: OutgoingBackup, tx: Connection, missing: int, time_ms: int
) -> None:
    outgoing.finish(
        BackupManifest(
            format=FORMAT,
            version=VERSION,
            schema_revision=rows.SCHEMA_REVISION,
            written_by=OWN_VERSION,
            time=time_ms,
            store_id=organizations.get_meta(tx, organizations.STORE_ID) or "",
            operator=organizations.list_ids(tx)[0],
            pepper_id=_hash_pepper(services),
            tables=outgoing.write_tables(tx),
            blob_count=0,
            blob_bytes=0,
            blob_list_size_bytes=0,
            blob_list_sha256="",
            missing_blobs=missing,
        )
    )


def _suggest_fix(error: InvalidRows) -> str:
    """Return what an operator can do about a row that no restore would accept."""
    run_id = error.row.get("run_id") or (error.row.get("id") if error.table == "runs" else None)
    dataset_id = error.row.get("dataset_id")
    if (error.table in legacy_ids.RENAMED and error.column == "id") or error.column in (
        "run_id",
        "output_id",
    ):
        return (
            "restart the server: at start it renames invalid ids, that of a run once no machine "
            "works on it"
        )
    if run_id is not None:
        return f"delete run {ids.shorten(run_id)}, after downloading what you need of it"
    if dataset_id is not None:
        return f"delete dataset {ids.shorten(dataset_id)}, after exporting what you need of it"
    return "delete what the row belongs to"


class IncomingBackup(Sink):
    """A backup being received.

    Nothing changes before ``commit``; ``close`` removes what was not committed.
    """

    def __init__(self, services: Services) -> None:
        _get_folder(services).mkdir(mode=0o700, exist_ok=True)
        self._services = services
        self._folder = Path(tempfile.mkdtemp(dir=_get_folder(services)))
        self._holds: list[Hold] = []
        self._added: list[BlobPart] = []
        self._intake = BackupReader(self)

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes; blocks.

        Raises:
            Refusal: InvalidBackup.
        """
        with _translate_errors():
            self._intake.feed(chunk)

    def begin(self, manifest: BackupManifest) -> None:
        backup_rows.check_revision(manifest.schema_revision, rows.SCHEMA_REVISION)
        for part in manifest.tables:
            backup_rows.check_columns(part.name, part.columns, rows.COLUMNS)
        self._check_space(sum(part.size_bytes for part in manifest.tables))

    def list_blobs(self, blobs: Sequence[BlobPart]) -> None:
        self._holds = _hold_blobs(self._services, blobs)
        self._check_space(
            sum(blob.size_bytes for blob in blobs if not self._has(blob.org, blob.sha256))
        )

    def receive(self, member: BackupMember) -> AbstractContextManager[Write]:
        if member.table is not None:
            return _open_writer(self._folder / member.table)
        org = member.org or ""
        blobs = self._services.blobs(org)
        if self._has(org, member.sha256) and blobs.verify(member.sha256):
            return contextlib.nullcontext(lambda chunk: None)
        self._added.append(BlobPart(org, member.sha256, member.size_bytes))
        return _open_receiver(blobs.receive(sha256=member.sha256, size_bytes=member.size_bytes))

    async def commit(self, actor: Actor) -> Restored:
        """Replace the store's content by the received backup, which is complete.

        Raises:
            Refusal: InvalidBackup; nothing has changed.
        """
        services = self._services
        with _translate_errors():
            manifest = self._intake.finish()
        epoch = _generate_store_id(services, manifest)

        def replace_rows(tx: Connection) -> None:
            tables = [
                (part.name, part.columns, _read_lines(self._folder / part.name))
                for part in manifest.tables
            ]
            rows.replace_all(
                tx,
                tables,
                store_id=epoch,
                operator=manifest.operator,
                with_keys=hmac.compare_digest(manifest.pepper_id, _hash_pepper(services)),
                lease_ms=leases.get_restore_lease_ms(services),
            )
            services.store.reset_sequences(tx)
            audited = Actor(
                org=manifest.operator, name=actor.name, role=actor.role, address=actor.address
            )
            services.audit(audited, "restore backup", f"epoch {manifest.store_id} as {epoch}")(tx)

        # Jobs on datasets resume from the restored rows, and from no folder of the old state.
        await services.jobs.stop_all()
        # Under the lock, so that no deletion begun in the old state continues in the restored one.
        async with services.blob_lock:
            with _translate_errors():
                await services.store.write(replace_rows)
            self._added.clear()
        await asyncio.to_thread(shutil.rmtree, services.settings.imports_dir, ignore_errors=True)
        _refresh(services)
        await sweep.sweep(services)
        return Restored(
            organization_id=_find_organization(services, actor, manifest),
            epoch=epoch,
            rows={part.name: part.rows for part in manifest.tables},
            blobs=manifest.blob_count,
        )

    async def close(self) -> None:
        self._intake.close()
        for hold in self._holds:
            hold.release()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._added:
            await self._remove_added()

    async def _remove_added(self) -> None:
        """Remove blobs of an uncommitted restore, unless a row needs them now."""
        async with self._services.blob_lock:
            needed = {
                (row.org, row.sha256)
                for row in await self._services.store.read_in_thread(rows.list_blobs)
            }
            for blob in self._added:
                blobs = self._services.blobs(blob.org)
                if (blob.org, blob.sha256) not in needed and not blobs.is_held(blob.sha256):
                    await asyncio.to_thread(blobs.delete, blob.sha256)

    def _has(self, org: str, sha256: str) -> bool:
        return self._services.blobs(org).has(sha256)

    def _check_space(self, needed_bytes: int) -> None:
        free = free_bytes(self._folder)
        if needed_bytes > free:
            raise InvalidRows(
                f"the backup needs {needed_bytes} bytes of disk space, but {free} are free; try: "
                "free disk space"
            )


@contextlib.asynccontextmanager
async def receive(services: Services, actor: Actor) -> AsyncIterator[IncomingBackup]:
    """Receive a backup; leaving without ``commit`` leaves everything as it was.

    Raises:
        Refusal: RoleForbidden, RestoreUnderWay.
    """
    _check_operator(services, actor)
    if services.restore_lock.locked():
        raise Refusal(
            "RestoreUnderWay", "another backup is being restored; try: wait until that is done"
        )
    async with services.restore_lock:
        incoming = await asyncio.to_thread(IncomingBackup, services)
        try:
            yield incoming
        finally:
            await incoming.close()


def _hold_blobs(services: Services, blobs: Sequence[BlobPart]) -> list[Hold]:
    by_org = itertools.groupby(sorted(blobs, key=lambda blob: blob.org), key=lambda blob: blob.org)
    return [services.blobs(org).hold(blob.sha256 for blob in those) for org, those in by_org]


def _refresh(services: Services) -> None:
    """Reload what is kept in memory or in files from the store.

    The next start repeats it after a crash.
    """
    services.keyring.replace_all(services.store.read(key_rows.list_all))
    services.memberships.replace_all(services.store.read(machine_rows.list_all))
    services.sessions.clear()
    services.wrong_keys.forget_rows()
    bootstrap.name_organization(services.settings, services.store)
    services.notifier.notify_all()


def _check_operator(services: Services, actor: Actor) -> None:
    operator = services.store.read(organizations.list_ids)[0]
    if actor.role != "admin" or actor.org != operator:
        raise Refusal(
            "RoleForbidden",
            "a backup reaches across organizations; try: an admin key of the first organization, "
            "which is in credentials.json of the data folder",
        )


def _generate_store_id(services: Services, manifest: BackupManifest) -> str:
    taken = services.store.read(rows.list_store_ids) | {manifest.store_id}
    return next(epoch for epoch in iter(lambda: secrets.token_hex(8), "") if epoch not in taken)


def _find_organization(services: Services, actor: Actor, manifest: BackupManifest) -> str:
    known = services.store.read(organizations.list_ids)
    return actor.org if actor.org in known else manifest.operator


def _hash_pepper(services: Services) -> str:
    """Return an identifier of the pepper.

    It reveals nothing, since a pepper has 256 random bits.
    """
    return hmac.digest(services.pepper, b"runyard backup", "sha256").hex()[:32]


def _get_folder(services: Services) -> Path:
    return services.settings.data_dir / FOLDER


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise what is wrong with a backup as a refusal."""
    try:
        yield
    except BackupFileError as error:
        raise Refusal("InvalidBackup", f"{error}; nothing was changed") from error
    except OSError as error:
        raise StoreUnavailable(f"a backup cannot be stored: {error}") from error


def _read_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


@contextlib.contextmanager
def _open_writer(path: Path) -> Iterator[Write]:
    with open(path, "wb") as file:
        yield file.write


@contextlib.contextmanager
def _open_receiver(upload: Any) -> Iterator[Write]:
    with upload as receiver:
        yield receiver.write
