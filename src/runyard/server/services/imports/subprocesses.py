"""Processes that parse untrusted files, so that the server itself never does; each works in a
folder.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

OUTPUT = "worker.log"


@contextlib.asynccontextmanager
async def run_worker(module: str, folder: Path) -> AsyncIterator[asyncio.Task[int]]:
    """Start ``python -m <module> <folder>``; the yielded task ends with the process.

    The process ends with the block, or with this process.
    """
    with open(folder / OUTPUT, "ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module, str(folder), "--parent", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    ending = asyncio.create_task(process.wait())
    try:
        yield ending
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.shield(ending)


def read_output_tail(folder: Path) -> str:
    """Return the end of a worker's output, for the log."""
    try:
        return (folder / OUTPUT).read_text(errors="replace")[-2000:].strip() or "(no output)"
    except OSError:
        return "(no output)"
