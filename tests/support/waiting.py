"""Waiting for other processes, whose clock a test cannot hold."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

Found = TypeVar("Found")


class Eventually(Protocol):
    """The type of ``eventually``, which the fixture of the same name gives."""

    def __call__(
        self, look: Callable[[], Found | None], *, timeout_s: float, what: str
    ) -> Found: ...


def eventually(look: Callable[[], Found | None], *, timeout_s: float, what: str) -> Found:
    """Look until something true comes back; for other processes, whose clock a test cannot hold."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")
