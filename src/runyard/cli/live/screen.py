"""A full-screen view in the terminal: draws lines when they change, and passes keys on.

rich draws on the alternate screen, so that the earlier contents of the terminal return afterwards.
It follows changes of the size, NO_COLOR, and terminals without color.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from runyard.cli.live.feed import Feed
from runyard.cli.live.keys import KeyReader, can_read_keys
from runyard.cli.live.lines import Line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_KEY_TIMEOUT_S = 0.2


class ScreenView(Protocol[T_contra]):
    """Contents of a screen."""

    is_left: bool

    def press_key(self, key: str, state: T_contra | None) -> None: ...

    def build_lines(
        self, state: T_contra | None, *, problem: str, width: int, height: int
    ) -> list[Line]: ...


def can_draw_screens() -> bool:
    """Return True if keys can be read and the terminal can be drawn on."""
    return can_read_keys() and os.environ.get("TERM", "") not in ("", "dumb")


def has_plain_encoding() -> bool:
    """Return True if standard output cannot show characters beyond ASCII."""
    return "utf" not in (sys.stdout.encoding or "").lower()


@contextmanager
def open_screen() -> "Iterator[Screen]":
    """Yield the alternate screen of the terminal, whose keys arrive one at a time."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    live = Live(
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with KeyReader() as keys, live:
        yield Screen(console, live, keys)


class Screen:
    """The alternate screen of a terminal, and its keys; see ``open_screen``."""

    def __init__(self, console: "Console", live: "Live", keys: KeyReader) -> None:
        self._console, self._live, self._keys = console, live, keys
        self._shown: tuple[object, ...] = ()

    def show(
        self, view: ScreenView[T], feed: Feed[T], *, until_ended: "EndCheck[T] | None" = None
    ) -> None:
        """Show a view until it is left, or until its state has ended.

        Raises:
            Exception: What ended the feed.
        """
        self._shown = ()
        while not view.is_left:
            state = feed.latest
            self._draw(view, state, problem=feed.problem)
            if feed.failure is not None:
                raise feed.failure
            if until_ended is not None and state is not None and until_ended(state):
                return
            key = self._keys.read_key(timeout_s=_KEY_TIMEOUT_S)
            if key is not None:
                view.press_key(key, feed.latest)
                feed.refresh()

    def _draw(self, view: ScreenView[T], state: T | None, *, problem: str) -> None:
        from rich.text import Text

        width, height = self._console.size
        lines = view.build_lines(state, problem=problem, width=width, height=height)
        if (width, height, *lines) == self._shown:
            return
        self._shown = (width, height, *lines)
        text = Text(no_wrap=True, overflow="ellipsis")
        for number, line in enumerate(lines):
            text.append(("\n" if number else "") + line.text[:width], style=line.style)
        self._live.update(text, refresh=True)


class EndCheck(Protocol[T_contra]):
    """Test whether a state is the last one."""

    def __call__(self, state: T_contra, /) -> bool: ...
