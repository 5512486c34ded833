"""The thin rim of a supervisor: it turns what happens into inputs for ``step`` and carries out what ``step`` answers.

The main thread does what is quick: forks, waits, signals, reads lines, writes small files. Whatever may wait for the
network or read much goes to one of three lanes, each a thread that carries out one action at a time and hands its
outcome back as an input. Renewing has a lane of its own and so never stands behind an upload. The main thread sleeps
on one descriptor that signals (a child ended, SIGTERM) and lanes write to, so a trainer's death is seen at once.
"""

import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runyard import processes as machine
from runyard import rundir
from runyard.ports import Clock, Files, Identity, Processes, SystemClock
from runyard.protocol import LOST_OUT_OF_MEMORY, ProcessReport
from runyard.supervisor import messages as mv
from runyard.supervisor import step as st
from runyard.supervisor.group import Group
from runyard.supervisor.launch import RunLock, Train, Trainer, fork_trainer
from runyard.supervisor.resume import prune
from runyard.supervisor.server import Server

log = logging.getLogger(__name__)

TICK_S = 0.25
TICK_WHILE_CLEARING_S = 0.05
CHUNK_BYTES = 256 << 10
WRITE_AGAIN_AFTER_S = 1.0
SPOOL_BYTES = 64 << 20
_PATHS: dict[mv.Stream, str] = {"events": rundir.EVENTS_FILE, "stdout": rundir.STDOUT, "stderr": rundir.STDERR}

EXIT_OK, EXIT_TAKEN, EXIT_UNPLACED, EXIT_BROKEN = 0, 3, 4, 70


def supervise(folder: Path, *, endpoint: str, token: str, train: Train | None = None) -> int:
    """Look after the attempt in ``folder`` until its last word is said; to be called in a process of its own.

    With ``train`` the trainer is a fork of this process in which ``train(folder)`` is called, otherwise it is
    ``python -m runyard.trainer``. Returns the exit code: 0 in the end, 3 when another supervisor looks after this
    folder, 4 when ``placed.json`` is not there or not readable.
    """
    placed = rundir.read_json(folder / rundir.PLACED)
    if placed is None:
        print(f"{folder / rundir.PLACED} is absent or unreadable: nobody has placed an attempt here", file=sys.stderr)
        return EXIT_UNPLACED
    if not _hold(folder / rundir.SUPERVISOR_LOCK):
        print(f"another supervisor looks after {folder}", file=sys.stderr)
        return EXIT_TAKEN
    _log_to_stderr()
    mark = machine.attempt_mark(placed["organizationId"], placed["runId"], placed["attempt"])
    machine.set_mark(machine.SUPERVISOR_MARK, mark)
    machine.become_subreaper()
    Supervisor(folder, placed, mark=mark, endpoint=endpoint, token=token, train=train).run()
    return EXIT_OK


class Supervisor:
    """One attempt, from the fork of its trainer to its last word."""

    def __init__(
        self,
        folder: Path,
        placed: dict[str, Any],
        *,
        mark: str,
        endpoint: str,
        token: str,
        train: Train | None,
        clock: Clock | None = None,
        files: Files = rundir,
        processes: Processes = machine,
    ):
        self._folder, self._placed, self._mark, self._train = folder, placed, mark, train
        self._clock, self._files, self._processes = clock or SystemClock(), files, processes
        self._group = Group(mark, folder, processes)
        server_file = Path(placed["serverFile"]) if placed.get("serverFile") else None
        self._server = Server(endpoint, token=token, folder=folder, server_file=server_file)
        self._inbox: SimpleQueue[mv.Input] = SimpleQueue()
        self._alarm, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._alarm, False)
        self._lanes: dict[mv.Lane, SimpleQueue[Callable[[], mv.Input]]] = {}
        self._trainer: Trainer | None = None
        self._lock: RunLock | None = None
        self._spool_bytes = int(placed.get("spoolBytes", SPOOL_BYTES))
        self._permit_at_s = self._write_again_at_s = 0.0
        self._unwritten: dict[Path, dict[str, Any]] = {}  # what a full disk did not take yet, in order
        self._memory_kills_before = self._memory_kills_seen = processes.out_of_memory_kills()
        self._state = self._first_state()

    def run(self) -> None:
        """Run until nothing is left to say."""
        if self._state.phase == "announcing":
            self._fork()
        self._listen()
        while self._state.phase != "ended" or self._unwritten:
            self._renew_permit()
            self._write_what_waits()
            self._take(mv.Tick())
            self._wait()
            self._reap()
            while not self._inbox.empty():
                self._take(self._inbox.get())

    def _renew_permit(self) -> None:
        """Say that we are well: a supervisor that is stopped cannot, and neither trainer nor controller waits long."""
        now_s = self._clock.monotonic()
        if now_s < self._permit_at_s:
            return
        self._permit_at_s = now_s + rundir.PERMIT_EVERY_S
        # The kernel counts for the whole machine. A kill long before our trainer's end was another process's; the look
        # before the last one is kept, because the end may come right after a look.
        self._memory_kills_before = self._memory_kills_seen
        self._memory_kills_seen = self._processes.out_of_memory_kills()
        with contextlib.suppress(OSError):  # a first one that finds no room is written when there is some
            rundir.write_permit(self._folder, now_s)

    def _write(self, name: str, document: dict[str, Any]) -> bool:
        """Write a file of ours, now or as soon as the disk takes it: what it says must not be lost.

        Where the whole folder is gone, because its run was deleted, nobody is left to read it. Returns whether nothing
        waits to be written.
        """
        path = self._folder / name
        try:
            self._files.write_json(path, document)
        except OSError as error:
            if self._folder.is_dir():
                if path not in self._unwritten:
                    log.warning("%s of %s cannot be written yet: %s", name, self._mark, error.strerror)
                self._unwritten[path] = document
                return False
            log.info("%s of %s has no folder any more: the run was deleted", name, self._mark)
        self._unwritten.pop(path, None)
        return True

    def _write_what_waits(self) -> None:
        now_s = self._clock.monotonic()
        if not self._unwritten or now_s < self._write_again_at_s:
            return
        self._write_again_at_s = now_s + WRITE_AGAIN_AFTER_S
        for path, document in list(self._unwritten.items()):
            if not self._write(path.name, document):
                return

    def _first_state(self) -> st.State:
        """A folder with a ``process.json`` had a supervisor before us: its trainer is never started again."""
        lease_s, grace_s = float(self._placed["leaseS"]), float(self._placed["graceS"])
        before = self._files.read_json(self._folder / rundir.PROCESS)
        if before is None:
            return st.State(
                lease_s=lease_s,
                grace_s=grace_s,
                max_unreachable_s=self._placed.get("maxUnreachableS"),
                hang_s=self._placed.get("hangS"),
            )
        ended = exit_of(self._files.read_json(self._folder / rundir.EXIT)) or self._lost_exit(before)
        return st.settling(ended, lease_s=lease_s, grace_s=grace_s)

    def _lost_exit(self, before: dict[str, Any]) -> mv.Exit:
        if self._files.read_json(self._folder / rundir.RESULT) is not None:
            return mv.Exit(cause="the supervisor was lost after the trainer had left its result")
        if before.get("bootId") != self._processes.boot_id():
            return mv.Exit(cause="the machine was restarted")
        if self._memory_kills_before > before.get("memoryKills", self._memory_kills_before):
            doing = f" and the trainer was {word}" if (word := last_phase(self._folder, self._files)) else ""
            return mv.Exit(cause=f"{LOST_OUT_OF_MEMORY}{doing}")
        return mv.Exit(cause="the supervisor was lost, and its trainer was ended")

    def _fork(self) -> None:
        self._lock = RunLock.open(self._folder)
        self._trainer = fork_trainer(self._folder, mark=self._mark, lock=self._lock, train=self._train)
        trainer = self._processes.identify(self._trainer.pid)
        myself = self._myself()
        document = {
            "bootId": myself.boot_id,
            "supervisor": {"pid": myself.pid, "startTicks": myself.start_ticks},
            "trainer": {"pid": trainer.pid, "startTicks": trainer.start_ticks} if trainer else None,
            "mark": self._mark,
            "memoryKills": self._memory_kills_before,
            "time": self._clock.now_ms(),
        }
        # The trainer waits at its gate meanwhile: one that trained without this file could be started a second time.
        while not self._write(rundir.PROCESS, document):
            self._renew_permit()
            self._clock.sleep(WRITE_AGAIN_AFTER_S)

    def _myself(self) -> Identity:
        identity = self._processes.identify(os.getpid())
        assert identity is not None  # noqa: S101 - we live
        return identity

    def _listen(self) -> None:
        """Threads and signals begin here, after the fork."""
        signal.signal(signal.SIGTERM, lambda *_: self._inbox.put(mv.Told()))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        for lane in ("lease", "words", "bytes"):
            self._lanes[lane] = SimpleQueue()
            threading.Thread(target=self._drive, args=(self._lanes[lane],), name=lane, daemon=True).start()

    def _drive(self, lane: SimpleQueue[Callable[[], mv.Input]]) -> None:
        while True:
            call = lane.get()
            try:
                outcome = call()
            except BaseException:
                # Without this lane the attempt would hang for ever. Ended loudly, its trainer ends with us by the
                # parent-death signal, and the controller starts another supervisor that settles what lies there.
                log.exception("A lane of %s failed", self._mark)
                os._exit(EXIT_BROKEN)
            self._inbox.put(outcome)
            with contextlib.suppress(BlockingIOError):  # the pipe is full, so the main thread will wake up anyway
                os.write(self._bell, b"\0")

    def _wait(self) -> None:
        if not self._inbox.empty():
            return
        tick_s = TICK_WHILE_CLEARING_S if self._state.phase == "clearing" else TICK_S
        if select.select([self._alarm], [], [], tick_s)[0]:
            os.read(self._alarm, 4096)

    def _reap(self) -> None:
        for pid, status in self._group.reap():
            if self._trainer is not None and pid == self._trainer.pid:
                kills = self._processes.out_of_memory_kills() - self._memory_kills_before
                word = last_phase(self._folder, self._files)
                self._take(exited(status, memory_kills=kills, phase_word=word))

    def _take(self, event: mv.Input) -> None:
        self._state, actions = st.step(self._state, event, self._clock.monotonic())
        for action in actions:
            self._perform(action)

    def _perform(self, action: mv.Action) -> None:
        match action:
            case mv.Announce():
                self._send("words", lambda: self._server.announce(self._process_report()))
            case mv.Renew(phase, note):
                self._send("lease", lambda: self._server.renew(phase, note))
            case mv.ShipLines():
                self._send("words", lambda: self._server.ship(action))
            case mv.StoreCheckpoint(name):
                self._send("bytes", lambda: self._store(name))
            case mv.Report(ended):
                result = self._files.read_json(self._folder / rundir.RESULT)
                now_ms = self._clock.now_ms()
                epoch = self._state.epoch
                self._send("words", lambda: self._server.report(ended, time_ms=now_ms, result=result, epoch=epoch))
            case mv.Prepare():
                self._send("bytes", self._prepare)
            case mv.ReadLines(stream, offset, is_final):
                self._read_lines(stream, offset, is_final=is_final)
            case mv.FindCheckpoints():
                found = self._files.checkpoints(self._folder)
                self._inbox.put(mv.CheckpointsFound(tuple(path.name for path, _ in found)))
            case _:
                self._perform_on_trainer(action)

    def _perform_on_trainer(self, action: mv.Action) -> None:
        match action:
            case mv.TakeLock():
                if self._lock is not None and self._lock.take():
                    self._inbox.put(mv.LockTaken())
            case mv.OpenGate() if self._trainer is not None and self._lock is not None:
                self._trainer.open_gate()
                self._lock.close()
            case mv.CloseGate() if self._trainer is not None:
                self._trainer.close_gate()
            case mv.Terminate() if self._trainer is not None:
                self._signal_trainer(signal.SIGTERM)
                self._signal_trainer(signal.SIGCONT)  # a stopped process takes no SIGTERM until it goes on
            case mv.KillAll():
                self._kill_all()
            case _:
                self._write_down(action)

    def _write_down(self, action: mv.Action) -> None:
        now_ms = self._clock.now_ms()
        match action:
            case mv.WriteStop(reason):
                self._write(rundir.STOP, {"reason": reason, "time": now_ms})
            case mv.WriteExit(ended):
                self._write(rundir.EXIT, exit_document(ended, time_ms=now_ms))
                log.info("The trainer of %s has ended: %s", self._mark, ended.cause)
            case mv.WriteClosed(how):
                self._write(rundir.CLOSED, {"how": how, "time": now_ms, "epoch": self._state.epoch})
            case mv.Warn(message):
                log.warning("%s: %s", self._mark, message)

    def _send(self, lane: mv.Lane, call: Callable[[], mv.Input]) -> None:
        self._lanes[lane].put(call)

    def _process_report(self) -> ProcessReport:
        me = self._myself()
        return ProcessReport(
            machine_id=self._placed["machineId"], boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks
        )

    def _prepare(self) -> mv.Input:
        while True:
            try:
                return self._server.prepare(self._files)
            except OSError as error:
                log.warning("%s waits for its disk: %s", self._mark, error.strerror or error)
                self._clock.sleep(WRITE_AGAIN_AFTER_S)

    def _store(self, name: str) -> mv.Input:
        outcome = self._server.store(name)
        if isinstance(outcome, mv.CheckpointStored):
            try:
                prune(self._folder, stored=name, kept=outcome.kept, files=self._files)
            except OSError as error:  # what is left goes after the next checkpoint, or with the run
                log.warning("Older checkpoints of %s cannot be removed: %s", self._mark, error)
        return outcome

    def _read_lines(self, stream: mv.Stream, offset: int, *, is_final: bool) -> None:
        path = self._folder / _PATHS[stream]
        if stream != "events" and (skipped := excess(path, offset, self._spool_bytes)):
            note = f"[{skipped} bytes of this log were left out: more than spool_mib of it waited for the server]"
            self._inbox.put(mv.LinesRead(stream, offset, offset + skipped, (note,)))
            return
        lines, next_offset = self._files.read_lines(path, offset, CHUNK_BYTES, is_final=is_final)
        self._inbox.put(mv.LinesRead(stream, offset, next_offset, tuple(lines)))

    def _signal_trainer(self, number: int) -> None:
        """Our own child keeps its pid until we reap it, so the id can be nobody else's."""
        assert self._trainer is not None  # noqa: S101
        identity = self._processes.identify(self._trainer.pid)
        if identity is not None:
            self._processes.send_signal(identity, number)

    def _kill_all(self) -> None:
        if self._trainer is not None:
            self._trainer.close_gate()
        if self._lock is not None:
            self._lock.close()
        if self._group.kill():
            self._inbox.put(mv.GroupEmpty())


def exited(status: int, *, memory_kills: int, phase_word: str | None = None) -> mv.TrainerExited:
    """A wait status in the words of ``step``."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return mv.TrainerExited(None, signal.Signals(-code).name, memory_kills, phase_word)
    return mv.TrainerExited(code, None, memory_kills, phase_word)


def last_phase(folder: Path, files: Files = rundir) -> str | None:
    """What the trainer last said it was doing, as far as the end of its events tells."""
    path = folder / rundir.EVENTS_FILE
    try:
        begin = max(0, path.stat().st_size - CHUNK_BYTES)
    except OSError:
        return None
    lines, _ = files.read_lines(path, begin, CHUNK_BYTES)
    return st.said_phase(tuple(lines))


def excess(path: Path, offset: int, limit_bytes: int) -> int:
    """How many bytes of a log that waits are too many, up to the end of a line; the newest ``limit_bytes`` stay."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size - offset <= limit_bytes:
                return 0
            file.seek(size - limit_bytes)
            file.readline(CHUNK_BYTES)
            return file.tell() - offset
    except FileNotFoundError:
        return 0


def exit_document(ended: mv.Exit, *, time_ms: int) -> dict[str, Any]:
    """``exit.json``."""
    return {
        "exitCode": ended.exit_code,
        "signal": ended.signal,
        "groupEmpty": ended.group_empty,
        "cause": ended.cause,
        "time": time_ms,
    }


def exit_of(document: dict[str, Any] | None) -> mv.Exit | None:
    """What an ``exit.json`` says; None when there is none that can be read."""
    if document is None or not isinstance(document.get("cause"), str):
        return None
    return mv.Exit(
        exit_code=document.get("exitCode"),
        signal=document.get("signal"),
        cause=document["cause"],
    )


def _hold(path: Path) -> bool:
    """Take a lock for the life of this process; the descriptor is left open on purpose."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def read_credentials(descriptor: int) -> tuple[str, str]:
    """Endpoint and token from an inherited descriptor, where neither ``ps`` nor the environment shows them."""
    with os.fdopen(descriptor, "rb") as file:
        document = json.loads(file.read())
    return document["endpoint"], document["token"]
