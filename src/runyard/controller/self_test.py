"""Runs the self-test of this machine in a process of its own, at the server's request."""

import logging
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from runyard.protocol import SelfTest

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "runyard.trainer.self_test")
TIMEOUT_S = 300.0


def start(
    folder: Path, on_result: Callable[[SelfTest], None], *, command: Sequence[str] = COMMAND
) -> None:
    """Test this machine in a thread; ``folder`` is on the disk to test."""

    def run() -> None:
        result = run_test(folder, command=command)
        log.warning("self-test: %s: %s", "passed" if result.passed else "failed", result.message)
        on_result(msgspec.structs.replace(result, id=uuid.uuid4().hex))

    log.warning("the server suspects this machine: testing it")
    threading.Thread(target=run, name="self-test", daemon=True).start()


def run_test(
    folder: Path, *, command: Sequence[str] = COMMAND, timeout_s: float = TIMEOUT_S
) -> SelfTest:
    """Return the outcome of the test. One that crashes or hangs has failed."""
    try:
        done = subprocess.run(
            [*command, str(folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return SelfTest(passed=False, message=f"the self-test did not end within {timeout_s:g} s")
    except OSError as error:
        return SelfTest(passed=False, message=f"the self-test cannot start: {error.strerror}")
    try:
        return msgspec.json.decode(done.stdout, type=SelfTest)
    except msgspec.MsgspecError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return SelfTest(passed=False, message=": ".join([f"the self-test ended with {how}", *last]))
