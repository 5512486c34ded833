"""Decide whether connected machines fit a run, and explain why a run waits.

The reason and message go into the run's condition: what it requests, and what the connected
machines offer. A run is explained when it is created, and again when machines, free slots or disk
space have changed (``waiting_reasons``).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from runyard.flows.resources import count_accelerators
from runyard.server.services.context import Services
from runyard.server.services.machines import JOINED
from runyard.server.services.runs import conditions
from runyard.server.services.runs.conditions import Transition
from runyard.store import queue
from runyard.store.requirements import Labels, Requirements, parse_key
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import Run

FREE_SLOT = "waiting for a free slot"
MOST_NAMED = 5
COUNTS_FRESH_S = 1.5  # maximum age of the last refresh's counts for a new run


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one connected machine offers. ``slots`` is None until it has reported their number.

    ``accelerators`` are all that it has, busy ones included.
    """

    host: str
    labels: Labels
    slots: int | None
    accelerators: int = 0
    is_full: bool = False
    lacks_disk: bool = False
    state: str = JOINED


def fits(requested: Labels, labels: Labels) -> bool:
    """Return whether a machine with ``labels`` can take a run.

    Of each requested label, any one of the listed values is enough.
    """
    return all(
        not values or set(values) & set(labels.get(name, ())) for name, values in requested.items()
    )


def fits_elsewhere(services: Services, requested: Requirements, *, machine_id: str) -> bool:
    """Return whether another machine that takes runs has what a run requires, busy or not."""
    now_s = services.clock.monotonic_s()
    return any(
        other_id != machine_id
        and services.memberships.get_state(other_id) == JOINED
        and requested.accelerators <= other.accelerators
        and fits(requested.labels, other.report.labels)
        for other_id, other in services.machines.list_connected_by_id(uptime_s=now_s)
    )


def read_requirements(flow: FlowSpec) -> Requirements:
    """Return what a run of this flow requires of a machine."""
    return Requirements(flow.tolerations, count_accelerators(flow.settings))


def get_requirements(tx: Connection, key: str) -> Requirements | None:
    """Return the requirements behind a key.

    Return None for a hash that no waiting run has any more.
    """
    found = parse_key(key)
    if found is None and (document := queue.find_document(tx, key=key)) is not None:
        found = read_requirements(msgspec.json.decode(document, type=Run).spec.flow)
    return found


def explain_waiting(requested: Requirements, offers: Sequence[Offer]) -> Transition:
    """Return the reason for which a run waits, with a message."""
    fitting = [
        offer
        for offer in offers
        if fits(requested.labels, offer.labels) and requested.accelerators <= offer.accelerators
    ]
    taking = [offer for offer in fitting if offer.state == JOINED]
    with_disk = [offer for offer in taking if not offer.lacks_disk]
    if not offers:
        message = (
            f"{_describe_request(requested)}; no machine is connected: it starts when a controller "
            "connects to this server"
        )
        return Transition(conditions.PENDING, "WaitingForMachine", message)
    if not fitting:
        message = (
            f"{_describe_request(requested)}; no connected machine can take it: "
            f"{_describe_offers(offers)}"
        )
        return Transition(conditions.PENDING, "WaitingForCapacity", message)
    if not taking:
        message = (
            f"{_describe_states(fitting)} and can take no new run; try: runyard machines resume "
            f"{fitting[0].host}"
        )
        return Transition(conditions.PENDING, "WaitingForMachine", message)
    if not with_disk:
        hosts = _join_hosts([offer.host for offer in taking])
        has = "has" if len(taking) == 1 else "have"
        message = (
            f"{hosts} {has} too little free disk space to start it; it starts when there is enough"
        )
        return Transition(conditions.PENDING, "WaitingForDisk", message)
    if all(offer.is_full for offer in with_disk):
        slots = sum(offer.slots or 0 for offer in with_disk)
        hosts = _join_hosts([offer.host for offer in with_disk])
        message = f"{FREE_SLOT}: {slots} of {slots} slots are busy on {hosts}"
        return Transition(conditions.PENDING, "Queued", message)
    if requested.accelerators > 1:
        message = f"waiting for {requested.accelerators} free accelerators of one machine"
        return Transition(conditions.PENDING, "Queued", message)
    return Transition(conditions.PENDING, "Queued", FREE_SLOT)


def explain_new_run(services: Services, requested: Requirements) -> Transition:
    """Return the waiting reason of a new run.

    Its counts may be a second old: the next refresh corrects it.
    """
    known = services.waiting_reasons
    is_fresh = services.clock.monotonic_s() - known.counted_s < COUNTS_FRESH_S
    counts = known.busy if is_fresh else services.store.read(queue.count_open_by_machine)
    reason = explain_waiting(requested, list_offers(services, counts))
    return (
        Transition(conditions.PENDING, "Queued", FREE_SLOT)
        if is_too_early(services, reason, counts)
        else reason
    )


def hash_reason(reason: Transition) -> str:
    """Return a hash of reason and message.

    It is stored in a column, to find runs with another reason.
    """
    return hashlib.sha256(f"{reason.reason}\0{reason.message}".encode()).hexdigest()[:16]


def list_offers(services: Services, busy: Mapping[str, int]) -> list[Offer]:
    """Return what the connected machines offer; ``busy`` counts the attempts of each."""
    now_s = services.clock.monotonic_s()
    return [
        Offer(
            host=services.memberships.get_name(machine_id, machine.report.host),
            labels=machine.report.labels,
            slots=machine.report.slots,
            accelerators=machine.accelerators,
            is_full=machine.is_full(busy.get(machine_id, 0), now_s=now_s),
            lacks_disk=machine.lacks_disk,
            state=services.memberships.get_state(machine_id),
        )
        for machine_id, machine in services.machines.list_connected_by_id(uptime_s=now_s)
    ]


def is_too_early(services: Services, reason: Transition, busy: Mapping[str, int]) -> bool:
    """Return whether the server started too recently to say that no machine is connected."""
    names_machines = reason.reason in ("WaitingForMachine", "WaitingForCapacity")
    return names_machines and not services.machines.has_heard_all(
        uptime_s=services.clock.monotonic_s(), busy=busy
    )


def _describe_request(requested: Requirements) -> str:
    labels = requested.labels
    words = [f"{name} {' or '.join(values)}" for name, values in labels.items() if values]
    if requested.accelerators:
        words.append(f"{requested.accelerators} accelerators of one machine")
    return f"requests {' and '.join(words)}" if words else "requests no particular machine"


def _describe_offers(offers: Sequence[Offer]) -> str:
    """Describe the machines, with equal ones in one phrase."""
    alike: dict[str, list[str]] = {}
    for offer in offers:
        words = (
            " and ".join(f"{name} {', '.join(values)}" for name, values in offer.labels.items())
            or "no labels"
        )
        slots = (
            "" if offer.slots is None else f" ({offer.slots} slot{'' if offer.slots == 1 else 's'})"
        )
        if offer.accelerators > 1:
            words = f"{offer.accelerators} x {words}"
        alike.setdefault(f"{words}{slots}", []).append(offer.host)
    phrases = [
        f"{_join_hosts(hosts)} offer{'s' if len(hosts) == 1 else ''} {words}"
        for words, hosts in alike.items()
    ]
    more = len(phrases) - MOST_NAMED
    return "; ".join(phrases[:MOST_NAMED]) + (
        f"; {more} other kinds of machines" if more > 0 else ""
    )


def _describe_states(offers: Sequence[Offer]) -> str:
    hosts_by_state: dict[str, list[str]] = {}
    for offer in offers:
        hosts_by_state.setdefault(offer.state, []).append(offer.host)
    return "; ".join(
        f"{_join_hosts(hosts)} {'is' if len(hosts) == 1 else 'are'} {state}"
        for state, hosts in sorted(hosts_by_state.items())
    )


def _join_hosts(hosts: Sequence[str]) -> str:
    hosts = sorted(hosts)
    more = len(hosts) - MOST_NAMED
    return ", ".join(hosts[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
