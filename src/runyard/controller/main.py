"""The effects of the controller: it observes the machine, calls ``decide``, and carries out the
actions.

The main thread observes and acts. A call of the server may last as long as a long poll, so each
call has a thread of its own. That thread hands the answer to the main thread, which alone changes
the attempts held. A claim carries an id that is kept until an answer arrives, so a repeat after a
lost answer gets the same attempt, not a second one.

On SIGTERM or SIGINT the controller claims nothing new and asks every supervisor to save and stop.
It exits when they have, and the next start resumes from what was saved (see ``docs/decisions``).
With ``leave_running`` the supervisors keep running, and a controller that starts later adopts them.
A second SIGINT ends the controller at once. SIGHUP and, with ``--end-with-stdin``, the end of
standard input count as SIGTERM.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from runyard import limits, protocol, removal, rundir
from runyard import processes as machine_processes
from runyard.controller import deleted_runs, machine, notices, self_test
from runyard.controller.accelerators import (
    Device,
    find_least_used,
    limit_slots,
    list_devices,
    make_labels,
    select_devices,
    summarize_accelerators,
)
from runyard.controller.api_client import NoControllerKey, ServerClient
from runyard.controller.decide import (
    Action,
    Adopt,
    AttemptKey,
    AttemptView,
    ClaimRun,
    KillSupervisor,
    MachineView,
    Release,
    Shutdown,
    StartSupervisor,
    StopSupervisor,
    StopTrainer,
    WarmUp,
    decide,
)
from runyard.controller.placement import (
    has_folder,
    is_other_store,
    make_attempt_key,
    place_attempt,
    read_devices,
)
from runyard.executors import Executor, StartRequest
from runyard.executors.local import LocalExecutor
from runyard.flows.resources import count_accelerators
from runyard.ids import InvalidId
from runyard.ports import Clock, Files, Identity, Liveness, Processes, SystemClock
from runyard.processes import ATTEMPT_MARK, SUPERVISOR_MARK
from runyard.protocol import Assignment
from runyard.rundir import AttemptDir
from runyard.security.transport import check_transport
from runyard.settings import SettingError, Settings, read_settings
from runyard.starting import CannotStart, explain_os_error
from vi.errors import ViAuthenticationError, ViError, ViPermissionError

log = logging.getLogger(__name__)

RECONCILE_EVERY_S = 0.25
CLAIM_WAIT_S = 20.0
CLAIM_WAIT_WITHOUT_DISK_S = 2.0  # space may be freed at any time
RETRY_AFTER_S = 1.0
REFUSED_RETRY_S = 10.0  # the key is read again each time, so it may have been corrected
SHUTDOWN_MARGIN_S = 10.0


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """The server's answers to a report of this machine, and the run folders that it listed."""

    assignments: list[Assignment]
    removals: list[protocol.RunRemoval]
    run_folders: frozenset[tuple[str, str]]
    must_test: bool = False
    tested: protocol.SelfTest | None = None  # the outcome that the server has received


@dataclass(slots=True)
class HeldAttempt:
    """An attempt that this controller holds, and its supervisor."""

    assignment: Assignment
    folder: Path
    held_at_s: float
    devices: tuple[str, ...] = ()  # the accelerators reserved for it
    supervisor: Identity | None = None
    is_stop_requested: bool = False
    starts: int = 0
    started_at_s: float = 0.0
    killed_at_s: float | None = None  # when the controller learned of the kill
    is_trainer_stop_requested: bool = False


class Controller:
    """The controller of one machine."""

    def __init__(
        self,
        settings: Settings,
        *,
        machine_id: str,
        client: ServerClient,
        executor: Executor,
        devices: Sequence[Device] = (),
        clock: Clock | None = None,
        processes: Processes = machine_processes,
        files: Files = rundir,
    ):
        slots = limit_slots(settings.slots, devices, are_shared=settings.share_accelerators)
        if slots < settings.slots:
            log.warning(
                "%d slots but %d accelerators: at most %d runs at once; "
                "try: RUNYARD_SHARE_ACCELERATORS=true to train several runs on one accelerator",
                *(settings.slots, len(devices), slots),
            )
        self._settings = replace(settings, slots=slots)
        self._machine_id, self._client, self._executor = machine_id, client, executor
        self._clock, self._processes, self._files = clock or SystemClock(), processes, files
        self._held: dict[AttemptKey, HeldAttempt] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._devices, self._labels, self._accelerators = (
            list(devices),
            make_labels(devices),
            summarize_accelerators(devices),
        )
        self._claim_id = uuid.uuid4().hex
        self._is_claiming = self._is_adopting = self._is_done = False
        self._is_removing = self._has_removals = self._is_report_due = False
        self._is_testing = False
        self._tested: protocol.SelfTest | None = None  # the outcome, until it is reported
        self._run_folders: frozenset[tuple[str, str]] | None = None  # in the last report
        self._adopted_at_s: float | None = None
        self._warmed_at_s: float | None = None
        self._shutdown_at_s: float | None = None
        self._last_failure = ""

    def run(self) -> None:
        """Reconcile until shutdown is requested and complete."""
        while not self._is_done:
            self._executor.reap()
            for action in decide(self._observe_machine()):
                self._perform_action(action)
            self._process_inbox()
        self._executor.close()

    def request_shutdown(self) -> None:
        """Start to shut down; a second call ends at once. May be called from a signal handler."""
        if self._shutdown_at_s is not None:
            self._is_done = True
        self._shutdown_at_s = self._clock.monotonic()
        self._inbox.put(lambda: None)

    @property
    def is_shutting_down(self) -> bool:
        return self._shutdown_at_s is not None

    def _observe_machine(self) -> MachineView:
        return MachineView(
            slots=self._settings.slots,
            accelerators=len(self._devices),
            are_shared=self._settings.share_accelerators,
            attempts=[self._observe_attempt(key, held) for key, held in sorted(self._held.items())],
            since_adopted_s=self._get_elapsed_s(self._adopted_at_s),
            is_adopting=self._is_adopting,
            is_report_due=self._is_report_due,
            is_claiming=self._is_claiming,
            since_shutdown_s=self._get_elapsed_s(self._shutdown_at_s),
            shutdown_timeout_s=self._settings.grace_s + SHUTDOWN_MARGIN_S,
            leave_running=self._settings.leave_running,
            lacks_disk=self._lacks_disk_space(),
            warmth=self._executor.warmth(),
            since_warm_up_s=self._get_elapsed_s(self._warmed_at_s),
        )

    def _observe_attempt(self, key: AttemptKey, held: HeldAttempt) -> AttemptView:
        liveness = self._check_liveness(held)
        now_s = self._clock.monotonic()
        since_known_s = now_s - max(held.held_at_s, held.started_at_s)
        permit_age_s = rundir.read_permit_age_s(held.folder, now_s)
        return AttemptView(
            key=key,
            supervisor=liveness,
            accelerators=len(held.devices),
            # While the supervisor lives, closed.json does not count: it is written just before the
            # exit. The folder of a deleted run disappears once the server has the report, perhaps
            # before we look.
            is_closed=liveness != "alive"
            and (
                self._files.read_json(AttemptDir(held.folder).closed) is not None
                or not held.folder.is_dir()
            ),
            is_stop_requested=held.is_stop_requested,
            starts=held.starts,
            since_start_s=self._clock.monotonic() - held.started_at_s,
            held_for_s=self._clock.monotonic() - held.held_at_s,
            lease_s=held.assignment.lease_s,
            grace_s=held.assignment.grace_s,
            silent_for_s=since_known_s
            if permit_age_s is None
            else min(permit_age_s, since_known_s),
            since_kill_s=self._get_elapsed_s(held.killed_at_s),
            is_trainer_stop_requested=held.is_trainer_stop_requested,
            is_replacement_starting=held.starts > 1
            and (permit_age_s is None or permit_age_s > now_s - held.started_at_s),
        )

    def _check_liveness(self, held: HeldAttempt) -> Liveness | None:
        return None if held.supervisor is None else self._processes.check_liveness(held.supervisor)

    def _get_elapsed_s(self, moment_s: float | None) -> float | None:
        return None if moment_s is None else self._clock.monotonic() - moment_s

    def _perform_action(self, action: Action) -> None:
        match action:
            case Adopt():
                self._is_adopting, self._is_report_due = True, False
                self._call_server(
                    self._fetch_placements, self._on_placements, self._on_adopt_failed
                )
            case ClaimRun(slots, lacks_disk, accelerators):
                self._is_claiming = True
                claim = self._build_claim(slots, accelerators, lacks_disk=lacks_disk)
                self._call_server(
                    lambda: self._poll_for_work(claim), self._on_claimed, self._on_claim_failed
                )
            case StartSupervisor(key):
                self._start_supervisor(self._held[key])
            case StopSupervisor(key):
                self._stop_supervisor(key, self._held[key])
            case StopTrainer(key):
                self._stop_trainer(key, self._held[key])
            case KillSupervisor(key):
                self._kill_supervisor(key, self._held[key])
            case Release(key):
                del self._held[key]
                # If its run is deleted, the folder can be removed now.
                self._is_report_due = True
            case WarmUp():
                self._warmed_at_s = self._clock.monotonic()
                self._executor.warm_up()
            case Shutdown():
                self._is_done = True

    def _process_inbox(self) -> None:
        """Wait for an answer, at most until the next pass, then handle all that have arrived."""
        try:
            self._inbox.get(timeout=RECONCILE_EVERY_S)()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            pass

    def _call_server(
        self,
        call: Callable[[], Any],
        on_answer: Callable[[Any], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Call the server in a separate thread; the main thread handles the outcome."""

        def call_and_post() -> None:
            try:
                answer = call()
            except (ViAuthenticationError, ViPermissionError) as error:
                fix = "try: runyard machines invite on the server, and join again; for the machine "
                fix += "of the server itself: put back secrets/controller.json"
                self._log_once(f"{error}; {fix}", kind="refused")
                self._clock.sleep(REFUSED_RETRY_S)
                self._inbox.put(on_failure)
            except (ViError, NoControllerKey, SettingError) as error:
                self._log_once(str(error), kind=type(error).__name__)
                self._clock.sleep(RETRY_AFTER_S)
                self._inbox.put(on_failure)
            # A bug: end the main thread with it instead of waiting forever
            except BaseException as error:
                self._inbox.put(partial(_raise, error))
            else:
                self._log_once("", kind="")
                self._inbox.put(lambda: on_answer(answer))

        threading.Thread(target=call_and_post, name="call-server", daemon=True).start()

    def _log_once(self, message: str, *, kind: str) -> None:
        """Log when calls start to fail, when the kind of failure changes, and when they succeed
        again.
        """
        before, self._last_failure = self._last_failure, kind
        if message and kind != before:
            log.warning("calls of the server fail: %s", message)
        elif before and not message:
            log.info("calls of the server succeed again")

    def _lacks_disk_space(self) -> bool:
        """Return whether too little disk space is free to start a run."""
        if self._settings.free_disk_mib <= 0:
            return False
        self._settings.runs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return rundir.free_bytes(self._settings.runs_dir) < self._settings.free_disk_mib << 20

    def _fetch_placements(self) -> ReportOutcome:
        """Fetch the attempts placed here, and report the machine; a failed report is repeated next
        time.
        """
        assignments = self._client.list_placements(self._machine_id)
        removals: list[protocol.RunRemoval] = []
        try:
            folders = removal.list_run_folders(self._settings.runs_dir)
        except OSError as error:
            log.warning("cannot list the run folders: %s", error)
            folders = []
        must_test, tested = False, self._tested
        with contextlib.suppress(ViError):
            for report in self._build_reports(folders, tested):
                instructions = self._client.report_machine(self._machine_id, report)
                removals += instructions.remove
                must_test = instructions.self_test
            return ReportOutcome(assignments, removals, frozenset(folders), must_test, tested)
        return ReportOutcome(assignments, removals, frozenset(folders))

    def _build_reports(
        self, folders: Sequence[tuple[str, str]], tested: protocol.SelfTest | None
    ) -> Iterator[protocol.MachineReport]:
        """Yield one report, or several if there are more run folders than one may list."""
        most = limits.RUN_FOLDERS.value
        for start in range(0, max(1, len(folders)), most):
            yield protocol.MachineReport(
                host=socket.gethostname(),
                labels=self._labels,
                accelerators=self._accelerators,
                slots=self._settings.slots,
                run_folders=[
                    protocol.RunName(organization_id=org, run_id=run_id)
                    for org, run_id in folders[start : start + most]
                ],
                continues_folders=start > 0,
                self_test=tested if start == 0 else None,
            )

    def _build_claim(self, slots: int, accelerators: int, *, lacks_disk: bool) -> protocol.Claim:
        return protocol.Claim(
            claim_id=self._claim_id,
            machine_id=self._machine_id,
            host=socket.gethostname(),
            slots=slots,
            labels=self._labels,
            wait_s=CLAIM_WAIT_WITHOUT_DISK_S if lacks_disk else CLAIM_WAIT_S,
            lacks_disk=lacks_disk,
            accelerators=accelerators,
        )

    def _poll_for_work(self, claim: protocol.Claim) -> Assignment | None:
        """Make one long poll.

        A server that shuts down answers at once with nothing, so pause before the next.
        """
        called_at_s = self._clock.monotonic()
        assignment = self._client.claim_run(claim)
        early_s = RETRY_AFTER_S - (self._clock.monotonic() - called_at_s)
        if assignment is None and early_s > 0:
            self._clock.sleep(early_s)
        return assignment

    def _on_claimed(self, assignment: Assignment | None) -> None:
        self._is_claiming = False
        self._claim_id = uuid.uuid4().hex
        if assignment is not None:
            log.info("claimed %s", make_attempt_key(assignment))
            self._hold_attempt(assignment)

    def _on_claim_failed(self) -> None:
        """Keep the claim id: repeating an accepted claim returns its attempt."""
        self._is_claiming = False

    def _on_placements(self, outcome: ReportOutcome) -> None:
        self._is_adopting = False
        is_first = self._adopted_at_s is None
        self._adopted_at_s = self._clock.monotonic()
        for assignment in outcome.assignments:
            self._hold_attempt(assignment)
        if is_first:
            log.info("adopted %d attempts", len(outcome.assignments))
            self._kill_leftovers()
        self._remove_deleted_runs(outcome)
        if outcome.tested is not None:
            self._tested, self._is_testing = None, False
        if outcome.must_test:
            self._test_machine()

    def _test_machine(self) -> None:
        """Test this machine once nothing trains on it, and report the outcome soon."""
        if self._is_testing or self._held:
            return
        self._is_testing = True

        def post_result(result: protocol.SelfTest) -> None:
            self._inbox.put(partial(self._on_tested, result))

        self_test.start(self._settings.data_dir, post_result)

    def _on_tested(self, result: protocol.SelfTest) -> None:
        self._tested, self._is_report_due = result, True

    def _on_adopt_failed(self) -> None:
        self._is_adopting, self._is_report_due = False, True

    def _remove_deleted_runs(self, outcome: ReportOutcome) -> None:
        """Remove what the server names, and what a removal that was interrupted has left."""
        is_gone = deleted_runs.detach_deleted_runs(
            self._settings, outcome.removals, held=self._held, processes=self._processes
        )
        # Also if a server with the same data folder has removed some. At first, an earlier
        # controller may have been interrupted.
        is_shorter = self._run_folders is None or not self._run_folders <= outcome.run_folders
        self._run_folders = outcome.run_folders
        self._has_removals = self._has_removals or is_gone or is_shorter
        self._is_report_due = self._is_report_due or is_gone  # the server lists what is left
        self._finish_removals()

    def _finish_removals(self) -> None:
        """Remove in a separate thread what is renamed, which may be large."""
        if not self._has_removals or self._is_removing:
            return
        self._is_removing, self._has_removals = True, False

        def finish_and_post() -> None:
            error: OSError | None = None
            try:
                deleted_runs.finish_removals(self._settings)
            except OSError as caught:
                error = caught
            self._inbox.put(partial(self._on_removed, error))

        threading.Thread(target=finish_and_post, name="remove-runs", daemon=True).start()

    def _on_removed(self, error: OSError | None) -> None:
        self._is_removing = False
        if error is None:
            self._finish_removals()
        else:
            log.warning("not everything of deleted runs is removed yet: %s", error)
            self._has_removals = True  # after the next report

    def _hold_attempt(self, assignment: Assignment) -> None:
        key = make_attempt_key(assignment)
        if key in self._held and is_other_store(
            self._held[key].assignment.store_id, assignment.store_id
        ):
            if self._check_liveness(self._held[key]) not in (None, "dead"):
                # The old one, from before a restore, is about to end. The new lease expires
                # uncharged, and the attempt is offered again.
                return
            del self._held[key]
        if key not in self._held:
            try:
                used = [device for held in self._held.values() for device in held.devices]
                count = max(1, count_accelerators(assignment.run.spec.flow.settings))
                devices = find_least_used(self._devices, used, count)
                folder = place_attempt(
                    assignment,
                    settings=self._settings,
                    machine_id=self._machine_id,
                    devices=[device.id for device in devices],
                )
            except (OSError, InvalidId) as error:
                # For example a full disk. The lease expires uncharged, and the attempt is offered
                # again.
                log.warning("cannot place %s: %s", key, error)
                return
            supervisor = self._find_supervisor(key, folder)
            # An attempt placed before, by this controller or an earlier one, keeps accelerators.
            placed = self._files.read_json(AttemptDir(folder).placed) or {}
            self._held[key] = HeldAttempt(
                assignment,
                folder,
                self._clock.monotonic(),
                devices=read_devices(placed),
                supervisor=supervisor,
            )
        held = self._held[key]
        held.assignment = assignment
        if assignment.run.spec.killed_at is not None and held.killed_at_s is None:
            held.killed_at_s = self._clock.monotonic()

    def _find_supervisor(self, key: AttemptKey, folder: Path) -> Identity | None:
        """Return the living supervisor of a folder, from process.json or, before that exists, by
        its mark.
        """
        document = self._files.read_json(AttemptDir(folder).process)
        if document is not None:
            identity = parse_identity(document)
            if identity is not None and self._processes.check_liveness(identity) != "dead":
                return identity
        found = self._processes.find_marked(SUPERVISOR_MARK, str(key).__eq__)
        return found[0][0] if found else None

    def _start_supervisor(self, held: HeldAttempt) -> None:
        key = make_attempt_key(held.assignment)
        request = StartRequest(
            folder=held.folder,
            mark=str(key),
            endpoint=self._client.endpoint,
            token=held.assignment.token,
            trust=self._client.trust,
            environment=select_devices(held.devices),
        )
        held.starts += 1
        held.started_at_s = self._clock.monotonic()
        try:
            held.supervisor = self._executor.start(request)
        except OSError as error:  # no disk space, process id, or memory: may pass, so it is retried
            log.warning("cannot start a supervisor for %s: %s", key, error)
            return
        log.info(
            "started a supervisor for %s: process %s",
            key,
            held.supervisor.pid if held.supervisor else "unknown",
        )

    def _stop_supervisor(self, key: AttemptKey, held: HeldAttempt) -> None:
        held.is_stop_requested = True
        if held.supervisor is not None:
            log.info("asking %s to save and stop", key)
            self._processes.send_signal(held.supervisor, signal.SIGTERM)

    def _stop_trainer(self, key: AttemptKey, held: HeldAttempt) -> None:
        held.is_trainer_stop_requested = True
        log.warning("supervisor of %s is unresponsive; asking its trainer to save and stop", key)
        trainer = parse_identity(
            self._files.read_json(AttemptDir(held.folder).process) or {}, role="trainer"
        )
        if trainer is not None:
            self._processes.send_signal(trainer, signal.SIGTERM)
            self._processes.send_signal(trainer, signal.SIGCONT)

    def _kill_supervisor(self, key: AttemptKey, held: HeldAttempt) -> None:
        if held.supervisor is not None:
            log.warning("supervisor of %s is unresponsive; replacing it", key)
            self._processes.send_signal(held.supervisor, signal.SIGKILL)

    def _kill_leftovers(self) -> None:
        """Kill trainers of this instance that have no supervisor and that the server no longer
        lists.

        A mark belongs to this instance if its attempt has a folder in our data folder; other
        instances on this machine have other data folders.
        """
        guarded = {mark for _, mark in self._processes.find_marked(SUPERVISOR_MARK, lambda _: True)}
        for identity, mark in self._processes.find_marked(
            ATTEMPT_MARK, lambda mark: mark not in guarded
        ):
            key = parse_mark(mark)
            if key is not None and key not in self._held and has_folder(self._settings, key):
                log.warning("killing process %d, left over from %s", identity.pid, mark)
                self._processes.send_signal(identity, signal.SIGKILL)


def _raise(error: BaseException) -> None:
    raise error


def parse_identity(document: dict[str, Any], *, role: str = "supervisor") -> Identity | None:
    """Return the supervisor or the trainer that a ``process.json`` names; None if invalid."""
    process = document.get(role)
    try:
        return Identity(str(document["bootId"]), int(process["pid"]), int(process["startTicks"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None


def parse_mark(mark: str) -> AttemptKey | None:
    """Return the attempt that a mark names; None for a warm parent's placeholder or an invalid
    mark.
    """
    words = mark.split("/")
    if len(words) != 3 or not words[2].isdigit() or any(word in ("", ".", "..") for word in words):
        return None
    return AttemptKey(words[0], words[1], int(words[2]))


def main() -> int:
    """Run ``python -m runyard.controller``. A failure to start is one line, the last on stderr."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings, machine_id = _load_configuration()
    except CannotStart as error:
        log.error("%s", error)
        return error.exit_status
    controller = Controller(
        settings,
        machine_id=machine_id,
        client=ServerClient(
            settings.controller_file, ca=settings.ca, insecure=settings.allows_plain_http
        ),
        executor=LocalExecutor(settings),
        devices=list_devices(),
    )

    def handle_signal(number: int, _frame: object) -> None:
        # Only a second SIGINT ends at once: a closing terminal sends SIGTERM and SIGHUP together.
        if number == signal.SIGINT or not controller.is_shutting_down:
            controller.request_shutdown()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handle_signal)
    if "--end-with-stdin" in sys.argv[1:]:
        machine_processes.call_when_stdin_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    if settings.notice:
        notices.watch(settings.notice, controller.request_shutdown)
    log.info("controller started: process %d", os.getpid())
    controller.run()
    return 0


def _load_configuration() -> tuple[Settings, str]:
    """Read the settings and lock the machine; return the settings and the machine's id.

    Raises:
        CannotStart: a setting is invalid, the key would cross a network in clear text, another
            controller runs here, or the folder is not writable.
    """
    try:
        settings = read_settings()
        if endpoint := (rundir.read_json(settings.controller_file) or {}).get("endpoint"):
            check_transport(str(endpoint), insecure=settings.allows_plain_http)
        logging.getLogger().setLevel(settings.log_level.upper())
        machine.lock_machine(settings.machine_dir)
        return settings, machine.load_machine_id(settings.machine_dir)
    except (SettingError, machine.MachineTaken) as error:
        raise CannotStart(str(error)) from error
    except ValueError as error:  # from the log level
        raise CannotStart(
            f"RUNYARD_LOG_LEVEL: {error}; try: debug, info, warning or error"
        ) from error
    except OSError as error:
        raise explain_os_error(error) from error
