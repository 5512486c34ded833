"""One large file that is uploaded in parts.

Parts are files in the import's folder; together they become a blob. The state is in the folder, not
in a row: an upload that a restore of a backup interrupts begins again.
"""

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from runyard.ids import resolve_folder
from runyard.rundir import read_json, write_json
from runyard.server.services.access.signing import UploadLink
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.imports import import_jobs, imports
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow

FOLDER, ABOUT, PART_BYTES, MOST_PARTS = "multipart", "upload.json", 64 << 20, 10_000
CHUNK_BYTES = 1 << 20


async def begin(
    services: Services, actor: Actor, row: AnyRow, *, filename: str, size_bytes: int
) -> tuple[str, int]:
    """Begin the upload of one announced file; return its id and the number of parts.

    Raises:
        Refusal: NotFound (no such file was announced), InvalidBody (another length was),
            ImportOver.
    """
    if row.state != "Receiving":
        raise imports.import_over(row)
    file = services.store.read(
        partial(rows.find_file, org=row.org, import_id=row.id, name=filename)
    )
    if file is None:
        raise not_found("announced file", filename)
    if file.size_bytes != size_bytes:
        raise Refusal(
            "InvalidBody",
            f"file {filename!r} was announced with {file.size_bytes} bytes, not {size_bytes}; try: "
            "announce it again",
        )
    parts = min(MOST_PARTS, max(1, -(-size_bytes // PART_BYTES)))
    # The id names the import as well, since the client's later requests do not.
    id = f"{row.id}-{file.number}-{secrets.token_hex(6)}"
    folder = _get_folder(services, row.org, id)

    def create_folder() -> None:
        folder.mkdir(parents=True, mode=0o700)
        write_json(folder / ABOUT, {"number": file.number, "parts": parts, "sizeBytes": size_bytes})

    await services.store.write(services.audit(actor, "begin upload", f"{row.dataset_id}/{id}"))
    await asyncio.to_thread(create_folder)
    return id, parts


def get(services: Services, *, org: str, dataset_id: str, id: str) -> tuple[AnyRow, dict[str, Any]]:
    """Return the import of a multipart upload, and its state.

    Raises:
        Refusal: NotFound.
    """
    about = read_json(_get_folder(services, org, id) / ABOUT)
    if about is None:
        raise not_found("multipart upload", id)
    return imports.get(
        services, org=org, dataset_id=dataset_id, import_id=_parse_import_id(id)
    ), about


def sign_part_url(
    services: Services, row: AnyRow, id: str, about: dict[str, Any], *, part: int, origin: str
) -> str:
    """Return the address for a part.

    Raises:
        Refusal: NotFound.
    """
    if not 1 <= part <= about["parts"]:
        raise not_found(f"part of multipart upload {id!r}", str(part))
    return (
        imports.sign_upload_url(services, row, origin, number=about["number"], part=part) + f"/{id}"
    )


async def receive_part(
    services: Services, row: AnyRow, chunks: AsyncIterator[bytes], *, link: UploadLink, id: str
) -> str:
    """Receive one part; it is on disk when this returns. Return its hash."""
    about = read_json(_get_folder(services, row.org, id) / ABOUT)
    if about is None or _parse_import_id(id) != row.id or about["number"] != link.number:
        raise not_found("multipart upload", id)
    limit = _get_part_bytes(about, link.part)
    async with imports.spool(services, row.org, chunks, limit=limit) as part:
        if part.size_bytes != limit:
            raise Refusal(
                "InvalidBody",
                f"part {link.part} has {limit} bytes, but {part.size_bytes} arrived; try: send it "
                "again",
            )
        await asyncio.to_thread(part.keep, _get_folder(services, row.org, id) / str(link.part))
        return part.digest.hexdigest()


def has_part(services: Services, org: str, id: str, part: int) -> bool:
    """Return whether a part has arrived."""
    return (_get_folder(services, org, id) / str(part)).is_file()


async def complete(
    services: Services, actor: Actor, row: AnyRow, id: str, about: dict[str, Any]
) -> None:
    """Join the parts into one file.

    Raises:
        Refusal: BlobMissing (a part has not arrived), InvalidBody, ImportOver.
    """
    folder = _get_folder(services, row.org, id)
    missing = [part for part in range(1, about["parts"] + 1) if not (folder / str(part)).is_file()]
    if missing:
        raise Refusal(
            "BlobMissing",
            f"parts {missing[:20]} of {about['parts']} have not arrived; try: send them, then "
            "repeat",
        )
    chunks = _read_chunks(folder, about["parts"])
    await imports.receive_file(
        services,
        row,
        chunks,
        number=about["number"],
        size_bytes=about["sizeBytes"],
        also=services.audit(actor, "complete upload", f"{row.dataset_id}/{id}"),
    )
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def abort(services: Services, actor: Actor, row: AnyRow, id: str) -> None:
    """Remove the parts that have arrived."""
    await services.store.write(services.audit(actor, "abort upload", f"{row.dataset_id}/{id}"))
    await asyncio.to_thread(shutil.rmtree, _get_folder(services, row.org, id), ignore_errors=True)


async def _read_chunks(folder: Path, parts: int) -> AsyncIterator[bytes]:
    def read_parts() -> Iterator[bytes]:
        for part in range(1, parts + 1):
            with open(folder / str(part), "rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    pieces = read_parts()
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _get_part_bytes(about: dict[str, Any], part: int) -> int:
    """Return the length of a part: equal lengths, rounded down; the last part has the rest."""
    size_bytes, parts = int(about["sizeBytes"]), int(about["parts"])
    each = size_bytes // parts
    return each if part < parts else size_bytes - each * (parts - 1)


def _parse_import_id(id: str) -> str:
    return id.partition("-")[0]


def _get_folder(services: Services, org: str, id: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]+-[0-9]+-[0-9a-f]+", id):
        raise not_found("multipart upload", id)
    return resolve_folder(import_jobs.get_folder(services, org, _parse_import_id(id)), FOLDER, id)
