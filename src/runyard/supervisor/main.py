"""The effects of a supervisor: it feeds events to ``step`` and carries out the actions that
``step`` returns.

The main thread does the quick work: it forks, waits, sends signals, reads lines, writes small
files. Work that may wait for the network or read much data goes to one of three lanes. A lane is a
thread that carries out one action at a time and returns its outcome as an event. Renewals have a
lane of their own, so they never wait behind an upload. The main thread sleeps on one pipe, to which
signals (a child has ended, SIGTERM) and lanes write, so it notices a trainer's death at once.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runyard import processes as machine
from runyard import rundir
from runyard.beats import read_beat
from runyard.ports import Clock, Files, Identity, Processes, SystemClock
from runyard.protocol import LOST_OUT_OF_MEMORY, ProcessReport
from runyard.rundir import AttemptDir
from runyard.supervisor import messages as msg
from runyard.supervisor import step as st
from runyard.supervisor.api_client import AttemptClient
from runyard.supervisor.group import ProcessGroup
from runyard.supervisor.launch import RunLock, Train, Trainer, fork_trainer
from runyard.supervisor.resume import prune_checkpoints
from runyard.supervisor.sampling import Sampler
from runyard.supervisor.stalls import CHECK_EVERY_S, RankView, StallDetector
from vi._http.tls import Trust

log = logging.getLogger(__name__)

TICK_S = 0.25
TICK_WHILE_CLEARING_S = 0.05
CHUNK_BYTES = 256 << 10
WRITE_RETRY_S = 1.0
DEFAULT_SPOOL_BYTES = 64 << 20

EXIT_OK, EXIT_TAKEN, EXIT_UNPLACED, EXIT_BROKEN = 0, 3, 4, 70


def supervise(
    folder: Path,
    *,
    endpoint: str,
    token: str,
    trust: Mapping[str, str] | None = None,
    train: Train | None = None,
) -> int:
    """Supervise the attempt in ``folder`` until its end is reported; call it in a process of its
    own.

    ``trust`` has the fields of ``vi._http.Trust``. With ``train`` the trainer is a fork of this
    process that calls ``train(folder)``, otherwise it is ``python -m runyard.trainer``. Returns the
    exit code: 0 after the report, 3 when another supervisor holds this folder, 4 when
    ``placed.json`` is absent or unreadable.
    """
    directory = AttemptDir(folder)
    placed = rundir.read_json(directory.placed)
    if placed is None:
        print(
            f"{directory.placed} is absent or unreadable: no attempt was placed here",
            file=sys.stderr,
        )
        return EXIT_UNPLACED
    if not _acquire_lock(directory.supervisor_lock):
        print(f"another supervisor already runs for {folder}", file=sys.stderr)
        return EXIT_TAKEN
    _configure_logging()
    mark = machine.format_mark(placed["organizationId"], placed["runId"], placed["attempt"])
    machine.set_mark(machine.SUPERVISOR_MARK, mark)
    machine.become_subreaper()
    Supervisor(
        folder,
        placed,
        mark=mark,
        endpoint=endpoint,
        token=token,
        trust=Trust(**(trust or {})),
        train=train,
    ).run()
    return EXIT_OK


class Supervisor:
    """The supervisor of one attempt, from the fork of its trainer to the report of its end."""

    def __init__(
        self,
        folder: Path,
        placed: dict[str, Any],
        *,
        mark: str,
        endpoint: str,
        token: str,
        trust: Trust,
        train: Train | None,
        clock: Clock | None = None,
        files: Files = rundir,
        processes: Processes = machine,
    ):
        self._folder, self._placed, self._mark, self._train = folder, placed, mark, train
        self._dir = AttemptDir(folder)
        self._clock, self._files, self._processes = clock or SystemClock(), files, processes
        self._group = ProcessGroup(mark, folder, processes)
        server_file = Path(placed["serverFile"]) if placed.get("serverFile") else None
        self._client = AttemptClient(
            endpoint, token=token, folder=folder, server_file=server_file, trust=trust
        )
        self._inbox: SimpleQueue[msg.Event] = SimpleQueue()
        self._wakeup_reader, self._wakeup_writer = os.pipe()
        os.set_blocking(self._wakeup_writer, False)
        os.set_blocking(self._wakeup_reader, False)
        self._lane_queues: dict[msg.Lane, SimpleQueue[Callable[[], msg.Event]]] = {}
        self._sampler = Sampler(folder, self._clock)
        self._trainer: Trainer | None = None
        self._lost_rank: tuple[int, int] | None = None  # with its wait status
        self._lock: RunLock | None = None
        self._spool_bytes = int(placed.get("spoolBytes", DEFAULT_SPOOL_BYTES))
        self._permit_at_s = self._retry_writes_at_s = self._check_ranks_at_s = 0.0
        self._stalls = StallDetector()
        # Rejected by a full disk so far, in order
        self._pending_writes: dict[Path, dict[str, Any]] = {}
        self._memory_kills_before = self._memory_kills_seen = processes.count_memory_kills()
        self._state = self._make_first_state()

    def run(self) -> None:
        """Run until the end is reported and every file is written."""
        if self._state.phase == "announcing":
            self._fork_trainer()
        self._start_lanes()
        if self._trainer is not None:
            self._sampler.start()
        while self._state.phase != "ended" or self._pending_writes:
            self._renew_permit()
            self._retry_writes()
            self._check_ranks()
            self._handle_event(msg.TimePassed())
            self._wait_for_event()
            self._reap_children()
            while not self._inbox.empty():
                self._handle_event(self._inbox.get())

    def _renew_permit(self) -> None:
        """Renew the trainer's permit.

        A stopped supervisor cannot, so trainer and controller react.
        """
        now_s = self._clock.monotonic()
        if now_s < self._permit_at_s:
            return
        self._permit_at_s = now_s + rundir.PERMIT_EVERY_S
        # The kernel counts for the whole machine, so a kill long before our trainer's end concerns
        # another process. The count before the last one is kept, because the end may come right
        # after a count.
        self._memory_kills_before = self._memory_kills_seen
        self._memory_kills_seen = self._processes.count_memory_kills()
        # On a full disk the first permit is written once there is space
        with contextlib.suppress(OSError):
            rundir.write_permit(self._folder, now_s)

    def _write_document(self, path: Path, document: dict[str, Any]) -> bool:
        """Write a file now, or retry until the disk accepts it: its content must not be lost.

        If the folder is gone, because its run was deleted, the document is dropped: no reader is
        left. Returns whether the document is no longer pending.
        """
        try:
            self._files.write_json(path, document)
        except OSError as error:
            if self._folder.is_dir():
                if path not in self._pending_writes:
                    log.warning(
                        "cannot write %s of %s yet: %s; retrying",
                        path.name,
                        self._mark,
                        error.strerror,
                    )
                self._pending_writes[path] = document
                return False
            log.info(
                "not writing %s of %s: the folder is gone, the run was deleted",
                path.name,
                self._mark,
            )
        self._pending_writes.pop(path, None)
        return True

    def _retry_writes(self) -> None:
        now_s = self._clock.monotonic()
        if not self._pending_writes or now_s < self._retry_writes_at_s:
            return
        self._retry_writes_at_s = now_s + WRITE_RETRY_S
        for path, document in list(self._pending_writes.items()):
            if not self._write_document(path, document):
                return

    def _make_first_state(self) -> st.State:
        """Return the initial state.

        A folder with a ``process.json`` had a supervisor: only settle it.
        """
        lease_s, grace_s = float(self._placed["leaseS"]), float(self._placed["graceS"])
        before = self._files.read_json(self._dir.process)
        if before is None:
            return st.State(
                lease_s=lease_s,
                grace_s=grace_s,
                max_unreachable_s=self._placed.get("maxUnreachableS"),
                hang_s=self._placed.get("hangS"),
            )
        document = self._files.read_json(self._dir.exit)
        ended = parse_exit_document(document) or self._infer_exit(before)
        return st.make_settling_state(ended, lease_s=lease_s, grace_s=grace_s)

    def _infer_exit(self, before: dict[str, Any]) -> msg.ExitStatus:
        """Return the most likely exit of a trainer whose supervisor died; ``before`` is its
        ``process.json``.
        """
        if self._files.read_json(self._dir.result) is not None:
            return msg.ExitStatus(
                cause="the supervisor was lost after the trainer had left its result"
            )
        if before.get("bootId") != self._processes.boot_id():
            return msg.ExitStatus(cause="the machine was restarted")
        if self._memory_kills_before > before.get("memoryKills", self._memory_kills_before):
            phase = read_last_phase(self._folder, self._files)
            suffix = f" and the trainer was {phase}" if phase else ""
            return msg.ExitStatus(cause=f"{LOST_OUT_OF_MEMORY}{suffix}")
        return msg.ExitStatus(cause="the supervisor was lost, and its trainer was ended")

    def _fork_trainer(self) -> None:
        self._lock = RunLock.open(self._folder)
        self._trainer = fork_trainer(
            self._folder,
            mark=self._mark,
            lock=self._lock,
            train=self._train,
            workers=int(self._placed.get("workers", 1)),
        )
        trainer = self._processes.identify(self._trainer.pid)
        myself = self._identify_self()
        document = {
            "bootId": myself.boot_id,
            "supervisor": {"pid": myself.pid, "startTicks": myself.start_ticks},
            "trainer": {"pid": trainer.pid, "startTicks": trainer.start_ticks} if trainer else None,
            "mark": self._mark,
            "memoryKills": self._memory_kills_before,
            "time": self._clock.now_ms(),
        }
        # The trainer waits at its gate: if it trained without this file, another trainer could be
        # started.
        while not self._write_document(self._dir.process, document):
            self._renew_permit()
            self._clock.sleep(WRITE_RETRY_S)

    def _identify_self(self) -> Identity:
        identity = self._processes.identify(os.getpid())
        assert identity is not None  # noqa: S101 - this process is alive
        return identity

    def _start_lanes(self) -> None:
        """Start threads and signal handlers; call after the fork."""
        signal.signal(signal.SIGTERM, lambda *_: self._inbox.put(msg.TerminationRequested()))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        for lane in ("lease", "reports", "transfers"):
            self._lane_queues[lane] = SimpleQueue()
            threading.Thread(
                target=self._run_lane, args=(self._lane_queues[lane],), name=lane, daemon=True
            ).start()

    def _run_lane(self, lane: SimpleQueue[Callable[[], msg.Event]]) -> None:
        while True:
            call = lane.get()
            try:
                outcome = call()
            except BaseException:
                # Without this lane the attempt would hang forever. Exiting kills the trainer by the
                # parent-death signal, and the controller starts another supervisor that settles the
                # attempt.
                log.exception("lane failed in the supervisor of %s", self._mark)
                os._exit(EXIT_BROKEN)
            self._inbox.put(outcome)
            with contextlib.suppress(BlockingIOError):  # a full pipe wakes the main thread anyway
                os.write(self._wakeup_writer, b"\0")

    def _wait_for_event(self) -> None:
        if not self._inbox.empty():
            return
        tick_s = TICK_WHILE_CLEARING_S if self._state.phase == "clearing" else TICK_S
        if select.select([self._wakeup_reader], [], [], tick_s)[0]:
            os.read(self._wakeup_reader, 4096)

    def _reap_children(self) -> None:
        trainer = self._trainer
        ended = dict(self._group.reap())
        if trainer is None:
            return
        for rank, pid in enumerate(trainer.peers, start=1):
            if pid in ended:
                self._end_with_rank(rank, ended[pid])
        if trainer.peers and trainer.pid in ended and self._lost_rank is None:
            self._note_lost_leader(ended[trainer.pid])
        if trainer.pid in ended:
            self._sampler.stop()
            kills = self._processes.count_memory_kills() - self._memory_kills_before
            phase = read_last_phase(self._folder, self._files)
            lost = self._lost_rank
            self._handle_event(
                make_exit_event(
                    ended[trainer.pid] if lost is None else lost[1],
                    memory_kills=kills,
                    trainer_phase=phase,
                    rank=None if lost is None else lost[0],
                )
            )

    def _end_with_rank(self, rank: int, status: int) -> None:
        """End rank 0 after the first loss of another rank, whose status is then the attempt's.

        A rank that ended with rank 0, or because it missed another one, is not the cause.
        """
        followed = (rundir.EXIT_DONE, rundir.EXIT_CANNOT_RUN, rundir.EXIT_PEER_LOST)
        is_lost = os.waitstatus_to_exitcode(status) not in followed
        if self._lost_rank is None and is_lost and self._state.phase != "clearing":
            self._lost_rank = rank, status
            self._signal_trainer(signal.SIGKILL)

    def _note_lost_leader(self, status: int) -> None:
        """Note that rank 0 was lost, unless it ended as it should."""
        regular = (rundir.EXIT_DONE, rundir.EXIT_CANNOT_RUN, rundir.EXIT_STOPPED)
        if os.waitstatus_to_exitcode(status) not in regular:
            self._lost_rank = 0, status

    def _check_ranks(self) -> None:
        """Look for a rank that the others wait for in vain."""
        trainer, now_s = self._trainer, self._clock.monotonic()
        is_training = self._state.phase == "training"
        if (
            trainer is None
            or not trainer.peers
            or not is_training
            or now_s < self._check_ranks_at_s
        ):
            return
        self._check_ranks_at_s = now_s + CHECK_EVERY_S
        views = [self._view_rank(rank, pid) for rank, pid in enumerate(trainer.pids)]
        if (stall := self._stalls.observe(views, now_s)) is not None:
            self._inbox.put(msg.RankStalled(stall.message, stall.is_final))

    def _view_rank(self, rank: int, pid: int) -> RankView:
        beat, use = read_beat(self._dir.beat(rank)), machine.read_use(pid)
        return RankView(beat) if use is None else RankView(beat, use.cpu_s, use.is_stopped)

    def _handle_event(self, event: msg.Event) -> None:
        self._state, actions = st.step(self._state, event, self._clock.monotonic())
        for action in actions:
            self._perform_action(action)

    def _perform_action(self, action: msg.Action) -> None:
        match action:
            case msg.Announce():
                self._submit("reports", lambda: self._client.announce(self._make_process_report()))
            case msg.RenewLease(phase, note):
                self._submit("lease", lambda: self._client.renew(phase, note))
            case msg.ShipLines():
                self._submit("reports", lambda: self._client.ship_lines(action))
            case msg.StoreCheckpoint(name):
                self._submit("transfers", lambda: self._store_checkpoint(name))
            case msg.SendReport(ended):
                result = self._files.read_json(self._dir.result)
                now_ms = self._clock.now_ms()
                store_id = self._state.store_id
                self._submit(
                    "reports",
                    lambda: self._client.report(
                        ended, time_ms=now_ms, result=result, store_id=store_id
                    ),
                )
            case msg.PrepareAttempt():
                self._submit("transfers", self._prepare_attempt)
            case msg.ReadLines(stream, offset, is_final):
                self._read_lines(stream, offset, is_final=is_final)
            case msg.FindCheckpoints():
                found = self._files.list_checkpoints(self._folder)
                unevaluated = {path.name for path, item in found if item.get("isUnevaluated")}
                names = tuple(path.name for path, _ in found)
                self._inbox.put(msg.CheckpointsFound(names, frozenset(unevaluated)))
            case _:
                self._perform_trainer_action(action)

    def _perform_trainer_action(self, action: msg.Action) -> None:
        match action:
            case msg.AcquireLock():
                if self._lock is not None and self._lock.acquire():
                    self._inbox.put(msg.LockAcquired())
            case msg.OpenGate() if self._trainer is not None and self._lock is not None:
                self._trainer.open_gate()
                self._lock.close()
            case msg.CloseGate() if self._trainer is not None:
                self._trainer.close_gate()
            case msg.TerminateTrainer() if self._trainer is not None:
                self._signal_trainer(signal.SIGTERM)
                # A stopped process handles SIGTERM only after SIGCONT
                self._signal_trainer(signal.SIGCONT)
            case msg.KillProcesses():
                self._kill_processes()
            case _:
                self._perform_write(action)

    def _perform_write(self, action: msg.Action) -> None:
        now_ms = self._clock.now_ms()
        match action:
            case msg.WriteStop(reason):
                self._write_document(self._dir.stop, {"reason": reason, "time": now_ms})
            case msg.WriteExit(ended):
                self._write_document(self._dir.exit, build_exit_document(ended, time_ms=now_ms))
                log.info("trainer of %s ended: %s", self._mark, ended.cause)
            case msg.WriteClosed(how):
                closed = {"how": how, "time": now_ms, "epoch": self._state.store_id}
                self._write_document(self._dir.closed, closed)
            case msg.Warn(message):
                log.warning("%s: %s", self._mark, message)

    def _submit(self, lane: msg.Lane, call: Callable[[], msg.Event]) -> None:
        self._lane_queues[lane].put(call)

    def _make_process_report(self) -> ProcessReport:
        me = self._identify_self()
        return ProcessReport(
            machine_id=self._placed["machineId"],
            boot_id=me.boot_id,
            pid=me.pid,
            start_ticks=me.start_ticks,
        )

    def _prepare_attempt(self) -> msg.Event:
        while True:
            try:
                return self._client.prepare_attempt(self._files)
            except OSError as error:
                log.warning(
                    "preparing %s failed: %s; retrying", self._mark, error.strerror or error
                )
                self._clock.sleep(WRITE_RETRY_S)

    def _store_checkpoint(self, name: str) -> msg.Event:
        outcome = self._client.store_checkpoint(name)
        if isinstance(outcome, msg.CheckpointStored):
            try:
                prune_checkpoints(self._folder, stored=name, kept=outcome.kept, files=self._files)
            except OSError as error:  # they are removed after the next checkpoint, or with the run
                log.warning("cannot remove older checkpoints of %s: %s", self._mark, error)
        return outcome

    def _read_lines(self, stream: msg.Stream, offset: int, *, is_final: bool) -> None:
        path = {
            "events": self._dir.events,
            "stdout": self._dir.stdout,
            "stderr": self._dir.stderr,
            "samples": self._dir.samples,
            "system": self._dir.system,
        }[stream]
        is_bounded = stream in ("stdout", "stderr", "system")
        if is_bounded and (skipped := count_excess_bytes(path, offset, self._spool_bytes)):
            note = (
                f"[{skipped} bytes of this log were dropped: more than spool_mib of it was waiting "
                "for the server]"
            )
            self._inbox.put(msg.LinesRead(stream, offset, offset + skipped, (note,)))
            return
        lines, next_offset = self._files.read_lines(path, offset, CHUNK_BYTES, is_final=is_final)
        self._inbox.put(msg.LinesRead(stream, offset, next_offset, tuple(lines)))

    def _signal_trainer(self, number: int) -> None:
        """Send a signal.

        Our child keeps its process id until we reap it, so the id cannot be reused.
        """
        assert self._trainer is not None  # noqa: S101
        identity = self._processes.identify(self._trainer.pid)
        if identity is not None:
            self._processes.send_signal(identity, number)

    def _kill_processes(self) -> None:
        if self._trainer is not None:
            self._trainer.close_gate()
        if self._lock is not None:
            self._lock.close()
        if self._group.kill():
            self._inbox.put(msg.ProcessesEnded())


def make_exit_event(
    status: int,
    *,
    memory_kills: int,
    trainer_phase: str | None = None,
    rank: int | None = None,
) -> msg.TrainerExited:
    """Return a wait status as an event of ``step``."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        return msg.TrainerExited(None, name, memory_kills, trainer_phase, rank)
    return msg.TrainerExited(code, None, memory_kills, trainer_phase, rank)


def read_last_phase(folder: Path, files: Files = rundir) -> str | None:
    """Return the trainer's last reported phase; None if it is not within the last part of its
    events.
    """
    path = AttemptDir(folder).events
    try:
        begin = max(0, path.stat().st_size - CHUNK_BYTES)
    except OSError:
        return None
    lines, _ = files.read_lines(path, begin, CHUNK_BYTES)
    return st.find_last_phase(tuple(lines))


def count_excess_bytes(path: Path, offset: int, limit_bytes: int) -> int:
    """Return how many bytes of an unshipped log to drop, whole lines, to keep the newest
    ``limit_bytes``.
    """
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


def build_exit_document(ended: msg.ExitStatus, *, time_ms: int) -> dict[str, Any]:
    """Return the content of ``exit.json``."""
    return {
        "exitCode": ended.exit_code,
        "signal": ended.signal,
        "groupEmpty": ended.group_empty,
        "cause": ended.cause,
        "time": time_ms,
    }


def parse_exit_document(document: dict[str, Any] | None) -> msg.ExitStatus | None:
    """Return the exit status in an ``exit.json``; None when it is absent or unreadable."""
    if document is None or not isinstance(document.get("cause"), str):
        return None
    return msg.ExitStatus(
        exit_code=document.get("exitCode"),
        signal=document.get("signal"),
        cause=document["cause"],
    )


def _acquire_lock(path: Path) -> bool:
    """Acquire a lock for the life of this process; the descriptor stays open on purpose."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def _configure_logging() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )


def read_credentials(descriptor: int) -> dict[str, Any]:
    """Read endpoint, token and trust, as ``supervise`` takes them, from an inherited descriptor,
    which neither ``ps`` nor the environment shows.
    """
    with os.fdopen(descriptor, "rb") as file:
        document = json.loads(file.read())
    return {name: document.get(name) for name in ("endpoint", "token", "trust")}
