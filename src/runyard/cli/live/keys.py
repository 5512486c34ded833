"""Keys of a terminal, read one at a time without waiting for Enter."""

import os
import select
import sys
from types import TracebackType
from typing import Any

_SEQUENCES = {"[A": "up", "[B": "down", "OA": "up", "OB": "down", "[H": "home", "[F": "end"}
_NAMES = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x04": "q"}
_SEQUENCE_PAUSE_S = 0.05  # an escape that nothing follows for so long is the key itself


def can_read_keys() -> bool:
    """Return True if standard input and output are one terminal that sends single keys."""
    try:
        import termios  # noqa: F401 - missing on Windows
    except ImportError:
        return False
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class KeyReader:
    """Terminal that sends each key at once, without showing it, inside a ``with`` block.

    Ctrl-C still interrupts.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._settings: list[Any] = []

    def __enter__(self) -> "KeyReader":
        import termios
        import tty

        self._settings = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import termios

        termios.tcsetattr(self._input, termios.TCSADRAIN, self._settings)

    def read_key(self, *, timeout_s: float) -> str | None:
        """Return the next key: a character, or a name such as ``up``; None if none was pressed."""
        character = self._read_character(timeout_s)
        if character != "\x1b":
            return None if character is None else _NAMES.get(character, character)
        sequence = ""
        while len(sequence) < 2:
            following = self._read_character(_SEQUENCE_PAUSE_S)
            if following is None:
                return "escape"
            sequence += following
        return _SEQUENCES.get(sequence)

    def _read_character(self, timeout_s: float) -> str | None:
        ready, _, _ = select.select([self._input], [], [], timeout_s)
        if not ready:
            return None
        data = os.read(self._input, 1)
        return data.decode("latin-1") if data else "\x04"  # the terminal was closed
