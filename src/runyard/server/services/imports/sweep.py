"""Everything about datasets that goes on after its request was answered, found by its rows and begun again."""

import shutil
from functools import partial

from sqlalchemy import Connection

from runyard.ids import resolve_folder
from runyard.server.services.context import Services
from runyard.server.services.datasets import assets, datasets
from runyard.server.services.imports import exports, import_jobs
from runyard.server.services.jobs import in_thread
from runyard.store import datasets as rows
from runyard.store import imports as import_rows
from runyard.store import organizations
from runyard.store import versions as job_rows
from runyard.store.tables import bulk_deletions, dataset_exports


async def begin(services: Services) -> None:
    """Before anything is served: remove what a crash cut off, then sweep."""
    for org in services.store.read(organizations.list_ids):
        await in_thread(_clear, services, org)
    await sweep(services)


def _clear(services: Services, org: str) -> None:
    """Folders of what is over, and files that had not come to be anything."""
    folder = resolve_folder(services.settings.imports_dir, org)
    needed = services.store.read(partial(under_way, org=org))
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name in needed:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def under_way(connection: Connection, *, org: str) -> set[str]:
    """Names of the folders that an organisation's imports and exports need."""
    waiting = job_rows.list_active_jobs(connection, dataset_exports)
    exports = {datasets.EXPORT_FOLDER + row.id for row in waiting if row.org == org}
    return exports | set(import_rows.list_active_ids(connection, org=org))


async def sweep(services: Services) -> None:
    """Start a task for every job that is not done and has none."""
    for row in services.store.read(rows.list_deleted):
        datasets.start_removal(services, org=row.org, dataset_id=row.id)
    for row in services.store.read(partial(job_rows.list_active_jobs, table=bulk_deletions)):
        assets.start_bulk(services, row)
    await exports.sweep(services)
    await import_jobs.sweep(services)
