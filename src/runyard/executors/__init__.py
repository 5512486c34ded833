"""Where attempts run: an executor starts the supervisor of one attempt and never waits for it.

The controller decides what to place; an executor knows how a supervisor comes to life in one kind of place. ``local``
starts a detached process on this machine. Another one may start an actor on a node of a cluster: it gets the same order
and answers with the same identity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from runyard.ports import Identity

Warmth = Literal["off", "starting", "ready", "down"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One attempt to start: its folder, which holds ``placed.json`` and ``run.json``, and what speaks for it.

    ``environment`` is set in the supervisor and so in its trainer: which accelerator they see.
    """

    folder: Path
    mark: str
    endpoint: str
    token: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Order({self.mark})"  # the token stays out of logs and traces


class Executor(Protocol):
    """Starts supervisors. ``warmth`` says whether a start is quick now, or soon."""

    def start(self, order: Order) -> Identity | None:
        """Start a supervisor and say who it is; None when it was gone before it could be looked at."""

    def warmth(self) -> Warmth: ...

    def warm_up(self) -> None:
        """Begin to make starts quick; returns at once."""

    def reap(self) -> None:
        """Take the exit codes of supervisors that have ended, so that no zombies stay."""

    def close(self) -> None:
        """Give back what makes starts quick. Supervisors go on."""
