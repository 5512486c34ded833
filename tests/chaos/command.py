"""Runs ``python -m tests.chaos.chaos`` for a test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_chaos(*arguments: str, timeout_s: float) -> dict[str, Any]:
    """Return what the command printed as JSON.

    Should the interpreter itself crash, the error has the stack of each thread.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.chaos.chaos", *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert ended.stdout, f"exit status {ended.returncode}: {ended.stderr[-8000:]}"
    document: dict[str, Any] = json.loads(ended.stdout)
    return document
