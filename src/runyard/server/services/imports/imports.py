"""Imports: files on their way into a dataset. One engine, three faces.

Our own sessions (``DatasetImport``) take packs; the published client's take single files, pictures by one kind of
session (``ingestion``) and annotations by another (``annotation_imports``). Whichever way they come, bytes are blobs
and rows of ``import_files`` the moment they are acknowledged; when all are there the import is *sealed*, a process
looks at them (``import_jobs``), and what it accepts goes into the dataset.

A state only goes forward, by one conditional update, so that of a cancel, a deadline and a finish that come at once one
wins: Receiving -> Sealed -> Committing -> Done, and from the first three to Failed or Cancelled.
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
from runyard.server.services import pages
from runyard.server.services.access.signing import UploadLink
from runyard.server.services.context import Actor, Services
from runyard.server.services.datasets import datasets
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.imports import import_jobs
from runyard.server.services.pages import PageRequest
from runyard.store import blobs as blob_rows
from runyard.store import imports as rows
from runyard.store.tables import AnyRow

Kind = Literal["Import", "Ingestion", "Annotations"]

IMPORT_HOURS, INGESTION_HOURS = 24.0, 1.0
LARGEST_UPLOAD = 64 << 30
SPARE_BYTES = 64 << 20  # what an upload must leave free on the disk
PIECE_BYTES = 1 << 20
INCOMING = ".incoming-"  # files below an organisation's folder that are not yet anything


@dataclass(frozen=True, kw_only=True)
class Announced:
    """A file that is to come: its name in the dataset, and what was said of it."""

    name: str
    size_bytes: int
    crc32c: int | None = None  # unsigned
    mime: str | None = None
    custom: Mapping[str, Any] | None = None
    fault: str | None = None


async def create(
    services: Services,
    actor: Actor,
    dataset_id: str,
    *,
    kind: Kind,
    spec: Any,
    deadline_ms: int,
    attributes: Mapping[str, str],
    files: Sequence[Announced] = (),
) -> AnyRow:
    """Begin an import; returns its row.

    Raises:
        Refusal: NotFound.
    """
    org, now_ms, import_id = actor.org, services.clock.now_ms(), secrets.token_hex(12)

    def work(connection: Connection) -> AnyRow:
        datasets.found(connection, org=org, dataset_id=dataset_id)
        rows.add(
            connection,
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
        announce(connection, org=org, import_id=import_id, files=files)
        services.audit(actor, "begin import", f"{dataset_id}/{import_id}")(connection)
        return _row(connection, org=org, dataset_id=dataset_id, import_id=import_id)

    return await services.store.write(work)


def announce(connection: Connection, *, org: str, import_id: str, files: Sequence[Announced]) -> None:
    """Put down files that are to come."""
    first = rows.next_file_number(connection, org=org, import_id=import_id)
    rows.add_files(
        connection,
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
                "fault": file.fault,
            }
            for number, file in enumerate(files, first)
        ],
    )


def get(services: Services, *, org: str, dataset_id: str, import_id: str, kind: Kind | None = None) -> AnyRow:
    """The row of an import.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(partial(_row, org=org, dataset_id=dataset_id, import_id=import_id))
    if kind is not None and row.kind != kind:
        raise not_found("import", import_id)
    return row


async def listed(services: Services, *, org: str, dataset_id: str, kind: Kind, told: Any, wanted: PageRequest) -> bytes:
    """Return a page of imports, newest first, each as the document that ``told`` makes of its row."""
    place: Any = {"org": org, "dataset_id": dataset_id}
    services.store.read(partial(datasets.found, **place))

    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(connection, **place, kind=kind, after=after, limit=limit)

    return await pages.read(services, wanted, org=org, fetch=fetch, encode=lambda row: msgspec.json.encode(told(row)))


def upload_url(services: Services, row: AnyRow, origin: str, *, number: int = 0, part: int = 0) -> str:
    """Where a file of an import goes, without a key. Number 0: packs, each under its hash."""
    expires_at = row.deadline if row.kind != "Ingestion" else ingestion_end(services, row)
    token = services.signer.upload(UploadLink(row.org, row.dataset_id, row.id, number, part, expires_at))
    return f"{origin}/uploads/{token}"


def opened_upload(services: Services, token: str) -> tuple[UploadLink, AnyRow]:
    """The import that a signed address is for, if it still takes files.

    Raises:
        Refusal: NotFound, ImportOver.
    """
    link = services.signer.opened_upload(token)
    row = None
    if link is not None and services.clock.now_ms() < link.expires_at:
        row = services.store.read(lambda connection: rows.get(connection, org=link.org, import_id=link.import_id))
    if link is None or row is None:
        raise Refusal("NotFound", "this upload address is not valid, or no longer; begin a new session to get others")
    if row.state != "Receiving":
        raise over(row)
    return link, row


def check_received(services: Services, row: AnyRow, *, sha256: str) -> None:
    """See that a pack has come.

    Raises:
        Refusal: NotFound.
    """
    if sha256 not in services.store.read(partial(rows.list_received_hashes, org=row.org, import_id=row.id)):
        raise not_found("pack", sha256[:64])


async def receive_pack(
    services: Services, row: AnyRow, chunks: AsyncIterator[bytes], *, sha256: str, size_bytes: int | None
) -> None:
    """Take one pack; on disk when this returns. Taking it again changes nothing.

    Raises:
        Refusal: InvalidBody (length or hash are not those announced), ImportOver.
    """
    if size_bytes is None:
        raise Refusal("InvalidBody", "a pack's length must be announced; send Content-Length")
    if sha256 in services.store.read(partial(rows.list_received_hashes, org=row.org, import_id=row.id)):
        async for _ in chunks:
            pass
        return
    await _receive_blob(services, row.org, chunks, sha256=sha256, size_bytes=size_bytes)

    def work(connection: Connection) -> None:
        _check_receiving(connection, row)
        if sha256 in rows.list_received_hashes(connection, org=row.org, import_id=row.id):
            return
        number = rows.next_file_number(connection, org=row.org, import_id=row.id)
        file = {"org": row.org, "import_id": row.id, "number": number, "size_bytes": size_bytes, "sha256": sha256}
        rows.add_files(connection, [file])
        _prolong(services, connection, row)

    await _refer(services, row, sha256, work)
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
    """Take one announced file, whose hash nobody has told; length and CRC-32C are checked if they were announced.

    ``also`` is done in the transaction that puts the file down.

    Raises:
        Refusal: NotFound, InvalidBody, ImportOver.
    """
    file = services.store.read(partial(rows.get_file, org=row.org, import_id=row.id, number=number))
    if file is None:
        raise Refusal("NotFound", f"the import has no file {number}")
    if size_bytes is not None and size_bytes != file.size_bytes:
        raise Refusal(
            "InvalidBody",
            f"file {file.name!r} was announced with {file.size_bytes} bytes, and {size_bytes} are sent; "
            "announce it anew as it is now",
        )
    async with spooled(services, row.org, chunks, limit=file.size_bytes) as came:
        if came.size_bytes != file.size_bytes or file.crc32c not in (None, came.crc32c):
            raise Refusal(
                "InvalidBody",
                f"file {file.name!r} did not arrive as it was announced ({file.size_bytes} bytes, "
                f"CRC-32C {file.crc32c}; got {came.size_bytes} bytes, {came.crc32c}); send it again",
            )
        sha256 = came.digest.hexdigest()
        await asyncio.to_thread(came.store, services.blobs(row.org), sha256)

        def work(connection: Connection) -> bool:
            _check_receiving(connection, row)
            values = {"sha256": sha256, "fault": None}
            rows.change_file(connection, org=row.org, import_id=row.id, number=number, values=values)
            _prolong(services, connection, row)
            if also is not None:
                also(connection)
            is_last = row.kind == "Ingestion" and not rows.is_awaiting_files(connection, org=row.org, import_id=row.id)
            return is_last and _seal(services, connection, row)

        is_sealed = await _refer(
            services, row, sha256, work, bring_back=partial(came.store, services.blobs(row.org), sha256)
        )
    if is_sealed:
        import_jobs.start(services, get(services, org=row.org, dataset_id=row.dataset_id, import_id=row.id))


async def finish(services: Services, actor: Actor, row: AnyRow, *, packs: Sequence[str]) -> AnyRow:
    """Everything is sent. Repeating it changes nothing.

    Raises:
        Refusal: BlobMissing, with the hashes that are not here; ImportOver (it was cancelled, or has ended).
    """

    def work(connection: Connection) -> AnyRow:
        now = _row(connection, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
        if now.state in ("Sealed", "Committing", "Done"):
            return now
        _check_receiving(connection, row)
        missing = sorted(set(packs) - rows.list_received_hashes(connection, org=row.org, import_id=row.id))
        if missing:
            raise _missing(missing)
        _seal(services, connection, row)
        services.audit(actor, "finish import", f"{row.dataset_id}/{row.id}")(connection)
        return _row(connection, org=row.org, dataset_id=row.dataset_id, import_id=row.id)

    sealed = await services.store.write(work)
    import_jobs.start(services, sealed)
    return sealed


async def cancel(services: Services, actor: Actor, row: AnyRow, *, why: str = "cancelled by the user") -> AnyRow:
    """End an import that has not begun to change the dataset; one that is over stays as it is.

    Raises:
        Refusal: ImportOver (what it brings is being taken over just now).
    """
    return await give_up(services, actor, row, state="Cancelled", why=why)


async def give_up(services: Services, actor: Actor, row: AnyRow, *, state: str, why: str) -> AnyRow:
    """End an import in a state of its own; otherwise as ``cancel``.

    Raises:
        Refusal: ImportOver (what it brings is being taken over just now).
    """

    def work(connection: Connection) -> bool:
        now = _row(connection, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
        if now.state == "Committing":
            raise over(now)
        if now.state not in rows.ACTIVE_STATES:
            return False
        services.audit(actor, "cancel import", f"{row.dataset_id}/{row.id}")(connection)
        return True

    if await services.store.write(work):
        await import_jobs.end_early(services, row, state=state, why=why)
    return get(services, org=row.org, dataset_id=row.dataset_id, import_id=row.id)


def over(row: AnyRow) -> Refusal:
    """Why nothing more is taken."""
    return Refusal(
        "ImportOver",
        f"import {row.id!r} takes no more files: it is {row.state.lower()}"
        f"{': ' + row.why if row.why else ''}; begin a new one",
    )


async def _receive_blob(
    services: Services, org: str, chunks: AsyncIterator[bytes], *, sha256: str, size_bytes: int
) -> None:
    _check_room(services, size_bytes)
    receiving = services.blobs(org).receive(sha256=sha256, size_bytes=size_bytes)
    # Hashing and writing block, so they run on a thread; entering and leaving does as well, since it fsyncs.
    upload = await asyncio.to_thread(receiving.__enter__)
    try:
        try:
            async for piece in _pieces(chunks):
                await asyncio.to_thread(upload.write, piece)
        except BaseException as error:
            if not await asyncio.to_thread(receiving.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await asyncio.to_thread(receiving.__exit__, None, None, None)
    except BlobMismatch as error:
        raise Refusal("InvalidBody", f"pack {sha256} was not stored: {error}; send it again") from error


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Chunks put together, so that few of them cross to another thread."""
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


class Spooled:
    """A file on its way in, whose hash is known only at its end."""

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
        """Unsigned."""
        return int.from_bytes(self._crc.digest(), "big")  # type: ignore[no-untyped-call]

    def write(self, piece: bytes) -> None:
        self.digest.update(piece)
        self._crc.update(piece)  # type: ignore[no-untyped-call]
        self.size_bytes += len(piece)
        self._file.write(piece)

    def store(self, blobs: Any, sha256: str) -> None:
        """Make it a blob."""
        self._file.seek(0)
        blobs.put(self._file, sha256=sha256, size_bytes=self.size_bytes)

    def keep(self, path: Path) -> None:
        """Give it a name, for good."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._path, path)
        fsync_dir(path.parent)

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def spooled(services: Services, org: str, chunks: AsyncIterator[bytes], *, limit: int) -> AsyncIterator[Spooled]:
    """Everything that is sent, at most ``limit`` bytes, in a file that is gone when the block is left."""
    _check_room(services, limit)
    came = await asyncio.to_thread(Spooled, services, org)
    try:
        async for piece in _pieces(chunks):
            if came.size_bytes + len(piece) > limit:
                raise Refusal("InvalidBody", f"more than the announced {limit} bytes arrive; announce the file anew")
            await asyncio.to_thread(came.write, piece)
        yield came
    finally:
        await asyncio.to_thread(came.close)


async def _refer(
    services: Services, row: AnyRow, sha256: str, work: Any, *, bring_back: Callable[[], None] | None = None
) -> Any:
    """Put down that the import has a blob, under the lock of those who remove blobs nobody has put down.

    One that they removed since it was stored, with the last other row that needed it, is brought back or asked for
    again.
    """
    async with services.blob_lock:
        if not await asyncio.to_thread(services.blobs(row.org).has, sha256):
            if bring_back is None:
                raise _missing([sha256])
            await asyncio.to_thread(bring_back)
        try:
            return await services.store.write(work)
        except Refusal:
            await services.store.write(partial(blob_rows.mark_unneeded, org=row.org, hashes={sha256}))
            raise


def _missing(hashes: Sequence[str]) -> Refusal:
    shown = ", ".join(hashes[:20]) + (f" and {len(hashes) - 20} more" if len(hashes) > 20 else "")
    return Refusal("BlobMissing", f"packs that are not here: {shown}; send them, then repeat")


def _check_room(services: Services, size_bytes: int) -> None:
    if size_bytes > LARGEST_UPLOAD:
        raise Refusal("BodyTooLarge", f"{size_bytes} bytes are more than one upload may have, {LARGEST_UPLOAD}")
    if size_bytes + SPARE_BYTES > free_bytes(services.settings.data_dir):
        raise Refusal(
            "StorageUnavailable", f"there is no room for {size_bytes} bytes on the server; make room, then repeat"
        )


def _check_receiving(connection: Connection, row: AnyRow) -> None:
    now = _row(connection, org=row.org, dataset_id=row.dataset_id, import_id=row.id)
    if now.state != "Receiving":
        raise over(now)


def _seal(services: Services, connection: Connection, row: AnyRow) -> bool:
    now_ms = services.clock.now_ms()
    values = {"state": "Sealed", "time_sealed": now_ms, "last_updated": now_ms}
    return rows.transition(connection, org=row.org, import_id=row.id, before=("Receiving",), values=values)


def _prolong(services: Services, connection: Connection, row: AnyRow) -> None:
    """Each byte gives the session of single files another hour."""
    values: dict[str, Any] = {"last_updated": services.clock.now_ms()}
    if row.kind == "Ingestion":
        values["deadline"] = services.clock.now_ms() + int(INGESTION_HOURS * 3600_000)
    rows.change(connection, org=row.org, import_id=row.id, values=values)


def ingestion_end(services: Services, row: AnyRow) -> int:
    """Addresses outlive the deadline, which moves on with every file."""
    return int(row.time_created + services.settings.link_hours * 3600_000)


def _row(connection: Connection, *, org: str, dataset_id: str, import_id: str) -> AnyRow:
    datasets.found(connection, org=org, dataset_id=dataset_id)
    row = rows.get(connection, org=org, import_id=import_id)
    if row is None or row.dataset_id != dataset_id:
        raise not_found("import", import_id)
    return row
