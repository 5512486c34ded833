"""Fails the n-th system call, for all n:

``chaos --nth``, or a seeded share of them with ``--nth 0.1``.

The operations that write are run by the real code in a process of their own: *create*, *claim*,
*finish* and *delete* by the server's application with its real store, *save* by the trainer's
``save_checkpoint``. strace fails the n-th fsync, rename, open, or write of each thread with EIO or
ENOSPC, or kills the process there. Then another process checks the result. Acknowledged data
exists, other data is absent or complete, nothing is torn, a repeat of the request succeeds, and
store and disk agree. The processes are forked from this one, which has done what is slow and not
under test: imports, setup of the application, and building a model.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard import rundir
from tests.chaos.checkpoint_cuts import write_attempt

CALLS = {
    "fsync": "fsync,fdatasync",
    "rename": "rename,renameat,renameat2",
    "open": "open,openat",
    "write": "write,pwrite64",
}
FAULTS = {"EIO": "error=EIO", "ENOSPC": "error=ENOSPC", "SIGKILL": "signal=SIGKILL"}
TIMES_TO_REPEAT = 5
STEP_TIMEOUT_S = 60.0
RUN, ACKNOWLEDGED, REFUSED = "r1", b"acknowledged\n", b"refused\n"


def find_missing_requirement() -> str | None:
    return None if shutil.which("strace") else "needs strace"


@dataclass(frozen=True)
class Injection:
    operation: str
    call: str
    fault: str
    n: int

    def __str__(self) -> str:
        return f"{self.operation}: {self.fault} at {self.call} {self.n}"


class Operation:
    """An operation under test:

    ``prepare`` writes the folder, ``check`` returns the problems afterwards.

    ``perform`` reports whether the operation was acknowledged. Each runs in a process of its own, a
    fork of the one that has called ``preload_for`` for the folder; ``is_heavy`` if that needs
    torch.
    """

    is_heavy = False

    def prepare(self, folder: Path) -> None:
        raise NotImplementedError

    def preload_for(self, folder: Path) -> None:
        raise NotImplementedError

    def perform(self, folder: Path, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        raise NotImplementedError

    def check(self, folder: Path, *, was_acknowledged: bool) -> list[str]:
        raise NotImplementedError


class ServerOperation(Operation):
    """An operation over HTTP, without a socket: the application is called in the process itself."""

    def __init__(self, name: str):
        self.name = name
        self._plans: dict[Path, Any] = {}

    def preload_for(self, folder: Path) -> None:
        self._plans[folder] = _server.plan(folder / "data")

    def prepare(self, folder: Path) -> None:
        async def scenario(server: Any) -> None:
            api = await server.api()
            if self.name == "claim":
                assert (await api.put(server.path(f"runs/{RUN}"), json=_BODY)).status_code == 201
            if self.name in ("finish", "delete"):
                attempt = await _attempts.start(server, RUN)
                await attempt.ship("a line", stream="stdout")
                await attempt.checkpoint()
                (folder / "token").write_text(attempt.assignment["token"])
                write_attempt(server.settings.runs_dir / server.org / RUN, 1, save_every_steps=1)
                if self.name == "delete":
                    await _finish(attempt.client)

        self._run_on_server(folder, scenario)

    def perform(self, folder: Path, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        async def scenario(server: Any) -> None:
            clients = await self._clients(server, folder)
            begin()
            end(await self._ask(server, clients))
            for _ in range(TIMES_TO_REPEAT):
                if await self._ask(server, clients):
                    return
            raise AssertionError("the server does not continue")

        self._run_on_server(folder, scenario)

    def check(self, folder: Path, *, was_acknowledged: bool) -> list[str]:
        found: list[str] = []

        async def scenario(server: Any) -> None:
            before = await self._state(server)
            if was_acknowledged and before != _AFTER[self.name]:
                found.append(f"was acknowledged, and afterwards the run is {before}")
            if before not in (_BEFORE[self.name], _AFTER[self.name]):
                found.append(f"the run is {before}")
            if not await self._ask(server, await self._clients(server, folder)):
                found.append("the request does not go through when it is repeated")
            if (after := await self._state(server)) != _AFTER[self.name]:
                found.append(f"after the repeat the run is {after}")
            if (count := await self._attempts(server)) != _ATTEMPTS[self.name]:
                found.append(f"there are {count} attempts")
            await _sweep(server)
            report = await _check(server)
            if not report.agrees:
                found.append(f"store and disk do not agree: {report}")

        self._run_on_server(folder, scenario)
        with closing(sqlite3.connect(folder / "data" / "server.db")) as database:
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        return found if verdict == "ok" else [*found, f"the database says {verdict}"]

    def _run_on_server(self, folder: Path, scenario: Callable[[Any], Any]) -> None:
        async def all_of_it() -> None:
            (folder / "data").mkdir(exist_ok=True)
            if folder not in self._plans:
                self.preload_for(folder)
            async with _server.enter(self._plans[folder]) as server:
                await scenario(server)

        asyncio.run(all_of_it())

    async def _clients(self, server: Any, folder: Path) -> dict[str, Any]:
        token = (folder / "token").read_text() if (folder / "token").exists() else None
        return {
            "api": await server.api(),
            "controller": await server.client(server.controller_key),
            "attempt": await server.client(token),
        }

    async def _ask(self, server: Any, clients: dict[str, Any]) -> bool:
        """Send the request once.

        A repeat may be answered as done already, which counts as success.
        """
        path = server.path(f"runs/{RUN}")
        if self.name == "create":
            return (await clients["api"].put(path, json=_BODY)).status_code in (200, 201)
        if self.name == "claim":
            answer = await clients["controller"].post("/internal/v1/claims", json=_OFFER)
            return (
                answer.status_code == 200
                and (answer.json()["assignment"] or {}).get("attempt") == 1
            )
        if self.name == "finish":
            return await _finish(clients["attempt"]) in (200, 204, 409)
        return (await clients["api"].delete(path)).status_code in (204, 404)

    async def _state(self, server: Any) -> str:
        answer = await (await server.api()).get(server.path(f"runs/{RUN}"))
        if answer.status_code == 404:
            return "absent"
        newest = answer.json()["status"]["conditions"][-1]
        return f"{newest['condition']} {newest['reason']}"

    async def _attempts(self, server: Any) -> int:
        from runyard.store import attempts

        rows = server.services.store.read(
            lambda connection: attempts.list_by_run(connection, org=server.org, run_id=RUN)
        )
        return len(rows)


_BODY: dict[str, Any] = {"spec": {"flow": {}}}
_OFFER = {"claim_id": "c1", "machine_id": "m1", "host": "here", "slots": 1, "wait_s": 0}
_BEFORE = {
    "create": "absent",
    "claim": "Pending Queued",
    "finish": "Running Preparing",
    "delete": "Succeeded Completed",
}
_AFTER = {
    "create": "Pending Queued",
    "claim": "Pending WaitingForWorker",
    "finish": "Succeeded Completed",
    "delete": "absent",
}
_ATTEMPTS = {"create": 0, "claim": 1, "finish": 1, "delete": 0}


async def _finish(client: Any) -> int:
    result = {
        "outcome": "Succeeded",
        "reason": "Completed",
        "message": "done",
        "checkpoint": "epoch-1",
    }
    body = {
        "exit_code": 0,
        "signal": None,
        "group_empty": True,
        "cause": "exit code 0",
        "time": 5,
        "result": result,
    }
    return int((await client.post("/internal/v1/attempt/finish", json=body)).status_code)


async def _sweep(server: Any) -> None:
    from runyard.server.services.runs import deletion

    await deletion.sweep(server.services)


async def _check(server: Any) -> Any:
    from runyard.server.services.operations import storage

    return await storage.check(server.services, org=server.org)


class SaveOperation(Operation):
    """The second checkpoint of an attempt."""

    is_heavy = True

    def __init__(self) -> None:
        self._all_made: dict[Path, Any] = {}

    def preload_for(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)  # a fork has no other
        attempt = folder / "run" / "attempts" / "1"
        self._all_made[attempt] = self._make(attempt)

    def prepare(self, folder: Path) -> None:
        self._save(write_attempt(folder / "run", 1, save_every_steps=1), 1)

    def perform(self, folder: Path, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        attempt = folder / "run" / "attempts" / "1"
        self._save(attempt, 2, begin, end)

    def check(self, folder: Path, *, was_acknowledged: bool) -> list[str]:
        attempt = folder / "run" / "attempts" / "1"
        found = []
        names = []
        for path, manifest in rundir.list_checkpoints(attempt):
            names.append(path.name)
            if not rundir.is_proven(path, manifest):
                found.append(f"{path.name} is torn")
        if names not in (["step-1"], ["step-1", "step-2"]):
            found.append(f"the checkpoints are {names}")
        if was_acknowledged and "step-2" not in names:
            found.append("was acknowledged and is not there")
        if "step-2" not in names:
            self._save(attempt, 2)
        if [
            path.name
            for path, manifest in rundir.list_checkpoints(attempt)
            if rundir.is_proven(path, manifest)
        ] != ["step-1", "step-2"]:
            found.append("it cannot be saved again")
        from runyard.trainer.checkpoints.checkpoint import load_state

        made = self._get_state(attempt)
        for path, manifest in rundir.list_checkpoints(attempt):
            progress, _ = load_state(path, made.model, made.optimizers)
            if progress.step != manifest["step"]:
                found.append(f"{path.name} loads as step {progress.step}")
        return found

    def _get_state(self, attempt: Path) -> Any:
        return self._all_made.get(attempt) or self._make(attempt)

    def _make(self, attempt: Path) -> Any:
        from runyard.trainer.data.cache import Hooks
        from runyard.trainer.main import detect_machine, parse_run
        from runyard.trainer.prepare import Job, prepare

        run, flow = parse_run(rundir.read_json(rundir.AttemptDir(attempt).run) or {})
        job = Job(folder=attempt, run=run, flow=flow, models={}, resume=None)
        return prepare(job, detect_machine(1), hooks=Hooks())

    def _save(
        self,
        attempt: Path,
        step: int,
        begin: Callable[[], None] = lambda: None,
        end: Callable[[bool], None] = lambda _: None,
    ) -> None:
        from runyard.trainer.checkpoints.checkpoint import (
            SavedCheckpoint,
            collect_contents,
            save_checkpoint,
        )

        made = self._get_state(attempt)
        made.progress.step = step
        before = (
            SavedCheckpoint("step-1", rundir.AttemptDir(attempt).checkpoints / "step-1")
            if step > 1
            else None
        )

        def save() -> bool:
            try:
                save_checkpoint(
                    attempt,
                    f"step-{step}",
                    made.model,
                    collect_contents(
                        made.model, made.optimizers, made.progress, run_document=made.run_document
                    ),
                    metrics={},
                    is_best=False,
                    previous=before,
                )
            # Whatever it says, it was not acknowledged; the trainer would end by it
            except Exception:
                traceback.print_exc()
                return False
            return True

        begin()
        is_saved = save()
        end(is_saved)
        # A checkpoint that is saved is not saved again, because that would remove it first.
        assert is_saved or any(save() for _ in range(TIMES_TO_REPEAT)), "no later save goes through"


OPERATIONS: dict[str, Operation] = {
    **{name: ServerOperation(name) for name in ("create", "claim", "finish", "delete")},
    "save": SaveOperation(),
}


def inject_nth_failures(
    folder: Path, *, share: float, seed: int, only: Collection[str] = tuple(OPERATIONS)
) -> dict[str, Any]:
    """Run every injection, or a seeded share of them; return counts and problems."""
    reason = find_missing_requirement()
    if reason:
        return {"injections": 0, "notRun": reason, "problems": []}
    began_s = time.monotonic()
    _load_server_tests()
    if any(not OPERATIONS[name].is_heavy for name in only):
        # So that all is imported that is on first use
        OPERATIONS["delete"].prepare(_make_folder(folder / "warm-up"))
    found: list[str] = []
    done: Counter[str] = Counter()
    calls: dict[str, dict[str, int]] = {}
    for name, operation in OPERATIONS.items():
        if name not in only:
            continue
        if operation.is_heavy:
            from runyard.trainer.main import preload

            preload()
        choose = random.Random(f"{seed} {name}")  # noqa: S311 - chooses a share, guards nothing
        whole = _make_folder(folder / name)
        _run_in_child(lambda: operation.prepare(whole))  # noqa: B023
        operation.preload_for(_copy_folder(whole, folder))
        gc.freeze()  # a collection in a fork would copy every page
        calls[name] = _count_calls(operation, folder, whole)
        for injection in _list_injections(name, calls[name]):
            if choose.random() >= share:
                continue
            problems, has_struck = _inject_failure(operation, injection, folder, whole)
            found += [f"{injection}: {problem}" for problem in problems]
            done[name] += has_struck
            print(
                f"\r{injection}, {done.total()} done, {len(found)} wrong   ",
                end="",
                file=sys.stderr,
                flush=True,
            )
    seconds = round(time.monotonic() - began_s)
    return {
        "injections": done.total(),
        "of": dict(done),
        "calls": calls,
        "seconds": seconds,
        "problems": found,
    }


def _make_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _load_server_tests() -> None:
    """Load the helpers of the server's tests, which open the application without a socket."""
    global _server, _attempts
    from tests.support import attempts, server

    _server, _attempts = server, attempts


_server: Any = None
_attempts: Any = None


def _list_injections(name: str, calls: dict[str, int]) -> Iterator[Injection]:
    for call, count in calls.items():
        for fault in FAULTS:
            for n in range(1, count + 1):
                yield Injection(name, call, fault, n)


def _count_calls(operation: Operation, folder: Path, whole: Path) -> dict[str, int]:
    """Return the maximum number of each call per thread when nothing fails."""
    copy = _copy_folder(whole, folder)
    seen = folder / "seen"
    outcome = _perform_traced(operation, copy, ["-e", f"trace={','.join(CALLS.values())}"], seen)
    assert outcome == "acknowledged", f"nothing fails, and it says {outcome}"
    counts: dict[str, Counter[str]] = {call: Counter() for call in CALLS}
    for thread, name in re.findall(r"^(\d+) +(\w+)\(", seen.read_text(), re.MULTILINE):
        for call, names in CALLS.items():
            if name in names.split(","):
                counts[call][thread] += 1
    return {call: max(of_threads.values(), default=0) for call, of_threads in counts.items()}


def _inject_failure(
    operation: Operation, injection: Injection, folder: Path, whole: Path
) -> tuple[list[str], bool]:
    copy = _copy_folder(whole, folder)
    seen = folder / "seen"
    names = CALLS[injection.call]
    options = [
        "-e",
        f"trace={names}",
        "-e",
        f"inject={names}:{FAULTS[injection.fault]}:when={injection.n}",
    ]
    outcome = _perform_traced(operation, copy, options, seen)
    has_struck = "INJECTED" in seen.read_text() or "killed by SIGKILL" in seen.read_text()
    problems = []
    if outcome not in ("acknowledged", "refused", "killed"):
        problems.append(outcome)
    problems += (
        _run_in_child(lambda: operation.check(copy, was_acknowledged=outcome == "acknowledged"))
        or []
    )
    return problems, has_struck


def _copy_folder(whole: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    return copy


def _perform_traced(operation: Operation, folder: Path, options: list[str], seen: Path) -> str:
    """Perform an operation under strace; return ``acknowledged``, ``refused``, ``killed``, or the
    problem.
    """
    status_reader, status_writer = os.pipe()
    go_reader, go_writer = os.pipe()
    output = folder / "output"
    pid = os.fork()
    if pid == 0:
        _run_and_exit(
            lambda: operation.perform(
                folder,
                lambda: _wait_for_go(go_reader, status_writer),
                lambda ok: _acknowledge(status_writer, ok),
            ),
            output,
        )
    os.close(status_writer)
    tracer: subprocess.Popen[bytes] | None = None
    try:
        assert os.read(status_reader, 6) == b"ready\n", output.read_text()
        seen.unlink(missing_ok=True)
        command = ["strace", "-f", "-o", str(seen), "-p", str(pid), *options]
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        os.write(go_writer, b"g")
        outcome = _read_until_closed(status_reader, STEP_TIMEOUT_S)
        status = _wait_for_exit(pid, STEP_TIMEOUT_S)
    finally:
        for descriptor in (status_reader, go_reader, go_writer):
            os.close(descriptor)
        if tracer is not None:
            tracer.terminate()
            tracer.communicate()
    if status is None:
        return "it hangs"
    if os.WIFSIGNALED(status):
        return outcome or "killed"
    if os.WEXITSTATUS(status) != 0:
        return (
            f"ended with {os.WEXITSTATUS(status)} after it was {outcome or 'begun'}: "
            f"{output.read_text()[-2000:]}"
        )
    return outcome or "refused"


def _wait_for_go(go_reader: int, status_writer: int) -> None:
    os.write(status_writer, b"ready\n")
    os.read(go_reader, 1)


def _acknowledge(status_writer: int, ok: bool) -> None:
    """Write the acknowledgment; a write that fails does not count as one."""
    try:
        os.write(status_writer, ACKNOWLEDGED if ok else REFUSED)
    except OSError:
        traceback.print_exc()


def _read_until_closed(reader: int, timeout_s: float) -> str:
    words = b""
    signal.alarm(int(timeout_s))
    while piece := os.read(reader, 100):
        words += piece
    signal.alarm(0)
    return words.decode().split("\n")[0]


def _wait_for_exit(pid: int, timeout_s: float) -> int | None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _run_in_child(work: Callable[[], list[str] | None]) -> list[str] | None:
    """Run ``work`` in a forked process; return its result, or the traceback."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        try:
            answer: list[str] | None = work()
        except BaseException:
            answer = [traceback.format_exc()]
        with os.fdopen(sink, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as file:
        text = file.read()
    os.waitpid(pid, 0)
    answered: list[str] | None = json.loads(text) if text else ["it ended without a result"]
    return answered


def _run_and_exit(work: Callable[[], None], output: Path) -> None:
    code = 1
    try:
        log = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
