"""A program in a pseudo-terminal: what it shows, and keys for it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Control sequences of a terminal: CSI, OSC, and single characters after an escape.
_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[@-Z\\-_=>78]")


class Terminal:
    """A running program whose standard streams are a terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", controller: int) -> None:
        self.process, self._controller = process, controller
        self.raw = b""
        self._read_to = 0

    @property
    def text(self) -> str:
        """Everything that was printed, without control sequences."""
        return _SEQUENCE.sub(b"", self.raw).decode(errors="replace")

    def press(self, keys: str) -> None:
        """Type keys; ``\\x1b[B`` is the arrow down."""
        os.write(self._controller, keys.encode())

    def expect(self, *words: str, timeout_s: float = 30.0) -> str:
        """Wait until every one of the words was printed since the last call; return that output."""
        deadline = time.monotonic() + timeout_s
        while True:
            shown = self.text[self._read_to :]
            if all(word in shown for word in words):
                self._read_to = len(self.text)
                return shown
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{words} was not shown:\n{shown}"
            if not self._receive(left_s):
                shown = self.text[self._read_to :]
                assert all(word in shown for word in words), f"{words} was not shown:\n{shown}"

    def finish(self, *, timeout_s: float = 30.0) -> int:
        """Wait for the end of the program; return its exit code."""
        deadline = time.monotonic() + timeout_s
        while self._receive(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"it has not ended:\n{self.text[-2000:]}"
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        set_size(self._controller, columns, rows)

    def _receive(self, timeout_s: float) -> bool:
        """Read what has been printed; return False after the end."""
        ready, _, _ = select.select([self._controller], [], [], timeout_s)
        if not ready:
            return True
        try:
            data = os.read(self._controller, 65536)
        except OSError:  # Linux reports the end of the program as an error
            return False
        self.raw += data
        return bool(data)


def set_size(descriptor: int, columns: int, rows: int) -> None:
    """Set the size of a terminal."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def open_terminal(
    *arguments: str, environ: Mapping[str, str], columns: int = 120, rows: int = 30
) -> Iterator[Terminal]:
    """Run ``runyard`` with these arguments in a terminal; end it with the block."""
    controller, terminal = pty.openpty()
    set_size(terminal, columns, rows)
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.cli", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environ},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C arrives
    )
    os.close(terminal)
    try:
        yield Terminal(process, controller)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
