"""Find background work on datasets by its rows, and resume it."""

import shutil
from functools import partial

from sqlalchemy import Connection

from runyard.ids import resolve_folder
from runyard.server.services.context import Services
from runyard.server.services.datasets import assets, datasets
from runyard.server.services.imports import exports, import_jobs
from runyard.server.services.jobs import run_in_thread
from runyard.store import organizations
from runyard.store.datasets import datasets as rows
from runyard.store.datasets import imports as import_rows
from runyard.store.datasets import versions as job_rows
from runyard.store.tables import bulk_deletions, dataset_exports


async def resume_jobs(services: Services) -> None:
    """Remove what a crash left behind, then sweep. Runs before anything is served."""
    for org in services.store.read(organizations.list_ids):
        await run_in_thread(_remove_leftovers, services, org)
    await sweep(services)


def _remove_leftovers(services: Services, org: str) -> None:
    """Remove folders of jobs that are over, and incomplete files."""
    folder = resolve_folder(services.settings.imports_dir, org)
    needed = services.store.read(partial(list_job_folders, org=org))
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name in needed:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def list_job_folders(tx: Connection, *, org: str) -> set[str]:
    """Return the names of the folders that an organization's imports and exports need."""
    waiting = job_rows.list_active_jobs(tx, dataset_exports)
    exports = {datasets.EXPORT_FOLDER + row.id for row in waiting if row.org == org}
    return exports | set(import_rows.list_active_ids(tx, org=org))


async def sweep(services: Services) -> None:
    """Start a task for every job that is not done and has none."""
    for row in services.store.read(rows.list_deleted):
        datasets.start_removal(services, org=row.org, dataset_id=row.id)
    for row in services.store.read(partial(job_rows.list_active_jobs, table=bulk_deletions)):
        assets.start_bulk_deletion(services, row)
    await exports.sweep(services)
    await import_jobs.sweep(services)
