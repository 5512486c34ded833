"""Imports: files on their way into a dataset, for three kinds of sessions.

Our own sessions (``DatasetImport``) take packs. The published client's take single files: images in
one kind of session (``ingestion``) and annotations in another (``annotation_imports``). In each of
them, bytes are blobs and rows of ``import_files`` the moment they are acknowledged. When all have
arrived the import is *sealed*, a process examines them (``import_jobs``), and what it accepts goes
into the dataset.

A state only advances, by one conditional update, so that of a cancel, a deadline and a finish that
happen at once one wins: Receiving -> Sealed -> Committing -> Done, and from the first three to
Failed or Cancelled.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import msgspec
from sqlalchemy import Connection

from runyard.blobs import BlobMismatch
from runyard.ids import resolve_folder
from runyard.rundir import free_bytes, fsync_dir
from runyard.server.services import events, paging
from runyard.server.services.access.signing import UploadLink
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.imports import import_jobs
from runyard.server.services.paging import PageRequest
from runyard.store import blobs as blob_rows
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow

Kind = Literal["Import", "Ingestion", "Annotations"]

IMPORT_HOURS, INGESTION_HOURS = 24.0, 1.0
LARGEST_UPLOAD = 64 << 30
SPARE_BYTES = 64 << 20  # what an upload must leave free on the disk
PIECE_BYTES = 1 << 20
INCOMING = ".incoming-"  # prefix of incomplete files in an organization's folder


@dataclass(frozen=True, kw_only=True)
class AnnouncedFile:
    """A file to be uploaded: its name in the dataset, and the announced properties."""

    name: str
    size_bytes: int
    crc32c: int | None = None  # unsigned
    mime: str | None = None
    custom: Mapping[str, Any] | None = None
    error_code: str | None = None  # of the published client: why it is rejected at once


async def create(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    kind: Kind,
    spec: Any,
    deadline_ms: int,
    attributes: Mapping[str, str],
    files: Sequence[AnnouncedFile] = (),
) -> AnyRow:
    """Begin an import; return its row.

    Raises:
        Refusal: NotFound.
    """
    org, now_ms, import_id = actor.org, services.clock.now_ms(), secrets.token_hex(12)

    def insert_import(tx: Connection) -> AnyRow:
        datasets.get_row(tx, org=org, dataset_id=dataset_id)
        rows.add(
            tx,
            {
                "org": org,
                "id": import_id,
                "dataset_id": dataset_id,
                "kind": kind,
                "state": "Receiving",
                "spec": msgspec.json.encode(spec),
                "seen": b"{}",
                "attributes": msgspec.json.encode(dict(attributes)),
                "user": actor.name,
                "deadline": deadline_ms,
                "time_created": now_ms,
                "last_updated": now_ms,
            },
        )
        announce_files(tx, org=org, import_id=import_id, files=files)
        events.record_by(
            tx,
            actor,
            now_ms=now_ms,
            kind="import",
            target=import_id,
            what="started",
            document={"datasetId": dataset_id, "kind": kind},
        )
        services.audit(actor, "begin import", f"{dataset_id}/{import_id}")(tx)
        return _get_row(tx, org=org, dataset_id=dataset_id, import_id=import_id)

    return await services.store.write(insert_import)


def announce_files(
    tx: Connection, *, org: str, import_id: str, files: Sequence[AnnouncedFile]
) -> None:
    """Insert rows for files that are to be uploaded."""
    first = rows.next_file_number(tx, org=org, import_id=import_id)
    rows.add_files(
        tx,
        [
            {
                "org": org,
                "import_id": import_id,
                "number": number,
                "name": file.name,
                "size_bytes": file.size_bytes,
                "crc32c": file.crc32c,
                "mime": file.mime,
                "custom": msgspec.json.encode(file.custom) if file.custom else None,
                "fault": file.error_code,
            }
            for number, file in enumerate(files, first)
        ],
    )


def get(
    services: Services, *, org: str, dataset_id: str, import_id: str, kind: Kind | None = None
) -> AnyRow:
    """Return the row of an import.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(
        partial(_get_row, org=org, dataset_id=dataset_id, import_id=import_id)
    )
    if kind is not None and row.kind != kind:
        raise not_found("import", import_id)
    return row


async def page(
    services: Services,
    *,
    org: str,
    dataset_id: str,
    kind: Kind,
    to_document: Any,
    page_request: PageRequest,
) -> bytes:
    """Return a page of imports as JSON, newest first.

    ``to_document`` builds the document of a row.
    """
    key: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.get_row, **key))

    def fetch(tx: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(tx, **key, kind=kind, after=after, limit=limit)

    return await paging.read(
        services,
        page_request,
        org=org,
        fetch=fetch,
        encode=lambda row: msgspec.json.encode(to_document(row)),
    )


def sign_upload_url(
    services: Services, row: AnyRow, origin: str, *, number: int = 0, part: int = 0
) -> str:
    """Return the address for a file of an import, valid without a key.

    Number 0 is for packs, each under its hash.
    """
    expires_at = row.deadline if row.kind != "Ingestion" else get_upload_expiry(services, row)
    token = services.signer.sign_upload(
        UploadLink(row.org, row.dataset_id, row.id, number, part, expires_at)
    )
    return f"{origin}/uploads/{token}"


def open_upload(services: Services, token: str) -> tuple[UploadLink, AnyRow]:
    """Return the import that a signed address is for, if it still accepts files.

    Raises:
        Refusal: NotFound, ImportOver.
    """
    link = services.signer.verify_upload(token)
    row = None
    if link is not None and services.clock.now_ms() < link.expires_at:
        row = services.store.read(lambda tx: rows.get(tx, org=link.org, import_id=link.import_id))
    if link is None or row is None:
        raise Refusal(
            "NotFound", "this upload address is invalid or has expired; try: begin a new session"
        )
    if row.state != "Receiving":
        raise import_over(row)
    return link, row


def check_received(services: Services, row: AnyRow, *, sha256: str) -> None:
    """Check that a pack has arrived.

    Raises:
        Refusal: NotFound.
    """
    if sha256 not in services.store.read(
        partial(rows.list_received_hashes, org=row.org, import_id=row.id)
    ):
        raise not_found("pack", sha256[:64])


async def receive_pack(
    services: Services,
    row: AnyRow,
    chunks: AsyncIterator[bytes],
    *,
    sha256: str,
    size_bytes: int | None,
) -> None:
    """Receive one pack; it is on disk when this returns. Receiving it again changes nothing.

    Raises:
        Refusal: InvalidBody (length or hash are not those announced), ImportOver.
    """
    if size_bytes is None:
        raise Refusal("InvalidBody", "the length of a pack is missing; try: send Content-Length")
    if sha256 in services.store.read(
        partial(rows.list_received_hashes, org=row.org, import_id=row.id)
    ):
        async for _ in chunks:
            pass
        return
    await _receive_blob(services, row.org, chunks, sha256=sha256, size_bytes=size_bytes)

    def insert_pack(tx: Connection) -> None:
        _check_receiving(tx, row)
        if sha256 in rows.list_received_hashes(tx, org=row.org, import_id=row.id):
            return
        number = rows.next_file_number(tx, org=row.org, import_id=row.id)
        file = {
            "org": row.org,
            "import_id": row.id,
            "number": number,
            "size_bytes": size_bytes,
            "sha256": sha256,
        }
        rows.add_files(tx, [file])
        _extend_deadline(services, tx, row)

    await _record_blob(services, row, sha256, insert_pack)
    import_jobs.start(services, row)


async def receive_file(
    services: Services,
    row: AnyRow,
    chunks: AsyncIterator[bytes],
    *,
    number: int,
    size_bytes: int | None,
    also: Callable[[Connection], None] | None = None,
) -> None:
    """Receive one announced file. Length and CRC-32C are checked if they were announced.

    ``also`` is executed in the transaction that records the file.

    Raises:
        Refusal: NotFound, InvalidBody, ImportOver.
    """
    file = services.store.read(partial(rows.get_file, org=row.org, import_id=row.id, number=number))
    if file is None:
        raise Refusal("NotFound", f"the import has no file {number}")
    if size_bytes is not None and size_bytes != file.size_bytes:
        raise Refusal(
            "InvalidBody",
            f"file {file.name!r} was announced with {file.size_bytes} bytes, but {size_bytes} are "
            "sent; try: announce it again with its current size",
        )
    async with spool(services, row.org, chunks, limit=file.size_bytes) as spooled:
        if spooled.size_bytes != file.size_bytes or file.crc32c not in (None, spooled.crc32c):
            raise Refusal(
                "InvalidBody",
                f"file {file.name!r} did not arrive as announced ({file.size_bytes} bytes, CRC-32C "
                f"{file.crc32c}; got {spooled.size_bytes} bytes, {spooled.crc32c}); try: send it "
                "again",
            )
        sha256 = spooled.digest.hexdigest()
        await asyncio.to_thread(spooled.store, services.blobs(row.org), sha256)

        def record_file(tx: Connection) -> bool:
            _check_receiving(tx, row)
            values = {"sha256": sha256, "fault": None}
            rows.change_file(tx, org=row.org, import_id=row.id, number=number, values=values)
            _extend_deadline(services, tx, row)
            if also is not None:
                also(tx)
            is_last = row.kind == "Ingestion" and not rows.is_awaiting_files(
                tx, org=row.org, import_id=row.id
            )
            return is_last and _seal(services, tx, row)

        is_sealed = await _record_blob(
            services,
            row,
            sha256,
            record_file,
            restore=partial(spooled.store, services.blobs(row.org), sha256),
        )
    if is_sealed:
        import_jobs.start(
            services, get(services, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
        )


async def finish(services: Services, actor: Actor, row: AnyRow, *, packs: Sequence[str]) -> AnyRow:
    """Seal the import: everything has been sent. A repeat changes nothing.

    Raises:
        Refusal: BlobMissing, with the missing hashes; ImportOver (it was canceled, or has ended).
    """

    def seal_import(tx: Connection) -> AnyRow:
        now = _get_row(tx, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
        if now.state in ("Sealed", "Committing", "Done"):
            return now
        _check_receiving(tx, row)
        missing = sorted(set(packs) - rows.list_received_hashes(tx, org=row.org, import_id=row.id))
        if missing:
            raise _packs_missing(missing)
        _seal(services, tx, row)
        services.audit(actor, "finish import", f"{row.dataset_id}/{row.id}")(tx)
        return _get_row(tx, org=row.org, dataset_id=row.dataset_id, import_id=row.id)

    sealed = await services.store.write(seal_import)
    import_jobs.start(services, sealed)
    return sealed


async def cancel(
    services: Services, actor: Actor, row: AnyRow, *, why: str = "canceled by the user"
) -> AnyRow:
    """End an import that has not begun to change the dataset; one that is over stays as it is.

    Raises:
        Refusal: ImportOver (it is being committed).
    """
    return await give_up(services, actor, row, state="Cancelled", why=why)


async def give_up(services: Services, actor: Actor, row: AnyRow, *, state: str, why: str) -> AnyRow:
    """End an import in a given state; otherwise as ``cancel``.

    Raises:
        Refusal: ImportOver (it is being committed).
    """

    def audit_cancellation(tx: Connection) -> bool:
        now = _get_row(tx, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
        if now.state == "Committing":
            raise import_over(now)
        if now.state not in rows.ACTIVE_STATES:
            return False
        services.audit(actor, "cancel import", f"{row.dataset_id}/{row.id}")(tx)
        return True

    if await services.store.write(audit_cancellation):
        await import_jobs.end_early(services, row, state=state, why=why)
    return get(services, org=row.org, dataset_id=row.dataset_id, import_id=row.id)


def import_over(row: AnyRow) -> Refusal:
    """Build the refusal of files for an import that accepts none any more."""
    return Refusal(
        "ImportOver",
        f"import {row.id!r} accepts no more files: it is {row.state.lower()}"
        f"{': ' + row.why if row.why else ''}; try: begin a new one",
    )


async def _receive_blob(
    services: Services, org: str, chunks: AsyncIterator[bytes], *, sha256: str, size_bytes: int
) -> None:
    _check_disk_space(services, size_bytes)
    receiving = services.blobs(org).receive(sha256=sha256, size_bytes=size_bytes)
    # Hashing and writing block, so they run on a thread; so do entering and leaving, which fsync.
    upload = await asyncio.to_thread(receiving.__enter__)
    try:
        try:
            async for piece in _join_chunks(chunks):
                await asyncio.to_thread(upload.write, piece)
        except BaseException as error:
            if not await asyncio.to_thread(
                receiving.__exit__, type(error), error, error.__traceback__
            ):
                raise
        else:
            await asyncio.to_thread(receiving.__exit__, None, None, None)
    except BlobMismatch as error:
        raise Refusal(
            "InvalidBody", f"pack {sha256} was not stored: {error}; try: send it again"
        ) from error


async def _join_chunks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks joined together, so that few of them cross to another thread."""
    held: list[bytes] = []
    length = 0
    async for chunk in chunks:
        held.append(chunk)
        length += len(chunk)
        if length >= PIECE_BYTES:
            yield b"".join(held)
            held, length = [], 0
    if held:
        yield b"".join(held)


class SpooledFile:
    """A file being received, whose hash is known only at its end."""

    def __init__(self, services: Services, org: str) -> None:
        folder = resolve_folder(services.settings.imports_dir, org)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=INCOMING)
        self._path = Path(name)
        self._file = open(descriptor, "w+b")  # noqa: SIM115 - closed by close()
        self.digest = hashlib.sha256()
        self._crc = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
        self.size_bytes = 0

    @property
    def crc32c(self) -> int:
        """Return the unsigned checksum."""
        return int.from_bytes(self._crc.digest(), "big")  # type: ignore[no-untyped-call]

    def write(self, piece: bytes) -> None:
        self.digest.update(piece)
        self._crc.update(piece)  # type: ignore[no-untyped-call]
        self.size_bytes += len(piece)
        self._file.write(piece)

    def store(self, blobs: Any, sha256: str) -> None:
        """Store it as a blob."""
        self._file.seek(0)
        blobs.put(self._file, sha256=sha256, size_bytes=self.size_bytes)

    def keep(self, path: Path) -> None:
        """Move it to its permanent path."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._path, path)
        fsync_dir(path.parent)

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def spool(
    services: Services, org: str, chunks: AsyncIterator[bytes], *, limit: int
) -> AsyncIterator[SpooledFile]:
    """Receive at most ``limit`` bytes into a file that is removed when the block is left."""
    _check_disk_space(services, limit)
    spooled = await asyncio.to_thread(SpooledFile, services, org)
    try:
        async for piece in _join_chunks(chunks):
            if spooled.size_bytes + len(piece) > limit:
                raise Refusal(
                    "InvalidBody",
                    f"more than the announced {limit} bytes arrive; try: announce the file again",
                )
            await asyncio.to_thread(spooled.write, piece)
        yield spooled
    finally:
        await asyncio.to_thread(spooled.close)


async def _record_blob(
    services: Services,
    row: AnyRow,
    sha256: str,
    record: Any,
    *,
    restore: Callable[[], None] | None = None,
) -> Any:
    """Record that the import has a blob, under the lock of those who remove unneeded blobs.

    If they removed it since it was stored, with the last other row that needed it, it is stored
    again or requested again.
    """
    async with services.blob_lock:
        if not await asyncio.to_thread(services.blobs(row.org).has, sha256):
            if restore is None:
                raise _packs_missing([sha256])
            await asyncio.to_thread(restore)
        try:
            return await services.store.write(record)
        except Refusal:
            await services.store.write(
                partial(blob_rows.mark_unneeded, org=row.org, hashes={sha256})
            )
            raise


def _packs_missing(hashes: Sequence[str]) -> Refusal:
    shown = ", ".join(hashes[:20]) + (f" and {len(hashes) - 20} more" if len(hashes) > 20 else "")
    return Refusal(
        "BlobMissing", f"packs that have not arrived: {shown}; try: send them, then repeat"
    )


def _check_disk_space(services: Services, size_bytes: int) -> None:
    if size_bytes > LARGEST_UPLOAD:
        raise Refusal(
            "BodyTooLarge",
            f"the upload has {size_bytes} bytes; at most {LARGEST_UPLOAD} are allowed",
        )
    if size_bytes + SPARE_BYTES > free_bytes(services.settings.data_dir):
        raise Refusal(
            "StorageUnavailable",
            f"the server has no disk space for {size_bytes} bytes; try: free disk space, then "
            "repeat",
        )


def _check_receiving(tx: Connection, row: AnyRow) -> None:
    now = _get_row(tx, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
    if now.state != "Receiving":
        raise import_over(now)


def _seal(services: Services, tx: Connection, row: AnyRow) -> bool:
    now_ms = services.clock.now_ms()
    values = {"state": "Sealed", "time_sealed": now_ms, "last_updated": now_ms}
    return rows.transition(tx, org=row.org, import_id=row.id, before=("Receiving",), values=values)


def _extend_deadline(services: Services, tx: Connection, row: AnyRow) -> None:
    """Give a session of single files another hour after each file."""
    values: dict[str, Any] = {"last_updated": services.clock.now_ms()}
    if row.kind == "Ingestion":
        values["deadline"] = services.clock.now_ms() + int(INGESTION_HOURS * 3600_000)
    rows.change(tx, org=row.org, import_id=row.id, values=values)


def get_upload_expiry(services: Services, row: AnyRow) -> int:
    """Return when upload addresses expire. They outlive the deadline, which every file extends."""
    return int(row.time_created + services.settings.link_hours * 3600_000)


def _get_row(tx: Connection, *, org: str, dataset_id: str, import_id: str) -> AnyRow:
    datasets.get_row(tx, org=org, dataset_id=dataset_id)
    row = rows.get(tx, org=org, import_id=import_id)
    if row is None or row.dataset_id != dataset_id:
        raise not_found("import", import_id)
    return row
