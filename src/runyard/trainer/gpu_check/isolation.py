"""Runs a check in a process group of its own, so that a crash or a hang costs one row of the table.

The process is forked from one that has imported torch and never asks for a device: a driver that
was initialized before the fork could not be used after it. So checks share nothing but files.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

POLL_S = 0.05
JOIN_S = 5.0
LOG_LINES = 20  # of a failed check
START_METHOD = "fork" if sys.platform == "linux" else "spawn"

Result = Literal["ok", "skipped", "failed"]


class Unavailable(Exception):
    """The machine lacks what a check needs; the message says what."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found: a sentence for the table, and numbers for the JSON file."""

    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check that has not run yet: a function, its arguments, and the seconds it may take."""

    name: str
    function: Callable[..., CheckReport]
    arguments: tuple[Any, ...] = ()
    limit_s: float


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One line of the table. ``log`` has the last lines that a failed check wrote."""

    check: str
    result: Result
    detail: str
    seconds: float = 0.0
    numbers: dict[str, Any] = field(default_factory=dict)
    log: str = ""


class RunningCheck:
    """A check in its process. ``poll`` returns its row once it has ended, and ends its group."""

    def __init__(self, check: Check, log: Path):
        self._check, self._log, self._started_s = check, log, time.monotonic()
        context: Any = multiprocessing.get_context(START_METHOD)
        self._answers, theirs = context.Pipe(duplex=False)
        work = (check.function, check.arguments, theirs, log)
        self._process = context.Process(target=_run_in_group, args=work)
        self._process.start()
        theirs.close()

    def poll(self) -> CheckRow | None:
        """Return the row of a check that has answered, died or taken too long."""
        answer = self._find_answer()
        if answer is None:
            return None
        self.end()
        result, detail, numbers = answer
        return CheckRow(
            check=self._check.name,
            result=result,
            detail=detail,
            seconds=round(time.monotonic() - self._started_s, 1),
            numbers=numbers,
            log=_read_end(self._log) if result == "failed" else "",
        )

    def end(self) -> None:
        """Kill the process and its descendants."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(JOIN_S)
        self._answers.close()

    def _find_answer(self) -> tuple[Result, str, dict[str, Any]] | None:
        # A descendant may hold the dead process's end of the pipe open, so the pipe may never end.
        code = self._process.exitcode
        if self._answers.poll():
            with contextlib.suppress(EOFError):
                found: tuple[Result, str, dict[str, Any]] = self._answers.recv()
                return found
            self._process.join(JOIN_S)
            code = self._process.exitcode
        if code is not None:
            return "failed", f"the process ended with {_name_exit(code)}", {}
        if time.monotonic() - self._started_s >= self._check.limit_s:
            return "failed", f"no result after {self._check.limit_s:.0f} s", {}
        return None


def run_checks(
    checks: Iterable[Check], folder: Path, *, deadline_s: float, slots: int = 1
) -> Iterator[CheckRow]:
    """Run checks, up to ``slots`` of them at once; yield their rows in the order of the checks.

    Nothing runs after ``deadline_s`` of the monotonic clock. Logs are written to ``folder``.
    """
    waiting, rows = list(checks), dict[str, CheckRow]()
    order = [check.name for check in waiting]
    running: dict[str, RunningCheck] = {}
    try:
        while order:
            left_s = deadline_s - time.monotonic()
            while waiting and len(running) < slots and left_s > 0:
                check = waiting.pop(0)
                running[check.name] = RunningCheck(check, folder / f"{check.name}.log")
            for name in list(running):
                if (row := running[name].poll()) is not None:
                    rows[name] = row
                    del running[name]
            if left_s <= 0:
                for name in set(order) - set(rows):
                    rows[name] = CheckRow(check=name, result="failed", detail="no time was left")
            while order and order[0] in rows:
                yield rows[order.pop(0)]
            time.sleep(POLL_S)
    finally:
        for remaining in running.values():
            remaining.end()


def run_check(check: Check, folder: Path, *, deadline_s: float) -> CheckRow:
    """Run a single check."""
    return next(run_checks([check], folder, deadline_s=deadline_s))


def _run_in_group(
    check: Callable[..., CheckReport], arguments: tuple[Any, ...], answer: Connection, log: Path
) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - until the process ends
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    try:
        report = check(*arguments)
        answer.send(("ok", report.detail, report.numbers))
    except Unavailable as reason:
        answer.send(("skipped", str(reason), {}))
    except Exception as error:  # one row of the table, with its traceback in the log
        traceback.print_exc()
        sys.stderr.flush()
        answer.send(("failed", f"{type(error).__name__}: {_first_line(error)}", {}))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _name_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"code {code}"


def _read_end(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ""
