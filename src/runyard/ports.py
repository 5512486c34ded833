"""The ports of controller and supervisor: protocols for time, processes, and files.

Controller and supervisor decide in pure functions. The thin layer of effects around them uses one
protocol of this module for each kind of effect. The product's implementations are ``SystemClock``,
``runyard.processes``, and ``runyard.rundir``; a module with the right functions fits a protocol. A
simulation has its own: a virtual clock that steps and skews, a process table with parents and
locks, files with a layer that a power cut drops. The network's port is the ``transport`` of
``vi._http``.

This is the only module of controller and supervisor that imports ``time``, so that no code can read
a clock that a simulation does not control.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Liveness = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Unique identity of a process: ids are reused, but not with the same start and boot."""

    boot_id: str
    pid: int
    start_ticks: int


class Clock(Protocol):
    """Time. Durations and deadlines use ``monotonic``; ``now_ms`` is only displayed or stored."""

    def now_ms(self) -> int: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


class SystemClock:
    """The system's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)


class Processes(Protocol):
    """Process inspection and signals; implemented by ``runyard.processes``."""

    def boot_id(self) -> str: ...

    def identify(self, pid: int, /) -> Identity | None: ...

    def check_liveness(self, identity: Identity, /) -> Liveness: ...

    def send_signal(self, identity: Identity, signal_number: int, /) -> bool: ...

    def find_marked(
        self, variable: str, matches: Callable[[str], bool], /
    ) -> list[tuple[Identity, str]]: ...

    def list_descendants(self, pid: int, /) -> list[Identity]: ...

    def list_holders(self, path: Path, /) -> list[Identity]: ...

    def count_memory_kills(self) -> int: ...


class Files(Protocol):
    """The run folder; implemented by ``runyard.rundir``. An unreadable file counts as absent."""

    def read_json(self, path: Path, /) -> dict[str, Any] | None: ...

    def write_json(self, path: Path, value: Any, /) -> None: ...

    def read_lines(
        self, path: Path, offset: int, limit_bytes: int = ..., *, is_final: bool = ...
    ) -> tuple[list[str], int]: ...

    def list_checkpoints(self, folder: Path, /) -> Iterable[tuple[Path, dict[str, Any]]]: ...

    def is_proven(self, checkpoint: Path, manifest: dict[str, Any], /) -> bool: ...
