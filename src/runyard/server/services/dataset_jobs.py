"""Everything about datasets that goes on after its request was answered, found by its rows and begun again."""

import asyncio
import shutil
from functools import partial

from runyard.server.services import assets, datasets, exports, import_jobs, imports
from runyard.server.services.context import Services
from runyard.store import datasets as rows
from runyard.store import versions as job_rows
from runyard.store.tables import bulk_deletions


async def begin(services: Services) -> None:
    """Before anything is served: remove what uploads that a crash cut off left behind, then sweep."""

    def clear() -> None:
        for path in services.settings.imports_dir.glob(f"*/{imports.INCOMING}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    await asyncio.to_thread(clear)
    await sweep(services)


async def sweep(services: Services) -> None:
    """Start a task for every job that is not done and has none."""
    for row in services.store.read(rows.deleted):
        datasets.start_removal(services, org=row.org, dataset_id=row.id)
    for row in services.store.read(partial(job_rows.jobs_under_way, table=bulk_deletions)):
        assets.start_bulk(services, row)
    await exports.sweep(services)
    await import_jobs.sweep(services)
