"""The data folder of a server whose store has many runs."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.many_runs import insert_runs_async
from tests.support.server import open_server


def create_instance(data_dir: Path, runs: int) -> None:
    """Create an organization, its key and runs; a server can then be started on the folder."""

    async def create() -> None:
        async with open_server(data_dir) as server:
            await insert_runs_async(server.services.store, runs, org=server.org)

    # In a thread of its own: a browser test has an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, create()).result()
