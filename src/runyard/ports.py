"""The doors to the world: time, processes, files. Everything that decides takes what it needs through one of these.

Controller and supervisor decide in pure functions; what is left around them is a thin rim of effects, and each effect
goes through one protocol named here. In the product the implementations are ``SystemClock``, ``runyard.processes`` and
``runyard.rundir`` (both are plain modules: a module with the right functions fits a protocol). A simulation brings its
own: a virtual clock that steps and skews, a table of processes with parents and locks, files with a layer that a power
cut can drop. The fourth door, the network, is the ``transport`` of ``vi._http``.

This is the only module of controller and supervisor that imports ``time``, so that no code can look at a clock that a
simulation does not hold.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Liveness = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever: process ids are used again, but not with the same start, and starts not across boots."""

    boot_id: str
    pid: int
    start_ticks: int


class Clock(Protocol):
    """What time it is. Durations and deadlines go by ``monotonic``; ``now_ms`` is only ever shown or stored."""

    def now_ms(self) -> int: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)


class Processes(Protocol):
    """Look at processes and signal them; ``runyard.processes`` on this machine."""

    def boot_id(self) -> str: ...

    def identify(self, pid: int, /) -> Identity | None: ...

    def liveness(self, identity: Identity, /) -> Liveness: ...

    def send_signal(self, identity: Identity, signal_number: int, /) -> bool: ...

    def marked(self, variable: str, matches: Callable[[str], bool], /) -> list[tuple[Identity, str]]: ...

    def descendants(self, pid: int, /) -> list[Identity]: ...

    def holders(self, path: Path, /) -> list[Identity]: ...

    def out_of_memory_kills(self) -> int: ...


class Files(Protocol):
    """The run folder; ``runyard.rundir`` on this machine. Unreadable is the same as absent."""

    def read_json(self, path: Path, /) -> dict[str, Any] | None: ...

    def write_json(self, path: Path, value: Any, /) -> None: ...

    def read_lines(
        self, path: Path, offset: int, limit_bytes: int = ..., *, is_final: bool = ...
    ) -> tuple[list[str], int]: ...

    def checkpoints(self, folder: Path, /) -> Iterable[tuple[Path, dict[str, Any]]]: ...

    def is_proven(self, checkpoint: Path, manifest: dict[str, Any], /) -> bool: ...
