"""Why runs wait, in a reason and one sentence.

Runs with equal needs and one project share the sentence; only the position is a run's own. Nothing
is written ahead of a question, so a long queue costs nothing to explain.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

from runyard.server.scheduling.pool import Group, Need
from runyard.server.scheduling.state import SchedulerState, find_obstacle
from runyard.server.scheduling.view import Explain, ProjectKey, RunKey
from runyard.server.scheduling.waiting import Entry, Queue

MOST_NAMED = 3
NO_MACHINE, NO_CAPACITY = "WaitingForMachine", "WaitingForCapacity"
QUOTA_REACHED, PREEMPTED = "QuotaReached", "Preempted"
REASONS = (NO_MACHINE, NO_CAPACITY, QUOTA_REACHED, PREEMPTED)

_REASON_BY_OBSTACLE = {
    None: NO_CAPACITY,
    "machines": NO_MACHINE,
    "project limit": QUOTA_REACHED,
    "organization limit": QUOTA_REACHED,
}


def explain_queue(state: SchedulerState, queue: Queue, now_ms: int) -> Explain:
    """Explain the waiting runs of one project with equal needs."""
    entry = queue.peek()
    if entry is None:
        raise LookupError(f"no run of {queue.project} waits with these needs")
    run = queue.get_run(entry)
    message = describe_queue(state, queue, now_ms)
    if (held := _describe_reservation(state, run)) is not None:
        message += f"; {held}"
    return Explain(
        run, queue.counts.total(), _REASON_BY_OBSTACLE[find_obstacle(state, queue)], message
    )


def explain_run(state: SchedulerState, run: RunKey, now_ms: int) -> tuple[str, str]:
    """Return reason and message of one waiting run.

    Raises:
        KeyError: the run does not wait.
    """
    entry = state.waiting.get(run)
    if entry is None:
        raise KeyError(run)
    queue = entry[3]
    reason, parts = (
        _REASON_BY_OBSTACLE[find_obstacle(state, queue)],
        [describe_queue(state, queue, now_ms)],
    )
    if (held := _describe_reservation(state, run)) is not None:
        parts.append(held)
    if reason != NO_MACHINE:
        ahead = count_ahead(state, run, entry, now_ms)
        parts.append(f"behind {ahead} run{'' if ahead == 1 else 's'}" if ahead else "next in line")
    if run in state.waiting.preempted and reason == NO_CAPACITY:
        reason, parts = PREEMPTED, ["made way for another run", *parts]
    return reason, "; ".join(parts)


def describe_queue(state: SchedulerState, queue: Queue, now_ms: int) -> str:
    """Return what its runs need, and why they do not have it."""
    need, obstacle = queue.need, find_obstacle(state, queue)
    if obstacle is None:
        why = _describe_capacity(state, need)
    elif obstacle != "machines":
        why = _describe_limit(state, queue, is_project=obstacle == "project limit")
    elif need.members == 1:
        why = "no machine that has joined can ever take it"
    else:
        why = "the machines that have joined can never take all of it"
    return f"needs {describe_need(need)}; {why}"


def describe_need(need: Need) -> str:
    """Return the requirements of a run in words."""
    words = f"{need.accelerators} accelerators" if need.accelerators != 1 else "1 accelerator"
    words = f"{words} of one machine" if need.accelerators else "a slot of a machine"
    if need.members > 1:
        words = f"{need.members} x {words}"
    labels = [f"{name} {' or '.join(values)}" for name, values in need.labels]
    return f"{words} with {' and '.join(labels)}" if labels else words


def count_ahead(state: SchedulerState, run: RunKey, entry: Entry, now_ms: int) -> int:
    """Count the waiting runs that compete for the same machines and come first."""
    own = entry[3]
    groups = {group for group in state.pool.list_groups(own.need) if group.joined}
    own_use = _rank_project(state, own.project, now_ms)
    is_holder = run in state.reservations
    ahead = 0
    for queue in state.waiting.list_queues():
        if queue is not own and groups.isdisjoint(state.pool.list_groups(queue.need)):
            continue
        ahead += sum(count for priority, count in queue.counts.items() if priority < entry[0])
        if is_holder:
            continue
        if queue.project == own.project:
            ahead += sum(
                other[0] == entry[0] and other[1:3] < entry[1:3] for other in queue.list_entries()
            )
        elif _rank_project(state, queue.project, now_ms) < own_use:
            ahead += queue.counts.get(entry[0], 0)
    return ahead + sum(
        1
        for holder in _list_holders(state, run, entry, groups)
        if is_holder or not _is_before(state, holder, entry, own_use, now_ms)
    )


def _list_holders(
    state: SchedulerState, run: RunKey, entry: Entry, groups: set[Group]
) -> Iterator[Entry]:
    """Yield holders of reservations with equal priority that come before a run for that reason."""
    for key in sorted(state.reservations):
        other = state.waiting.get(key)
        if other is None or key == run or other[0] != entry[0]:
            continue
        if run in state.reservations and key > run:
            continue
        if not groups.isdisjoint(state.pool.list_groups(other[3].need)):
            yield other


def _is_before(
    state: SchedulerState,
    other: Entry,
    entry: Entry,
    own_use: tuple[float, ProjectKey],
    now_ms: int,
) -> bool:
    """Return whether a run of equal priority comes first by use or age."""
    if other[3].project == entry[3].project:
        return other[1:3] < entry[1:3]
    return _rank_project(state, other[3].project, now_ms) < own_use


def _describe_capacity(state: SchedulerState, need: Need) -> str:
    groups = state.pool.list_groups(need)
    free = sorted(list_freest(groups, MOST_NAMED), key=lambda item: (-item[0], item[1]))
    machines = [state.pool.machines[name] for _, name in free[:MOST_NAMED]]
    joined = sum(len(group.joined) for group in groups)
    if not machines:
        return "the machine that fits is busy" if joined == 1 else f"all {joined} that fit are busy"
    reserved = {name: held for held in state.reservations.values() for name in held.machines}
    words = []
    for pooled in machines:
        text = (
            f"{pooled.machine.id} has {pooled.free_accelerators} of {pooled.machine.accelerators} "
            f"accelerators and {pooled.free_slots} of {pooled.machine.slots} slots free"
        )
        if (held := reserved.get(pooled.machine.id)) is not None:
            text += f" (reserved for run {held.run_id}{_describe_time(held.from_ms)})"
        words.append(text)
    return ", ".join(words)


def list_freest(groups: tuple[Group, ...], count: int) -> Iterator[tuple[int, str]]:
    """Yield up to so many machines of each group, those with the most accelerators free first."""
    for group in groups:
        listed = (
            (free, name)
            for free in range(len(group.index) - 1, -1, -1)
            for name in group.index[free]
        )
        yield from islice(listed, count)


def _describe_limit(state: SchedulerState, queue: Queue, *, is_project: bool) -> str:
    use = state.list_uses_of(queue.project)[0 if is_project else -1]
    who = f"project {use.key.project}" if is_project else f"organization {use.key.org}"
    return f"{who} uses {use.running} of at most {use.limit}, and it needs {queue.need.units}"


def _describe_reservation(state: SchedulerState, run: RunKey) -> str | None:
    held = state.reservations.get(run)
    if held is None:
        return None
    names = sorted(set(held.machines))
    more = len(names) - MOST_NAMED
    listed = ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"reserved {listed}{_describe_time(held.from_ms)}"


def _describe_time(from_ms: int | None) -> str:
    if from_ms is None:
        return " from a time that nothing predicts yet"
    return f" from about {datetime.fromtimestamp(from_ms / 1000, UTC):%H:%M} UTC"


def _rank_project(
    state: SchedulerState, project: ProjectKey, now_ms: int
) -> tuple[float, ProjectKey]:
    return state.get_use(project).compute_weighted_use(now_ms), project
