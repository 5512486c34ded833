"""The thin rim of the controller: it looks, asks ``decide`` what to do, and does it.

The main thread looks and acts. Talking to the server may take as long as a long poll, so each question has a thread of
its own, which hands the answer to the main thread; that one alone changes what is held. Claims carry an id that is kept
until an answer came: a repeat after a lost answer gets the same attempt, not a second one.

On SIGTERM or SIGINT nothing new is claimed, every supervisor is told to save and stop, and the controller ends when
they have: the next start resumes from what was saved (``docs/decisions`` says why). With ``leave_running`` they are
left alone instead; a controller that starts later finds and adopts them. A second SIGINT ends the controller at once.
SIGHUP and, with ``--end-with-stdin``, the end of standard input are taken as SIGTERM.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from runyard import processes as machine_processes
from runyard import protocol, rundir
from runyard.controller import machine
from runyard.controller.accelerators import Device, accelerators, devices, labels, least_used, runs_at_once
from runyard.controller.decide import (
    Action,
    Adopt,
    Break,
    Claim,
    End,
    Forget,
    Key,
    Seen,
    Start,
    Tell,
    TellTrainer,
    View,
    WarmUp,
    decide,
)
from runyard.controller.place import has_folder, is_another, key_of, place
from runyard.controller.server import NoKey, Server
from runyard.executors import Executor, Order
from runyard.executors.local import LocalExecutor
from runyard.ids import InvalidId
from runyard.ports import Clock, Files, Identity, Liveness, Processes, SystemClock
from runyard.processes import ATTEMPT_MARK, SUPERVISOR_MARK
from runyard.protocol import Assignment
from runyard.settings import SettingError, Settings, read_settings
from runyard.starting import CannotStart, explain_os_error
from vi.errors import ViAuthenticationError, ViError, ViPermissionError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
CLAIM_WAIT_S = 20.0
CLAIM_WAIT_WITHOUT_DISK_S = 2.0  # space may come back at any time
ASK_AGAIN_AFTER_S = 1.0
REFUSED_AGAIN_AFTER_S = 10.0  # the key is read again each time, so somebody may have put it right
END_BEYOND_GRACE_S = 10.0


@dataclass(slots=True)
class Held:
    """One attempt of ours, and the supervisor that looks after it."""

    assignment: Assignment
    folder: Path
    held_at_s: float
    device: str = ""  # the accelerator it has to itself; empty without one
    supervisor: Identity | None = None
    is_told: bool = False
    starts: int = 0
    started_at_s: float = 0.0
    killed_at_s: float | None = None  # when we learnt of it
    is_trainer_told: bool = False


class Controller:
    """One machine's controller, from its start to its end."""

    def __init__(
        self,
        settings: Settings,
        *,
        machine_id: str,
        server: Server,
        executor: Executor,
        devices: Sequence[Device] = (),
        clock: Clock | None = None,
        processes: Processes = machine_processes,
        files: Files = rundir,
    ):
        slots = runs_at_once(settings.slots, devices, are_shared=settings.share_accelerators)
        if slots < settings.slots:
            log.warning(
                "%d slots and %d accelerators: %d runs at once. Try RUNYARD_SHARE_ACCELERATORS=true for several on one",
                *(settings.slots, len(devices), slots),
            )
        self._settings = replace(settings, slots=slots)
        self._machine_id, self._server, self._executor = machine_id, server, executor
        self._clock, self._processes, self._files = clock or SystemClock(), processes, files
        self._held: dict[Key, Held] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._devices, self._labels, self._accelerators = list(devices), labels(devices), accelerators(devices)
        self._claim_id = uuid.uuid4().hex
        self._is_claiming = self._is_adopting = self._has_ended = False
        self._adopted_at_s: float | None = None
        self._warmed_at_s: float | None = None
        self._ending_at_s: float | None = None
        self._quiet_about = ""

    def run(self) -> None:
        """Work until asked to end, and until then has nothing of ours left to wait for."""
        while not self._has_ended:
            self._executor.reap()
            for action in decide(self._look()):
                self._perform(action)
            self._receive()
        self._executor.close()

    def ask_to_end(self) -> None:
        """Begin to end; asked again, end now. May be called from a signal handler."""
        if self._ending_at_s is not None:
            self._has_ended = True
        self._ending_at_s = self._clock.monotonic()
        self._inbox.put(lambda: None)

    @property
    def is_ending(self) -> bool:
        return self._ending_at_s is not None

    def _look(self) -> View:
        return View(
            slots=self._settings.slots,
            attempts=[self._look_at(key, held) for key, held in sorted(self._held.items())],
            since_adopted_s=self._since(self._adopted_at_s),
            is_adopting=self._is_adopting,
            is_claiming=self._is_claiming,
            ending_for_s=self._since(self._ending_at_s),
            end_within_s=self._settings.grace_s + END_BEYOND_GRACE_S,
            leaves_running=self._settings.leave_running,
            lacks_disk=self._lacks_disk(),
            warmth=self._executor.warmth(),
            since_warm_up_s=self._since(self._warmed_at_s),
        )

    def _look_at(self, key: Key, held: Held) -> Seen:
        liveness = self._liveness(held)
        now_s = self._clock.monotonic()
        since_known_s = now_s - max(held.held_at_s, held.started_at_s)
        permit_age_s = rundir.permit_age_s(held.folder, now_s)
        return Seen(
            key=key,
            supervisor=liveness,
            # Closed means nothing while the supervisor lives: it writes that file just before it ends. The folder of a
            # deleted run goes as soon as the server has the last word, which may be before we have looked.
            is_closed=liveness != "alive"
            and (self._files.read_json(held.folder / rundir.CLOSED) is not None or not held.folder.is_dir()),
            is_told=held.is_told,
            starts=held.starts,
            since_start_s=self._clock.monotonic() - held.started_at_s,
            held_for_s=self._clock.monotonic() - held.held_at_s,
            lease_s=held.assignment.lease_s,
            grace_s=held.assignment.grace_s,
            quiet_for_s=since_known_s if permit_age_s is None else min(permit_age_s, since_known_s),
            killed_for_s=self._since(held.killed_at_s),
            is_trainer_told=held.is_trainer_told,
            is_replacement_starting=held.starts > 1
            and (permit_age_s is None or permit_age_s > now_s - held.started_at_s),
        )

    def _liveness(self, held: Held) -> Liveness | None:
        return None if held.supervisor is None else self._processes.liveness(held.supervisor)

    def _since(self, moment_s: float | None) -> float | None:
        return None if moment_s is None else self._clock.monotonic() - moment_s

    def _perform(self, action: Action) -> None:
        match action:
            case Adopt():
                self._is_adopting = True
                self._ask(self._ask_what_to_hold, self._on_placed, self._on_not_adopted)
            case Claim(slots, lacks_disk):
                self._is_claiming = True
                claim = self._claim(slots, lacks_disk=lacks_disk)
                self._ask(lambda: self._wait_for_work(claim), self._on_claimed, self._on_not_claimed)
            case Start(key):
                self._start(self._held[key])
            case Tell(key):
                self._tell(key, self._held[key])
            case TellTrainer(key):
                self._tell_trainer(key, self._held[key])
            case Break(key):
                self._break(key, self._held[key])
            case Forget(key):
                del self._held[key]
            case WarmUp():
                self._warmed_at_s = self._clock.monotonic()
                self._executor.warm_up()
            case End():
                self._has_ended = True

    def _receive(self) -> None:
        """Wait for an answer, at most until it is time to look again; then take all that have come."""
        try:
            self._inbox.get(timeout=LOOK_EVERY_S)()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            pass

    def _ask(self, call: Callable[[], Any], on_answer: Callable[[Any], None], on_failure: Callable[[], None]) -> None:
        """Ask the server in a thread of its own; the outcome is taken in by the main thread."""

        def asking() -> None:
            try:
                answer = call()
            except (ViAuthenticationError, ViPermissionError) as error:
                fix = "try: put back secrets/controller.json, or remove it and restart the server"
                self._say_once(f"{error}; {fix}", kind="refused")
                self._clock.sleep(REFUSED_AGAIN_AFTER_S)
                self._inbox.put(on_failure)
            except (ViError, NoKey) as error:
                self._say_once(str(error), kind=type(error).__name__)
                self._clock.sleep(ASK_AGAIN_AFTER_S)
                self._inbox.put(on_failure)
            except BaseException as error:  # a defect: the main thread ends by it, rather than wait for ever
                self._inbox.put(partial(_raise, error))
            else:
                self._say_once("", kind="")
                self._inbox.put(lambda: on_answer(answer))

        threading.Thread(target=asking, name="asking", daemon=True).start()

    def _say_once(self, message: str, *, kind: str) -> None:
        """One line when the server goes away or gives another reason, and one when it is back, not one a try."""
        before, self._quiet_about = self._quiet_about, kind
        if message and kind != before:
            log.warning("The server gives no answer to work with: %s", message)
        elif before and not message:
            log.info("The server answers again")

    def _lacks_disk(self) -> bool:
        """Whether a run that began now would soon fill the disk."""
        if self._settings.free_disk_mib <= 0:
            return False
        self._settings.runs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return rundir.free_bytes(self._settings.runs_dir) < self._settings.free_disk_mib << 20

    def _ask_what_to_hold(self) -> list[Assignment]:
        """What the machine should hold. What it has is told besides; should that fail, it is told the next time."""
        assignments = self._server.placed(self._machine_id)
        report = protocol.MachineReport(
            host=socket.gethostname(),
            labels=self._labels,
            accelerators=self._accelerators,
            slots=self._settings.slots,
        )
        with contextlib.suppress(ViError):
            self._server.report(self._machine_id, report)
        return assignments

    def _claim(self, slots: int, *, lacks_disk: bool) -> protocol.Claim:
        return protocol.Claim(
            claim_id=self._claim_id,
            machine_id=self._machine_id,
            host=socket.gethostname(),
            slots=slots,
            labels=self._labels,
            wait_s=CLAIM_WAIT_WITHOUT_DISK_S if lacks_disk else CLAIM_WAIT_S,
            lacks_disk=lacks_disk,
        )

    def _wait_for_work(self, claim: protocol.Claim) -> Assignment | None:
        """One long poll. A server that is ending answers at once with nothing; it is not asked again in a rush."""
        asked_at_s = self._clock.monotonic()
        assignment = self._server.claim(claim)
        early_s = ASK_AGAIN_AFTER_S - (self._clock.monotonic() - asked_at_s)
        if assignment is None and early_s > 0:
            self._clock.sleep(early_s)
        return assignment

    def _on_claimed(self, assignment: Assignment | None) -> None:
        self._is_claiming = False
        self._claim_id = uuid.uuid4().hex
        if assignment is not None:
            log.info("Claimed %s", key_of(assignment))
            self._hold(assignment)

    def _on_not_claimed(self) -> None:
        """The claim id stays: if the server did take the claim, its repeat brings that attempt."""
        self._is_claiming = False

    def _on_placed(self, assignments: list[Assignment]) -> None:
        self._is_adopting = False
        is_first = self._adopted_at_s is None
        self._adopted_at_s = self._clock.monotonic()
        for assignment in assignments:
            self._hold(assignment)
        if is_first:
            log.info("Adopted %d attempts", len(assignments))
            self._end_leftovers()

    def _on_not_adopted(self) -> None:
        self._is_adopting = False

    def _hold(self, assignment: Assignment) -> None:
        key = key_of(assignment)
        if key in self._held and is_another(self._held[key].assignment.epoch, assignment.epoch):
            if self._liveness(self._held[key]) not in (None, "dead"):
                return  # of before a restore, and about to end; the lease runs out uncharged, and it is offered again
            del self._held[key]
        if key not in self._held:
            try:
                device = least_used(self._devices, [held.device for held in self._held.values()])
                folder = place(
                    assignment,
                    settings=self._settings,
                    machine_id=self._machine_id,
                    device=device.id if device else "",
                )
            except (OSError, InvalidId) as error:  # a full disk: its lease runs out uncharged, and it is offered again
                log.warning("%s cannot be placed: %s", key, error)
                return
            supervisor = self._find_supervisor(key, folder)
            # What was placed before, by us or by the controller before us, keeps its accelerator.
            placed = self._files.read_json(folder / rundir.PLACED) or {}
            self._held[key] = Held(
                assignment,
                folder,
                self._clock.monotonic(),
                device=str(placed.get("device") or ""),
                supervisor=supervisor,
            )
        held = self._held[key]
        held.assignment = assignment
        if assignment.run.spec.killed_at is not None and held.killed_at_s is None:
            held.killed_at_s = self._clock.monotonic()

    def _find_supervisor(self, key: Key, folder: Path) -> Identity | None:
        """Who looks after a folder already: as its process.json says, or, before that is written, by the mark."""
        document = self._files.read_json(folder / rundir.PROCESS)
        if document is not None:
            identity = identity_of(document)
            if identity is not None and self._processes.liveness(identity) != "dead":
                return identity
        found = self._processes.marked(SUPERVISOR_MARK, str(key).__eq__)
        return found[0][0] if found else None

    def _start(self, held: Held) -> None:
        key = key_of(held.assignment)
        order = Order(
            folder=held.folder,
            mark=str(key),
            endpoint=self._server.endpoint,
            token=held.assignment.token,
            environment=Device(held.device, "").environment if held.device else {},
        )
        held.starts += 1
        held.started_at_s = self._clock.monotonic()
        try:
            held.supervisor = self._executor.start(order)
        except OSError as error:  # no space, no process id, no memory: passing, so it is tried again
            log.warning("No supervisor can be started for %s: %s", key, error)
            return
        log.info("Started a supervisor for %s: process %s", key, held.supervisor.pid if held.supervisor else "unknown")

    def _tell(self, key: Key, held: Held) -> None:
        held.is_told = True
        if held.supervisor is not None:
            log.info("Telling %s to save and stop", key)
            self._processes.send_signal(held.supervisor, signal.SIGTERM)

    def _tell_trainer(self, key: Key, held: Held) -> None:
        held.is_trainer_told = True
        log.warning("The supervisor of %s does not answer; telling its trainer to save and stop", key)
        trainer = identity_of(self._files.read_json(held.folder / rundir.PROCESS) or {}, of="trainer")
        if trainer is not None:
            self._processes.send_signal(trainer, signal.SIGTERM)
            self._processes.send_signal(trainer, signal.SIGCONT)

    def _break(self, key: Key, held: Held) -> None:
        if held.supervisor is not None:
            log.warning("The supervisor of %s does not answer; replacing it", key)
            self._processes.send_signal(held.supervisor, signal.SIGKILL)

    def _end_leftovers(self) -> None:
        """End trainers of ours that nobody looks after and the server does not ask about any more.

        A mark is ours when its attempt has a folder in our data folder; other instances on this machine have others.
        """
        guarded = {mark for _, mark in self._processes.marked(SUPERVISOR_MARK, lambda _: True)}
        for identity, mark in self._processes.marked(ATTEMPT_MARK, lambda mark: mark not in guarded):
            key = key_from_mark(mark)
            if key is not None and key not in self._held and has_folder(self._settings, key):
                log.warning("Ending process %d, left over from %s", identity.pid, mark)
                self._processes.send_signal(identity, signal.SIGKILL)


def _raise(error: BaseException) -> None:
    raise error


def identity_of(document: dict[str, Any], *, of: str = "supervisor") -> Identity | None:
    """The supervisor, or the trainer, that a ``process.json`` names."""
    process = document.get(of)
    try:
        return Identity(str(document["bootId"]), int(process["pid"]), int(process["startTicks"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None


def key_from_mark(mark: str) -> Key | None:
    """The attempt a mark names; None for a warm parent's empty room and anything else that is none."""
    words = mark.split("/")
    if len(words) != 3 or not words[2].isdigit() or any(word in ("", ".", "..") for word in words):
        return None
    return Key(words[0], words[1], int(words[2]))


def main() -> int:
    """``python -m runyard.controller``. A controller that cannot start says so in one line, the last on stderr."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings, machine_id = _begin()
    except CannotStart as error:
        log.error("%s", error)
        return error.exit_status
    controller = Controller(
        settings,
        machine_id=machine_id,
        server=Server(settings.secrets_dir / "controller.json"),
        executor=LocalExecutor(settings),
        devices=devices(),
    )

    def end(number: int, _frame: object) -> None:
        # Only a repeated Ctrl-C hurries: at the end of a session SIGTERM and SIGHUP come together, to all processes.
        if number == signal.SIGINT or not controller.is_ending:
            controller.ask_to_end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    if "--end-with-stdin" in sys.argv[1:]:
        machine_processes.call_when_stdin_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    log.info("The controller of this machine is process %d", os.getpid())
    controller.run()
    return 0


def _begin() -> tuple[Settings, str]:
    """Read the settings and take the machine; returns them and the machine's id.

    Raises:
        CannotStart: a setting is wrong, another controller works here, or the folder cannot be written.
    """
    try:
        settings = read_settings()
        logging.getLogger().setLevel(settings.log_level.upper())
        machine.hold_machine(settings.machine_dir)
        return settings, machine.machine_id(settings.machine_dir)
    except (SettingError, machine.MachineTaken) as error:
        raise CannotStart(str(error)) from error
    except ValueError as error:  # of the level of the log
        raise CannotStart(f"RUNYARD_LOG_LEVEL: {error}; try: debug, info, warning or error") from error
    except OSError as error:
        raise explain_os_error(error) from error
