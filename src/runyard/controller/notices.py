"""Notices of a machine's end: a file that appears, or an address that begins to answer.

A spot machine is announced to end a little before it does, at an address of the cloud's metadata
service or by an agent that writes a file. Then the controller saves and stops its runs, which
resume on other machines.
"""

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
ANSWER_TIMEOUT_S = 2.0


def is_announced(source: str) -> bool:
    """Return whether a file exists, or an address answers with success (2xx).

    Clouds answer 404 until they announce the end, so an error is no announcement.
    """
    if not source.startswith(("http://", "https://")):
        return Path(source).exists()
    try:
        with urllib.request.urlopen(source, timeout=ANSWER_TIMEOUT_S) as response:  # noqa: S310
            return bool(200 <= response.status < 300)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def watch(
    source: str, on_notice: Callable[[], None], *, every_s: float = CHECK_EVERY_S
) -> Callable[[], None]:
    """Call ``on_notice`` once, from another thread, after the notice; return a function to stop."""
    ended = threading.Event()

    def check() -> None:
        while not ended.wait(every_s):
            if is_announced(source):
                log.warning("%s announces the end of this machine: saving and stopping", source)
                on_notice()
                return

    threading.Thread(target=check, name="notices", daemon=True).start()
    return ended.set
