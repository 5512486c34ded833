"""Verify that store and disk agree, and remove what nothing needs.

What can be wrong: bytes that nothing needs, checkpoints and datasets whose bytes are gone, and
folders of runs or imports that do not exist. A restore may also leave folders of organizations that
do not exist; those are reported to the first organization. A collection removes all of this except
lost bytes, which are only reported. Folders on machines are as of their last reports, and are
removed after the next ones.

Bytes come before the row that needs them. So while an attempt or an import of the organization is
open, bytes without a row may be about to get one: they count as arriving and are left alone. So are
those that a backup reads or a restore brings.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.blobs import BlobHeld, BlobMissing, FolderBlobs
from runyard.ids import resolve_folder
from runyard.server.services.context import Actor, Services
from runyard.server.services.imports import sweep
from runyard.server.services.imports.imports import INCOMING
from runyard.store import StoreUnavailable, organizations
from runyard.store import storage as rows


class LostFile(msgspec.Struct, rename="camel", kw_only=True):
    """A file of a checkpoint, or of a dataset, whose bytes are not on the disk.

    ``path`` names which part of a dataset it is.
    """

    run_id: str
    model_id: str
    path: str
    sha256: str
    dataset_id: str = ""


class Space(msgspec.Struct, rename="camel", kw_only=True):
    """Bytes by folder. ``database`` is None for PostgreSQL, which reuses free space by itself."""

    database: int | None
    blobs: int
    run_folders: int
    import_folders: int
    other_folders: int


class MachineFolder(msgspec.Struct, rename="camel", kw_only=True):
    """The folder of a run that does not exist or is being deleted, on a machine's last report."""

    machine_id: str
    host: str
    organization_id: str
    run_id: str


class StorageReport(msgspec.Struct, rename="camel", kw_only=True):
    """The state before anything was removed. ``agrees``: nothing is left over and nothing is lost.

    ``omitted`` counts what is left out of the lists, each of which shows ``limits.REPORT_ITEMS``
    entries.
    """

    agrees: bool
    blobs: int
    arriving: int
    blobs_without_rows: list[str]
    rows_without_blobs: list[LostFile]
    folders_without_runs: list[str]
    folders_without_organizations: list[str]
    folders_without_imports: list[str] = []
    folders_on_machines: list[MachineFolder] = []
    is_removed: bool = False
    left_over_bytes: Space | None = None
    freed_bytes: Space | None = None
    omitted: int = 0


async def check(services: Services, *, org: str) -> StorageReport:
    """Compare store and disk of one organization, changing nothing."""
    async with services.blob_lock:
        report = await asyncio.to_thread(_compare, services, org)
    _add_machine_folders(services, org, report)
    return _truncate_lists(report)


async def collect(services: Services, actor: Actor) -> StorageReport:
    """Compare, then remove bytes and folders that nothing needs; return what was found."""
    async with services.blob_lock:
        report = await asyncio.to_thread(_compare, services, actor.org)
        # First, since removed files cannot be in one transaction with this row.
        await services.store.write(services.audit(actor, "collect garbage", actor.org))
        freed = await asyncio.to_thread(_remove_leftovers, services, actor.org, report)
    _add_machine_folders(services, actor.org, report)
    # Each machine removes them after its next report.
    services.machines.approve_removals(
        (folder.organization_id, folder.run_id) for folder in report.folders_on_machines
    )
    freed.database = await _shrink_database(services)
    report.is_removed, report.freed_bytes = True, freed
    return _truncate_lists(report)


def _add_machine_folders(services: Services, org: str, report: StorageReport) -> None:
    """Add what machines hold of runs that do not exist.

    The first organization also sees those of organizations that do not exist.
    """
    known = services.store.read(organizations.list_ids)
    report.folders_on_machines = [
        MachineFolder(
            machine_id=machine_id,
            host=machine.report.host,
            organization_id=run.organization_id,
            run_id=run.run_id,
        )
        for machine_id, machine in services.machines.list_connected_by_id(
            uptime_s=services.clock.monotonic_s()
        )
        for run in machine.leftover_runs
        if run.organization_id == org or (org == known[0] and run.organization_id not in known)
    ]
    report.agrees = report.agrees and not report.folders_on_machines


def _truncate_lists(report: StorageReport) -> StorageReport:
    """Return the report with lists that a response can hold."""
    shown = limits.REPORT_ITEMS.value
    lists = {
        name: found
        for name, found in msgspec.structs.asdict(report).items()
        if isinstance(found, list)
    }
    omitted = sum(max(0, len(found) - shown) for found in lists.values())
    return msgspec.structs.replace(
        report, omitted=omitted, **{name: found[:shown] for name, found in lists.items()}
    )


async def _shrink_database(services: Services) -> int | None:
    """Return the database's free space to the disk.

    Return the bytes; None where the database does that itself.
    """
    before = services.store.reclaimable_bytes()
    if before is None:
        return None
    try:
        await services.store.compact()
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"what nothing needed is removed, but the database file was not shrunk: {error}"
        ) from error
    await services.store.reclaim()
    return max(0, before - (services.store.reclaimable_bytes() or 0))


def _compare(services: Services, org: str) -> StorageReport:
    # The disk is listed first: bytes that arrive and are registered meanwhile are in the rows only,
    # and each missing blob is checked again before its row is reported as lost.
    blobs = services.blobs(org)
    stored = set(blobs.hashes())
    folders = _list_folders(resolve_folder(services.settings.runs_dir, org))
    imports_dir = resolve_folder(services.settings.imports_dir, org)
    import_folders = {name for name in _list_folders(imports_dir) if not name.startswith(INCOMING)}
    lost, needed, run_ids, import_ids, may_arrive = services.store.read(
        lambda tx: _list_needed(tx, org, stored, blobs)
    )
    unneeded = sorted(stored - needed)
    orphans = _list_orphan_folders(services, org)
    left_over = [] if may_arrive else [sha256 for sha256 in unneeded if not blobs.is_held(sha256)]
    strays, stray_imports = sorted(folders - run_ids), sorted(import_folders - import_ids)
    return StorageReport(
        agrees=not (left_over or lost or strays or stray_imports or orphans),
        blobs=len(stored),
        arriving=len(unneeded) - len(left_over),
        blobs_without_rows=left_over,
        rows_without_blobs=lost,
        folders_without_runs=strays,
        folders_without_organizations=orphans,
        folders_without_imports=stray_imports,
        left_over_bytes=Space(
            database=services.store.reclaimable_bytes(),
            blobs=sum(_get_blob_bytes(services, org, sha256) for sha256 in left_over),
            run_folders=sum(
                _measure_bytes(services.settings.runs_dir / org / name) for name in strays
            ),
            import_folders=sum(
                _measure_bytes(services.settings.imports_dir / org / name) for name in stray_imports
            ),
            other_folders=sum(
                _measure_bytes(root / orphan)
                for root in _list_roots(services)
                for orphan in orphans
            ),
        ),
    )


def _list_needed(
    tx: Connection, org: str, stored: set[str], blobs: FolderBlobs
) -> tuple[list[LostFile], set[str], set[str], set[str], bool]:
    """Return lost files, needed hashes, ids of runs and imports, and whether blobs may arrive."""
    files = rows.list_files(tx, org=org)
    of_datasets = rows.list_dataset_blobs(tx, org=org)
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
    run_ids, import_ids = rows.list_run_ids(tx, org=org), sweep.list_job_folders(tx, org=org)
    return lost, needed, run_ids, import_ids, rows.may_be_uploading(tx, org=org)


def _get_blob_bytes(services: Services, org: str, sha256: str) -> int:
    try:
        return services.blobs(org).size_bytes(sha256)
    except BlobMissing:
        return 0


def _measure_bytes(path: Path) -> int:
    """Return the disk usage of a file, or of a folder with its content; links are not followed."""
    below = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    total = 0
    for each in (path, *below):
        with contextlib.suppress(OSError):
            total += each.lstat().st_blocks * 512
    return total


def _list_folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _list_orphan_folders(services: Services, org: str) -> list[str]:
    """Return folders of organizations that do not exist.

    Only the first organization sees them, and not while a restore may bring one.
    """
    known = services.store.read(organizations.list_ids)
    if org != known[0] or services.restore_lock.locked():
        return []
    roots = [root for root in _list_roots(services) if root.is_dir()]
    return sorted(
        {path.name for root in roots for path in root.iterdir() if path.is_dir()} - set(known)
    )


def _list_roots(services: Services) -> tuple[Path, ...]:
    """Return the folders that have one for each organization."""
    return services.settings.blobs_dir, services.settings.runs_dir, services.settings.imports_dir


def _remove_leftovers(services: Services, org: str, report: StorageReport) -> Space:
    """Remove what is left over; return the space that was freed."""
    freed = Space(database=None, blobs=0, run_folders=0, import_folders=0, other_folders=0)
    for sha256 in report.blobs_without_rows:
        size_bytes = _get_blob_bytes(services, org, sha256)
        with contextlib.suppress(BlobHeld):  # a restore needs it now
            services.blobs(org).delete(sha256)
            freed.blobs += size_bytes
    for orphan in report.folders_without_organizations:
        for root in _list_roots(services):
            if (root / orphan).is_dir() and not (root / orphan).is_symlink():
                freed.other_folders += _remove_path(resolve_folder(root, orphan))
    # The names were listed on the disk, so each is one path component. Of a link, only it is
    # removed.
    for name in report.folders_without_runs:
        freed.run_folders += _remove_path(resolve_folder(services.settings.runs_dir, org) / name)
    for name in report.folders_without_imports:
        freed.import_folders += _remove_path(
            resolve_folder(services.settings.imports_dir, org) / name
        )
    return freed


def _remove_path(path: Path) -> int:
    """Remove a file or a folder; return the space it took."""
    size_bytes = _measure_bytes(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return size_bytes
