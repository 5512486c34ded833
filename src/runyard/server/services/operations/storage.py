"""Proves that store and disk agree, and removes what nothing needs.

What can be wrong: bytes that nothing needs, checkpoints and datasets whose bytes are gone, folders of runs or imports
that do not exist, and folders of organisations that do not, which a restore may leave; those are the first
organisation's to find.
All but lost bytes are rubbish that a collection removes; nothing here mends a loss, so it is only told.

Bytes come before the row that needs them, so while an attempt or an import of the organisation is open, bytes without a
row may be on their way to one: they are counted as arriving and left alone, and so are those a backup reads or a
restore brings.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.blobs import BlobHeld, BlobMissing
from runyard.ids import resolve_folder
from runyard.server.services.context import Actor, Services
from runyard.server.services.imports import sweep
from runyard.server.services.imports.imports import INCOMING
from runyard.store import StoreUnavailable, organizations
from runyard.store import storage as rows


class LostFile(msgspec.Struct, rename="camel", kw_only=True):
    """A file of a checkpoint whose bytes are not on the disk; or of a dataset, which ``path`` then names."""

    run_id: str
    model_id: str
    path: str
    sha256: str
    dataset_id: str = ""


class Space(msgspec.Struct, rename="camel", kw_only=True):
    """Bytes by place. ``database`` is None for PostgreSQL, which uses free space again by itself."""

    database: int | None
    blobs: int
    run_folders: int
    import_folders: int
    other_folders: int


class StorageReport(msgspec.Struct, rename="camel", kw_only=True):
    """What was found, before anything was removed. ``agrees``: nothing is left over and nothing is lost.

    ``omitted`` counts what is left out of the lists, each of which shows ``limits.REPORT_ITEMS`` entries.
    """

    agrees: bool
    blobs: int
    arriving: int
    blobs_without_rows: list[str]
    rows_without_blobs: list[LostFile]
    folders_without_runs: list[str]
    folders_without_organizations: list[str]
    folders_without_imports: list[str] = []
    is_removed: bool = False
    left_over_bytes: Space | None = None
    freed_bytes: Space | None = None
    omitted: int = 0


async def check(services: Services, *, org: str) -> StorageReport:
    """Compare store and disk of one organisation, changing nothing."""
    async with services.blob_lock:
        return _shortened(await asyncio.to_thread(_compare, services, org))


async def collect(services: Services, actor: Actor) -> StorageReport:
    """Compare, then remove bytes and folders that nothing needs; tells what was found."""
    async with services.blob_lock:
        report = await asyncio.to_thread(_compare, services, actor.org)
        # First, since what is removed is not in the store and so not in one transaction with it.
        await services.store.write(services.audit(actor, "collect garbage", actor.org))
        freed = await asyncio.to_thread(_remove, services, actor.org, report)
    freed.database = await _shrink_database(services)
    report.is_removed, report.freed_bytes = True, freed
    return _shortened(report)


def _shortened(report: StorageReport) -> StorageReport:
    """Return the report with lists that a response can hold."""
    shown = limits.REPORT_ITEMS.value
    lists = {name: found for name, found in msgspec.structs.asdict(report).items() if isinstance(found, list)}
    omitted = sum(max(0, len(found) - shown) for found in lists.values())
    return msgspec.structs.replace(report, omitted=omitted, **{name: found[:shown] for name, found in lists.items()})


async def _shrink_database(services: Services) -> int | None:
    """Give the database's free space back to the disk; returns the bytes, None where it does that itself."""
    before = services.store.reclaimable_bytes()
    if before is None:
        return None
    try:
        await services.store.compact()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"what nothing needed is removed, but the database stays as it is: {error}") from error
    await services.store.reclaim()
    return max(0, before - (services.store.reclaimable_bytes() or 0))


def _compare(services: Services, org: str) -> StorageReport:
    # The disk is listed first: bytes that arrive and are registered meanwhile are then in the rows only, and bytes are
    # asked for one by one again before a row is called lost.
    blobs = services.blobs(org)
    stored = set(blobs.hashes())
    folders = _folders(resolve_folder(services.settings.runs_dir, org))
    imports_dir = resolve_folder(services.settings.imports_dir, org)
    import_folders = {name for name in _folders(imports_dir) if not name.startswith(INCOMING)}

    def work(connection: Connection) -> tuple[list[LostFile], set[str], set[str], set[str], bool]:
        files = rows.list_files(connection, org=org)
        of_datasets = rows.list_dataset_blobs(connection, org=org)
        lost = [
            LostFile(run_id=file.run_id, model_id=file.output_id, path=file.path, sha256=file.sha256)
            for file in files
            if file.sha256 not in stored and not blobs.has(file.sha256)
        ]
        lost += [
            LostFile(
                run_id="",
                model_id="",
                path=f"{blob.what} {blob.id}".strip(),
                sha256=blob.sha256,
                dataset_id=blob.dataset_id,
            )
            for blob in of_datasets
            if blob.sha256 not in stored and not blobs.has(blob.sha256)
        ]
        needed = {file.sha256 for file in files} | {blob.sha256 for blob in of_datasets}
        run_ids, import_ids = rows.list_run_ids(connection, org=org), sweep.under_way(connection, org=org)
        return lost, needed, run_ids, import_ids, rows.may_be_uploading(connection, org=org)

    lost, needed, run_ids, import_ids, may_arrive = services.store.read(work)
    unneeded = sorted(stored - needed)
    nobodys = _folders_of_nobody(services, org)
    left_over = [] if may_arrive else [sha256 for sha256 in unneeded if not blobs.is_held(sha256)]
    strays, stray_imports = sorted(folders - run_ids), sorted(import_folders - import_ids)
    return StorageReport(
        agrees=not (left_over or lost or strays or stray_imports or nobodys),
        blobs=len(stored),
        arriving=len(unneeded) - len(left_over),
        blobs_without_rows=left_over,
        rows_without_blobs=lost,
        folders_without_runs=strays,
        folders_without_organizations=nobodys,
        folders_without_imports=stray_imports,
        left_over_bytes=Space(
            database=services.store.reclaimable_bytes(),
            blobs=sum(_blob_bytes(services, org, sha256) for sha256 in left_over),
            run_folders=sum(_size_bytes(services.settings.runs_dir / org / name) for name in strays),
            import_folders=sum(_size_bytes(services.settings.imports_dir / org / name) for name in stray_imports),
            other_folders=sum(_size_bytes(root / nobody) for root in _roots(services) for nobody in nobodys),
        ),
    )


def _blob_bytes(services: Services, org: str, sha256: str) -> int:
    try:
        return services.blobs(org).size_bytes(sha256)
    except BlobMissing:
        return 0


def _size_bytes(path: Path) -> int:
    """What a file, or a folder with all in it, takes on the disk; links are not followed."""
    below = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    total = 0
    for each in (path, *below):
        with contextlib.suppress(OSError):
            total += each.lstat().st_blocks * 512
    return total


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _folders_of_nobody(services: Services, org: str) -> list[str]:
    """Folders of organisations that do not exist: the first one's to find, but not while a restore may bring one."""
    known = services.store.read(organizations.list_ids)
    if org != known[0] or services.restore_lock.locked():
        return []
    roots = [root for root in _roots(services) if root.is_dir()]
    return sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()} - set(known))


def _roots(services: Services) -> tuple[Path, ...]:
    """Folders that have one for each organisation."""
    return services.settings.blobs_dir, services.settings.runs_dir, services.settings.imports_dir


def _remove(services: Services, org: str, report: StorageReport) -> Space:
    """Remove what is left over; returns what that freed."""
    freed = Space(database=None, blobs=0, run_folders=0, import_folders=0, other_folders=0)
    for sha256 in report.blobs_without_rows:
        size_bytes = _blob_bytes(services, org, sha256)
        with contextlib.suppress(BlobHeld):  # a restore has come to need it
            services.blobs(org).delete(sha256)
            freed.blobs += size_bytes
    for nobody in report.folders_without_organizations:
        for root in _roots(services):
            if (root / nobody).is_dir() and not (root / nobody).is_symlink():
                freed.other_folders += _removed(resolve_folder(root, nobody))
    # The names were listed on the disk, so each is one part of a path; of a link, the link itself is removed.
    for name in report.folders_without_runs:
        freed.run_folders += _removed(resolve_folder(services.settings.runs_dir, org) / name)
    for name in report.folders_without_imports:
        freed.import_folders += _removed(resolve_folder(services.settings.imports_dir, org) / name)
    return freed


def _removed(path: Path) -> int:
    """Remove a file or a folder; returns what it took."""
    size_bytes = _size_bytes(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size_bytes
