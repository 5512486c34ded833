"""A simulated machine: processes, locks, files, and the effects of controller and supervisor.

The effects mirror ``supervisor/main.py`` and ``controller/main.py``: the same actions, carried out
on tables instead of on Linux. A change of an action there needs the same change here.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runyard.controller import decide as dc
from runyard.controller.placement import is_other_store
from runyard.ports import Identity, Liveness
from runyard.protocol import (
    Assignment,
    CheckpointFile,
    CheckpointReport,
    Claim,
    ExitReport,
    Lines,
    MachineReport,
    ProcessReport,
    Renewal,
    ResumeCandidates,
    SelfTest,
)
from runyard.rundir import PERMIT_EVERY_S, PERMIT_S
from runyard.server.services import machine_failures
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Actor
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import SUSPECT
from runyard.server.services.runs import leases, models
from runyard.server.services.runs import resume as resuming
from runyard.server.services.runs.telemetry import ingest
from runyard.supervisor import messages as msg
from runyard.supervisor import step as st
from tests.sim.simulation.server import Server
from tests.sim.simulation.world import Host, Link, Process, Timer, send_request

CONTROLLER = Actor(org="", name="controller", role="controller", address="")
PIDS = 200  # few, so that ids are reused
CHUNK_BYTES = 256 << 10
# Half an hour in the product; shorter here, so that it passes within a history
MAX_UNREACHABLE_S = 90.0
TICK_MS, TICK_WHILE_CLEARING_MS, RECONCILE_EVERY_MS = 250, 50, 250


@dataclass
class Folder:
    """The folder of an attempt.

    JSON is durable once written; of a stream, the first ``synced`` bytes are.
    """

    documents: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in msg.STREAMS}
    )
    synced: dict[str, int] = field(default_factory=lambda: dict.fromkeys(msg.STREAMS, 0))
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    permit_ms: int | None = None  # by the machine's monotonic clock
    once: dict[str, bytes] = field(default_factory=dict)  # the streams before the first power cut

    def cut_power(self) -> None:
        if "process.json" in self.documents and not self.once:  # no process writes here afterwards
            self.once = {name: bytes(data) for name, data in self.streams.items()}
        for name, data in self.streams.items():
            del data[self.synced[name] :]
        self.permit_ms = None


class Program(Process):
    """A process of a machine, with the attributes that the kernel has."""

    def __init__(
        self,
        machine: "Machine",
        name: str,
        *,
        key: dc.AttemptKey | None = None,
        parent: "Program | None" = None,
    ):
        super().__init__(machine.world, name, machine.host)
        self.machine, self.key, self.parent = machine, key, parent
        self.mark = key  # what a scan of the process table finds; a program may lose it
        self.pid = machine.next_pid()
        self.started_ms = machine.world.now_ms
        machine.programs[self.pid] = self

    @property
    def key_words(self) -> tuple[str, str, int]:
        assert self.key is not None
        return self.key.organization_id, self.key.run_id, self.key.attempt

    @property
    def identity(self) -> Identity:
        return Identity(self.machine.boot_id, self.pid, self.started_ms)

    def kill(self) -> None:
        """Send SIGKILL, which also ends a paused process."""
        if self.is_alive:
            self.die()
            self.machine.on_exit(self)


class RunLock:
    """One open file of ``run.lock``, locked as long as a process has it open."""

    def __init__(self, machine: "Machine", run: tuple[str, str]):
        self._machine, self._run = machine, run
        self.holders: dict[Program, None] = {}  # in order, so that a seed is one history

    def acquire(self) -> bool:
        held = self._machine.locks.get(self._run)
        if held is not None and held is not self and held.living and not self._machine.without_lock:
            return False
        self._machine.locks[self._run] = self
        return True

    @property
    def living(self) -> list[Program]:
        return [program for program in self.holders if program.is_alive]


class Machine:
    """One machine: its processes, its folders, and its link to the server."""

    def __init__(self, host: Host, server: Server, number: int, *, slots: int, truth: Any):
        self.host, self.server, self.number, self.slots, self.truth = (
            host,
            server,
            number,
            slots,
            truth,
        )
        self.world = host.world
        self.id = f"m{number}"
        self.link = Link()
        self.boots = 1
        self.programs: dict[int, Program] = {}
        self.locks: dict[tuple[str, str], RunLock] = {}
        self.folders: dict[dc.AttemptKey, Folder] = {}
        self.set_aside: dict[
            tuple[dc.AttemptKey, str], Folder
        ] = {}  # of attempts that a restore has undone, by store id
        self.controller: Controller | None = None
        self.without_lock = self.without_proof = self.without_folders = False
        self.stubbornness = 0.0
        self.is_fsync_failing = False
        self.is_out_of_service = False  # as far as its operator wants
        self._pid = 0
        self.start_controller()

    @property
    def boot_id(self) -> str:
        return f"{self.id}-{self.boots}"

    def next_pid(self) -> int:
        while True:
            self._pid = self._pid % PIDS + 1
            if self._pid not in self.programs:
                return self._pid

    def get_folder(self, key: dc.AttemptKey) -> Folder:
        return self.folders.setdefault(key, Folder())

    @property
    def now_ms(self) -> int:
        """The machine's monotonic clock."""
        return self.host.monotonic_ms

    def start_controller(self) -> None:
        """Start a controller; a second one finds the machine locked and ends."""
        if self.controller is None or not self.controller.is_alive:
            self.controller = Controller(self)

    def allow_fsync(self) -> None:
        self.is_fsync_failing = False

    def reboot(self) -> None:
        self.world.record(self.id, "reboots")
        for program in list(self.programs.values()):
            program.die()
            if isinstance(program, Trainer):
                self.truth.record_trainer_exit(program)
        self.programs.clear()
        self.locks.clear()
        for folder in (*self.folders.values(), *self.set_aside.values()):
            folder.cut_power()
        self.boots += 1
        self.world.schedule(self.world.draw_int(2_000, 20_000), self.start_controller)

    def check_liveness(self, identity: Identity) -> Liveness:
        program = self.programs.get(identity.pid)
        return "alive" if program is not None and program.identity == identity else "dead"

    def find_marked(self, key: dc.AttemptKey) -> list[Program]:
        """Return the processes with the attempt's mark; supervisors have another mark."""
        return [
            p for p in self.programs.values() if p.mark == key and not isinstance(p, Supervisor)
        ]

    def list_children(self, parent: Program) -> list[Program]:
        return [p for p in self.programs.values() if p.parent is parent]

    def list_lock_holders(self, key: dc.AttemptKey) -> list[Program]:
        """Return the holders of the run's lock, except those of other attempts."""
        held = self.locks.get((key.organization_id, key.run_id))
        if held is None or self.without_lock:
            return []
        return [program for program in held.living if program.mark in (None, key)]

    def find_supervisor(self, key: dc.AttemptKey) -> "Supervisor | None":
        found = (p for p in self.programs.values() if isinstance(p, Supervisor) and p.key == key)
        return next(found, None)

    def on_exit(self, program: Program) -> None:
        self.programs.pop(program.pid, None)
        if program.key is not None:
            self.truth.record_program_exit(program.key)
        if isinstance(program, Trainer):
            self.truth.record_trainer_exit(program)
        for child in self.list_children(program):
            # A supervisor is a child subreaper: it becomes the parent of its trainer's children.
            child.parent = (
                program.parent if isinstance(program, Trainer) and program.is_child else None
            )
            # The parent-death signal, which reaches no further.
            if isinstance(child, Trainer) and child.mark is not None:
                self._kill_after_delay(child)
        if isinstance(program, Supervisor) and self.controller is not None:
            self.controller.reconcile_soon()
        if isinstance(program, Controller):
            self.world.schedule(self.world.draw_int(500, 8_000), self.start_controller)
        if isinstance(program.parent, Supervisor) and isinstance(program, Trainer):
            program.parent.on_trainer_exit(program)

    def _kill_after_delay(self, program: Program) -> None:
        """Kill a process that may hang in the kernel: then it does nothing, but stays alive for a
        while.
        """
        if self.world.draw_bool(self.stubbornness):
            program.hang()
            self.world.schedule(self.world.draw_int(20_000, 90_000), program.kill)
        else:
            self.world.schedule(self.world.draw_int(0, 30), program.kill)

    def kill(self, program: Program) -> None:
        self._kill_after_delay(program)


class Trainer(Program):
    """Trainer: waits at its gate, writes lines and checkpoints, and ends in one of several ways."""

    def __init__(self, supervisor: "Supervisor"):
        super().__init__(supervisor.machine, "trainer", key=supervisor.key, parent=supervisor)
        self.folder = supervisor.folder
        self.exit: tuple[int | None, str | None] = (None, "SIGKILL")
        self.is_training = self.is_stopping = False
        self.step = self.last = self.number = 0
        self._permit = 0

    @property
    def is_child(self) -> bool:
        return isinstance(self.parent, Supervisor) and self.parent.is_alive

    def lose_mark(self) -> None:
        """Act as an ``exec`` with an empty environment: mark and parent-death signal are gone.

        Only the lock's descriptor still connects it with its attempt.
        """
        self.mark = None

    def start_training(self) -> None:
        self.is_training = True
        self.machine.truth.record_training_start(self)
        world = self.world
        self.last = world.draw_int(4, 30) if world.draw_bool(0.8) else world.draw_int(60, 120)
        resume = self.folder.documents.get("resume.json")
        self.step = min(int(resume["step"]), self.last - 1) if resume else 0
        self.kind = world.random.choices(("done", "invalid", "crash", "oddly"), (12, 1, 2, 1))[0]
        if world.draw_bool(0.3):
            loader = Program(self.machine, "loader", key=self.key, parent=self)
            if (
                world.draw_bool(0.5)
                and isinstance(self.parent, Supervisor)
                and self.parent.lock is not None
            ):
                # A fork keeps the descriptor, an exec does not
                self.parent.lock.holders[loader] = None
        self._write_event("phase", phase="Training", message="begins")
        self.schedule(world.draw_int(300, 2_000), self._run_step)
        self.schedule(2_000, self._check_permit)

    def terminate(self) -> None:
        """Handle SIGTERM."""
        if not self.is_training:
            self.exit_with(None, "SIGTERM")
        # Some libraries handle the signal themselves
        elif not self.is_stopping and not self.world.draw_bool(0.1):
            self.is_stopping = True
            self.schedule(self.world.draw_int(100, 3_000), self._stop)

    def _run_step(self) -> None:
        if self.is_stopping:
            return
        world = self.world
        self.step += 1
        self._write_event(
            "step",
            step=self.step,
            epoch=self.step / 4,
            totalSteps=self.last,
            values={"loss": 1 / self.step},
        )
        if world.draw_bool(0.3):
            assert self.key is not None
            line = f"attempt {self.key.attempt} step {self.step}\n"
            self.folder.streams["stdout"] += line.encode()
        if self.step % 4 == 0:
            self._save(self._continue)
        else:
            self._continue()

    def _continue(self) -> None:
        world = self.world
        if self.is_stopping:
            return
        if self.step < self.last:
            self.schedule(world.draw_int(300, 2_500), self._run_step)
            return
        if self.kind == "crash":
            self.exit_with(
                *world.random.choice(((1, None), (137, None), (None, "SIGSEGV"), (None, "SIGKILL")))
            )
        elif self.kind == "invalid":
            self.folder.documents["result.json"] = {
                "outcome": "Failed",
                "reason": "InvalidData",
                "message": "no rows",
            }
            self.exit_with(64)
        else:
            self._save(self._finish)

    def _finish(self) -> None:
        self.folder.documents["result.json"] = {
            "outcome": "Succeeded",
            "reason": "Completed",
            "message": "done",
        }
        self.schedule(
            self.world.draw_int(1, 300), lambda: self.exit_with(1 if self.kind == "oddly" else 0)
        )

    def _check_permit(self) -> None:
        at_ms = self.folder.permit_ms
        if (
            at_ms is not None
            and self.machine.now_ms - at_ms > PERMIT_S * 1000
            and not self.is_stopping
        ):
            self.is_stopping = True
            self.schedule(self.world.draw_int(100, 3_000), self._stop)
        self.schedule(5_000, self._check_permit)

    def _stop(self) -> None:
        self._save(self._exit_stopped)

    def _exit_stopped(self) -> None:
        self.folder.documents["result.json"] = {
            "outcome": "Stopped",
            "reason": "Stopped",
            "message": "saved",
        }
        self.exit_with(75)

    def _save(self, then: Callable[[], None]) -> None:
        """Save a checkpoint.

        After a failed fsync the staged files are dropped and the save restarts.
        """
        if self.machine.is_fsync_failing:
            self.machine.truth.counts["saves restarted"] += 1
            self.schedule(self.world.draw_int(200, 2_000), lambda: self._save(then))
            return
        name = f"step-{self.step}"
        self.folder.checkpoints[name] = {"step": self.step, "time": self.world.now_ms}
        self._write_event("checkpoint", checkpoint=name, step=self.step)
        self.folder.synced["events"] = len(self.folder.streams["events"])
        then()

    def _write_event(self, event: str, **fields: Any) -> None:
        self.number += 1
        line = json.dumps({"n": self.number, "t": self.world.now_ms, "ev": event, **fields})
        self.folder.streams["events"] += line.encode() + b"\n"
        if isinstance(self.parent, Supervisor):
            self.parent.wake_soon()

    def exit_with(self, code: int | None = None, signal: str | None = None) -> None:
        self.exit = (code, signal)
        self.kill()


class Supervisor(Program):
    """The effects around ``supervisor.step``."""

    def __init__(self, machine: Machine, assignment: Assignment, *, is_first: bool):
        self.assignment = assignment
        key = dc.AttemptKey(assignment.organization_id, assignment.run_id, assignment.attempt)
        super().__init__(machine, "supervisor", key=key)
        self.folder = machine.get_folder(key)
        signed = machine.server.services.signer.verify_attempt_token(assignment.token)
        assert isinstance(signed, AttemptToken)
        self.token = signed
        self.trainer: Trainer | None = None
        self.lock: RunLock | None = None
        self.inbox: list[msg.Event] = []
        self.is_gate_open = False
        self._killed: set[Program] = set()
        self._permit_at_ms = 0
        self._woken_ms = machine.now_ms
        self._alarm: Timer | None = None
        other = machine.find_supervisor(key)
        if other is not None and other is not self:
            self.kill()  # exit 3: another supervisor already runs for this folder
            return
        self.state = self._make_first_state()
        if self.state.phase == "announcing":
            self._fork_trainer()
        self.schedule(1, self._wake)

    def _make_first_state(self) -> st.State:
        lease_s, grace_s = self.assignment.lease_s, self.assignment.grace_s
        documents = self.folder.documents
        if "process.json" not in documents:
            # The first machine is the server's own
            limit_s = MAX_UNREACHABLE_S if self.machine.number else None
            return st.State(lease_s=lease_s, grace_s=grace_s, max_unreachable_s=limit_s)
        ended = documents.get("exit.json")
        if ended is None:
            ended = msg.ExitStatus(cause="the supervisor was lost, and its trainer was ended")
        return st.make_settling_state(ended, lease_s=lease_s, grace_s=grace_s)

    def _fork_trainer(self) -> None:
        assert self.key is not None
        self.lock = RunLock(self.machine, (self.key.organization_id, self.key.run_id))
        self.trainer = Trainer(self)
        self.lock.holders = dict.fromkeys((self, self.trainer))
        self.folder.documents["process.json"] = self.identity
        self.machine.truth.record_launch(self.key)

    def on_trainer_exit(self, trainer: Trainer) -> None:
        assert self.key is not None
        code, signal = trainer.exit
        # Every second attempt has several ranks, and rank 1 was the one that a fault killed.
        rank = 1 if signal == "SIGKILL" and self.key.attempt % 2 else None
        event = msg.TrainerExited(code, signal, rank=rank)
        self.schedule(1, lambda: self._post_event(event))

    def request_stop(self) -> None:
        """Send SIGTERM: ask the supervisor to save, stop, and exit."""
        self.deliver(lambda: self._post_event(msg.TerminationRequested()))

    def _wake(self) -> None:
        now_ms = self.machine.now_ms
        self._woken_ms = now_ms
        if now_ms >= self._permit_at_ms:
            self._permit_at_ms = now_ms + round(PERMIT_EVERY_S * 1000)
            self.folder.permit_ms = now_ms
        self._handle_event(msg.TimePassed())
        self._process_inbox()
        if self.is_alive:
            self._alarm = self.schedule(self._get_sleep_ms(), self._wake)

    def _get_sleep_ms(self) -> int:
        """Return the time until a tick can have an effect; earlier ticks are skipped.

        While no call is in flight and all output is shipped, only the clock has effects: the next
        renewal, the next permit, the timeout of an unreachable server.
        """
        state = self.state
        if state.phase == "clearing":
            return TICK_WHILE_CLEARING_MS
        if (
            state.phase != "training"
            or state.busy_lanes
            or state.unanswered_since is not None
            or state.stop_reason is not None
        ):
            return TICK_MS
        if any(state.offsets[name] != len(self.folder.streams[name]) for name in msg.STREAMS):
            return TICK_MS
        if any(
            name not in state.stored_checkpoints | state.given_up
            for name in self.folder.checkpoints
        ):
            return TICK_MS
        due_ms = min(round(state.renew_at * 1000), self._permit_at_ms) - self.machine.now_ms
        return max(1, -(-due_ms // TICK_MS)) * TICK_MS

    def wake_soon(self) -> None:
        """Wake at the next multiple of TICK_MS, because the trainer has written a line."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = self.schedule(
                TICK_MS - (self.machine.now_ms - self._woken_ms) % TICK_MS, self._wake
            )

    def _post_event(self, event: msg.Event) -> None:
        self.inbox.append(event)
        self._process_inbox()
        self.wake_soon()

    def _process_inbox(self) -> None:
        while self.inbox and self.is_alive:
            self._handle_event(self.inbox.pop(0))

    def _handle_event(self, event: msg.Event) -> None:
        if not self.is_alive:
            return
        self.state, actions = st.step(self.state, event, self.machine.now_ms / 1000)
        for action in actions:
            self._perform_action(action)

    def _perform_action(self, action: msg.Action) -> None:
        getattr(self, f"_do_{type(action).__name__}")(action)

    def _call_server(self, lane: msg.Lane, what: str | None, request: Any, make_event: Any) -> None:
        """Make one call, with the failure handling of ``supervisor.api_client``."""

        def on_outcome(outcome: Any) -> None:
            if isinstance(outcome, Refusal):
                if outcome.code == "LeaseLost":
                    self._post_event(msg.LeaseLost())
                elif what is not None and outcome.code not in ("BlobMissing", "StoreRestored"):
                    self._post_event(msg.UploadRejected(lane, what, str(outcome)))
                else:
                    self._post_event(msg.ServerUnreachable(lane))
            elif outcome is None or isinstance(outcome, Exception):
                self._post_event(msg.ServerUnreachable(lane))
            else:
                self._post_event(make_event(outcome))

        send_request(self.world, self.machine.link, self.machine.server, self, request, on_outcome)

    def _do_Announce(self, _: msg.Announce) -> None:
        me = self.identity
        report = ProcessReport(
            machine_id=self.machine.id, boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks
        )

        async def announce(services: Any) -> Any:
            with self.machine.truth.track_renewal(self.key):
                return await leases.report_process(services, self.token, report)

        self._call_server("reports", None, announce, msg.Announced)

    def _do_RenewLease(self, action: msg.RenewLease) -> None:
        async def renew(services: Any) -> Any:
            with self.machine.truth.track_renewal(self.key):
                return await leases.renew(services, self.token, Renewal(phase=action.phase))

        self._call_server("lease", None, renew, msg.LeaseRenewed)

    def _do_AcquireLock(self, _: msg.AcquireLock) -> None:
        if self.lock is not None and self.lock.acquire():
            self.inbox.append(msg.LockAcquired())

    def _do_PrepareAttempt(self, _: msg.PrepareAttempt) -> None:
        """Select the newest checkpoint, here or on the server; the download takes no time."""

        async def offer(services: Any) -> Any:
            return resuming.list_candidates(services, self.token)

        def prepare(offered: ResumeCandidates) -> msg.AttemptPrepared:
            assert self.key is not None
            here = (self.key.organization_id, self.key.run_id)
            earlier = [
                manifest
                for key, folder in self.machine.folders.items()
                if (key.organization_id, key.run_id) == here and key.attempt < self.key.attempt
                for manifest in folder.checkpoints.values()
            ]
            earlier += [{"step": there.step, "time": there.time} for there in offered.checkpoints]
            if earlier:
                self.folder.documents["resume.json"] = max(
                    earlier, key=lambda m: (m["step"], m["time"])
                )
            return msg.AttemptPrepared()

        self.schedule(
            self.world.draw_int(5, 500),
            lambda: self._call_server("transfers", None, offer, prepare),
        )

    def _do_OpenGate(self, _: msg.OpenGate) -> None:
        if self.trainer is not None and self.lock is not None and self.trainer.is_alive:
            trainer = self.trainer
            self.lock.holders.pop(self, None)
            trainer.schedule(self.world.draw_int(1, 20), trainer.start_training)

    def _do_CloseGate(self, _: Any) -> None:
        if self.trainer is not None and not self.trainer.is_training:
            trainer = self.trainer
            trainer.schedule(self.world.draw_int(1, 20), lambda: trainer.exit_with(75))

    def _do_WriteStop(self, action: msg.WriteStop) -> None:
        self.folder.documents["stop.json"] = action.reason

    def _do_TerminateTrainer(self, _: msg.TerminateTrainer) -> None:
        if self.trainer is not None and self.trainer.is_alive:
            self.trainer.deliver(self.trainer.terminate)
            self.trainer.resume()

    def _do_KillProcesses(self, _: msg.KillProcesses) -> None:
        assert self.key is not None
        if self.lock is not None:
            self.lock.holders.pop(self, None)
        # As in supervisor/group.py: descendants, marked processes, holders of the lock.
        below = [
            p
            for child in self.machine.list_children(self)
            for p in (child, *self.machine.list_children(child))
        ]
        found = dict.fromkeys(
            [*below, *self.machine.find_marked(self.key), *self.machine.list_lock_holders(self.key)]
        )
        for program in found:
            if program not in self._killed:
                self._killed.add(program)
                self.machine.kill(program)
        if not found or self.machine.without_proof:
            self.inbox.append(msg.ProcessesEnded())

    def _do_ReadLines(self, action: msg.ReadLines) -> None:
        data = bytes(
            self.folder.streams[action.stream][action.offset : action.offset + CHUNK_BYTES]
        )
        end = data.rfind(b"\n") + 1
        read = tuple(line.decode() for line in data[:end].splitlines())
        self.inbox.append(msg.LinesRead(action.stream, action.offset, action.offset + end, read))

    def _do_ShipLines(self, action: msg.ShipLines) -> None:
        body = Lines(
            stream=action.stream,
            offset=action.offset,
            next_offset=action.next_offset,
            lines=list(action.lines),
        )
        self._call_server(
            "reports",
            action.stream,
            lambda s: ingest.accept(s, self.token, body),
            lambda accepted: msg.LinesShipped(action.stream, accepted.offset),
        )

    def _do_FindCheckpoints(self, _: msg.FindCheckpoints) -> None:
        self.inbox.append(msg.CheckpointsFound(tuple(self.folder.checkpoints)))

    def _do_StoreCheckpoint(self, action: msg.StoreCheckpoint) -> None:
        step = self.folder.checkpoints[action.name]["step"]
        content = f"{self.key} {action.name}".encode()
        digest = hashlib.sha256(content).hexdigest()
        report = CheckpointReport(
            checkpoint_id=action.name,
            step=step,
            epoch=step // 4,
            metrics={"exactMatch": 0.5},
            is_best=True,
            time=self.world.now_ms,
            files=[
                CheckpointFile(path="model_full/weights", size_bytes=len(content), sha256=digest)
            ],
        )

        async def store(services: Any) -> bool:
            services.blobs(self.token.org).bytes[digest] = content
            await models.register(services, self.token, report)
            return True

        self._call_server(
            "transfers", action.name, store, lambda _: msg.CheckpointStored(action.name)
        )

    def _do_WriteExit(self, action: msg.WriteExit) -> None:
        self.folder.documents["exit.json"] = action.exit

    def _do_SendReport(self, action: msg.SendReport) -> None:
        result = None if self.machine.without_folders else self.folder.documents.get("result.json")
        ended = action.exit
        report = ExitReport(
            exit_code=ended.exit_code,
            signal=ended.signal,
            group_empty=ended.group_empty,
            cause=ended.cause,
            time=self.world.now_ms,
            result=result,
            store_id=self.state.store_id,
        )

        async def finish(services: Any) -> bool:
            await leases.finish(services, self.token, report)
            return True

        is_last = ended.group_empty
        self._call_server(
            "reports",
            msg.REPORT if is_last else None,
            finish,
            lambda _: msg.ReportAccepted(is_last),
        )

    def _do_WriteClosed(self, action: msg.WriteClosed) -> None:
        self.folder.documents["closed.json"] = {"how": action.how, "epoch": self.state.store_id}

    def _do_Warn(self, _: msg.Warn) -> None:
        pass

    def _do_End(self, _: msg.End) -> None:
        self.kill()


@dataclass
class HeldAttempt:
    assignment: Assignment
    held_at_ms: int
    supervisor: Identity | None = None
    starts: int = 0
    started_at_ms: int = 0
    killed_at_ms: int | None = None
    is_trainer_stop_requested: bool = False


class Controller(Program):
    """The effects around ``controller.decide``."""

    def __init__(self, machine: Machine):
        super().__init__(machine, "controller")
        self.held: dict[dc.AttemptKey, HeldAttempt] = {}
        self._claims = 0
        self._claim_id = self._new_claim_id()
        self._is_claiming = self._is_adopting = False
        self._adopted_ms: int | None = None
        self.crash_at: str | None = None  # "claimed" or "started": the point of a SIGKILL
        self._reconciled_ms = machine.now_ms
        self._alarm: Timer | None = None
        self.schedule(1, self._reconcile)

    def _new_claim_id(self) -> str:
        self._claims += 1
        identity = self.identity
        return f"{identity.boot_id}-{identity.pid}-{identity.start_ticks}-{self._claims}"

    def _reconcile(self) -> None:
        self._reconciled_ms = now_ms = self.machine.now_ms
        view = dc.MachineView(
            slots=self.machine.slots,
            attempts=[self._observe_attempt(key, held) for key, held in sorted(self.held.items())],
            since_adopted_s=None
            if self._adopted_ms is None
            else (now_ms - self._adopted_ms) / 1000,
            is_adopting=self._is_adopting,
            is_claiming=self._is_claiming,
        )
        for action in dc.decide(view):
            self._perform_action(action)
            if not self.is_alive:
                return
        self._alarm = self.schedule(self._get_sleep_ms(view), self._reconcile)

    def _get_sleep_ms(self, view: dc.MachineView) -> int:
        """Return the time until a pass can find something to do.

        A supervisor that lives is let alone until its permit is old, and whatever else may happen
        wakes us.
        """
        if view.since_adopted_s is None or any(
            seen.supervisor != "alive" for seen in view.attempts
        ):
            return RECONCILE_EVERY_MS
        due_s = dc.ADOPT_EVERY_S - view.since_adopted_s
        for seen in view.attempts:
            due_s = min(due_s, dc.UNRESPONSIVE_AFTER_S - seen.silent_for_s)
        return max(1, int(due_s * 1000) // RECONCILE_EVERY_MS) * RECONCILE_EVERY_MS

    def reconcile_soon(self) -> None:
        """Reconcile at the next multiple of RECONCILE_EVERY_MS, because something has changed."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = self.schedule(
                RECONCILE_EVERY_MS
                - (self.machine.now_ms - self._reconciled_ms) % RECONCILE_EVERY_MS,
                self._reconcile,
            )

    def _observe_attempt(self, key: dc.AttemptKey, held: HeldAttempt) -> dc.AttemptView:
        liveness = None if held.supervisor is None else self.machine.check_liveness(held.supervisor)
        now_ms, permit_ms = self.machine.now_ms, self.machine.get_folder(key).permit_ms or 0
        return dc.AttemptView(
            key=key,
            supervisor=liveness,
            is_closed=liveness != "alive"
            and "closed.json" in self.machine.get_folder(key).documents,
            starts=held.starts,
            since_start_s=(now_ms - held.started_at_ms) / 1000,
            held_for_s=(now_ms - held.held_at_ms) / 1000,
            lease_s=held.assignment.lease_s,
            grace_s=held.assignment.grace_s,
            silent_for_s=(now_ms - max(held.held_at_ms, held.started_at_ms, permit_ms)) / 1000,
            since_kill_s=None if held.killed_at_ms is None else (now_ms - held.killed_at_ms) / 1000,
            is_trainer_stop_requested=held.is_trainer_stop_requested,
        )

    def _perform_action(self, action: dc.Action) -> None:
        match action:
            case dc.Adopt():
                self._is_adopting = True
                self._call_server(self._fetch_placements, self._on_placed)
            case dc.ClaimRun(slots):
                self._is_claiming = True
                offer = Claim(
                    claim_id=self._claim_id,
                    machine_id=self.machine.id,
                    host=self.machine.id,
                    slots=slots,
                    wait_s=0,
                )
                self._call_server(lambda s: leases.claim(s, CONTROLLER, offer), self._on_claimed)
            case dc.StartSupervisor(key):
                held = self.held[key]
                held.starts += 1
                held.started_at_ms = self.machine.now_ms
                started = Supervisor(self.machine, held.assignment, is_first=held.starts == 1)
                held.supervisor = started.identity
                self._maybe_crash("started")
            case dc.Release(key):
                del self.held[key]
            case dc.StopTrainer(key):
                self.held[key].is_trainer_stop_requested = True
                for program in list(self.machine.programs.values()):
                    # As process.json names it
                    if isinstance(program, Trainer) and program.key == key:
                        program.deliver(program.terminate)
                        program.resume()
            case dc.KillSupervisor(key):
                supervisor = self.machine.find_supervisor(key)
                if supervisor is not None and supervisor.identity == self.held[key].supervisor:
                    self.world.record(self.machine.id, "breaks the supervisor of", key)
                    supervisor.kill()
            case _:
                raise AssertionError(action)

    def _call_server(self, request: Any, on_answer: Any) -> None:
        def on_silence() -> None:
            on_answer(None)
            self.reconcile_soon()

        def on_outcome(outcome: Any) -> None:
            if outcome is None or isinstance(outcome, Exception):
                self.schedule(1_000, on_silence)
            else:
                on_answer(outcome)
                self.reconcile_soon()

        send_request(self.world, self.machine.link, self.machine.server, self, request, on_outcome)

    async def _fetch_placements(self, services: Any) -> Any:
        report = MachineReport(
            host=self.machine.id, labels={}, accelerators=[], slots=self.machine.slots
        )
        clock = services.clock
        services.machines.record_report(
            self.machine.id, report, now_ms=clock.now_ms(), uptime_s=clock.monotonic_s()
        )
        is_suspect = services.memberships.get_state(self.machine.id) == SUSPECT
        if is_suspect and not self.held:
            passed = SelfTest(passed=True, message="all parts")
            await machine_failures.record_self_test(services, self.machine.id, passed)
        return await leases.list_placed(services, self.machine.id)

    def _on_claimed(self, claimed: Any) -> None:
        if claimed is None:
            self._is_claiming = False  # keep the claim id
            return
        self._claim_id = self._new_claim_id()
        if claimed.assignment is not None:
            self._is_claiming = False
            self._hold_attempt(claimed.assignment)
            self._maybe_crash("claimed")
        else:
            self.schedule(1_000, self._allow_claim)

    def _allow_claim(self) -> None:
        self._is_claiming = False
        self.reconcile_soon()

    def _maybe_crash(self, when: str) -> None:
        if self.crash_at == when:
            self.kill()

    def _on_placed(self, placed: Any) -> None:
        self._is_adopting = False
        if placed is None:
            return
        is_first = self._adopted_ms is None
        self._adopted_ms = self.machine.now_ms
        for assignment in placed.attempts:
            self._hold_attempt(assignment)
        if is_first:
            self._kill_leftovers()

    def _hold_attempt(self, assignment: Assignment) -> None:
        key = dc.AttemptKey(assignment.organization_id, assignment.run_id, assignment.attempt)
        if key in self.held and is_other_store(
            self.held[key].assignment.store_id, assignment.store_id
        ):
            if self._observe_attempt(key, self.held[key]).supervisor == "alive":
                return
            del self.held[key]
        if key not in self.held:
            if not self._place_attempt(key, assignment):
                return
            found = self.machine.find_supervisor(key)
            self.held[key] = HeldAttempt(
                assignment, self.machine.now_ms, found.identity if found else None
            )
        held = self.held[key]
        held.assignment = assignment
        if assignment.run.spec.killed_at is not None and held.killed_at_ms is None:
            held.killed_at_ms = self.machine.now_ms

    def _place_attempt(self, key: dc.AttemptKey, assignment: Assignment) -> bool:
        """Act as ``placement.place_attempt``: set aside or restore a folder, and reopen a closed
        one.
        """
        placed = self.machine.get_folder(key).documents.get("placed.json")
        if placed is not None and is_other_store(placed["epoch"], assignment.store_id):
            if self.machine.find_supervisor(key) is not None:
                return False
            self.machine.set_aside[key, placed["epoch"]] = self.machine.folders.pop(key)
            placed = None
        if placed is None and (key, assignment.store_id) in self.machine.set_aside:
            self.machine.folders[key] = self.machine.set_aside.pop((key, assignment.store_id))
            placed = self.machine.get_folder(key).documents["placed.json"]
        documents = self.machine.get_folder(key).documents
        if placed is None:
            documents["placed.json"] = {"epoch": assignment.store_id}
        elif (closed := documents.get("closed.json")) is not None and (
            closed["how"] == "refused" or closed["epoch"] != assignment.current_store_id
        ):
            del documents["closed.json"]
        return True

    def _kill_leftovers(self) -> None:
        guarded = {p.key for p in self.machine.programs.values() if isinstance(p, Supervisor)}
        for program in list(self.machine.programs.values()):
            is_marked = program.mark is not None and not isinstance(program, Supervisor)
            if is_marked and program.key not in guarded and program.key not in self.held:
                program.kill()
