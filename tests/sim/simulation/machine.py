"""A simulated machine: processes, locks, files, and the thin rims of controller and supervisor.

The rims mirror ``supervisor/main.py`` and ``controller/main.py``: the same actions, carried out on tables instead of on
Linux. Who changes an action there changes it here.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runyard.controller import decide as dc
from runyard.controller.place import is_another
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
    Resumable,
)
from runyard.rundir import PERMIT_EVERY_S, PERMIT_S
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Actor
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import leases, models, telemetry
from runyard.server.services.runs import resume as resuming
from runyard.supervisor import step as st

from .server import Server
from .world import Host, Link, Process, Timer, call

CONTROLLER = Actor(org="", name="controller", role="controller", address="")
PIDS = 200  # few, so that ids are used again
CHUNK_BYTES = 256 << 10
MAX_UNREACHABLE_S = 90.0  # half an hour in the product; here it shall pass within a history
TICK_MS, TICK_WHILE_CLEARING_MS, LOOK_EVERY_MS = 250, 50, 250


@dataclass
class Folder:
    """The folder of an attempt. JSON is on disk once written; of a stream, ``synced`` bytes are."""

    documents: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, bytearray] = field(default_factory=lambda: {name: bytearray() for name in st.STREAMS})
    synced: dict[str, int] = field(default_factory=lambda: dict.fromkeys(st.STREAMS, 0))
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    permit_ms: int | None = None  # by the machine's monotonic clock
    once: dict[str, bytes] = field(default_factory=dict)  # the streams before the first power cut

    def cut_power(self) -> None:
        if "process.json" in self.documents and not self.once:  # after this nobody writes here any more
            self.once = {name: bytes(data) for name, data in self.streams.items()}
        for name, data in self.streams.items():
            del data[self.synced[name] :]
        self.permit_ms = None


class Program(Process):
    """A process of a machine, with what the kernel knows of it."""

    def __init__(self, machine: "Machine", name: str, *, key: dc.Key | None = None, parent: "Program | None" = None):
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
        """SIGKILL: it also ends what is paused."""
        if self.is_alive:
            self.die()
            self.machine.on_death(self)


class RunLock:
    """``run.lock`` opened once: held as long as anybody has this opening."""

    def __init__(self, machine: "Machine", run: tuple[str, str]):
        self._machine, self._run = machine, run
        self.holders: dict[Program, None] = {}  # in order, so that a seed is one history

    def take(self) -> bool:
        held = self._machine.locks.get(self._run)
        if held is not None and held is not self and held.living and not self._machine.without_lock:
            return False
        self._machine.locks[self._run] = self
        return True

    @property
    def living(self) -> list[Program]:
        return [program for program in self.holders if program.is_alive]


class Machine:
    """One machine: what runs on it, what lies on it, and how it reaches the server."""

    def __init__(self, host: Host, server: Server, number: int, *, slots: int, ghost: Any):
        self.host, self.server, self.number, self.slots, self.ghost = host, server, number, slots, ghost
        self.world = host.world
        self.id = f"m{number}"
        self.link = Link()
        self.boots = 1
        self.programs: dict[int, Program] = {}
        self.locks: dict[tuple[str, str], RunLock] = {}
        self.folders: dict[dc.Key, Folder] = {}
        self.aside: dict[tuple[dc.Key, str], Folder] = {}  # of attempts that a restore has undone, by their epoch
        self.controller: Controller | None = None
        self.without_lock = self.without_proof = self.without_folders = False
        self.stubbornness = 0.0
        self.is_fsync_failing = False
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

    def folder(self, key: dc.Key) -> Folder:
        return self.folders.setdefault(key, Folder())

    @property
    def now_ms(self) -> int:
        """The monotonic clock, which everybody here goes by."""
        return self.host.monotonic_ms

    def start_controller(self) -> None:
        """A second one on the same machine finds the lock of the machine's folder taken, and ends."""
        if self.controller is None or not self.controller.is_alive:
            self.controller = Controller(self)

    def let_fsync(self) -> None:
        self.is_fsync_failing = False

    def reboot(self) -> None:
        self.world.say(self.id, "reboots")
        for program in list(self.programs.values()):
            program.die()
        self.programs.clear()
        self.locks.clear()
        for folder in (*self.folders.values(), *self.aside.values()):
            folder.cut_power()
        self.boots += 1
        self.world.after(self.world.between(2_000, 20_000), self.start_controller)

    def liveness(self, identity: Identity) -> Liveness:
        program = self.programs.get(identity.pid)
        return "alive" if program is not None and program.identity == identity else "dead"

    def marked(self, key: dc.Key) -> list[Program]:
        """What carries the attempt's mark; supervisors carry another one."""
        return [p for p in self.programs.values() if p.mark == key and not isinstance(p, Supervisor)]

    def children(self, parent: Program) -> list[Program]:
        return [p for p in self.programs.values() if p.parent is parent]

    def lock_holders(self, key: dc.Key) -> list[Program]:
        """Who keeps the run's lock and is not another attempt's."""
        held = self.locks.get((key.organization_id, key.run_id))
        if held is None or self.without_lock:
            return []
        return [program for program in held.living if program.mark in (None, key)]

    def supervisor_of(self, key: dc.Key) -> "Supervisor | None":
        found = (p for p in self.programs.values() if isinstance(p, Supervisor) and p.key == key)
        return next(found, None)

    def on_death(self, program: Program) -> None:
        self.programs.pop(program.pid, None)
        if program.key is not None:
            self.ghost.program_ended(program.key)
        if isinstance(program, Trainer):
            self.ghost.trainer_ended(program)
        for child in self.children(program):
            # A supervisor is child subreaper: what a trainer leaves behind becomes its own.
            child.parent = program.parent if isinstance(program, Trainer) and program.is_child else None
            if (
                isinstance(child, Trainer) and child.mark is not None
            ):  # the parent-death signal, which reaches no further
                self._kill_in_time(child)
        if isinstance(program, Supervisor) and self.controller is not None:
            self.controller.look_soon()
        if isinstance(program, Controller):
            self.world.after(self.world.between(500, 8_000), self.start_controller)
        if isinstance(program.parent, Supervisor) and isinstance(program, Trainer):
            program.parent.child_ended(program)

    def _kill_in_time(self, program: Program) -> None:
        """SIGKILL to what may be stuck in the kernel: then it does nothing any more, and still lives for a while."""
        if self.world.happens(self.stubbornness):
            program.get_stuck()
            self.world.after(self.world.between(20_000, 90_000), program.kill)
        else:
            self.world.after(self.world.between(0, 30), program.kill)

    def kill(self, program: Program) -> None:
        self._kill_in_time(program)


class Trainer(Program):
    """Waits at its gate, then trains: says lines, saves checkpoints, and ends in one of the ways trainers end."""

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
        """What ``exec`` with an empty environment does, as some launchers do: neither mark nor parent-death signal are
        left, and of all that ties it to its attempt only the lock's descriptor."""
        self.mark = None

    def begin(self) -> None:
        self.is_training = True
        self.machine.ghost.trainer_began(self)
        world = self.world
        self.last = world.between(4, 30) if world.happens(0.8) else world.between(60, 120)
        resume = self.folder.documents.get("resume.json")
        self.step = min(int(resume["step"]), self.last - 1) if resume else 0
        self.kind = world.chance.choices(("done", "invalid", "crash", "oddly"), (12, 1, 2, 1))[0]
        if world.happens(0.3):
            loader = Program(self.machine, "loader", key=self.key, parent=self)
            if world.happens(0.5) and isinstance(self.parent, Supervisor) and self.parent.lock is not None:
                self.parent.lock.holders[loader] = None  # a fork keeps the descriptor, an exec does not
        self._say("phase", phase="Training", message="begins")
        self.after(world.between(300, 2_000), self._work)
        self.after(2_000, self._look_at_permit)

    def terminate(self) -> None:
        """SIGTERM."""
        if not self.is_training:
            self.end(None, "SIGTERM")
        elif not self.is_stopping and not self.world.happens(0.1):  # some libraries take the signal for themselves
            self.is_stopping = True
            self.after(self.world.between(100, 3_000), self._stop)

    def _work(self) -> None:
        if self.is_stopping:
            return
        world = self.world
        self.step += 1
        self._say("step", step=self.step, epoch=self.step / 4, totalSteps=self.last, values={"loss": 1 / self.step})
        if world.happens(0.3):
            self.folder.streams["stdout"] += f"attempt {self.key.attempt} step {self.step}\n".encode()  # type: ignore[union-attr]
        if self.step % 4 == 0:
            self._save(self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        world = self.world
        if self.is_stopping:
            return
        if self.step < self.last:
            self.after(world.between(300, 2_500), self._work)
            return
        if self.kind == "crash":
            self.end(*world.chance.choice(((1, None), (137, None), (None, "SIGSEGV"), (None, "SIGKILL"))))
        elif self.kind == "invalid":
            self.folder.documents["result.json"] = {"outcome": "Failed", "reason": "InvalidData", "message": "no rows"}
            self.end(64)
        else:
            self._save(self._finish)

    def _finish(self) -> None:
        self.folder.documents["result.json"] = {"outcome": "Succeeded", "reason": "Completed", "message": "done"}
        self.after(self.world.between(1, 300), lambda: self.end(1 if self.kind == "oddly" else 0))

    def _look_at_permit(self) -> None:
        at_ms = self.folder.permit_ms
        if at_ms is not None and self.machine.now_ms - at_ms > PERMIT_S * 1000 and not self.is_stopping:
            self.is_stopping = True
            self.after(self.world.between(100, 3_000), self._stop)
        self.after(5_000, self._look_at_permit)

    def _stop(self) -> None:
        self._save(self._leave)

    def _leave(self) -> None:
        self.folder.documents["result.json"] = {"outcome": "Stopped", "reason": "Stopped", "message": "saved"}
        self.end(75)

    def _save(self, then: Callable[[], None]) -> None:
        """A failed fsync condemns what was staged: nothing of it is seen, and the save starts anew."""
        if self.machine.is_fsync_failing:
            self.machine.ghost.counts["saves begun anew"] += 1
            self.after(self.world.between(200, 2_000), lambda: self._save(then))
            return
        name = f"step-{self.step}"
        self.folder.checkpoints[name] = {"step": self.step, "time": self.world.now_ms}
        self._say("checkpoint", checkpoint=name, step=self.step)
        self.folder.synced["events"] = len(self.folder.streams["events"])
        then()

    def _say(self, event: str, **fields: Any) -> None:
        self.number += 1
        line = json.dumps({"n": self.number, "t": self.world.now_ms, "ev": event, **fields})
        self.folder.streams["events"] += line.encode() + b"\n"
        if isinstance(self.parent, Supervisor):
            self.parent.wake_soon()

    def end(self, code: int | None = None, signal: str | None = None) -> None:
        self.exit = (code, signal)
        self.kill()


class Supervisor(Program):
    """The rim around ``supervisor.step``."""

    def __init__(self, machine: Machine, assignment: Assignment, *, is_first: bool):
        self.assignment = assignment
        key = dc.Key(assignment.organization_id, assignment.run_id, assignment.attempt)
        super().__init__(machine, "supervisor", key=key)
        self.folder = machine.folder(key)
        signed = machine.server.services.signer.verify_attempt_token(assignment.token)
        assert isinstance(signed, AttemptToken)
        self.token = signed
        self.trainer: Trainer | None = None
        self.lock: RunLock | None = None
        self.inbox: list[st.Input] = []
        self.is_gate_open = False
        self._killed: set[Program] = set()
        self._permit_at_ms = 0
        self._woken_ms = machine.now_ms
        self._alarm: Timer | None = None
        other = machine.supervisor_of(key)
        if other is not None and other is not self:
            self.kill()  # exit 3: another supervisor looks after this folder
            return
        self.state = self._first_state()
        if self.state.phase == "announcing":
            self._fork()
        self.after(1, self._wake)

    def _first_state(self) -> st.State:
        lease_s, grace_s = self.assignment.lease_s, self.assignment.grace_s
        documents = self.folder.documents
        if "process.json" not in documents:
            limit_s = MAX_UNREACHABLE_S if self.machine.number else None  # the first machine is the server's own
            return st.State(lease_s=lease_s, grace_s=grace_s, max_unreachable_s=limit_s)
        ended = documents.get("exit.json")
        if ended is None:
            ended = st.Exit(cause="the supervisor was lost, and its trainer was ended")
        return st.settling(ended, lease_s=lease_s, grace_s=grace_s)

    def _fork(self) -> None:
        assert self.key is not None
        self.lock = RunLock(self.machine, (self.key.organization_id, self.key.run_id))
        self.trainer = Trainer(self)
        self.lock.holders = dict.fromkeys((self, self.trainer))
        self.folder.documents["process.json"] = self.identity
        self.machine.ghost.launched(self.key)

    def child_ended(self, trainer: Trainer) -> None:
        code, signal = trainer.exit
        self.after(1, lambda: self._hear(st.TrainerExited(code, signal)))

    def tell(self) -> None:
        """SIGTERM to the supervisor: the machine wants it to save, stop and end."""
        self.take(lambda: self._hear(st.Told()))

    def _wake(self) -> None:
        now_ms = self.machine.now_ms
        self._woken_ms = now_ms
        if now_ms >= self._permit_at_ms:
            self._permit_at_ms = now_ms + round(PERMIT_EVERY_S * 1000)
            self.folder.permit_ms = now_ms
        self._take(st.Tick())
        self._drain()
        if self.is_alive:
            self._alarm = self.after(self._sleep_ms(), self._wake)

    def _sleep_ms(self) -> int:
        """How long until a tick can do anything; ticks before that are left out, since each would be the same as none.

        While nothing is under way and everything that was said is shipped, only the clock can: the next renewal, the
        next permit, the end of patience with a server that cannot be reached.
        """
        state = self.state
        if state.phase == "clearing":
            return TICK_WHILE_CLEARING_MS
        if state.phase != "training" or state.busy or state.quiet_since is not None or state.stop is not None:
            return TICK_MS
        if any(state.offsets[name] != len(self.folder.streams[name]) for name in st.STREAMS):
            return TICK_MS
        if any(name not in state.stored | state.given_up for name in self.folder.checkpoints):
            return TICK_MS
        due_ms = min(round(state.renew_at * 1000), self._permit_at_ms) - self.machine.now_ms
        return max(1, -(-due_ms // TICK_MS)) * TICK_MS

    def wake_soon(self) -> None:
        """The trainer has said something: the next tick of every TICK_MS has something to do."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = self.after(TICK_MS - (self.machine.now_ms - self._woken_ms) % TICK_MS, self._wake)

    def _hear(self, event: st.Input) -> None:
        self.inbox.append(event)
        self._drain()
        self.wake_soon()

    def _drain(self) -> None:
        while self.inbox and self.is_alive:
            self._take(self.inbox.pop(0))

    def _take(self, event: st.Input) -> None:
        if not self.is_alive:
            return
        self.state, actions = st.step(self.state, event, self.machine.now_ms / 1000)
        for action in actions:
            self._perform(action)

    def _perform(self, action: st.Action) -> None:
        getattr(self, f"_do_{type(action).__name__}")(action)

    def _ask(self, lane: st.Lane, what: str | None, request: Any, understand: Any) -> None:
        """One call of ``supervisor.server``: the same words for the same failures."""

        def on_outcome(outcome: Any) -> None:
            if isinstance(outcome, Refusal):
                if outcome.code == "LeaseLost":
                    self._hear(st.Refused())
                elif what is not None and outcome.code not in ("BlobMissing", "StoreRestored"):
                    self._hear(st.Rejected(lane, what, str(outcome)))
                else:
                    self._hear(st.Unreachable(lane))
            elif outcome is None or isinstance(outcome, Exception):
                self._hear(st.Unreachable(lane))
            else:
                self._hear(understand(outcome))

        call(self.world, self.machine.link, self.machine.server, self, request, on_outcome)

    def _do_Announce(self, _: st.Announce) -> None:
        me = self.identity
        report = ProcessReport(machine_id=self.machine.id, boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks)

        async def announce(services: Any) -> Any:
            with self.machine.ghost.hearing(self.key):
                return await leases.report_process(services, self.token, report)

        self._ask("words", None, announce, st.Announced)

    def _do_Renew(self, action: st.Renew) -> None:
        async def renew(services: Any) -> Any:
            with self.machine.ghost.hearing(self.key):
                return await leases.renew(services, self.token, Renewal(phase=action.phase))

        self._ask("lease", None, renew, st.Renewed)

    def _do_TakeLock(self, _: st.TakeLock) -> None:
        if self.lock is not None and self.lock.take():
            self.inbox.append(st.LockTaken())

    def _do_Prepare(self, _: st.Prepare) -> None:
        """What lies here or on the server, whichever is newer; the download itself takes no time."""

        async def offer(services: Any) -> Any:
            return resuming.list_candidates(services, self.token)

        def prepare(offered: Resumable) -> st.Prepared:
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
                self.folder.documents["resume.json"] = max(earlier, key=lambda m: (m["step"], m["time"]))
            return st.Prepared()

        self.after(self.world.between(5, 500), lambda: self._ask("bytes", None, offer, prepare))

    def _do_OpenGate(self, _: st.OpenGate) -> None:
        if self.trainer is not None and self.lock is not None and self.trainer.is_alive:
            trainer = self.trainer
            self.lock.holders.pop(self, None)
            trainer.after(self.world.between(1, 20), trainer.begin)

    def _do_CloseGate(self, _: Any) -> None:
        if self.trainer is not None and not self.trainer.is_training:
            trainer = self.trainer
            trainer.after(self.world.between(1, 20), lambda: trainer.end(75))

    def _do_WriteStop(self, action: st.WriteStop) -> None:
        self.folder.documents["stop.json"] = action.reason

    def _do_Terminate(self, _: st.Terminate) -> None:
        if self.trainer is not None and self.trainer.is_alive:
            self.trainer.take(self.trainer.terminate)
            self.trainer.go_on()

    def _do_KillAll(self, _: st.KillAll) -> None:
        assert self.key is not None
        if self.lock is not None:
            self.lock.holders.pop(self, None)
        # The three nets of supervisor/group.py: descendants, carriers of the mark, holders of the lock.
        below = [p for child in self.machine.children(self) for p in (child, *self.machine.children(child))]
        found = dict.fromkeys([*below, *self.machine.marked(self.key), *self.machine.lock_holders(self.key)])
        for program in found:
            if program not in self._killed:
                self._killed.add(program)
                self.machine.kill(program)
        if not found or self.machine.without_proof:
            self.inbox.append(st.GroupEmpty())

    def _do_ReadLines(self, action: st.ReadLines) -> None:
        data = bytes(self.folder.streams[action.stream][action.offset : action.offset + CHUNK_BYTES])
        end = data.rfind(b"\n") + 1
        read = tuple(line.decode() for line in data[:end].splitlines())
        self.inbox.append(st.LinesRead(action.stream, action.offset, action.offset + end, read))

    def _do_ShipLines(self, action: st.ShipLines) -> None:
        body = Lines(
            stream=action.stream, offset=action.offset, next_offset=action.next_offset, lines=list(action.lines)
        )
        self._ask(
            "words",
            action.stream,
            lambda s: telemetry.accept(s, self.token, body),
            lambda accepted: st.LinesAccepted(action.stream, accepted.offset),
        )

    def _do_FindCheckpoints(self, _: st.FindCheckpoints) -> None:
        self.inbox.append(st.CheckpointsFound(tuple(self.folder.checkpoints)))

    def _do_StoreCheckpoint(self, action: st.StoreCheckpoint) -> None:
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
            files=[CheckpointFile(path="model_full/weights", size_bytes=len(content), sha256=digest)],
        )

        async def store(services: Any) -> bool:
            services.blobs(self.token.org).bytes[digest] = content
            await models.register(services, self.token, report)
            return True

        self._ask("bytes", action.name, store, lambda _: st.CheckpointStored(action.name))

    def _do_WriteExit(self, action: st.WriteExit) -> None:
        self.folder.documents["exit.json"] = action.exit

    def _do_Report(self, action: st.Report) -> None:
        result = None if self.machine.without_folders else self.folder.documents.get("result.json")
        ended = action.exit
        report = ExitReport(
            exit_code=ended.exit_code,
            signal=ended.signal,
            group_empty=ended.group_empty,
            cause=ended.cause,
            time=self.world.now_ms,
            result=result,
            epoch=self.state.epoch,
        )

        async def finish(services: Any) -> bool:
            await leases.finish(services, self.token, report)
            return True

        is_last = ended.group_empty
        self._ask("words", st.REPORT if is_last else None, finish, lambda _: st.ReportAccepted(is_last))

    def _do_WriteClosed(self, action: st.WriteClosed) -> None:
        self.folder.documents["closed.json"] = {"how": action.how, "epoch": self.state.epoch}

    def _do_Warn(self, _: st.Warn) -> None:
        pass

    def _do_End(self, _: st.End) -> None:
        self.kill()


@dataclass
class Held:
    assignment: Assignment
    held_at_ms: int
    supervisor: Identity | None = None
    starts: int = 0
    started_at_ms: int = 0
    killed_at_ms: int | None = None
    is_trainer_told: bool = False


class Controller(Program):
    """The rim around ``controller.decide``."""

    def __init__(self, machine: Machine):
        super().__init__(machine, "controller")
        self.held: dict[dc.Key, Held] = {}
        self._claims = 0
        self._claim_id = self._new_claim_id()
        self._is_claiming = self._is_adopting = False
        self._adopted_ms: int | None = None
        self.dies_when: str | None = None  # "claimed" or "started": SIGKILL at that very line
        self._looked_ms = machine.now_ms
        self._alarm: Timer | None = None
        self.after(1, self._look)

    def _new_claim_id(self) -> str:
        self._claims += 1
        identity = self.identity
        return f"{identity.boot_id}-{identity.pid}-{identity.start_ticks}-{self._claims}"

    def _look(self) -> None:
        self._looked_ms = now_ms = self.machine.now_ms
        view = dc.View(
            slots=self.machine.slots,
            attempts=[self._look_at(key, held) for key, held in sorted(self.held.items())],
            since_adopted_s=None if self._adopted_ms is None else (now_ms - self._adopted_ms) / 1000,
            is_adopting=self._is_adopting,
            is_claiming=self._is_claiming,
        )
        for action in dc.decide(view):
            self._perform(action)
            if not self.is_alive:
                return
        self._alarm = self.after(self._sleep_ms(view), self._look)

    def _sleep_ms(self, view: dc.View) -> int:
        """How long until a look can find something to do; until then the same would be seen and nothing done.

        A supervisor that lives is let alone until its permit is old, and whatever else may happen wakes us.
        """
        if view.since_adopted_s is None or any(seen.supervisor != "alive" for seen in view.attempts):
            return LOOK_EVERY_MS
        due_s = dc.ADOPT_EVERY_S - view.since_adopted_s
        for seen in view.attempts:
            due_s = min(due_s, dc.QUIET_AFTER_S - seen.quiet_for_s)
        return max(1, int(due_s * 1000) // LOOK_EVERY_MS) * LOOK_EVERY_MS

    def look_soon(self) -> None:
        """Something has changed: the next look of every LOOK_EVERY_MS has something to see."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = self.after(
                LOOK_EVERY_MS - (self.machine.now_ms - self._looked_ms) % LOOK_EVERY_MS, self._look
            )

    def _look_at(self, key: dc.Key, held: Held) -> dc.Seen:
        liveness = None if held.supervisor is None else self.machine.liveness(held.supervisor)
        now_ms, permit_ms = self.machine.now_ms, self.machine.folder(key).permit_ms or 0
        return dc.Seen(
            key=key,
            supervisor=liveness,
            is_closed=liveness != "alive" and "closed.json" in self.machine.folder(key).documents,
            starts=held.starts,
            since_start_s=(now_ms - held.started_at_ms) / 1000,
            held_for_s=(now_ms - held.held_at_ms) / 1000,
            lease_s=held.assignment.lease_s,
            grace_s=held.assignment.grace_s,
            quiet_for_s=(now_ms - max(held.held_at_ms, held.started_at_ms, permit_ms)) / 1000,
            killed_for_s=None if held.killed_at_ms is None else (now_ms - held.killed_at_ms) / 1000,
            is_trainer_told=held.is_trainer_told,
        )

    def _perform(self, action: dc.Action) -> None:
        match action:
            case dc.Adopt():
                self._is_adopting = True
                self._ask(self._report_and_ask, self._on_placed)
            case dc.Claim(slots):
                self._is_claiming = True
                offer = Claim(
                    claim_id=self._claim_id, machine_id=self.machine.id, host=self.machine.id, slots=slots, wait_s=0
                )
                self._ask(lambda s: leases.claim(s, CONTROLLER, offer), self._on_claimed)
            case dc.Start(key):
                held = self.held[key]
                held.starts += 1
                held.started_at_ms = self.machine.now_ms
                started = Supervisor(self.machine, held.assignment, is_first=held.starts == 1)
                held.supervisor = started.identity
                self._perhaps_die("started")
            case dc.Forget(key):
                del self.held[key]
            case dc.TellTrainer(key):
                self.held[key].is_trainer_told = True
                for program in list(self.machine.programs.values()):
                    if isinstance(program, Trainer) and program.key == key:  # as process.json names it
                        program.take(program.terminate)
                        program.go_on()
            case dc.Break(key):
                supervisor = self.machine.supervisor_of(key)
                if supervisor is not None and supervisor.identity == self.held[key].supervisor:
                    self.world.say(self.machine.id, "breaks the supervisor of", key)
                    supervisor.kill()
            case _:
                raise AssertionError(action)

    def _ask(self, request: Any, on_answer: Any) -> None:
        def on_outcome(outcome: Any) -> None:
            if outcome is None or isinstance(outcome, Exception):
                self.after(1_000, lambda: (on_answer(None), self.look_soon()))
            else:
                on_answer(outcome)
                self.look_soon()

        call(self.world, self.machine.link, self.machine.server, self, request, on_outcome)

    async def _report_and_ask(self, services: Any) -> Any:
        report = MachineReport(host=self.machine.id, labels={}, accelerators=[], slots=self.machine.slots)
        clock = services.clock
        services.machines.record_report(self.machine.id, report, now_ms=clock.now_ms(), uptime_s=clock.monotonic_s())
        return await leases.list_placed(services, self.machine.id)

    def _on_claimed(self, claimed: Any) -> None:
        if claimed is None:
            self._is_claiming = False  # the claim id stays
            return
        self._claim_id = self._new_claim_id()
        if claimed.assignment is not None:
            self._is_claiming = False
            self._hold(claimed.assignment)
            self._perhaps_die("claimed")
        else:
            self.after(1_000, self._may_claim)

    def _may_claim(self) -> None:
        self._is_claiming = False
        self.look_soon()

    def _perhaps_die(self, when: str) -> None:
        if self.dies_when == when:
            self.kill()

    def _on_placed(self, placed: Any) -> None:
        self._is_adopting = False
        if placed is None:
            return
        is_first = self._adopted_ms is None
        self._adopted_ms = self.machine.now_ms
        for assignment in placed.attempts:
            self._hold(assignment)
        if is_first:
            self._end_leftovers()

    def _hold(self, assignment: Assignment) -> None:
        key = dc.Key(assignment.organization_id, assignment.run_id, assignment.attempt)
        if key in self.held and is_another(self.held[key].assignment.epoch, assignment.epoch):
            if self._look_at(key, self.held[key]).supervisor == "alive":
                return
            del self.held[key]
        if key not in self.held:
            if not self._place(key, assignment):
                return
            found = self.machine.supervisor_of(key)
            self.held[key] = Held(assignment, self.machine.now_ms, found.identity if found else None)
        held = self.held[key]
        held.assignment = assignment
        if assignment.run.spec.killed_at is not None and held.killed_at_ms is None:
            held.killed_at_ms = self.machine.now_ms

    def _place(self, key: dc.Key, assignment: Assignment) -> bool:
        """What ``place.place`` does: make room where an attempt that a restore has undone was, open what it forgot."""
        placed = self.machine.folder(key).documents.get("placed.json")
        if placed is not None and is_another(placed["epoch"], assignment.epoch):
            if self.machine.supervisor_of(key) is not None:
                return False
            self.machine.aside[key, placed["epoch"]] = self.machine.folders.pop(key)
            placed = None
        if placed is None and (key, assignment.epoch) in self.machine.aside:
            self.machine.folders[key] = self.machine.aside.pop((key, assignment.epoch))
            placed = self.machine.folder(key).documents["placed.json"]
        documents = self.machine.folder(key).documents
        if placed is None:
            documents["placed.json"] = {"epoch": assignment.epoch}
        elif "closed.json" in documents and documents["closed.json"]["epoch"] != assignment.store_epoch:
            del documents["closed.json"]
        return True

    def _end_leftovers(self) -> None:
        guarded = {p.key for p in self.machine.programs.values() if isinstance(p, Supervisor)}
        for program in list(self.machine.programs.values()):
            is_marked = program.mark is not None and not isinstance(program, Supervisor)
            if is_marked and program.key not in guarded and program.key not in self.held:
                program.kill()
