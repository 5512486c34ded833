"""One simulated deployment: clients of two organisations, faults, and the promises checked after every commit.

A seed draws everything: how many machines there are, which faults occur, how often, and when. ``simulate`` lets them
happen for some virtual minutes, then heals everything and demands that every run ends.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import msgspec

from runyard.controller.decide import ADOPT_EVERY_S, Key
from runyard.server.services.context import Actor
from runyard.server.services.errors import Refusal
from runyard.server.services.pages import PageRequest
from runyard.server.services.runs import leases, runs
from runyard.store import tombstones
from runyard.store.runs import RunFilter
from vi.api.resources.runs.responses import Run

from .machine import MAX_UNREACHABLE_S, Machine, Program, Supervisor, Trainer
from .server import ORGS, Crash, DirectStore, PostgreSqlStore, Server, SqliteStore
from .world import Broken, Host, Link, Process, World, call

LEASE_S, GRACE_S, TRIES = 15.0, 5.0, 3
CHAOS_MS, CALM_MS = 240_000, 900_000
ADOPT_EVERY_MS = round(ADOPT_EVERY_S * 1000)
NOTICE_MS = 20_000  # of server-lived time: the lease, a beat, a message on its way
FAULTS = (
    "kill server", "crash in a write", "pause server", "full disk", "kill supervisor", "kill trainer", "kill loader",
    "kill controller", "kill controller at work", "second controller", "pause process", "cut link", "cut one way",
    "step clock", "suspend", "reboot", "stubborn child", "leftover", "failing fsync", "restore", "loss",
)  # fmt: skip
OF_THE_SERVER = ("kill server", "crash in a write", "pause server", "full disk", "step clock", "restore")
RULES = ("R3", "R4", "R5", "R6", "R9")
UNSETTLED_ATTEMPTS = "SELECT org, run_id, number FROM attempts WHERE closed AND lost_pulse IS NOT NULL"
NEWEST_ATTEMPTS = "SELECT org, run_id, max(number) FROM attempts GROUP BY org, run_id"

RunKey = tuple[str, str]


def _run_of_key(key: Key) -> RunKey:
    return key.organization_id, key.run_id


def _run_of(program: Program) -> RunKey | None:
    return None if program.key is None else _run_of_key(program.key)


# What a backup takes along and a restore brings back.
KEPT = ("acknowledged", "deleted", "documents", "histories", "conditions", "changed_ms", "lost", "running")


@dataclass
class Ghost:
    """What really happened, to judge by what the server says."""

    world: World
    machines: list[Machine] = field(default_factory=list)
    server: Server | None = None
    launches: set[Key] = field(default_factory=set)
    acknowledged: set[RunKey] = field(default_factory=set)
    being_deleted: set[RunKey] = field(default_factory=set)
    deleted: set[RunKey] = field(default_factory=set)
    documents: dict[RunKey, bytes] = field(default_factory=dict)
    histories: dict[RunKey, list[tuple[str, str]]] = field(default_factory=dict)
    conditions: dict[RunKey, tuple[str, str]] = field(default_factory=dict)
    changed_ms: dict[RunKey, int] = field(default_factory=dict)
    idle_since: dict[RunKey, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    highest_token: int = 0  # of the epoch that is
    known_tokens: dict[tuple[str, int], Key] = field(default_factory=dict)
    known_attempts: set[tuple[Any, ...]] = field(default_factory=set)
    running: dict[RunKey, None] = field(default_factory=dict)
    overlaps: dict[tuple[Trainer, Trainer], int] = field(default_factory=dict)  # running time of the older at its start
    orphans: set[Program] = field(default_factory=set)  # of attempts that a restore has undone; they end when refused
    restores: int = 0
    gone_ms: dict[RunKey, int] = field(default_factory=dict)  # when a process of it ended last
    heard_lived_ms: dict[Key, int] = field(default_factory=dict)  # when its lease was last renewed, in server life
    lost: set[Key] = field(default_factory=set)
    longest_overlap_ms: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def launched(self, key: Key) -> None:
        self.launches.add(key)
        self.counts["launches"] += 1

    @contextlib.contextmanager
    def hearing(self, key: Key) -> Iterator[None]:
        """Around a renewal. After a crash nobody knows whether it counts: then the lease may be the shorter one."""
        assert self.server is not None
        try:
            yield
        except Crash:
            self.heard_lived_ms[key] = min(self.heard_lived_ms.get(key, 0), self.server.lived_ms)
            raise
        self.heard_lived_ms[key] = self.server.lived_ms
        self.lost.discard(key)

    def program_ended(self, key: Key) -> None:
        self.gone_ms[_run_of_key(key)] = self.world.now_ms

    def trainer_began(self, trainer: Trainer) -> None:
        self.world.say("trainer begins", trainer.machine.id, trainer.key)
        self.counts["trainings"] += 1
        for other in self._trainers(trainer.key):
            if other is trainer:
                continue
            if other.machine is trainer.machine:
                raise Broken(2, f"two trainers of one run on {trainer.machine.id}: {other.key} and {trainer.key}")
            self.counts["overlaps of two machines"] += 1
            self.overlaps[other, trainer] = other.ran_ms

    def trainer_ended(self, trainer: Trainer) -> None:
        if trainer.is_training:
            self.world.say("trainer ends", trainer.machine.id, trainer.key, trainer.exit)
        for pair in [pair for pair in self.overlaps if trainer in pair]:
            self._look_at_overlap(pair, self.overlaps.pop(pair))

    def _look_at_overlap(self, pair: tuple[Trainer, Trainer], began_ms: int) -> None:
        """Two machines may train one run only while the older is cut off, and not for longer than it may be."""
        older, newer = pair
        for_ms = older.ran_ms - began_ms
        self.longest_overlap_ms = max(self.longest_overlap_ms, for_ms)
        if for_ms > MAX_UNREACHABLE_S * 1000:
            raise Broken(2, f"{older.key} trained on {older.machine.id} {for_ms} ms beside {newer.key}")

    def _trainers(self, key: Key | None) -> Iterator[Trainer]:
        assert key is not None
        for machine in self.machines:
            for program in machine.programs.values():
                if isinstance(program, Trainer) and program.is_training and _run_of(program) == _run_of_key(key):
                    yield program

    def living(self, run: RunKey) -> list[str]:
        """Training processes of a run and what they left behind; one that waits at its gate has not begun."""
        return [
            f"{program.name} {program.key} on {machine.id}"
            for machine in self.machines
            for program in machine.programs.values()
            if _run_of(program) == run and not self.orphans.intersection((program, program.parent))
            if not isinstance(program, Supervisor) and not (isinstance(program, Trainer) and not program.is_training)
        ]

    def has_anything(self, run: RunKey) -> bool:
        return any(_run_of(program) == run for machine in self.machines for program in machine.programs.values())

    def outcomes(self, run: RunKey) -> set[str]:
        """What the ``result.json`` files of a run say."""
        return {
            str(folder.documents["result.json"]["outcome"])
            for machine in self.machines
            for key, folder in machine.folders.items()
            if (key.organization_id, key.run_id) == run and "result.json" in folder.documents
        }

    def _has_good_result(self, run: RunKey) -> bool:
        """Whether a result lies where it could have been read; another machine's later try supersedes it."""
        assert self.server is not None
        query = "SELECT number, machine_id, epoch FROM attempts WHERE org = ? AND run_id = ?"
        machines = {machine.id: machine for machine in self.machines}
        folders: dict[int, tuple[Machine, dict[str, Any]]] = {}
        for number, machine_id, epoch in self.server.store.query(query, run):
            documents = machines[machine_id].folder(Key(*run, number)).documents
            is_its_own = documents.get("placed.json", {}).get("epoch") == epoch  # not of one that a restore has undone
            folders[number] = (machines[machine_id], documents.get("result.json", {}) if is_its_own else {})
        return any(
            result.get("outcome") == "Succeeded" and all(folders[n][0] is machine for n in folders if n > attempt)
            for attempt, (machine, result) in folders.items()
        )

    def look(self) -> None:
        """Compare what is committed now with what has happened."""
        assert self.server is not None
        rows = self.server.store.query("SELECT org, id, document, deleted FROM runs ORDER BY org, id")
        if rows != self.rows:
            known = set(self.rows)
            self.rows = rows
            for row in rows:
                if row not in known:
                    self._look_at(row)
            lost = (self.acknowledged - self.being_deleted).difference((org, id) for org, id, _, _ in rows)
            if lost:
                raise Broken(1, f"acknowledged runs {lost} are lost")
        for run in self.running:
            self._look_for_idle(run)
        self._look_at_attempts()

    def _look_at(self, row: tuple[Any, ...]) -> None:
        assert self.server is not None
        run, document, deleted = (row[0], row[1]), row[2], bool(row[3])
        if run in self.deleted and not deleted:
            raise Broken(1, f"deleted run {run} is back")
        self.running.pop(run, None)
        if self.documents.get(run) != document:
            self.documents[run] = document
            self._look_at_document(run)
        kind, reason = self.conditions[run]
        if kind == "Running" and reason != "Stopping" and not deleted:
            self.running[run] = None
        else:
            self.idle_since.pop(run, None)

    def _look_at_document(self, run: RunKey) -> None:
        assert self.server is not None
        ((document,),) = self.server.store.query("SELECT document FROM runs WHERE org = ? AND id = ?", run)
        status = msgspec.json.decode(document, type=Run).status
        latest = status.conditions[-1]
        self.changed_ms[run] = self.world.now_ms
        self.conditions[run] = (latest.condition.value, latest.reason or "")
        history = [(c.condition.value, c.reason or "") for c in status.conditions]
        before = self.histories.get(run, [])
        if [c.condition.value for c in status.conditions[: len(before)]] != [kind for kind, _ in before]:
            raise Broken(3, f"the history of {run} was rewritten: {before} became {history}")
        finals = [c for c in status.conditions if c.condition.is_final]
        if len(finals) > 1 or (finals and not latest.condition.is_final):
            raise Broken(3, f"{run} has a word after its last: {history}")
        was_final = bool(before) and before[-1][0] in ("Succeeded", "Failed", "Error", "Cancelled")
        if was_final and history != before:
            raise Broken(3, f"the last word of {run} changed: {before} became {history}")
        self.histories[run] = history
        self.world.say(run, *history[-1])
        if finals and not was_final:
            self.counts[latest.condition.value] += 1
            self._look_at_end(run, latest.condition.value)

    def _look_at_end(self, run: RunKey, condition: str) -> None:
        assert self.server is not None
        query, place = self.server.store.query, "WHERE org = ? AND run_id = ?"
        is_open = query(f"SELECT number FROM attempts {place} AND NOT closed", run)  # noqa: S608
        if condition == "Cancelled" and (is_open or self.living(run)):
            raise Broken(4, f"{run} is Cancelled; open attempts {is_open}, alive: {self.living(run)}")
        if condition == "Succeeded":
            ((outputs,),) = query(f"SELECT count(*) FROM outputs {place}", run)  # noqa: S608
            if not outputs or "Succeeded" not in self.outcomes(run):
                raise Broken(5, f"{run} is Succeeded with {outputs} checkpoints and results {self.outcomes(run)}")
        if condition == "Error" and self._has_good_result(run):
            raise Broken(5, f"{run} is in Error though result.json says it is done")

    def _look_for_idle(self, run: RunKey) -> None:
        assert self.server is not None
        if self.has_anything(run):
            self.idle_since.pop(run, None)
            return
        kind, reason = self.conditions[run]
        # A renewal that came late, when its supervisor had died, is a lease all the same.
        heard_ms = max((ms for key, ms in self.heard_lived_ms.items() if _run_of_key(key) == run), default=0)
        since_ms = max(self.idle_since.setdefault(run, self.server.lived_ms), heard_ms)
        if self.server.lived_ms - since_ms > NOTICE_MS:
            raise Broken(7, f"{run} is {kind} ({reason}) for {self.server.lived_ms - since_ms} ms with nothing alive")

    def _look_at_attempts(self) -> None:
        assert self.server is not None
        columns = "org, run_id, number, epoch, token_number, started, charged, lost_pulse, machine_id"
        rows = self.server.store.query(f"SELECT {columns} FROM attempts ORDER BY token_number")  # noqa: S608
        fresh = [row for row in rows if row not in self.known_attempts]
        if not fresh:
            return
        self.known_attempts = set(rows)
        for org, run_id, number, epoch, token, started, charged, lost_pulse, _ in fresh:
            key = Key(org, run_id, number)
            if lost_pulse is not None and key not in self.lost:
                self._look_at_loss(key)
            if (started or charged) and key not in self.launches:
                raise Broken(8, f"attempt {number} of {org}/{run_id} counts, yet no process of it was written down")
            if (epoch, token) not in self.known_tokens:
                if epoch == f"e{self.restores + 1}" and token <= self.highest_token:
                    raise Broken(10, f"token {token} of {epoch} after {self.highest_token}")
                self.highest_token = token
            if self.known_tokens.setdefault((epoch, token), key) != key:
                raise Broken(10, f"token {token} of {epoch} speaks for {key} and {self.known_tokens[epoch, token]}")

    def _look_at_loss(self, key: Key) -> None:
        """A lease is lost by silence while the server lived, not by a stopped server or a stepped clock."""
        assert self.server is not None
        self.lost.add(key)
        silent_ms = self.server.lived_ms - self.heard_lived_ms.get(key, 0)
        if silent_ms < LEASE_S * 1000 - 2_000:
            raise Broken(7, f"{key} lost its lease after {silent_ms} ms of server life")

    def copy(self) -> "Ghost":
        """What was known when a backup was taken."""
        kept = replace(self, counts=Counter())
        for name in KEPT:
            setattr(kept, name, getattr(self, name).copy())
        kept.heard_lived_ms = dict(self.heard_lived_ms)
        kept.known_attempts = set(self.known_attempts)
        return kept

    def go_back(self, kept: "Ghost") -> None:
        """A backup was restored: what was acknowledged since is forgotten, and nobody may be blamed for it.

        Tokens are not forgotten, since a restore must not give one out again; nor are processes, which go on.
        """
        assert self.server is not None
        for name in KEPT:
            setattr(self, name, getattr(kept, name).copy())
        # A lease for each, and the time in which controllers ask.
        heard_ms = self.server.lived_ms + round(leases.ASKED_WITHIN_S * 1000)
        self.heard_lived_ms = dict.fromkeys(kept.heard_lived_ms, heard_ms)
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

    def look_at_lines(self) -> None:
        """What the server has of each stdout is what was written, from its beginning, each line once."""
        assert self.server is not None
        # One that the server closed as never begun counts for nothing; after a restore it may have run all the same.
        query = "SELECT org, run_id, number, machine_id, epoch FROM attempts WHERE started"
        place_of = {Key(org, id, number): (machine, epoch) for org, id, number, machine, epoch in self._query(query)}
        newest = {(org, id): number for org, id, number in self._query(NEWEST_ATTEMPTS)}
        unsettled = {Key(*row) for row in self._query(UNSETTLED_ATTEMPTS)}
        query = "SELECT org, run_id, number, attempt, stream, text FROM log_lines ORDER BY org, run_id, number"
        shipped: dict[Key, list[str]] = {}
        last: dict[RunKey, int] = {}
        for org, run_id, number, attempt, stream, text in self.server.store.query(query):
            if number != last.get((org, run_id), 0) + 1:
                raise Broken(6, f"line {number} of {org}/{run_id} follows {last.get((org, run_id), 0)}")
            last[org, run_id] = number
            if stream == "stdout":
                shipped.setdefault(Key(org, run_id, attempt), []).append(text)
        for machine in self.machines:
            for key, folder in machine.folders.items():
                run = (key.organization_id, key.run_id)
                if run not in self.documents or run in self.being_deleted:
                    continue
                if place_of.get(key) != (machine.id, folder.documents.get("placed.json", {}).get("epoch")):
                    continue  # a restore has undone it, and another has its number
                written = folder.once.get("stdout", bytes(folder.streams["stdout"])).decode().splitlines()
                here = shipped.get(key, [])
                if here != written[: len(here)]:
                    raise Broken(6, f"the server has other lines of {key} than were written")
                closed = folder.documents.get("closed.json", {})
                # Closed by silence: its run may go on elsewhere before it has said again what a restore has undone.
                is_passed = key in unsettled and key.attempt < newest[run]
                is_undone = is_passed and closed.get("epoch") != self.server.epoch
                is_reported = closed.get("how") == "reported" and not is_undone
                if is_reported and len(here) < len(folder.streams["stdout"].splitlines()):
                    raise Broken(6, f"{key} was reported with {len(here)} of its lines")
                self.counts["lines compared"] += len(here)


class Client(Process):
    """Somebody of one organisation, who creates, kills, deletes, lists, and repeats old requests."""

    def __init__(self, house: "Deployment", org: str):
        super().__init__(house.world, org, house.elsewhere)
        self.house, self.org, self.link = house, org, Link()
        self.actor = Actor(org=org, name=org, role="admin", address="")
        self.made = 0
        self.is_quiet = False
        self.after(100, self._act)

    def _act(self) -> None:
        if self.is_quiet:
            return
        self.house.act(self)
        self.after(self.world.between(300, 6_000), self._act)

    def create(self, number: int) -> None:
        run = (self.org, f"r{number}")

        def on_answer(outcome: Any) -> None:
            if isinstance(outcome, tuple):
                self.house.ghost.acknowledged.add(run)
            elif isinstance(outcome, Refusal) and outcome.code not in ("IdDeleted",):
                raise Broken(1, f"a repeated create of {run} was refused: {outcome.code}")

        body = b'{"spec":{}} %d' % number
        self._ask(lambda s: runs.create(s, self.actor, run[1], body=body, attributes={}), on_answer)

    def kill_run(self, number: int) -> None:
        wish: dict[str, Any] = {"kill": True, "training_project": msgspec.UNSET, "attributes": {}, "if_match": None}
        self._ask(lambda s: runs.update(s, self.actor, f"r{number}", **wish), lambda _: None)

    def delete(self, number: int) -> None:
        from runyard.server.services.runs import deletion

        run = (self.org, f"r{number}")
        self.house.ghost.being_deleted.add(run)

        async def work(services: Any) -> bool:
            await deletion.delete(services, self.actor, run[1], if_match=None)
            return True

        def on_answer(outcome: Any) -> None:
            if outcome is True:
                self.house.ghost.deleted.add(run)

        self._ask(work, on_answer)

    def list_runs(self) -> None:
        wanted = PageRequest(size=100, token=None)

        def on_answer(outcome: Any) -> None:
            if isinstance(outcome, bytes):
                for item in msgspec.json.decode(outcome)["items"]:
                    if msgspec.convert(item, Run).organization_id != self.org:
                        raise Broken(9, f"{self.org} was shown a run of {item['organizationId']}")

        self._ask(lambda s: runs.page(s, org=self.org, filter=RunFilter(), wanted=wanted), on_answer)

    def _ask(self, request: Callable[[Any], Any], on_answer: Callable[[Any], None]) -> None:
        """An answer from before a restore says nothing about the world after it."""
        ghost = self.house.ghost

        async def asked(services: Any) -> tuple[int, Any]:
            return ghost.restores, await request(services)

        def on_outcome(outcome: Any) -> None:
            if not isinstance(outcome, tuple):
                on_answer(outcome)
            elif outcome[0] == ghost.restores:
                on_answer(outcome[1])

        call(self.world, self.link, self.house.server, self, asked, on_outcome)


class Deployment:
    """A server, machines and clients, and everything that may happen to them."""

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
        self.ghost = Ghost(world)
        self.elsewhere = Host(world)  # where clients are
        hosts = [Host(world) for _ in range(machines or world.chance.choice((1, 1, 3)))]
        store: DirectStore = PostgreSqlStore(postgresql) if postgresql else SqliteStore()
        known = {"attempts": TRIES, "lease_s": LEASE_S, "grace_s": GRACE_S, "is_wall_clock": without == "R4"}
        self.server = Server(hosts[0], store=store, **known)
        self.ghost.server = self.server
        self.server.store.on_commit = self.ghost.look
        self.machines = [Machine(host, self.server, n, slots=2, ghost=self.ghost) for n, host in enumerate(hosts)]
        self.ghost.machines = self.machines
        for machine in self.machines:
            machine.without_lock, machine.without_proof = without == "R3", without == "R5"
            machine.without_folders = without == "R6"
        chosen = [name for name in FAULTS if world.happens(0.5)] if faults else []
        self.faults = [name for name in chosen if name != "loss"]
        world.loss = 0.03 if "loss" in chosen else 0.0
        self.every_ms = world.chance.choice((3_000, 12_000, 30_000))
        self.clients = [Client(self, org) for org in ORGS]
        world.after(1_000, self._fault)

    def close(self) -> None:
        self.server.store.close()

    @property
    def waiting(self) -> int:
        return sum(kind in ("Pending", "Running") for kind, _ in self.ghost.conditions.values())

    @property
    def most_waiting(self) -> int:
        """With so many runs that have not ended, clients create no more, as far as the server has told."""
        return 6 + 4 * (len(self.machines) - 1)

    def act(self, client: Client) -> None:
        chance = self.world.chance
        draw = chance.random()
        old = chance.randrange(max(1, client.made - 6), client.made + 1) if client.made else 0
        if draw < 0.45 and self.waiting < self.most_waiting:
            client.made += 1
            client.create(client.made)
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

    def _fault(self) -> None:
        if self.world.is_lossless or not self.faults:
            return
        self.break_something(self.world.chance.choice(self.faults))
        self.world.after(self.world.between(self.every_ms // 6, self.every_ms), self._fault)

    def break_something(self, kind: str) -> None:
        """Let one fault occur; those that end by themselves end when their time has come, or when all is healed."""
        world, machine = self.world, self.world.chance.choice(self.machines)
        world.say("fault:", kind, machine.id)
        for_ms = world.chance.choice((2_000, 10_000, 40_000, 110_000))
        self.ghost.counts[f"fault: {kind}"] += 1
        if machine.host.is_suspended and kind not in OF_THE_SERVER:
            return
        if kind == "kill server":
            self.server.crash()
            world.after(world.between(500, 9_000), self.server.start)
        elif kind == "crash in a write":
            self.server.store.crash = world.chance.choice(("before", "after"))
            world.after(world.between(4_000, 9_000), self.server.start)
        elif kind == "pause server":
            process = self.server.process
            process.pause()
            world.after(min(for_ms, 40_000), process.go_on)
        elif kind == "full disk":
            self.server.store.is_full = True
            world.after(for_ms, self._free_disk)
        elif kind == "cut link":
            machine.link.carries_requests = machine.link.carries_answers = False
            world.after(for_ms, machine.link.heal)
        elif kind == "cut one way":
            machine.link.carries_requests = world.happens(0.5)
            machine.link.carries_answers = not machine.link.carries_requests
            world.after(for_ms, machine.link.heal)
        elif kind == "step clock":
            self.server.clock.skew_ms += world.chance.choice((-3_600_000, 3_600_000))
        elif kind == "reboot":
            if machine.number == 0:
                self.server.crash()
                world.after(world.between(2_000, 20_000), self.server.start)
            machine.reboot()
        elif kind == "stubborn child":
            machine.stubbornness = 0.5
        elif kind == "suspend":
            machine.host.suspend()
            world.after(for_ms, machine.host.resume)
        elif kind == "failing fsync":
            machine.is_fsync_failing = True
            world.after(for_ms, machine.let_fsync)
        elif kind == "second controller":
            machine.start_controller()
        elif kind == "kill controller at work":
            if machine.controller is not None:
                machine.controller.dies_when = world.chance.choice(("claimed", "started"))
        elif kind == "leftover":
            self._leave_over(machine)
        elif kind == "restore":
            self._restore_later(for_ms)
        else:
            self._hurt(machine, kind, for_ms)

    def _hurt(self, machine: Machine, kind: str, for_ms: int) -> None:
        verb, name = kind.split()
        found = [p for p in machine.programs.values() if name in ("process", p.name)]
        if found:
            program = self.world.chance.choice(found)
            self.world.say(verb, program.name, program.key)
            if verb == "kill":
                program.kill()
            else:
                program.pause()
                self.world.after(for_ms, program.go_on)

    def _leave_over(self, machine: Machine) -> None:
        """A trainer that carries no mark any more loses its supervisor, and goes on; the next to train if none does."""
        found = [p for p in machine.programs.values() if isinstance(p, Trainer) and p.is_training and p.is_child]
        if found:
            trainer = self.world.chance.choice(found)
            self.world.say("loses mark and supervisor:", trainer.key)
            trainer.lose_mark()
            assert trainer.parent is not None
            trainer.parent.kill()
        elif not self.world.is_lossless:
            self.world.after(2_000, lambda: self._leave_over(machine))

    def _restore_later(self, for_ms: int) -> None:
        """Take a backup now, and go back to it some time later."""
        rows, blobs, ghost = self.server.store.snapshot(), self.server.copy_blobs(), self.ghost.copy()

        def restore() -> None:
            if self.world.is_lossless or self.server.host.is_suspended:
                return
            self.world.say("a backup is restored")
            self.server.restore(rows, blobs)
            self.ghost.go_back(ghost)
            self.world.after(self.world.between(500, 5_000), self.server.start)

        self.world.after(for_ms, restore)

    def _free_disk(self) -> None:
        self.server.store.is_full = False

    def heal(self) -> None:
        """No more faults, no new runs, and what is broken is repaired."""
        self.world.say("healed")
        self.world.is_lossless = True
        self._free_disk()
        self.server.store.crash = None
        for machine in self.machines:
            machine.host.resume()
        self.server.process.go_on()
        self.server.start()
        for client in self.clients:
            client.is_quiet = True
        for machine in self.machines:
            machine.link.heal()
            machine.stubbornness = 0.0
            machine.is_fsync_failing = False
            for program in list(machine.programs.values()):
                program.go_on()

    def is_at_rest(self) -> bool:
        held = any(p.key is not None for machine in self.machines for p in machine.programs.values())
        return not held and not self.waiting_now()

    def waiting_now(self) -> list[RunKey]:
        rows = self.server.store.query(
            "SELECT org, id FROM runs WHERE NOT deleted AND condition IN ('Pending', 'Running') ORDER BY org, id"
        )
        return [(org, id) for org, id in rows]

    def settle(self) -> None:
        """After the faults every run ends; nothing hangs that nobody looks after.

        While a server cannot answer, clients send more creates than ``most_waiting``, and it may take them all when it
        goes on: machines that are never idle need longer for them, so the calm time grows with what waits.
        """
        self.heal()
        calm_ms = CALM_MS * max(self.most_waiting, len(self.waiting_now())) // self.most_waiting
        end_ms = self.world.now_ms + calm_ms
        checked_ms = self.world.now_ms + 100_000
        is_checked = False
        while self.world.now_ms < end_ms and not self.is_at_rest():
            self.world.run(until_ms=self.world.now_ms + 5_000)
            if not is_checked and self.world.now_ms >= checked_ms:
                is_checked = True
                self._look_for_forgotten()
        left = self.waiting_now()
        if left:
            raise Broken(
                11, f"{calm_ms // 1000} s after the last fault: {[(r, self.ghost.conditions[r]) for r in left]}"
            )
        self.ghost.look_at_lines()

    def _look_for_forgotten(self) -> None:
        for run in self.waiting_now():
            kind, reason = self.ghost.conditions[run]
            query = "SELECT count(*) FROM attempts WHERE org = ? AND run_id = ? AND NOT closed"
            ((is_held,),) = self.server.store.query(query, run)
            is_queued = kind == "Pending" and not is_held and reason != "Stopping"
            # What ended refused, and is in the store again after a restore, is asked for within half a minute.
            since_ms = max(self.ghost.changed_ms[run], self.ghost.gone_ms.get(run, 0) + ADOPT_EVERY_MS)
            is_fresh = self.world.now_ms - since_ms < 20_000
            if not is_queued and not is_fresh and not self.ghost.has_anything(run):
                raise Broken(11, f"{run} is {kind} ({reason}) 100 s after the last fault, with nothing alive")


@dataclass
class Outcome:
    """How one seed went."""

    seed: int
    events: int
    virtual_s: float
    trace: str
    broken: Broken | None
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
    """One whole history, on SQLite in memory or in the PostgreSQL database of a URL."""
    with left_out(without):
        deployment = Deployment(seed, without=without, machines=machines, faults=faults, postgresql=postgresql)
        world = deployment.world
        world.is_logging = is_logging
        broken = None
        try:
            world.run(until_ms=chaos_ms)
            deployment.settle()
        except Broken as error:
            broken = error
        finally:
            deployment.close()
    counts = deployment.ghost.counts
    return Outcome(seed, world.events, world.now_ms / 1000, world.trace, broken, counts, world.log)


@contextlib.contextmanager
def left_out(rule: str | None) -> Iterator[None]:
    """The services without one rule; the machines leave out their half themselves."""
    with contextlib.ExitStack() as stack:
        if rule == "R4":
            stack.enter_context(mock.patch.object(leases, "LONGEST_TICK_S", 1e9))
        if rule == "R5":
            stack.enter_context(mock.patch.object(runs.attempt_rows, "has_open", lambda *_, **__: False))
        if rule == "R9":
            stack.enter_context(mock.patch.object(tombstones, "exists", lambda *_, **__: False))
        yield
