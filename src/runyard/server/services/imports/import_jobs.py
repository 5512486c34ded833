"""What happens to an import behind its session: a process looks at the files, then what it accepted is taken over.

The folder of an import is the protocol between this module and ``runyard.datasets.importing``: one writer a file, whole
or appended (see ``docs/dataset-storage.md``). Everything in it can be made anew from rows and blobs until
``result.json`` is there; from then on the state is Committing and the folder is the source of what goes into the
dataset, in chunks of their own transactions, each of which also says how far it has come. So whatever ends the server,
an import goes on.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.ids import resolve_folder
from runyard.limits import clean_text
from runyard.rundir import read_json, write_json
from runyard.server.services import retention
from runyard.server.services.context import Services
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.imports.commit import Taker, take_images, take_records
from runyard.server.services.imports.subprocesses import last_words, worker
from runyard.server.services.jobs import in_thread
from runyard.store import assets as asset_rows
from runyard.store import blobs as blob_rows
from runyard.store import datasets as dataset_rows
from runyard.store import imports as rows
from runyard.store.tables import AnyRow

log = logging.getLogger(__name__)

JOB, PACKS, SEALED, KNOWN = "job.json", "packs.jsonl", "sealed.json", "known.jsonl"
PROGRESS, FINDINGS, RESULT = "progress.json", "findings.jsonl", "result.json"
IMAGES, RECORDS, OWN_PACKS = "images.jsonl", "records.jsonl", "packs"

LOOK_EVERY_S = 0.1
CHUNK = 1000  # rows a transaction: everybody else's writes wait for it
WORKER_TRIES = 2
WORKER = "runyard.datasets.importing"
# What the published client's policies mean to a reader of rows.
ON_ERROR = {"Warn": "Warn", "RejectFile": "RejectFile", "RejectSession": "RejectAll"}


def folder_of(services: Services, org: str, import_id: str) -> Path:
    """Return the folder of an import."""
    return resolve_folder(services.settings.imports_dir, org, import_id)


def start(services: Services, row: AnyRow) -> None:
    """Let a task look after an import that is sealed, or of which files have come that can be looked at already."""
    if row.state == "Receiving" and row.kind != "Import":
        return
    services.jobs.start(("import", row.org, row.id), lambda: _run(services, row.org, row.id))


async def sweep(services: Services) -> None:
    """Start what is not over and has no task; end what has waited too long for its files."""
    for row in services.store.read(partial(rows.list_overdue, now_ms=services.clock.now_ms())):
        why = "not all files came in time; nothing was taken over"
        await end_early(services, row, state="Failed", why=why)
    for row in services.store.read(rows.list_active):
        if row.state != "Receiving" or services.store.read(
            partial(rows.list_received_hashes, org=row.org, import_id=row.id)
        ):
            start(services, row)


async def end_early(services: Services, row: AnyRow, *, state: str, why: str) -> None:
    """End an import without taking anything over."""
    await services.jobs.stop(("import", row.org, row.id))
    now = services.store.read(partial(rows.get, org=row.org, import_id=row.id))
    if now is not None and now.state in ("Receiving", "Sealed"):
        await _end(services, now, state=state, why=why)


async def _run(services: Services, org: str, import_id: str) -> None:
    row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if row is None or row.state not in rows.ACTIVE_STATES:
        return
    folder = folder_of(services, org, import_id)
    result = read_json(folder / RESULT)
    if result is None and row.state == "Committing":
        # The folder is lost, as after a restore. Taking over from the beginning again is harmless.
        again = {"state": "Sealed", "images_done": 0, "records_done": 0}
        await services.store.write(partial(rows.change, org=org, import_id=import_id, values=again))
        row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if result is None and row is not None:
        result = await _looked_at(services, row, folder)
    row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if row is None or row.state not in ("Sealed", "Committing"):
        return
    if result is None:
        why = "the process that looks at the files ended without a word; the server's log says more"
        await _end(services, row, state="Failed", why=why)
    elif result.get("decision") != "Accepted":
        await _end(services, row, state="Failed", why=str(result.get("why") or "nothing could be taken"), result=result)
    else:
        await _take_over(services, row, folder, result)


async def _looked_at(services: Services, row: AnyRow, folder: Path) -> dict[str, Any] | None:
    """The worker's result; None when it ended without one, twice."""
    is_early = row.state == "Receiving"
    places = services.jobs.early_workers if is_early else services.jobs.workers
    async with places:
        for _ in range(WORKER_TRIES):
            told = await in_thread(_prepare, services, row, folder)
            await _worked(services, row, folder, told)
            if (result := read_json(folder / RESULT)) is not None:
                return result
            log.error("the worker of import %s left no result: %s", row.id, last_words(folder))
    return None


async def _worked(services: Services, row: AnyRow, folder: Path, told: int) -> None:
    """Start the worker and wait until it has ended; it is told of packs that come, from number ``told`` on, and of the
    seal. Nobody but this writes those files."""
    is_sealed = row.state == "Sealed"
    async with worker(WORKER, folder) as ending:
        while not ending.done():
            if not is_sealed:
                now = services.store.read(partial(rows.get, org=row.org, import_id=row.id))
                told = _write_packs(services, row, folder, after=told)  # after the look: a seal comes after all packs
                is_sealed = now is None or now.state != "Receiving"
                if is_sealed:
                    write_json(folder / SEALED, {"packs": told})
            await asyncio.wait({ending}, timeout=None if is_sealed else LOOK_EVERY_S)


def _prepare(services: Services, row: AnyRow, folder: Path) -> int:
    """The folder as a new worker finds it; returns the number of the last pack it is told of."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    dataset = services.store.read(partial(datasets.found, org=row.org, dataset_id=row.dataset_id))
    _write_known(services, row, folder)
    job = {
        "org": row.org,
        "datasetId": row.dataset_id,
        "datasetType": None if _decides_type(row, dataset) else dataset.type,
        "blobsDir": str(services.blobs(row.org).root),
        "known": KNOWN,
        **_asked(row),
    }
    (folder / SEALED).unlink(missing_ok=True)
    (folder / PACKS).unlink(missing_ok=True)
    write_json(folder / JOB, job)
    told = _write_packs(services, row, folder, after=0)
    if row.state == "Sealed":
        write_json(folder / SEALED, {"packs": told})
    return told


def _decides_type(row: AnyRow, dataset: AnyRow) -> bool:
    """Whether the files say what type the dataset is of: it has no records, and nobody has named a type."""
    return row.kind == "Import" and not dataset.record_count and json.loads(row.spec).get("datasetType") == "auto"


def _asked(row: AnyRow) -> dict[str, Any]:
    """What the session asks of the worker."""
    spec = json.loads(row.spec)
    if row.kind == "Import":
        policies = {"onError": spec.get("onError", "RejectRow")}
        return {"format": spec.get("format", "auto"), "policies": policies, "files": spec.get("files")}
    if row.kind == "Annotations":
        given = spec.get("failurePolicies", {})
        strictest = max(
            (ON_ERROR.get(given.get(name), "RejectAll") for name in ("onBadAnnotation", "onBadFile")),
            key=("Warn", "RejectRow", "RejectFile", "RejectAll").index,
        )
        return {"format": "auto", "policies": {"onError": strictest}}
    return {"format": "auto", "policies": {"onError": "RejectRow"}}


def _write_known(services: Services, row: AnyRow, folder: Path) -> None:
    """The pictures that the dataset has, in the form of ``images.jsonl``: rows may be about them."""
    beside = folder / (KNOWN + ".new")
    with open(beside, "wb") as file:
        after = ""
        place: Any = {"org": row.org, "dataset_id": row.dataset_id}
        while found := services.store.read(
            partial(asset_rows.list_by_filename, **place, after=after, limit=CHUNK, with_bytes=True)
        ):
            file.writelines(msgspec.json.encode(_known_image(asset)) + b"\n" for asset in found)
            after = found[-1].filename
    beside.replace(folder / KNOWN)


def _known_image(asset: AnyRow) -> dict[str, Any]:
    return {
        "path": asset.filename,
        "sha256": asset.content,
        "size": asset.size_bytes,
        "width": asset.width,
        "height": asset.height,
        "mime": asset.mime,
        "crc32c": asset.crc32c,
        "frames": asset.frames,
        "isTurned": asset.is_turned,
        "orientation": asset.orientation,
        "blob": asset.blob,
        "offset": asset.offset,
    }


def _write_packs(services: Services, row: AnyRow, folder: Path, *, after: int) -> int:
    """Append every blob that has come and has a higher number; returns the highest."""
    files = services.store.read(partial(rows.list_files, org=row.org, import_id=row.id, after=after))
    with open(folder / PACKS, "ab") as file:
        for blob in files:
            if blob.sha256 is not None:
                told = {"sha256": blob.sha256, "size": blob.size_bytes}
                told |= {"number": blob.number} if blob.name is None else {"path": blob.name}
                file.write(msgspec.json.encode(told) + b"\n")
    return int(files[-1].number) if files else after


async def _take_over(services: Services, row: AnyRow, folder: Path, result: dict[str, Any]) -> None:
    """Put everything that was accepted into the dataset, from where the last one who tried had come."""
    async with services.jobs.lock(row.org, row.dataset_id):
        if row.state == "Sealed":
            refused = await in_thread(_overwritten, services, row, folder)
            if refused is not None:
                await _end(services, row, state="Failed", why=refused, result=result)
                return
            await _keep_own_packs(services, row, folder)
            await in_thread(_flush, folder)
            if not await services.store.write(partial(_commit, services, row, result)):
                return
        await _take_lines(services, row, folder / IMAGES, row.images_done, take_images)
        await _take_lines(services, row, folder / RECORDS, row.records_done, take_records)
    version = await versions.current(services, org=row.org, dataset_id=row.dataset_id)
    await _end(services, row, state="Done", why=None, result=result, version=version.id if version else None)


def _commit(services: Services, row: AnyRow, result: dict[str, Any], connection: Connection) -> bool:
    """From now on it goes into the dataset, whose type it may decide; False when it was ended meanwhile."""
    values: dict[str, Any] = {"state": "Committing", "last_updated": services.clock.now_ms()}
    if not rows.transition(connection, org=row.org, import_id=row.id, before=("Sealed",), values=values):
        return False
    dataset = datasets.found(connection, org=row.org, dataset_id=row.dataset_id)
    if _decides_type(row, dataset) and result.get("type") not in (None, dataset.type):
        changes = {"type": result["type"], "generation": dataset.generation + 1}
        dataset_rows.change(connection, org=row.org, dataset_id=row.dataset_id, values=changes)
    return True


async def _take_lines(services: Services, row: AnyRow, path: Path, done: int, take: Taker) -> None:
    """The next chunk is read while the last one is written."""
    with open(path, "rb") as file:
        for _ in islice(file, done):
            pass

        def read() -> tuple[int, Any]:
            lines = list(islice(file, CHUNK))
            return len(lines), take.read(lines)

        count, prepared = await in_thread(read)
        while count:
            done += count
            work = partial(take.write, row=row, prepared=prepared, done=done, now_ms=services.clock.now_ms())
            _, (count, prepared) = await asyncio.gather(services.store.write(work), in_thread(read))


def _overwritten(services: Services, row: AnyRow, folder: Path) -> str | None:
    """Why a session is refused whose annotations would overwrite others; None when none does, or when it may."""
    policy = json.loads(row.spec).get("failurePolicies", {}).get("onOverwritten") if row.kind == "Annotations" else None
    if policy != "RejectSession":
        return None
    with open(folder / RECORDS, "rb") as file:
        while lines := list(islice(file, CHUNK)):
            ids = {take_records.id_of(line) for line in lines}
            place: Any = {"org": row.org, "dataset_id": row.dataset_id}
            if known := services.store.read(partial(asset_rows.find_records, **place, ids=ids)):
                return f"annotation {min(known)!r} is there already, and onOverwritten is RejectSession"
    return None


async def _keep_own_packs(services: Services, row: AnyRow, folder: Path) -> None:
    """Packs that the worker made of what containers carried become blobs of the import, as if they had been sent."""
    paths = sorted((folder / OWN_PACKS).iterdir()) if (folder / OWN_PACKS).is_dir() else []
    received = services.store.read(partial(rows.list_received_hashes, org=row.org, import_id=row.id))
    for path in paths:
        sha256, size_bytes = await in_thread(_hashed, path)
        if sha256 in received:
            continue
        async with services.blob_lock:
            await in_thread(_store, services, row.org, path, sha256, size_bytes)

            def work(connection: Connection, sha256: str = sha256, size_bytes: int = size_bytes) -> None:
                number = rows.next_file_number(connection, org=row.org, import_id=row.id)
                file = {"org": row.org, "import_id": row.id, "number": number}
                rows.add_files(connection, [{**file, "size_bytes": size_bytes, "sha256": sha256}])

            await services.store.write(work)


def _hashed(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _store(services: Services, org: str, path: Path, sha256: str, size_bytes: int) -> None:
    with open(path, "rb") as file:
        services.blobs(org).put(file, sha256=sha256, size_bytes=size_bytes)


def _flush(folder: Path) -> None:
    """From now on the folder is the only source: it must survive a loss of power."""
    for name in (IMAGES, RECORDS, FINDINGS, RESULT):
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _end(
    services: Services,
    row: AnyRow,
    *,
    state: str,
    why: str | None,
    result: dict[str, Any] | None = None,
    version: str | None = None,
) -> None:
    """The last word on an import: its report stays, its files and its folder go."""
    folder = folder_of(services, row.org, row.id)
    seen = await in_thread(_seen, services, row, folder, result, is_taken=state == "Done")

    async with services.blob_lock:
        report = await in_thread(_keep_findings, services, row.org, folder)
        values = {
            "state": state,
            "why": None if why is None else clean_text(why),
            "version": version,
            "sha256": report,
            "seen": msgspec.json.encode(seen),
            "last_updated": services.clock.now_ms(),
        }

        def work(connection: Connection) -> None:
            if rows.transition(connection, org=row.org, import_id=row.id, before=rows.ACTIVE_STATES, values=values):
                blobs = rows.remove_files(connection, org=row.org, import_id=row.id)
                blob_rows.mark_unneeded(connection, org=row.org, hashes=blobs)

        await services.store.write(work)
    await in_thread(shutil.rmtree, folder, ignore_errors=True)
    await retention.remove_unneeded(services, org=row.org)


def _seen(
    services: Services, row: AnyRow, folder: Path, result: dict[str, Any] | None, *, is_taken: bool
) -> dict[str, Any]:
    """What stays of progress, findings and files when the folder is gone."""
    counts = services.store.read(partial(rows.count_files, org=row.org, import_id=row.id))
    seen: dict[str, Any] = {
        "progress": read_json(folder / PROGRESS) or {},
        "format": (result or {}).get("format"),
        "counts": (result or {}).get("counts"),
        "files": {"total": counts[0], "received": counts[1], "sizeBytes": counts[3]},
    }
    if row.kind == "Ingestion":
        seen["faults"] = _faults(services, row, folder, is_taken=is_taken)
    return seen


# The published client's words for what may be wrong with a picture.
_FAULTS = {
    "ImageTypeUnsupported": "EBADMIME",
    "ImageTooLarge": "EBADSIZE",
    "ImageEmpty": "EBADSIZE",
    "NameUnsafe": "EUNKNOWN",
}
_ABSENT = "ETIMEOUT"


def _faults(services: Services, row: AnyRow, folder: Path, *, is_taken: bool) -> dict[str, str]:
    """Announced files that did not become pictures, with a code each."""
    taken = {line["path"] for line in json_lines(folder / IMAGES)} if is_taken else set[str]()
    found = {line["file"]: line["code"] for line in json_lines(folder / FINDINGS) if line.get("severity") == "error"}
    faults = {}
    for file in services.store.read(partial(rows.list_files, org=row.org, import_id=row.id)):
        if file.name is None or file.name in taken:
            continue
        if file.sha256 is None:
            faults[file.name] = file.fault or _ABSENT
        else:
            faults[file.name] = _FAULTS.get(found.get(file.name, ""), "ECORRUPT")
    return faults


def _keep_findings(services: Services, org: str, folder: Path) -> str | None:
    """The findings as a blob; None when there are none."""
    path = folder / FINDINGS
    if not path.is_file() or not path.stat().st_size:
        return None
    sha256, size_bytes = _hashed(path)
    _store(services, org, path, sha256, size_bytes)
    return sha256


def json_lines(path: Path) -> Iterator[Any]:
    """Every whole line of a file that may be growing; none of one that is not there."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def live_progress(services: Services, row: AnyRow) -> dict[str, Any]:
    """What the worker last said of itself."""
    return read_json(folder_of(services, row.org, row.id) / PROGRESS) or {}


async def remove_strays(services: Services, org: str, names: list[str]) -> None:
    """Folders of imports that do not exist."""
    for name in names:
        await in_thread(shutil.rmtree, folder_of(services, org, name), ignore_errors=True)
