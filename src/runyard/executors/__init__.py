"""Executors: each starts the supervisor of an attempt in one kind of environment and never waits
for it.

The controller decides what to start, and an executor how. ``local`` starts a detached process on
this machine. Another executor may start an actor on a cluster node: it gets the same request and
returns the same kind of identity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from runyard.ports import Identity
from vi._http.tls import Trust

Warmth = Literal["off", "starting", "ready", "down"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRequest:
    """An attempt to start: its folder with ``placed.json`` and ``run.json``, and its credentials.

    ``trust`` has the certificates to accept from the endpoint. ``environment`` is set in the
    supervisor and so in its trainer; it selects their accelerator.
    """

    folder: Path
    mark: str
    endpoint: str
    token: str
    trust: Trust = Trust()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Order({self.mark})"  # keeps the token out of logs and tracebacks


class Executor(Protocol):
    """Starts supervisors. ``warmth`` returns whether a start is fast now, or soon."""

    def start(self, request: StartRequest) -> Identity | None:
        """Start a supervisor and return its identity; None if it ended before it could be
        identified.
        """

    def warmth(self) -> Warmth: ...

    def warm_up(self) -> None:
        """Start to prepare fast starts; return at once."""

    def reap(self) -> None:
        """Reap supervisors that have ended, so that no zombies remain."""

    def close(self) -> None:
        """Release what makes starts fast. Supervisors keep running."""
