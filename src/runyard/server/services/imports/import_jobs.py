"""The background job of an import: a process examines the files, then the accepted rows are
committed.

The folder of an import is the protocol between this module and ``runyard.datasets.importing``: one
writer per file, whole or appended (see ``docs/dataset-storage.md``). Everything in it can be
rebuilt from rows and blobs until ``result.json`` exists. From then on the state is Committing and
the folder is the source of what goes into the dataset. It is committed in chunks, each in its own
transaction that also records the progress. So whatever ends the server, an import resumes.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.ids import resolve_folder
from runyard.limits import clean_text
from runyard.rundir import read_json, write_json
from runyard.server.services import events, retention
from runyard.server.services.context import Services
from runyard.server.services.datasets import datasets, versions
from runyard.server.services.imports.commit import (
    IMAGE_ROWS,
    RECORD_ROWS,
    SPLIT_ROWS,
    RowApplier,
)
from runyard.server.services.imports.subprocesses import read_output_tail, run_worker
from runyard.server.services.jobs import run_in_thread
from runyard.store import blobs as blob_rows
from runyard.store.datasets import assets as asset_rows
from runyard.store.datasets import datasets as dataset_rows
from runyard.store.datasets import imports as rows
from runyard.store.tables import AnyRow

log = logging.getLogger(__name__)

JOB, PACKS, SEALED, KNOWN = "job.json", "packs.jsonl", "sealed.json", "known.jsonl"
PROGRESS, FINDINGS, RESULT = "progress.json", "findings.jsonl", "result.json"
IMAGES, RECORDS, OWN_PACKS = "images.jsonl", "records.jsonl", "packs"
SPLITS = "splits.jsonl"

POLL_INTERVAL_S = 0.1
CHUNK = 1000  # rows per transaction: all other writes wait for it
WORKER_TRIES = 2
WORKER = "runyard.datasets.importing"
# Fields of an import's spec that are policies of the import process.
_POLICIES = (
    "onError",
    "split",
    "boxUnit",
    "boxForm",
    "onBadBox",
)
# Policies of the published client -> policies of the import process.
ON_ERROR = {"Warn": "Warn", "RejectFile": "RejectFile", "RejectSession": "RejectAll"}


def get_folder(services: Services, org: str, import_id: str) -> Path:
    """Return the folder of an import."""
    return resolve_folder(services.settings.imports_dir, org, import_id)


def start(services: Services, row: AnyRow) -> None:
    """Start the task of an import that is sealed, or whose first packs can be examined already."""
    if row.state == "Receiving" and row.kind != "Import":
        return
    services.jobs.start(("import", row.org, row.id), lambda: _run(services, row.org, row.id))


async def sweep(services: Services) -> None:
    """Start what is not over and has no task; end what has waited too long for its files."""
    for row in services.store.read(partial(rows.list_overdue, now_ms=services.clock.now_ms())):
        why = "not all files arrived in time; nothing was imported"
        await end_early(services, row, state="Failed", why=why)
    for row in services.store.read(rows.list_active):
        if row.state != "Receiving" or services.store.read(
            partial(rows.list_received_hashes, org=row.org, import_id=row.id)
        ):
            start(services, row)


async def end_early(services: Services, row: AnyRow, *, state: str, why: str) -> None:
    """End an import without committing anything."""
    await services.jobs.stop(("import", row.org, row.id))
    now = services.store.read(partial(rows.get, org=row.org, import_id=row.id))
    if now is not None and now.state in ("Receiving", "Sealed"):
        await _end_import(services, now, state=state, why=why)


async def _run(services: Services, org: str, import_id: str) -> None:
    row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if row is None or row.state not in rows.ACTIVE_STATES:
        return
    folder = get_folder(services, org, import_id)
    result = read_json(folder / RESULT)
    if result is None and row.state == "Committing":
        # The folder is lost, as after a restore. Committing from the beginning again is harmless.
        again = {"state": "Sealed", "images_done": 0, "records_done": 0}
        await services.store.write(partial(rows.change, org=org, import_id=import_id, values=again))
        row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if result is None and row is not None:
        result = await _examine_files(services, row, folder)
    row = services.store.read(partial(rows.get, org=org, import_id=import_id))
    if row is None or row.state not in ("Sealed", "Committing"):
        return
    if result is None:
        why = "the import process ended without a result; see the server's log"
        await _end_import(services, row, state="Failed", why=why)
    elif result.get("decision") != "Accepted":
        await _end_import(
            services,
            row,
            state="Failed",
            why=str(result.get("why") or "nothing could be imported"),
            result=result,
        )
    else:
        await _commit_result(services, row, folder, result)


async def _examine_files(services: Services, row: AnyRow, folder: Path) -> dict[str, Any] | None:
    """Return the worker's result; None when it ended without one, twice."""
    is_early = row.state == "Receiving"
    semaphore = services.jobs.early_workers if is_early else services.jobs.workers
    async with semaphore:
        for _ in range(WORKER_TRIES):
            listed = await run_in_thread(_prepare_folder, services, row, folder)
            await _run_worker(services, row, folder, listed)
            if (result := read_json(folder / RESULT)) is not None:
                return result
            log.error(
                "the worker of import %s left no result: %s", row.id, read_output_tail(folder)
            )
    return None


async def _run_worker(services: Services, row: AnyRow, folder: Path, listed: int) -> None:
    """Start the worker and wait until it has ended.

    Meanwhile write packs that arrive, from number ``listed`` on, and the seal to its folder. Nobody
    else writes those files.
    """
    is_sealed = row.state == "Sealed"
    async with run_worker(WORKER, folder) as ending:
        while not ending.done():
            if not is_sealed:
                now = services.store.read(partial(rows.get, org=row.org, import_id=row.id))
                # After reading the state: a seal comes after all packs.
                listed = _write_packs(services, row, folder, after=listed)
                is_sealed = now is None or now.state != "Receiving"
                if is_sealed:
                    write_json(folder / SEALED, {"packs": listed})
            await asyncio.wait({ending}, timeout=None if is_sealed else POLL_INTERVAL_S)


def _prepare_folder(services: Services, row: AnyRow, folder: Path) -> int:
    """Prepare the folder for a new worker; return the number of the last pack that it lists."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    dataset = services.store.read(partial(datasets.get_row, org=row.org, dataset_id=row.dataset_id))
    _write_known(services, row, folder)
    job = {
        "org": row.org,
        "datasetId": row.dataset_id,
        "datasetType": None if _decides_type(row, dataset) else dataset.type,
        "blobsDir": str(services.blobs(row.org).root),
        "known": KNOWN,
        **_build_options(row),
    }
    (folder / SEALED).unlink(missing_ok=True)
    (folder / PACKS).unlink(missing_ok=True)
    write_json(folder / JOB, job)
    listed = _write_packs(services, row, folder, after=0)
    if row.state == "Sealed":
        write_json(folder / SEALED, {"packs": listed})
    return listed


def _decides_type(row: AnyRow, dataset: AnyRow) -> bool:
    """Return whether the files decide the type of the dataset.

    They do if it has no records, and no type was given.
    """
    return (
        row.kind == "Import"
        and not dataset.record_count
        and json.loads(row.spec).get("datasetType") == "auto"
    )


def _build_options(row: AnyRow) -> dict[str, Any]:
    """Return the options of the session for the worker."""
    spec = json.loads(row.spec)
    if row.kind == "Import":
        # An import from before the policy existed ends as it began: its splits are ignored.
        policies = {"split": "ignore"} | {name: spec[name] for name in _POLICIES if name in spec}
        return {
            "format": spec.get("format", "auto"),
            "policies": policies,
            "files": spec.get("files"),
        }
    if row.kind == "Annotations":
        given = spec.get("failurePolicies", {})
        strictest = max(
            (
                ON_ERROR.get(given.get(name), "RejectAll")
                for name in ("onBadAnnotation", "onBadFile")
            ),
            key=("Warn", "RejectRow", "RejectFile", "RejectAll").index,
        )
        return {"format": "auto", "policies": {"onError": strictest}}
    return {"format": "auto", "policies": {"onError": "RejectRow"}}


def _write_known(services: Services, row: AnyRow, folder: Path) -> None:
    """Write the dataset's images in the form of ``images.jsonl``: rows may be about them."""
    temporary = folder / (KNOWN + ".new")
    with open(temporary, "wb") as file:
        after = ""
        key: Any = {"org": row.org, "dataset_id": row.dataset_id}
        while found := services.store.read(
            partial(asset_rows.list_by_filename, **key, after=after, limit=CHUNK, with_bytes=True)
        ):
            file.writelines(msgspec.json.encode(_to_known_image(asset)) + b"\n" for asset in found)
            after = found[-1].filename
    temporary.replace(folder / KNOWN)


def _to_known_image(asset: AnyRow) -> dict[str, Any]:
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
        "split": asset.split,
        "isAnnotated": asset.record_count > 0,
    }


def _write_packs(services: Services, row: AnyRow, folder: Path, *, after: int) -> int:
    """Append every received blob with a higher number; return the highest."""
    files = services.store.read(
        partial(rows.list_files, org=row.org, import_id=row.id, after=after)
    )
    with open(folder / PACKS, "ab") as file:
        for blob in files:
            if blob.sha256 is not None:
                entry = {"sha256": blob.sha256, "size": blob.size_bytes}
                entry |= {"number": blob.number} if blob.name is None else {"path": blob.name}
                file.write(msgspec.json.encode(entry) + b"\n")
    return int(files[-1].number) if files else after


async def _commit_result(
    services: Services, row: AnyRow, folder: Path, result: dict[str, Any]
) -> None:
    """Commit everything that was accepted to the dataset, resuming where the last task ended."""
    async with services.jobs.lock(row.org, row.dataset_id):
        if row.state == "Sealed":
            refused = await run_in_thread(_find_overwrite, services, row, folder)
            if refused is not None:
                await _end_import(services, row, state="Failed", why=refused, result=result)
                return
            await _store_own_packs(services, row, folder)
            await run_in_thread(_flush, folder)
            if not await services.store.write(lambda tx: _begin_commit(services, tx, row, result)):
                return
        await _commit_lines(services, row, folder / IMAGES, row.images_done, IMAGE_ROWS)
        await _commit_lines(services, row, folder / RECORDS, row.records_done, RECORD_ROWS)
        if (folder / SPLITS).exists():  # not if an older server's worker made the folder
            # Short and harmless to repeat, so their progress is not recorded.
            await _commit_lines(services, row, folder / SPLITS, 0, SPLIT_ROWS)
    version = await versions.ensure_current(services, org=row.org, dataset_id=row.dataset_id)
    await _end_import(
        services,
        row,
        state="Done",
        why=None,
        result=result,
        version=version.id if version else None,
    )


def _begin_commit(services: Services, tx: Connection, row: AnyRow, result: dict[str, Any]) -> bool:
    """Record that the commit begins, and set the dataset's type if the files decide it.

    Return False when the import was ended meanwhile.
    """
    values: dict[str, Any] = {"state": "Committing", "last_updated": services.clock.now_ms()}
    if not rows.transition(tx, org=row.org, import_id=row.id, before=("Sealed",), values=values):
        return False
    dataset = datasets.get_row(tx, org=row.org, dataset_id=row.dataset_id)
    if _decides_type(row, dataset) and result.get("type") not in (None, dataset.type):
        changes = {"type": result["type"], "generation": dataset.generation + 1}
        dataset_rows.change(tx, org=row.org, dataset_id=row.dataset_id, values=changes)
    return True


async def _commit_lines(
    services: Services, row: AnyRow, path: Path, done: int, applier: RowApplier
) -> None:
    """Commit the lines of a file in chunks.

    The next chunk is read while the last one is written.
    """
    with open(path, "rb") as file:
        for _ in islice(file, done):
            pass

        def read_chunk() -> tuple[int, Any]:
            lines = list(islice(file, CHUNK))
            return len(lines), applier.parse(lines)

        count, prepared = await run_in_thread(read_chunk)
        while count:
            done += count
            apply_chunk = partial(
                applier.apply, row=row, prepared=prepared, done=done, now_ms=services.clock.now_ms()
            )
            _, (count, prepared) = await asyncio.gather(
                services.store.write(apply_chunk), run_in_thread(read_chunk)
            )


def _find_overwrite(services: Services, row: AnyRow, folder: Path) -> str | None:
    """Return why a session is refused whose annotations would overwrite others.

    Return None when none would, or when they may.
    """
    policy = (
        json.loads(row.spec).get("failurePolicies", {}).get("onOverwritten")
        if row.kind == "Annotations"
        else None
    )
    if policy != "RejectSession":
        return None
    with open(folder / RECORDS, "rb") as file:
        while lines := list(islice(file, CHUNK)):
            ids = {RECORD_ROWS.parse_id(line) for line in lines}
            key: Any = {"org": row.org, "dataset_id": row.dataset_id}
            if known := services.store.read(partial(asset_rows.find_records, **key, ids=ids)):
                return (
                    f"annotation {min(known)!r} already exists, and onOverwritten is RejectSession"
                )
    return None


async def _store_own_packs(services: Services, row: AnyRow, folder: Path) -> None:
    """Store packs that the worker made from containers as blobs of the import, as if uploaded."""
    paths = sorted((folder / OWN_PACKS).iterdir()) if (folder / OWN_PACKS).is_dir() else []
    received = services.store.read(
        partial(rows.list_received_hashes, org=row.org, import_id=row.id)
    )
    for path in paths:
        sha256, size_bytes = await run_in_thread(_hash_file, path)
        if sha256 in received:
            continue
        async with services.blob_lock:
            await run_in_thread(_store_blob, services, row.org, path, sha256, size_bytes)

            def insert_pack(
                tx: Connection, sha256: str = sha256, size_bytes: int = size_bytes
            ) -> None:
                number = rows.next_file_number(tx, org=row.org, import_id=row.id)
                file = {"org": row.org, "import_id": row.id, "number": number}
                rows.add_files(tx, [{**file, "size_bytes": size_bytes, "sha256": sha256}])

            await services.store.write(insert_pack)


def _hash_file(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _store_blob(services: Services, org: str, path: Path, sha256: str, size_bytes: int) -> None:
    with open(path, "rb") as file:
        services.blobs(org).put(file, sha256=sha256, size_bytes=size_bytes)


def _flush(folder: Path) -> None:
    """Flush the folder to disk: from now on it is the only source and must survive a power loss."""
    for name in (IMAGES, RECORDS, SPLITS, FINDINGS, RESULT):
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _end_import(
    services: Services,
    row: AnyRow,
    *,
    state: str,
    why: str | None,
    result: dict[str, Any] | None = None,
    version: str | None = None,
) -> None:
    """End an import: store its report, remove its files and its folder."""
    folder = get_folder(services, row.org, row.id)
    seen = await run_in_thread(_summarize, services, row, folder, result, is_taken=state == "Done")

    async with services.blob_lock:
        report = await run_in_thread(_store_findings, services, row.org, folder)
        values = {
            "state": state,
            "why": None if why is None else clean_text(why),
            "version": version,
            "sha256": report,
            "seen": msgspec.json.encode(seen),
            "last_updated": services.clock.now_ms(),
        }

        def end_import(tx: Connection) -> None:
            if rows.transition(
                tx, org=row.org, import_id=row.id, before=rows.ACTIVE_STATES, values=values
            ):
                blobs = rows.remove_files(tx, org=row.org, import_id=row.id)
                blob_rows.mark_unneeded(tx, org=row.org, hashes=blobs)
                _record_end(tx, row, values)

        await services.store.write(end_import)
    await run_in_thread(shutil.rmtree, folder, ignore_errors=True)
    await retention.remove_unneeded_blobs(services, org=row.org)


def _record_end(tx: Connection, row: AnyRow, values: Mapping[str, Any]) -> None:
    """Record the event of an import that ends with these values of its row."""
    events.record(
        tx,
        org=row.org,
        now_ms=values["last_updated"],
        kind="import",
        target=row.id,
        what="ended",
        document={
            "datasetId": row.dataset_id,
            "kind": row.kind,
            "state": values["state"],
            "why": values["why"],
            "version": values["version"],
        },
    )


def _summarize(
    services: Services, row: AnyRow, folder: Path, result: dict[str, Any] | None, *, is_taken: bool
) -> dict[str, Any]:
    """Return what is kept of progress, findings and files when the folder is gone."""
    counts = services.store.read(partial(rows.count_files, org=row.org, import_id=row.id))
    seen: dict[str, Any] = {
        "progress": read_json(folder / PROGRESS) or {},
        "format": (result or {}).get("format"),
        "counts": (result or {}).get("counts"),
        "files": {"total": counts[0], "received": counts[1], "sizeBytes": counts[3]},
    }
    if row.kind == "Ingestion":
        seen["faults"] = _list_rejected_files(services, row, folder, is_taken=is_taken)
    return seen


# The published client's codes for what may be wrong with an image.
_CLIENT_CODES = {
    "ImageTypeUnsupported": "EBADMIME",
    "ImageTooLarge": "EBADSIZE",
    "ImageEmpty": "EBADSIZE",
    "NameUnsafe": "EUNKNOWN",
}
_CLIENT_CODE_ABSENT = "ETIMEOUT"


def _list_rejected_files(
    services: Services, row: AnyRow, folder: Path, *, is_taken: bool
) -> dict[str, str]:
    """Return the announced files that did not become images.

    Each has a code of the published client.
    """
    taken = {line["path"] for line in iter_json_lines(folder / IMAGES)} if is_taken else set[str]()
    found = {
        line["file"]: line["code"]
        for line in iter_json_lines(folder / FINDINGS)
        if line.get("severity") == "error"
    }
    codes = {}
    for file in services.store.read(partial(rows.list_files, org=row.org, import_id=row.id)):
        if file.name is None or file.name in taken:
            continue
        if file.sha256 is None:
            codes[file.name] = file.fault or _CLIENT_CODE_ABSENT
        else:
            codes[file.name] = _CLIENT_CODES.get(found.get(file.name, ""), "ECORRUPT")
    return codes


def _store_findings(services: Services, org: str, folder: Path) -> str | None:
    """Store the findings as a blob; None when there are none."""
    path = folder / FINDINGS
    if not path.is_file() or not path.stat().st_size:
        return None
    sha256, size_bytes = _hash_file(path)
    _store_blob(services, org, path, sha256, size_bytes)
    return sha256


def iter_json_lines(path: Path) -> Iterator[Any]:
    """Yield every complete line of a file that may be growing, or may not exist."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def read_progress(services: Services, row: AnyRow) -> dict[str, Any]:
    """Return the progress that the worker last reported."""
    return read_json(get_folder(services, row.org, row.id) / PROGRESS) or {}
