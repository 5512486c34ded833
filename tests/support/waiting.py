"""Waiting for other processes, whose clock a test cannot hold."""

import time
from collections.abc import Callable
from typing import Any


def eventually(look: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """Look until something true comes back; for other processes, whose clock a test cannot hold."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")
