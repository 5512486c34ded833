"""Processes that look at what strangers sent, so that the server itself never does; each works in a folder."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

OUTPUT = "worker.log"


@contextlib.asynccontextmanager
async def worker(module: str, folder: Path) -> AsyncIterator[asyncio.Task[int]]:
    """Start ``python -m <module> <folder>``; the task ends with it, and it with the block or with this process."""
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


def last_words(folder: Path) -> str:
    """The end of what a worker wrote to its output; for the log."""
    try:
        return (folder / OUTPUT).read_text(errors="replace")[-2000:].strip() or "nothing"
    except OSError:
        return "nothing"
