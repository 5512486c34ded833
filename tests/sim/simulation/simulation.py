"""One simulated deployment: clients of two organizations, faults, and invariants checked after
every commit.

A seed determines everything: the number of machines, which faults occur, how often, and when.
``simulate`` injects faults for some virtual minutes, then repairs everything and checks that every
run ends.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import msgspec

from runyard.controller.decide import ADOPT_EVERY_S, AttemptKey
from runyard.server.services import membership
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import JOINED, Memberships
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs import leases, listing, runs
from runyard.store import attempts, tombstones
from runyard.store.lists.run_filter import RunFilter
from tests.sim.simulation.machine import MAX_UNREACHABLE_S, Machine, Program, Supervisor, Trainer
from tests.sim.simulation.server import (
    ORGS,
    Crash,
    DirectStore,
    PostgreSqlStore,
    Server,
    SqliteStore,
    add_machines,
    run_coroutine,
)
from tests.sim.simulation.world import Host, InvariantViolation, Link, Process, World, send_request
from vi.api.resources.runs.responses import Run

LEASE_S, GRACE_S, TRIES = 15.0, 5.0, 3
CHAOS_MS, CALM_MS = 240_000, 900_000
ADOPT_EVERY_MS = round(ADOPT_EVERY_S * 1000)
NOTICE_MS = 20_000  # in server uptime: the lease, a tick, and a message in flight
FAULTS = (
    "kill server", "crash in a write", "pause server", "full disk", "kill supervisor",
    "kill trainer", "kill loader", "kill controller", "kill controller at work",
    "second controller", "pause process", "cut link", "cut one way", "step clock", "suspend",
    "reboot", "stubborn child", "leftover", "failing fsync", "restore", "loss",
    "drain machine", "exclude machine", "remove machine",
)  # fmt: skip
OF_THE_SERVER = (
    "kill server",
    "crash in a write",
    "pause server",
    "full disk",
    "step clock",
    "restore",
)
# Besides the rules of docs/run-safety.md: a removed machine is refused, and one that is drained or
# excluded gets no run.
RULES = ("R3", "R4", "R5", "R6", "R9", "removed", "out of service")
OPERATOR = Actor(org=ORGS[0], name="operator", role="admin", address="")
UNSETTLED_ATTEMPTS = (
    "SELECT org, run_id, number FROM attempts WHERE closed AND lost_pulse IS NOT NULL"
)
NEWEST_ATTEMPTS = "SELECT org, run_id, max(number) FROM attempts GROUP BY org, run_id"

RunKey = tuple[str, str]


def _run_of_key(key: AttemptKey) -> RunKey:
    return key.organization_id, key.run_id


def _run_of_program(program: Program) -> RunKey | None:
    return None if program.key is None else _run_of_key(program.key)


# The fields that a backup saves and a restore brings back.
BACKED_UP = (
    "acknowledged",
    "deleted",
    "documents",
    "histories",
    "conditions",
    "changed_ms",
    "lost",
    "running",
)


@dataclass
class GroundTruth:
    """A record of what really happened, against which the server's state is checked."""

    world: World
    machines: list[Machine] = field(default_factory=list)
    server: Server | None = None
    launches: set[AttemptKey] = field(default_factory=set)
    acknowledged: set[RunKey] = field(default_factory=set)
    being_deleted: set[RunKey] = field(default_factory=set)
    deleted: set[RunKey] = field(default_factory=set)
    documents: dict[RunKey, bytes] = field(default_factory=dict)
    histories: dict[RunKey, list[tuple[str, str]]] = field(default_factory=dict)
    event_numbers: Counter[str] = field(default_factory=Counter)
    conditions: dict[RunKey, tuple[str, str]] = field(default_factory=dict)
    changed_ms: dict[RunKey, int] = field(default_factory=dict)
    idle_since: dict[RunKey, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    highest_token: int = 0  # in the current store incarnation
    known_tokens: dict[tuple[str, int], AttemptKey] = field(default_factory=dict)
    known_attempts: set[tuple[Any, ...]] = field(default_factory=set)
    running: dict[RunKey, None] = field(default_factory=dict)
    # Running time of the older at its start
    overlaps: dict[tuple[Trainer, Trainer], int] = field(default_factory=dict)
    # Of attempts that a restore has undone; they end when their lease is refused.
    orphans: set[Program] = field(default_factory=set)
    restores: int = 0
    last_exit_ms: dict[RunKey, int] = field(default_factory=dict)  # when a process of it ended last
    # When its lease was last renewed, in server uptime.
    renewed_uptime_ms: dict[AttemptKey, int] = field(default_factory=dict)
    lost: set[AttemptKey] = field(default_factory=set)
    # Machines that take no run now, those of them that are removed, and the server's uptime when
    # one was removed last.
    out_of_service: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    removed_uptime_ms: dict[str, int] = field(default_factory=dict)
    longest_overlap_ms: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def record_launch(self, key: AttemptKey) -> None:
        self.launches.add(key)
        self.counts["launches"] += 1

    @contextlib.contextmanager
    def track_renewal(self, key: AttemptKey) -> Iterator[None]:
        """Record a renewal. After a crash it may or may not count, so assume the shorter lease."""
        assert self.server is not None
        try:
            yield
        except Crash:
            self.renewed_uptime_ms[key] = min(
                self.renewed_uptime_ms.get(key, 0), self.server.uptime_ms
            )
            raise
        self.renewed_uptime_ms[key] = self.server.uptime_ms
        self.lost.discard(key)
        place = "WHERE org = ? AND run_id = ? AND number = ?"
        run = (key.organization_id, key.run_id, key.attempt)
        query = f"SELECT machine_id FROM attempts {place}"  # noqa: S608
        for (machine_id,) in self.server.store.query(query, run):
            if machine_id in self.removed:
                raise InvariantViolation(14, f"a report of {key} was accepted from {machine_id}")

    def record_program_exit(self, key: AttemptKey) -> None:
        self.last_exit_ms[_run_of_key(key)] = self.world.now_ms

    def record_training_start(self, trainer: Trainer) -> None:
        self.world.record("trainer begins", trainer.machine.id, trainer.key)
        self.counts["trainings"] += 1
        for other in self._list_trainers(trainer.key):
            if other is trainer:
                continue
            if other.machine is trainer.machine:
                raise InvariantViolation(
                    2,
                    f"two trainers of one run on {trainer.machine.id}: {other.key} and "
                    f"{trainer.key}",
                )
            self.counts["overlaps of two machines"] += 1
            self.overlaps[other, trainer] = other.runtime_ms

    def record_trainer_exit(self, trainer: Trainer) -> None:
        if trainer.is_training:
            self.world.record("trainer ends", trainer.machine.id, trainer.key, trainer.exit)
        for pair in [pair for pair in self.overlaps if trainer in pair]:
            self._check_overlap(pair, self.overlaps.pop(pair))

    def _check_overlap(self, pair: tuple[Trainer, Trainer], began_ms: int) -> None:
        """Check that two machines trained one run only while the older was cut off, within its
        limit.
        """
        older, newer = pair
        for_ms = older.runtime_ms - began_ms
        self.longest_overlap_ms = max(self.longest_overlap_ms, for_ms)
        if for_ms > MAX_UNREACHABLE_S * 1000:
            raise InvariantViolation(
                2,
                f"{older.key} trained on {older.machine.id} {for_ms} ms at the same time as "
                f"{newer.key}",
            )

    def _list_trainers(self, key: AttemptKey | None) -> Iterator[Trainer]:
        assert key is not None
        for machine in self.machines:
            for program in machine.programs.values():
                if (
                    isinstance(program, Trainer)
                    and program.is_training
                    and _run_of_program(program) == _run_of_key(key)
                ):
                    yield program

    def list_living(self, run: RunKey) -> list[str]:
        """Return a run's training processes and their children, except trainers at their gate."""
        return [
            f"{program.name} {program.key} on {machine.id}"
            for machine in self.machines
            for program in machine.programs.values()
            if _run_of_program(program) == run
            and not self.orphans.intersection((program, program.parent))
            if not isinstance(program, Supervisor)
            and not (isinstance(program, Trainer) and not program.is_training)
        ]

    def has_processes(self, run: RunKey) -> bool:
        return any(
            _run_of_program(program) == run
            for machine in self.machines
            for program in machine.programs.values()
        )

    def list_outcomes(self, run: RunKey) -> set[str]:
        """Return the outcomes in the ``result.json`` files of a run."""
        return {
            str(folder.documents["result.json"]["outcome"])
            for machine in self.machines
            for key, folder in machine.folders.items()
            if (key.organization_id, key.run_id) == run and "result.json" in folder.documents
        }

    def _has_good_result(self, run: RunKey) -> bool:
        """Return whether a reportable result exists; a later attempt on another machine supersedes
        it.
        """
        assert self.server is not None
        query = "SELECT number, machine_id, epoch FROM attempts WHERE org = ? AND run_id = ?"
        machines = {machine.id: machine for machine in self.machines}
        folders: dict[int, tuple[Machine, dict[str, Any]]] = {}
        for number, machine_id, store_id in self.server.store.query(query, run):
            documents = machines[machine_id].get_folder(AttemptKey(*run, number)).documents
            # Not of an attempt that a restore has undone.
            is_its_own = documents.get("placed.json", {}).get("epoch") == store_id
            folders[number] = (
                machines[machine_id],
                documents.get("result.json", {}) if is_its_own else {},
            )
        return any(
            result.get("outcome") == "Succeeded"
            and all(folders[n][0] is machine for n in folders if n > attempt)
            for attempt, (machine, result) in folders.items()
        )

    def check_commit(self) -> None:
        """Check the committed state against what has happened."""
        assert self.server is not None
        rows = self.server.store.query(
            "SELECT org, id, document, deleted FROM runs ORDER BY org, id"
        )
        if rows != self.rows:
            known = set(self.rows)
            self.rows = rows
            for row in rows:
                if row not in known:
                    self._check_row(row)
            lost = (self.acknowledged - self.being_deleted).difference(
                (org, id) for org, id, _, _ in rows
            )
            if lost:
                raise InvariantViolation(1, f"acknowledged runs {lost} are lost")
        for run in self.running:
            self._check_idle(run)
        self._check_attempts()
        self._check_event_numbers()

    def _check_event_numbers(self) -> None:
        for org, number in self._query("SELECT org, number FROM event_counters"):
            if number < self.event_numbers[org]:
                raise InvariantViolation(
                    13, f"events of {org} went back from {self.event_numbers[org]} to {number}"
                )
            self.event_numbers[org] = number

    def _check_row(self, row: tuple[Any, ...]) -> None:
        assert self.server is not None
        run, document, deleted = (row[0], row[1]), row[2], bool(row[3])
        if run in self.deleted and not deleted:
            raise InvariantViolation(1, f"deleted run {run} is back")
        self.running.pop(run, None)
        if self.documents.get(run) != document:
            self.documents[run] = document
            self._check_document(run)
        kind, reason = self.conditions[run]
        if kind == "Running" and reason != "Stopping" and not deleted:
            self.running[run] = None
        else:
            self.idle_since.pop(run, None)

    def _check_document(self, run: RunKey) -> None:
        assert self.server is not None
        ((document,),) = self.server.store.query(
            "SELECT document FROM runs WHERE org = ? AND id = ?", run
        )
        status = msgspec.json.decode(document, type=Run).status
        latest = status.conditions[-1]
        self.changed_ms[run] = self.world.now_ms
        self.conditions[run] = (latest.condition.value, latest.reason or "")
        history = [(c.condition.value, c.reason or "") for c in status.conditions]
        self._check_events(run, history)
        before = self.histories.get(run, [])
        if [c.condition.value for c in status.conditions[: len(before)]] != [
            kind for kind, _ in before
        ]:
            raise InvariantViolation(
                3, f"the history of {run} was rewritten: {before} became {history}"
            )
        finals = [c for c in status.conditions if c.condition.is_final]
        if len(finals) > 1 or (finals and not latest.condition.is_final):
            raise InvariantViolation(3, f"{run} has a word after its last: {history}")
        was_final = bool(before) and before[-1][0] in ("Succeeded", "Failed", "Error", "Cancelled")
        if was_final and history != before:
            raise InvariantViolation(
                3, f"the last word of {run} changed: {before} became {history}"
            )
        self.histories[run] = history
        self.world.record(run, *history[-1])
        if finals and not was_final:
            self.counts[latest.condition.value] += 1
            self._check_end(run, latest.condition.value)

    def _check_events(self, run: RunKey, history: list[tuple[str, str]]) -> None:
        """Check that who replays the events of a run ends up with its history."""
        assert self.server is not None
        query = (
            "SELECT what, details FROM events WHERE org = ? AND target = ? AND kind = 'run' "
            "ORDER BY number"
        )
        replayed: list[tuple[str, str]] = []
        for what, encoded in self.server.store.query(query, run):
            if what in ("created", "condition", "reason"):
                details = msgspec.json.decode(encoded)
                if what == "reason":
                    replayed.pop()
                replayed.append((details["condition"], details["reason"] or ""))
        if replayed != history:
            raise InvariantViolation(
                13, f"events of {run} yield {replayed}, its history is {history}"
            )

    def _check_end(self, run: RunKey, condition: str) -> None:
        assert self.server is not None
        query, place = self.server.store.query, "WHERE org = ? AND run_id = ?"
        is_open = query(f"SELECT number FROM attempts {place} AND NOT closed", run)  # noqa: S608
        if condition == "Cancelled" and (is_open or self.list_living(run)):
            raise InvariantViolation(
                4, f"{run} is Cancelled; open attempts {is_open}, alive: {self.list_living(run)}"
            )
        if condition == "Succeeded":
            ((outputs,),) = query(f"SELECT count(*) FROM outputs {place}", run)  # noqa: S608
            if not outputs or "Succeeded" not in self.list_outcomes(run):
                raise InvariantViolation(
                    5,
                    f"{run} is Succeeded with {outputs} checkpoints and results "
                    f"{self.list_outcomes(run)}",
                )
        if condition == "Error" and self._has_good_result(run):
            raise InvariantViolation(5, f"{run} is in Error though result.json says it is done")

    def _check_idle(self, run: RunKey) -> None:
        assert self.server is not None
        if self.has_processes(run):
            self.idle_since.pop(run, None)
            return
        kind, reason = self.conditions[run]
        # A renewal that arrives after its supervisor has died still extends the lease.
        heard_ms = max(
            (ms for key, ms in self.renewed_uptime_ms.items() if _run_of_key(key) == run), default=0
        )
        since_ms = max(self.idle_since.setdefault(run, self.server.uptime_ms), heard_ms)
        if self.server.uptime_ms - since_ms > NOTICE_MS:
            raise InvariantViolation(
                7,
                f"{run} is {kind} ({reason}) for {self.server.uptime_ms - since_ms} ms with "
                "nothing alive",
            )

    def _check_attempts(self) -> None:
        assert self.server is not None
        columns = (
            "org, run_id, number, epoch, token_number, started, charged, lost_pulse, machine_id"
        )
        rows = self.server.store.query(f"SELECT {columns} FROM attempts ORDER BY token_number")  # noqa: S608
        fresh = [row for row in rows if row not in self.known_attempts]
        if not fresh:
            return
        self.known_attempts = set(rows)
        for row in fresh:
            org, run_id, number, store_id, token, started, charged, lost_pulse, machine_id = row
            key = AttemptKey(org, run_id, number)
            if lost_pulse is not None and key not in self.lost:
                self._check_lease_loss(key, machine_id)
            if (store_id, token) not in self.known_tokens and machine_id in self.out_of_service:
                raise InvariantViolation(15, f"{key} was placed on {machine_id}, out of service")
            if (started or charged) and key not in self.launches:
                raise InvariantViolation(
                    8,
                    f"attempt {number} of {org}/{run_id} counts, yet no process of it was written "
                    "down",
                )
            if (store_id, token) not in self.known_tokens:
                if store_id == f"e{self.restores + 1}" and token <= self.highest_token:
                    raise InvariantViolation(
                        10, f"token {token} of {store_id} after {self.highest_token}"
                    )
                self.highest_token = token
            if self.known_tokens.setdefault((store_id, token), key) != key:
                raise InvariantViolation(
                    10,
                    f"token {token} of {store_id} speaks for {key} and "
                    f"{self.known_tokens[store_id, token]}",
                )

    def _check_lease_loss(self, key: AttemptKey, machine_id: str) -> None:
        """Check that a lease expired by silence during server uptime, not by a stopped server or a
        clock step. Those of a removed machine end at once.
        """
        assert self.server is not None
        self.lost.add(key)
        removed_ms = self.removed_uptime_ms.get(machine_id)
        if removed_ms is not None and self.server.uptime_ms - removed_ms < NOTICE_MS:
            return
        silent_ms = self.server.uptime_ms - self.renewed_uptime_ms.get(key, 0)
        if silent_ms < LEASE_S * 1000 - 2_000:
            raise InvariantViolation(7, f"{key} lost its lease after {silent_ms} ms of server life")

    def copy(self) -> "GroundTruth":
        """Return the record at the time of a backup."""
        kept = replace(self, counts=Counter())
        for name in BACKED_UP:
            setattr(kept, name, getattr(self, name).copy())
        kept.renewed_uptime_ms = dict(self.renewed_uptime_ms)
        kept.known_attempts = set(self.known_attempts)
        return kept

    def restore(self, kept: "GroundTruth") -> None:
        """Go back to the record of a backup: what was acknowledged later is legitimately lost.

        Tokens are kept, because a restore must not issue one again; so are processes, which keep
        running.
        """
        assert self.server is not None
        for name in BACKED_UP:
            setattr(self, name, getattr(kept, name).copy())
        # Every attempt gets a new lease, plus the time in which controllers call.
        heard_ms = self.server.uptime_ms + round(leases.ASKED_WITHIN_S * 1000)
        self.renewed_uptime_ms = dict.fromkeys(kept.renewed_uptime_ms, heard_ms)
        self.rows, self.known_attempts, self.idle_since = kept.rows, kept.known_attempts, {}
        self.restores += 1
        self.highest_token = 0
        known = {(*row[:3], row[-1]) for row in kept.known_attempts}
        self.orphans |= {
            program
            for machine in self.machines
            for program in machine.programs.values()
            if program.key is not None and (*program.key_words, machine.id) not in known
        }

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        assert self.server is not None
        return self.server.store.query(statement)

    def check_lines(self) -> None:
        """Check that the server's lines of each stdout are a prefix of what was written, each line
        once.
        """
        assert self.server is not None
        # Skip attempts that the server closed as never started; after a restore they may have run
        # nevertheless.
        query = "SELECT org, run_id, number, machine_id, epoch FROM attempts WHERE started"
        place_of = {
            AttemptKey(org, id, number): (machine, store_id)
            for org, id, number, machine, store_id in self._query(query)
        }
        newest = {(org, id): number for org, id, number in self._query(NEWEST_ATTEMPTS)}
        unsettled = {AttemptKey(*row) for row in self._query(UNSETTLED_ATTEMPTS)}
        query = (
            "SELECT org, run_id, number, attempt, stream, text FROM log_lines ORDER BY org, "
            "run_id, number"
        )
        shipped: dict[AttemptKey, list[str]] = {}
        last: dict[RunKey, int] = {}
        for org, run_id, number, attempt, stream, text in self.server.store.query(query):
            if number != last.get((org, run_id), 0) + 1:
                raise InvariantViolation(
                    6, f"line {number} of {org}/{run_id} follows {last.get((org, run_id), 0)}"
                )
            last[org, run_id] = number
            if stream == "stdout":
                shipped.setdefault(AttemptKey(org, run_id, attempt), []).append(text)
        for machine in self.machines:
            for key, folder in machine.folders.items():
                run = (key.organization_id, key.run_id)
                if run not in self.documents or run in self.being_deleted:
                    continue
                if place_of.get(key) != (
                    machine.id,
                    folder.documents.get("placed.json", {}).get("epoch"),
                ):
                    continue  # a restore has undone it, and another has its number
                written = (
                    folder.once.get("stdout", bytes(folder.streams["stdout"])).decode().splitlines()
                )
                here = shipped.get(key, [])
                if here != written[: len(here)]:
                    raise InvariantViolation(
                        6, f"the server has other lines of {key} than were written"
                    )
                closed = folder.documents.get("closed.json", {})
                # Closed by silence: its run may resume elsewhere before it has shipped again what a
                # restore undid.
                is_passed = key in unsettled and key.attempt < newest[run]
                is_undone = is_passed and closed.get("epoch") != self.server.store_id
                is_reported = closed.get("how") == "reported" and not is_undone
                if is_reported and len(here) < len(folder.streams["stdout"].splitlines()):
                    raise InvariantViolation(6, f"{key} was reported with {len(here)} of its lines")
                self.counts["lines compared"] += len(here)


class Client(Process):
    """Client of one organization: creates, kills, deletes, lists, and repeats old requests."""

    def __init__(self, deployment: "Deployment", org: str):
        super().__init__(deployment.world, org, deployment.client_host)
        self.deployment, self.org, self.link = deployment, org, Link()
        self.actor = Actor(org=org, name=org, role="admin", address="")
        self.run_count = 0
        self.is_quiet = False
        self.schedule(100, self._act)

    def _act(self) -> None:
        if self.is_quiet:
            return
        self.deployment.send_random_request(self)
        self.schedule(self.world.draw_int(300, 6_000), self._act)

    def create(self, number: int) -> None:
        run = (self.org, f"r{number}")

        def on_answer(outcome: Any) -> None:
            if isinstance(outcome, tuple):
                self.deployment.truth.acknowledged.add(run)
            elif isinstance(outcome, Refusal) and outcome.code not in ("IdDeleted",):
                raise InvariantViolation(
                    1, f"a repeated create of {run} was refused: {outcome.code}"
                )

        body = b'{"spec":{}} %d' % number
        self._send(
            lambda s: runs.create(s, self.actor, run[1], body=body, attributes={}), on_answer
        )

    def kill_run(self, number: int) -> None:
        change: dict[str, Any] = {
            "kill": True,
            "training_project": msgspec.UNSET,
            "attributes": {},
            "if_match": None,
        }
        self._send(lambda s: runs.update(s, self.actor, f"r{number}", **change), lambda _: None)

    def delete(self, number: int) -> None:
        from runyard.server.services.runs import deletion

        run = (self.org, f"r{number}")
        self.deployment.truth.being_deleted.add(run)

        async def work(services: Any) -> bool:
            await deletion.delete(services, self.actor, run[1], if_match=None)
            return True

        def on_answer(outcome: Any) -> None:
            if outcome is True:
                self.deployment.truth.deleted.add(run)

        self._send(work, on_answer)

    def list_runs(self) -> None:
        page_request = PageRequest(size=100, token=None)

        def on_answer(outcome: Any) -> None:
            if isinstance(outcome, bytes):
                for item in msgspec.json.decode(outcome)["items"]:
                    if msgspec.convert(item, Run).organization_id != self.org:
                        raise InvariantViolation(
                            9, f"{self.org} was shown a run of {item['organizationId']}"
                        )

        self._send(
            lambda s: listing.read_page(
                s, org=self.org, filter=RunFilter(), page_request=page_request
            ),
            on_answer,
        )

    def _send(self, request: Callable[[Any], Any], on_answer: Callable[[Any], None]) -> None:
        """Send a request; ignore an answer from before a restore."""
        truth = self.deployment.truth

        async def asked(services: Any) -> tuple[int, Any]:
            return truth.restores, await request(services)

        def on_outcome(outcome: Any) -> None:
            if not isinstance(outcome, tuple):
                on_answer(outcome)
            elif outcome[0] == truth.restores:
                on_answer(outcome[1])

        send_request(self.world, self.link, self.deployment.server, self, asked, on_outcome)


class Deployment:
    """A server, machines, and clients, with fault injection."""

    def __init__(
        self,
        seed: int,
        *,
        without: str | None = None,
        machines: int | None = None,
        faults: bool = True,
        postgresql: str | None = None,
    ):
        self.world = world = World(seed)
        self.truth = GroundTruth(world)
        self.client_host = Host(world)  # the host of the clients
        hosts = [Host(world) for _ in range(machines or world.random.choice((1, 1, 3)))]
        store: DirectStore = PostgreSqlStore(postgresql) if postgresql else SqliteStore()
        known: dict[str, Any] = {
            "attempts": TRIES,
            "lease_s": LEASE_S,
            "grace_s": GRACE_S,
            "is_wall_clock": without == "R4",
        }
        self.server = Server(hosts[0], store=store, **known)
        self.truth.server = self.server
        self.server.store.on_commit = self.truth.check_commit
        self.machines = [
            Machine(host, self.server, n, slots=2, truth=self.truth) for n, host in enumerate(hosts)
        ]
        self.truth.machines = self.machines
        ids = [machine.id for machine in self.machines]
        run_coroutine(store.write(lambda tx: add_machines(tx, ids)))
        for machine in self.machines:
            machine.without_lock, machine.without_proof = without == "R3", without == "R5"
            machine.without_folders = without == "R6"
        chosen = [name for name in FAULTS if world.draw_bool(0.5)] if faults else []
        self.faults = [name for name in chosen if name != "loss"]
        world.loss = 0.03 if "loss" in chosen else 0.0
        self.every_ms = world.random.choice((3_000, 12_000, 30_000))
        self.clients = [Client(self, org) for org in ORGS]
        world.schedule(1_000, self._inject_random_fault)

    def close(self) -> None:
        self.server.store.close()

    @property
    def waiting(self) -> int:
        return sum(kind in ("Pending", "Running") for kind, _ in self.truth.conditions.values())

    @property
    def max_waiting(self) -> int:
        """The number of unfinished runs at which clients stop creating runs."""
        return 6 + 4 * (len(self.machines) - 1)

    def send_random_request(self, client: Client) -> None:
        chance = self.world.random
        draw = chance.random()
        old = (
            chance.randrange(max(1, client.run_count - 6), client.run_count + 1)
            if client.run_count
            else 0
        )
        if draw < 0.45 and self.waiting < self.max_waiting:
            client.run_count += 1
            client.create(client.run_count)
        elif not old:
            return
        elif draw < 0.6:
            client.create(old)
        elif draw < 0.75:
            client.kill_run(old)
        elif draw < 0.83:
            client.delete(old)
        else:
            client.list_runs()

    def _inject_random_fault(self) -> None:
        if self.world.is_lossless or not self.faults:
            return
        self.inject_fault(self.world.random.choice(self.faults))
        self.world.schedule(
            self.world.draw_int(self.every_ms // 6, self.every_ms), self._inject_random_fault
        )

    def inject_fault(self, kind: str) -> None:
        """Inject one fault; a temporary one ends after its time, or when everything is repaired."""
        world, machine = self.world, self.world.random.choice(self.machines)
        world.record("fault:", kind, machine.id)
        for_ms = world.random.choice((2_000, 10_000, 40_000, 110_000))
        self.truth.counts[f"fault: {kind}"] += 1
        if kind in OF_THE_SERVER:
            self._inject_server_fault(kind, for_ms)
        elif not machine.host.is_suspended:
            self._inject_machine_fault(machine, kind, for_ms)

    def _inject_server_fault(self, kind: str, for_ms: int) -> None:
        world, server = self.world, self.server
        match kind:
            case "kill server":
                server.crash()
                world.schedule(world.draw_int(500, 9_000), server.start)
            case "crash in a write":
                server.store.crash = world.random.choice(("before", "after"))
                world.schedule(world.draw_int(4_000, 9_000), server.start)
            case "pause server":
                process = server.process
                process.pause()
                world.schedule(min(for_ms, 40_000), process.resume)
            case "full disk":
                server.store.is_full = True
                world.schedule(for_ms, self._free_disk)
            case "step clock":
                server.clock.skew_ms += world.random.choice((-3_600_000, 3_600_000))
            case "restore":
                self._restore_later(for_ms)

    def _inject_machine_fault(self, machine: Machine, kind: str, for_ms: int) -> None:
        world = self.world
        match kind:
            case "cut link":
                machine.link.carries_requests = machine.link.carries_answers = False
                world.schedule(for_ms, machine.link.heal)
            case "cut one way":
                machine.link.carries_requests = world.draw_bool(0.5)
                machine.link.carries_answers = not machine.link.carries_requests
                world.schedule(for_ms, machine.link.heal)
            case "reboot":
                if machine.number == 0:  # the server runs there too
                    self.server.crash()
                    world.schedule(world.draw_int(2_000, 20_000), self.server.start)
                machine.reboot()
            case "stubborn child":
                machine.stubbornness = 0.5
            case "drain machine" | "exclude machine" | "remove machine":
                self._take_out_of_service(machine, kind, for_ms)
            case "suspend":
                machine.host.suspend()
                world.schedule(for_ms, machine.host.resume)
            case "failing fsync":
                machine.is_fsync_failing = True
                world.schedule(for_ms, machine.allow_fsync)
            case "second controller":
                machine.start_controller()
            case "kill controller at work":
                if machine.controller is not None:
                    machine.controller.crash_at = world.random.choice(("claimed", "started"))
            case "leftover":
                self._orphan_trainer(machine)
            case _:
                self._signal_program(machine, kind, for_ms)

    def _take_out_of_service(self, machine: Machine, kind: str, for_ms: int) -> None:
        """Drain, exclude or remove a machine; later it takes runs again."""
        if machine.is_out_of_service:
            return
        machine.is_out_of_service = True
        within_ms = self.world.random.choice((None, 0, 5_000))

        async def change(services: Services) -> None:
            if kind == "remove machine":
                # Whether this answers or not, from here on leases of the machine may end.
                self.truth.removed_uptime_ms[machine.id] = self.server.uptime_ms
                await membership.remove(services, OPERATOR, machine.id, force=True)
                self.truth.removed.add(machine.id)
            else:
                state = "draining" if kind == "drain machine" else "excluded"
                words: dict[str, Any] = {"state": state, "within_ms": within_ms, "note": ""}
                await membership.change(services, OPERATOR, machine.id, **words)
            self.truth.out_of_service.add(machine.id)

        self.server.handle(change, lambda _: None)
        self.world.schedule(for_ms, lambda: self._return_to_service(machine))

    def _return_to_service(self, machine: Machine) -> None:
        """Let a machine take runs again; try until the server has done it."""

        async def change(services: Services) -> None:
            # Before the write: a crash may follow its commit.
            self.truth.out_of_service.discard(machine.id)
            self.truth.removed.discard(machine.id)
            await services.store.write(lambda tx: add_machines(tx, [machine.id]))
            await membership.refresh(services)
            machine.is_out_of_service = False

        def retry() -> None:
            if machine.is_out_of_service:
                self._return_to_service(machine)

        self.server.handle(change, lambda _: None)
        self.world.schedule(5_000, retry)

    def _signal_program(self, machine: Machine, kind: str, for_ms: int) -> None:
        verb, name = kind.split()
        found = [p for p in machine.programs.values() if name in ("process", p.name)]
        if found:
            program = self.world.random.choice(found)
            self.world.record(verb, program.name, program.key)
            if verb == "kill":
                program.kill()
            else:
                program.pause()
                self.world.schedule(for_ms, program.resume)

    def _orphan_trainer(self, machine: Machine) -> None:
        """Let a trainer lose its mark and its supervisor, and keep running.

        Retry until one trains.
        """
        found = [
            p
            for p in machine.programs.values()
            if isinstance(p, Trainer) and p.is_training and p.is_child
        ]
        if found:
            trainer = self.world.random.choice(found)
            self.world.record("loses mark and supervisor:", trainer.key)
            trainer.lose_mark()
            assert trainer.parent is not None
            trainer.parent.kill()
        elif not self.world.is_lossless:
            self.world.schedule(2_000, lambda: self._orphan_trainer(machine))

    def _restore_later(self, for_ms: int) -> None:
        """Take a backup now, and restore it later."""
        rows, blobs, truth = (
            self.server.store.snapshot(),
            self.server.copy_blobs(),
            self.truth.copy(),
        )

        def restore() -> None:
            if self.world.is_lossless or self.server.host.is_suspended:
                return
            self.world.record("a backup is restored")
            self.server.restore(rows, blobs)
            self.truth.restore(truth)
            self.world.schedule(self.world.draw_int(500, 5_000), self.server.start)

        self.world.schedule(for_ms, restore)

    def _free_disk(self) -> None:
        self.server.store.is_full = False

    def heal(self) -> None:
        """Repair everything, and allow no more faults and new runs."""
        self.world.record("healed")
        self.world.is_lossless = True
        self._free_disk()
        self.server.store.crash = None
        for machine in self.machines:
            machine.host.resume()
        self.server.process.resume()
        self.server.start()
        for client in self.clients:
            client.is_quiet = True
        for machine in self.machines:
            self._return_to_service(machine)
            machine.link.heal()
            machine.stubbornness = 0.0
            machine.is_fsync_failing = False
            for program in list(machine.programs.values()):
                program.resume()

    def is_idle(self) -> bool:
        held = any(
            p.key is not None for machine in self.machines for p in machine.programs.values()
        )
        return not held and not self.list_unfinished()

    def list_unfinished(self) -> list[RunKey]:
        rows = self.server.store.query(
            "SELECT org, id FROM runs WHERE NOT deleted AND condition IN ('Pending', 'Running') "
            "ORDER BY org, id"
        )
        return [(org, id) for org, id in rows]

    def settle(self) -> None:
        """Check that after the faults every run ends, and that no run is left without a process.

        While a server cannot answer, clients send more creates than ``max_waiting``, and it may
        accept them all later. Busy machines need longer for them, so the calm time grows with the
        unfinished runs.
        """
        self.heal()
        calm_ms = CALM_MS * max(self.max_waiting, len(self.list_unfinished())) // self.max_waiting
        end_ms = self.world.now_ms + calm_ms
        checked_ms = self.world.now_ms + 100_000
        is_checked = False
        while self.world.now_ms < end_ms and not self.is_idle():
            self.world.run(until_ms=self.world.now_ms + 5_000)
            if not is_checked and self.world.now_ms >= checked_ms:
                is_checked = True
                self._check_forgotten()
        left = self.list_unfinished()
        if left:
            raise InvariantViolation(
                11,
                f"{calm_ms // 1000} s after the last fault: "
                f"{[(r, self.truth.conditions[r]) for r in left]}",
            )
        self.truth.check_lines()

    def _check_forgotten(self) -> None:
        for run in self.list_unfinished():
            kind, reason = self.truth.conditions[run]
            query = "SELECT count(*) FROM attempts WHERE org = ? AND run_id = ? AND NOT closed"
            ((is_held,),) = self.server.store.query(query, run)
            is_queued = kind == "Pending" and not is_held and reason != "Stopping"
            # An attempt whose lease was refused, and that a restore brought back, is settled within
            # 30 s.
            since_ms = max(
                self.truth.changed_ms[run], self.truth.last_exit_ms.get(run, 0) + ADOPT_EVERY_MS
            )
            is_fresh = self.world.now_ms - since_ms < 20_000
            if not is_queued and not is_fresh and not self.truth.has_processes(run):
                raise InvariantViolation(
                    11, f"{run} is {kind} ({reason}) 100 s after the last fault, with nothing alive"
                )


@dataclass
class Outcome:
    """The result of one seed."""

    seed: int
    events: int
    virtual_s: float
    trace: str
    violation: InvariantViolation | None
    counts: Counter[str]
    log: list[str]


def simulate(
    seed: int,
    *,
    without: str | None = None,
    machines: int | None = None,
    faults: bool = True,
    is_logging: bool = False,
    postgresql: str | None = None,
    chaos_ms: int = CHAOS_MS,
) -> Outcome:
    """Simulate one history, on SQLite in memory or in the PostgreSQL database of a URL."""
    with disable_rule(without):
        deployment = Deployment(
            seed, without=without, machines=machines, faults=faults, postgresql=postgresql
        )
        world = deployment.world
        world.is_logging = is_logging
        violation = None
        try:
            world.run(until_ms=chaos_ms)
            deployment.settle()
        except InvariantViolation as error:
            violation = error
        finally:
            deployment.close()
    counts = deployment.truth.counts
    return Outcome(
        seed, world.events, world.now_ms / 1000, world.trace, violation, counts, world.log
    )


@contextlib.contextmanager
def disable_rule(rule: str | None) -> Iterator[None]:
    """Disable one rule in the services; the machines disable their part themselves."""
    with contextlib.ExitStack() as stack:
        if rule == "R4":
            stack.enter_context(mock.patch.object(leases, "LONGEST_TICK_S", 1e9))
        if rule == "R5":
            stack.enter_context(mock.patch.object(attempts, "has_open", lambda *_, **__: False))
        if rule == "removed":
            stack.enter_context(mock.patch.object(leases, "REMOVED", "another"))
        if rule == "out of service":
            takes_runs = lambda *_: JOINED  # noqa: E731
            stack.enter_context(mock.patch.object(Memberships, "get_state", takes_runs))
            stack.enter_context(mock.patch.object(membership, "read_state", takes_runs))
        if rule == "R9":
            stack.enter_context(mock.patch.object(tombstones, "exists", lambda *_, **__: False))
        yield
