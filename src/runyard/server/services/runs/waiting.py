"""Why a run waits: in its condition stands what it requests and what the connected machines offer.

A run is explained when it is created, and again when that has changed (``explaining``): machines come and go, their
slots fill up, a disk has too little space.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from runyard.server.services.context import Services
from runyard.server.services.runs import conditions
from runyard.server.services.runs.conditions import Move
from runyard.store import queue
from runyard.store.requirements import Labels, parse_labels
from vi.api.resources.runs.responses import Run

FREE_SLOT = "waiting for a free slot"
MOST_NAMED = 5
COUNTS_FRESH_S = 1.5  # how old the counts of the last beat may be for a run that is being created


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one connected machine offers. ``slots`` is None while it has not reported how many there are."""

    host: str
    labels: Labels
    slots: int | None
    is_full: bool = False
    lacks_disk: bool = False


def fits(wanted: Labels, labels: Labels) -> bool:
    """Whether a machine with ``labels`` can take a run: of each wanted label, any one listed value is enough."""
    return all(not values or set(values) & set(labels.get(name, ())) for name, values in wanted.items())


def wanted_labels(connection: Connection, key: str) -> Labels | None:
    """The labels behind a key of requirements; None for a hash that no waiting run has any more."""
    labels = parse_labels(key)
    if labels is None and (document := queue.find_document(connection, key=key)) is not None:
        labels = msgspec.json.decode(document, type=Run).spec.flow.tolerations
    return labels


def explain(wanted: Labels, offers: Sequence[Offer]) -> Move:
    """The reason for which a run waits, and a sentence that says it."""
    fitting = [offer for offer in offers if fits(wanted, offer.labels)]
    with_disk = [offer for offer in fitting if not offer.lacks_disk]
    if not offers:
        message = f"{_requested(wanted)}; no machine is connected: it starts when a controller connects to this server"
        return Move(conditions.PENDING, "WaitingForMachine", message)
    if not fitting:
        message = f"{_requested(wanted)}; no connected machine can take it: {_offered(offers)}"
        return Move(conditions.PENDING, "WaitingForCapacity", message)
    if not with_disk:
        hosts = _named([offer.host for offer in fitting])
        has = "has" if len(fitting) == 1 else "have"
        message = f"{hosts} {has} too little free disk space to begin; it starts when there is more"
        return Move(conditions.PENDING, "WaitingForDisk", message)
    if all(offer.is_full for offer in with_disk):
        slots = sum(offer.slots or 0 for offer in with_disk)
        hosts = _named([offer.host for offer in with_disk])
        message = f"{FREE_SLOT}: {slots} of {slots} slots are busy on {hosts}"
        return Move(conditions.PENDING, "Queued", message)
    return Move(conditions.PENDING, "Queued", FREE_SLOT)


def first_move(services: Services, tolerations: Labels) -> Move:
    """The reason that a new run begins with, by counts that may be a beat old: the next beat corrects it."""
    known = services.explained
    is_fresh = services.clock.monotonic_s() - known.counted_s < COUNTS_FRESH_S
    counts = known.busy if is_fresh else services.store.read(queue.count_open_by_machine)
    move = explain(tolerations, offers_now(services, counts))
    return Move(conditions.PENDING, "Queued", FREE_SLOT) if is_too_early(services, move, counts) else move


def code_of(move: Move) -> str:
    """What stands beside the document for a reason and its message, so that runs with another one are found."""
    return hashlib.sha256(f"{move.reason}\0{move.message}".encode()).hexdigest()[:16]


def offers_now(services: Services, busy: Mapping[str, int]) -> list[Offer]:
    """What the connected machines offer; ``busy`` is how many attempts each of them has."""
    now_s = services.clock.monotonic_s()
    return [
        Offer(
            host=machine.report.host,
            labels=machine.report.labels,
            slots=machine.report.slots,
            is_full=machine.is_full(busy.get(machine_id, 0), now_s=now_s),
            lacks_disk=machine.lacks_disk,
        )
        for machine_id, machine in services.machines.living_by_id(lived_s=now_s)
    ]


def is_too_early(services: Services, reason: Move, busy: Mapping[str, int]) -> bool:
    """Whether the server has not been up for long enough to miss a machine that may be connected."""
    names_machines = reason.reason in ("WaitingForMachine", "WaitingForCapacity")
    return names_machines and not services.machines.has_heard_all(lived_s=services.clock.monotonic_s(), busy=busy)


def _requested(wanted: Labels) -> str:
    words = [f"{name} {' or '.join(values)}" for name, values in wanted.items() if values]
    return f"requests {' and '.join(words)}" if words else "requests no particular machine"


def _offered(offers: Sequence[Offer]) -> str:
    """Machines with what they have; alike ones in one phrase."""
    alike: dict[str, list[str]] = {}
    for offer in offers:
        words = " and ".join(f"{name} {', '.join(values)}" for name, values in offer.labels.items()) or "no labels"
        slots = "" if offer.slots is None else f" ({offer.slots} slot{'' if offer.slots == 1 else 's'})"
        alike.setdefault(f"{words}{slots}", []).append(offer.host)
    phrases = [f"{_named(hosts)} offer{'s' if len(hosts) == 1 else ''} {words}" for words, hosts in alike.items()]
    more = len(phrases) - MOST_NAMED
    return "; ".join(phrases[:MOST_NAMED]) + (f"; {more} other kinds of machines" if more > 0 else "")


def _named(hosts: Sequence[str]) -> str:
    hosts = sorted(hosts)
    more = len(hosts) - MOST_NAMED
    return ", ".join(hosts[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
