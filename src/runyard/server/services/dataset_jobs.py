"""Everything about datasets that goes on after its request was answered, found by its rows and begun again."""

import asyncio

from runyard.server.services import datasets, import_jobs, imports
from runyard.server.services.context import Services
from runyard.store import datasets as rows


async def begin(services: Services) -> None:
    """Before anything is served: remove what uploads that a crash cut off left behind, then sweep."""

    def clear() -> None:
        for path in services.settings.imports_dir.glob(f"*/{imports.INCOMING}*"):
            path.unlink(missing_ok=True)

    await asyncio.to_thread(clear)
    await sweep(services)


async def sweep(services: Services) -> None:
    """Start a task for every job that is not done and has none."""
    for row in services.store.read(rows.deleted):
        datasets.start_removal(services, org=row.org, dataset_id=row.id)
    await import_jobs.sweep(services)
