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
from runyard.blobs import BlobHeld
from runyard.server.services import dataset_jobs
from runyard.server.services.context import Actor, Services
from runyard.server.services.imports import INCOMING
from runyard.store import organizations
from runyard.store import storage as rows


class LostFile(msgspec.Struct, rename="camel", kw_only=True):
    """A file of a checkpoint whose bytes are not on the disk; or of a dataset, which ``path`` then names."""

    run_id: str
    model_id: str
    path: str
    sha256: str
    dataset_id: str = ""


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
    omitted: int = 0


async def check(services: Services, *, org: str) -> StorageReport:
    """Compare store and disk of one organisation, changing nothing."""
    async with services.blob_lock:
        return _shortened(await asyncio.to_thread(_compare, services, org))


async def collect(services: Services, actor: Actor) -> StorageReport:
    """Compare, then remove bytes and folders that nothing needs; tells what was found."""
    async with services.blob_lock:
        report = await asyncio.to_thread(_compare, services, actor.org)
        await asyncio.to_thread(_remove, services, actor.org, report)
        await services.store.write(services.audit(actor, "collect garbage", actor.org))
    report.is_removed = True
    return _shortened(report)


def _shortened(report: StorageReport) -> StorageReport:
    """Return the report with lists that a response can hold."""
    shown = limits.REPORT_ITEMS.value
    lists = {name: found for name, found in msgspec.structs.asdict(report).items() if isinstance(found, list)}
    omitted = sum(max(0, len(found) - shown) for found in lists.values())
    return msgspec.structs.replace(report, omitted=omitted, **{name: found[:shown] for name, found in lists.items()})


def _compare(services: Services, org: str) -> StorageReport:
    # The disk is listed first: bytes that arrive and are registered meanwhile are then in the rows only, and bytes are
    # asked for one by one again before a row is called lost.
    blobs = services.blobs(org)
    stored = set(blobs.hashes())
    folders = _folders(services.settings.runs_dir / org)
    import_folders = {name for name in _folders(services.settings.imports_dir / org) if not name.startswith(INCOMING)}

    def work(connection: Connection) -> tuple[list[LostFile], set[str], set[str], set[str], bool]:
        files = rows.files(connection, org=org)
        of_datasets = rows.dataset_blobs(connection, org=org)
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
        run_ids, import_ids = rows.run_ids(connection, org=org), dataset_jobs.under_way(connection, org=org)
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
    )


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _folders_of_nobody(services: Services, org: str) -> list[str]:
    """Folders of organisations that do not exist: the first one's to find, but not while a restore may bring one."""
    known = services.store.read(organizations.ids)
    if org != known[0] or services.restore_lock.locked():
        return []
    roots = [root for root in _roots(services) if root.is_dir()]
    return sorted({path.name for root in roots for path in root.iterdir() if path.is_dir()} - set(known))


def _roots(services: Services) -> tuple[Path, ...]:
    """Folders that have one for each organisation."""
    return services.settings.blobs_dir, services.settings.runs_dir, services.settings.imports_dir


def _remove(services: Services, org: str, report: StorageReport) -> None:
    for sha256 in report.blobs_without_rows:
        with contextlib.suppress(BlobHeld):  # a restore has come to need it
            services.blobs(org).delete(sha256)
    for nobody in report.folders_without_organizations:
        for root in _roots(services):
            if (root / nobody).is_dir() and not (root / nobody).is_symlink():
                shutil.rmtree(root / nobody)
    strays = [services.settings.runs_dir / org / name for name in report.folders_without_runs]
    strays += [services.settings.imports_dir / org / name for name in report.folders_without_imports]
    for path in strays:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
