"""Leases: who works on which run, for how long, and how an attempt ends.

A claim gives a controller one attempt, a fencing token and some seconds. The token speaks for that attempt until it is
*closed*: by its exit report, by the controller's report on what it found, or by silence that lasted too long. A
refused supervisor (``LeaseLost``) must end its trainer at once, so nothing is refused while the attempt is still open,
however late it speaks.

    claimed  --process report-->  started  --exit report, nothing left alive-->  closed
       |                             |
       lease runs out: closed,       lease runs out: lost, the run says so; it may still come back by renewing;
       not charged                   silent for good: closed as lost

Leases run in server-lived time: ``tick`` adds what the server itself lived through, at most ``LONGEST_TICK_S`` at
once, so neither a stopped server nor a suspended machine makes a lease run out.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from runyard import limits
from runyard.flows import FlowProblems, resolve
from runyard.limits import clean_text
from runyard.protocol import Assignment, Claim, Claimed, ExitReport, Placed, ProcessReport, Renewal, Wanted
from runyard.server.services import notifications
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import conditions, deletion, waiting, waiting_reasons
from runyard.server.services.runs.conditions import AttemptEnd, Move
from runyard.server.services.runs.runs import decoded, move, save
from runyard.server.services.validation import LONGEST_HOST, check_count, check_id, check_text
from runyard.store import attempts as rows
from runyard.store import lease_clock, organizations, outputs, queue
from runyard.store import runs as run_rows
from vi.api.resources.runs.responses import Run, RunAttempt

LONGEST_WAIT_S = 30.0
TICK_S = 1.0
LONGEST_TICK_S = 2.0
TAKEN_AT_ONCE, TIMES_TO_LOOK = 8, 3  # candidates of a claim, since somebody else may be taking the first ones

# How long a started attempt may be silent before the server stops waiting for proof that nothing of it lives. A new
# try is safe early: on the same machine the run's lock keeps two trainers apart; on another one fencing, and how long a
# trainer continues without the server, bound the overlap, so another machine may take the run as soon as it is lost.
# A final word is not.
RETRY_AFTER_S = 60.0
GIVE_UP_AFTER_S = 1800.0
# A controller asks every half minute what its machine should hold. What ended between a backup and its restore is told
# by a supervisor that it starts then, and would be done again if its lease were over before.
ASKED_WITHIN_S = 30.0


async def claim(
    services: Services, actor: Actor, offer: Claim, *, gone: "asyncio.Future[None] | None" = None
) -> Claimed:
    """Give a controller the next run that fits, waiting for one if there is none.

    ``gone`` is done when the controller has left; it is given no run then.

    Raises:
        Refusal: InvalidId, InvalidBody.
    """
    check_id("claim", offer.claim_id)
    check_id("machine", offer.machine_id)
    check_text("host", offer.host, most=LONGEST_HOST)
    clock = services.clock
    until = clock.monotonic_s() + min(offer.wait_s, LONGEST_WAIT_S)
    while True:
        if gone is not None and gone.done():
            return Claimed(assignment=None)
        event = services.changes.watch(notifications.QUEUE)
        assignment = await _try_claim(services, actor, offer)
        remaining_s = until - clock.monotonic_s()
        if assignment is not None or remaining_s <= 0 or services.changes.is_closed:
            return Claimed(assignment=assignment)
        await services.changes.wait(event, timeout_s=remaining_s, gone=gone)


async def placed(services: Services, machine_id: str) -> Placed:
    """Every open attempt of a machine, lost ones included: the controller reports on those it does not hold."""

    def work(connection: Connection) -> list[Assignment]:
        return [
            _assignment(services, connection, attempt, run)
            for attempt in rows.list_unsettled(connection, machine_id=machine_id)
            if (run := run_rows.get(connection, org=attempt.org, run_id=attempt.run_id)) is not None
        ]

    return Placed(attempts=await services.store.read_in_thread(work))


async def report_process(services: Services, token: AttemptToken, report: ProcessReport) -> Wanted:
    """The supervisor exists: from now on the attempt counts, and the run is Running.

    Raises:
        Refusal: LeaseLost, InvalidId, InvalidBody.
    """
    check_id("machine", report.machine_id)
    check_id("boot", report.boot_id)
    check_count("pid", report.pid, most=2**31 - 1)
    check_count("start_ticks", report.start_ticks, most=2**63 - 1)

    def work(connection: Connection) -> Wanted:
        attempt, row = open_attempt(connection, token, now_ms=services.clock.now_ms())
        run = decoded(row.document)
        _change(
            connection,
            attempt,
            boot_id=report.boot_id,
            pid=report.pid,
            start_ticks=report.start_ticks,
            machine_id=report.machine_id,
        )
        _extend(services, connection, attempt)
        _count_as_started(services, connection, attempt, row, run)
        return _wanted(services, connection, row, run)

    wanted = await services.store.write(work)
    await _tell(services, token)
    return wanted


async def renew(services: Services, token: AttemptToken, renewal: Renewal) -> Wanted:
    """The supervisor lives: its lease begins anew. One that was thought lost is back."""

    def work(connection: Connection) -> Wanted:
        attempt, row = open_attempt(connection, token, now_ms=services.clock.now_ms())
        run = decoded(row.document)
        _extend(services, connection, attempt)
        _count_as_started(services, connection, attempt, row, run)  # a restore may have undone its report
        if attempt.lost_pulse is not None and not row.killed:
            phase = renewal.phase if renewal.phase in conditions.REASONS[conditions.RUNNING] else "Training"
            move(run, Move(conditions.RUNNING, phase, "heard from again"), now_ms=services.clock.now_ms())
            save(connection, run)
        elif renewal.note and not row.killed and run.condition is conditions.RUNNING:
            newest = run.status.conditions[-1]
            if newest.message != renewal.note:
                move(run, Move(conditions.RUNNING, str(newest.reason), renewal.note), now_ms=services.clock.now_ms())
                save(connection, run)
        return _wanted(services, connection, row, run)

    return await services.store.write(work)


async def finish(services: Services, token: AttemptToken, report: ExitReport) -> None:
    """The attempt has ended. Only when nothing of it lives is it closed and the run goes on; repeats change nothing."""

    def work(connection: Connection) -> bool:
        attempt = find(connection, token)
        row = run_rows.get(connection, org=token.org, run_id=attempt.run_id)
        if row is None:
            raise lease_lost()
        if report.epoch not in ("", _epoch(connection)):
            raise Refusal("StoreRestored", "a backup was restored since: say again what came after it, then report")
        run, now_ms = decoded(row.document), services.clock.now_ms()
        if attempt.closed and attempt.lost_pulse is None:
            return False  # closed by this very report, whose answer was lost
        if attempt.closed:
            _reopen(connection, attempt, run, now_ms=now_ms)
        if not report.group_empty:
            message = f"processes of attempt {attempt.number} are still alive on {attempt.host}"
            kind = run.condition or conditions.RUNNING
            move(run, Move(kind, "Stopping", message), now_ms=now_ms)
            save(connection, run)
            return False
        if report.exit_code is not None and not attempt.started:
            _begin(services, run, attempt)  # it ran and ended before it could say who it is
        micro_batch_size = _shrinks_from(run) if conditions.names_memory(report) else None
        is_charged = conditions.is_charged(report, micro_batch_size=micro_batch_size)
        charged = (attempt.started or report.exit_code is not None) and is_charged
        _close(services, connection, attempt, run, report, charged=charged)
        _change(connection, attempt, lost_pulse=None)  # settled: this was its own word
        end = _end(services, connection, row, run, micro_batch_size=micro_batch_size)
        if rows.has_open(connection, org=row.org, run_id=row.id):
            pass  # killed, and an older attempt is not settled yet: the last to close says the word
        elif run.condition is conditions.PENDING:
            _requeue(run, end, now_ms=now_ms, cause=report.cause)
        else:
            move(run, conditions.after_exit(report, end), now_ms=now_ms)
            if run.condition is conditions.PENDING:
                smaller = conditions.shrunk(report, micro_batch_size)
                run.status.micro_batch_limit = smaller or run.status.micro_batch_limit
        if row.killed:
            run.status.observed_generation = run.metadata.generation
        save(connection, run)
        return True

    if await services.store.write(work):
        await _tell(services, token, closed=True)


async def tick(services: Services, elapsed_s: float) -> None:
    """Let leases age by the time the server has lived through, and act on those that ran out."""
    if services.store.read(rows.count_open) == 0:
        return

    def work(connection: Connection) -> list[Any]:
        lived_ms = lease_clock.advance(connection, round(min(elapsed_s, LONGEST_TICK_S) * 1000))
        expired = [row for row in rows.list_open(connection) if row.expires_pulse < lived_ms]
        return [attempt for attempt in expired if _expire(services, connection, attempt, lived_ms)]

    for attempt in await services.store.write(work):
        services.changes.tell(run_topic(attempt.org, attempt.run_id))
        services.changes.tell(notifications.QUEUE)
        await deletion.purge_if_due(services, org=attempt.org, run_id=attempt.run_id)


def after_restore_ms(services: Services) -> int:
    """How long an open attempt has to speak when a backup has been restored."""
    return round((services.settings.lease_s + ASKED_WITHIN_S) * 1000)


def find(connection: Connection, token: AttemptToken) -> Any:
    """The attempt a token speaks for.

    Raises:
        Refusal: LeaseLost.
    """
    attempt = rows.find_by_token(connection, org=token.org, store_id=token.epoch, token_number=token.number)
    if attempt is None:
        raise lease_lost()
    return attempt


def open_attempt(connection: Connection, token: AttemptToken, *, now_ms: int | None = None) -> tuple[Any, Any]:
    """Rows of attempt and run, if the attempt may still speak.

    One that was closed for its silence may, until another has begun; with ``now_ms``, in a transaction that writes,
    it is open again.

    Raises:
        Refusal: LeaseLost.
    """
    attempt = find(connection, token)
    row = run_rows.get(connection, org=token.org, run_id=attempt.run_id)
    if row is None or (attempt.closed and attempt.lost_pulse is None):
        raise lease_lost()
    if attempt.closed:
        run = decoded(row.document)
        _reopen(connection, attempt, run, now_ms=row.time_created if now_ms is None else now_ms)
        if now_ms is not None:
            _change(connection, attempt, closed=False)
            save(connection, run)
            row = run_rows.get(connection, org=token.org, run_id=attempt.run_id)
    return attempt, row


def lease_lost() -> Refusal:
    return Refusal("LeaseLost", "this attempt is closed; end its processes, nothing it says counts any more")


async def _try_claim(services: Services, actor: Actor, offer: Claim) -> Assignment | None:
    clock = services.clock
    if services.machines.hear_claim(offer, now_ms=clock.now_ms(), lived_s=clock.monotonic_s()):
        await waiting_reasons.update(services)
    has_room = offer.slots > 0 and not offer.lacks_disk

    # A look without the writer first: most claims find nothing, and an fsync each would be felt.
    def look(connection: Connection) -> list[Candidate] | None:
        if rows.find_by_claim(connection, claim_id=offer.claim_id) is not None:
            return []
        return (_candidates(services, connection, offer) or None) if has_room else None

    for _ in range(TIMES_TO_LOOK):
        candidates = await services.store.read_in_thread(look)
        if candidates is None:
            return None
        assignment = await services.store.write(partial(_take_first, services, actor, offer, candidates))
        if assignment is not None or not candidates:
            return assignment
    return None  # others were quicker each time


def _take_first(
    services: Services, actor: Actor, offer: Claim, candidates: Sequence["Candidate"], connection: Connection
) -> Assignment | None:
    """What the claim was given before, or the first candidate that is still there."""
    if (attempt := rows.find_by_claim(connection, claim_id=offer.claim_id)) is not None:
        held = run_rows.get(connection, org=attempt.org, run_id=attempt.run_id)
        return None if attempt.closed or held is None else _assignment(services, connection, attempt, held)
    for candidate in candidates:
        if (row := _lock(services, connection, offer, candidate)) is not None:
            return _take(services, connection, actor, offer, row, decoded(row.document))
    return None


@dataclass(frozen=True)
class Candidate:
    """What a claim may take: the first waiting run of a requirement, or a run that was lost on another machine."""

    key: str
    lost: tuple[str, str] | None = None  # organization and run


def _candidates(services: Services, connection: Connection, offer: Claim) -> list[Candidate]:
    """Those that fit the machine, the one to be taken first in front."""
    place = {"machine_id": offer.machine_id}

    def is_fit(key: str) -> bool:
        wanted = waiting.wanted_labels(connection, key)
        return wanted is not None and waiting.fits(wanted, offer.labels)

    keys = [key for key in queue.list_requirements(connection) if is_fit(key)]
    found = [
        (queue.sort_key(row), Candidate(row.requirements))
        for row in queue.list_first_runs(connection, keys=keys, **place)
    ]
    for row in queue.list_lost_elsewhere(connection, **place):
        run = run_rows.get(connection, org=row.org, run_id=row.id)
        if run is not None and _may_retry(services, connection, offer, run):
            found.append((queue.sort_key(row), Candidate(row.requirements, (row.org, row.id))))
    return [candidate for _, candidate in sorted(found, key=itemgetter(0))[:TAKEN_AT_ONCE]]


def _may_retry(services: Services, connection: Connection, offer: Claim, row: Any) -> bool:
    """Whether a claim may take a run that was lost elsewhere: all that is open of it is silent, and not here."""
    attempts = _open_attempts(connection, row)
    return (
        bool(attempts)
        and all(attempt.lost_pulse is not None and attempt.machine_id != offer.machine_id for attempt in attempts)
        and waiting.fits(decoded(row.document).spec.flow.tolerations, offer.labels)
        and not _is_at_its_end(services, connection, row)
    )


def _open_attempts(connection: Connection, row: Any) -> list[Any]:
    return [attempt for attempt in rows.list_by_run(connection, org=row.org, run_id=row.id) if not attempt.closed]


def _is_at_its_end(services: Services, connection: Connection, row: Any) -> bool:
    """Whether the attempt that a run has is its last: then only proof ends it."""
    end = _end(services, connection, row, decoded(row.document))
    return end.killed or end.tries_used >= end.tries_allowed


def _lock(services: Services, connection: Connection, offer: Claim, candidate: Candidate) -> Any:
    """Take hold of a candidate until the transaction ends; None when it is gone, or somebody else is taking it."""
    if candidate.lost is None:
        return queue.lock_first(connection, key=candidate.key, machine_id=offer.machine_id)
    org, run_id = candidate.lost
    row = queue.lock_lost(connection, org=org, run_id=run_id)
    if row is None or not _may_retry(services, connection, offer, row):
        return None  # it was heard from again, or has ended
    run = decoded(row.document)
    for attempt in _open_attempts(connection, row):
        _give_up(services, connection, attempt, row, run, lived_ms=lease_clock.read_uptime_ms(connection))
    save(connection, run)
    return run_rows.get(connection, org=org, run_id=run_id)


def _take(
    services: Services, connection: Connection, actor: Actor, offer: Claim, row: Any, run: Run
) -> Assignment | None:
    past = rows.list_by_run(connection, org=row.org, run_id=row.id)
    values = {
        "org": row.org,
        "run_id": row.id,
        "number": past[-1].number + 1 if past else 1,
        "epoch": _epoch(connection),
        "token_number": lease_clock.next_token_number(connection),
        "claim_id": offer.claim_id,
        "machine_id": offer.machine_id,
        "host": clean_text(offer.host, limits.HOST),
        "expires_pulse": lease_clock.read_uptime_ms(connection) + _lease_ms(services),
        "time_claimed": services.clock.now_ms(),
    }
    rows.add(connection, values)
    move(run, Move(conditions.PENDING, "WaitingForWorker", f"placed on {offer.host}"), now_ms=values["time_claimed"])
    run.status.observed_generation = run.metadata.generation
    save(connection, run)
    services.audit(actor, "claim run", f"{row.org}/{row.id}/{values['number']}")(connection)
    attempt = rows.find_by_claim(connection, claim_id=offer.claim_id)
    fresh = run_rows.get(connection, org=row.org, run_id=row.id)
    return _assignment(services, connection, attempt, fresh)


def _assignment(services: Services, connection: Connection, attempt: Any, row: Any) -> Assignment:
    run = decoded(row.document)
    proven = outputs.list_by_run(connection, org=attempt.org, run_id=attempt.run_id)
    return Assignment(
        organization_id=attempt.org,
        run_id=attempt.run_id,
        attempt=attempt.number,
        token=services.signer.attempt_token(AttemptToken(attempt.org, attempt.epoch, attempt.token_number)),
        lease_s=services.settings.lease_s,
        grace_s=_grace_s(services, run),
        epoch=attempt.epoch,
        store_epoch=_epoch(connection),
        server_boot_id=services.boot_id,
        run=run,
        resume_checkpoint=proven[-1].id if proven else None,
    )


def _epoch(connection: Connection) -> str:
    """Read where it is used: a restore may have changed it in the transaction before."""
    return organizations.get_meta(connection, organizations.STORE_ID) or ""


def _count_as_started(services: Services, connection: Connection, attempt: Any, row: Any, run: Run) -> None:
    """There is a process, so from now on only a proof closes the attempt."""
    if attempt.started:
        return
    _change(connection, attempt, started=True, charged=True)
    _begin(services, run, attempt)
    if row.killed or row.deleted:
        move(run, Move(conditions.RUNNING, "Stopping", "killed"), now_ms=services.clock.now_ms())
    save(connection, run)


def _begin(services: Services, run: Run, attempt: Any) -> None:
    now_ms = services.clock.now_ms()
    run.status.attempts.append(
        RunAttempt(attempt=attempt.number, machine=attempt.host or attempt.machine_id, time_started=now_ms)
    )
    move(run, Move(conditions.RUNNING, "Preparing", f"attempt {attempt.number} on {attempt.host}"), now_ms=now_ms)


def _wanted(services: Services, connection: Connection, row: Any, run: Run) -> Wanted:
    is_unwanted = row.killed or row.deleted
    if is_unwanted and run.status.observed_generation != run.metadata.generation:
        run.status.observed_generation = run.metadata.generation
        save(connection, run)
    return Wanted(
        action="kill" if is_unwanted else "continue",
        epoch=_epoch(connection),
        lease_s=services.settings.lease_s,
        grace_s=_grace_s(services, run),
    )


def _expire(services: Services, connection: Connection, attempt: Any, lived_ms: int) -> bool:
    """Act on one lease that ran out; whether anything changed."""
    row = run_rows.get(connection, org=attempt.org, run_id=attempt.run_id)
    if row is None:
        return False
    run, now_ms = decoded(row.document), services.clock.now_ms()
    if not attempt.started:
        # No process was ever reported, and one that reports now is refused and ends: nothing can be alive.
        _change(connection, attempt, closed=True)
        cause = f"nothing was started on {attempt.host}"
        _requeue(run, _end(services, connection, row, run), now_ms=now_ms, cause=cause)
        save(connection, run)
        return True
    if attempt.lost_pulse is None:
        _change(connection, attempt, lost_pulse=lived_ms)
        kind = run.condition or conditions.RUNNING
        cause = _silence(services, attempt, lived_ms)
        message = f"{cause}; making sure that nothing of attempt {attempt.number} is left there"
        move(run, Move(kind, "Stopping", message), now_ms=now_ms)
        save(connection, run)
        return True
    is_final = _is_at_its_end(services, connection, row)
    if lived_ms - attempt.lost_pulse < 1000 * (GIVE_UP_AFTER_S if is_final else RETRY_AFTER_S):
        return False
    _give_up(services, connection, attempt, row, run, lived_ms=lived_ms)
    save(connection, run)
    return True


def _silence(services: Services, attempt: Any, lived_ms: int) -> str:
    silence_s = (lived_ms - attempt.expires_pulse) // 1000 + round(services.settings.lease_s)
    return f"nothing was heard from {attempt.host} for {silence_s} s"


def _give_up(services: Services, connection: Connection, attempt: Any, row: Any, run: Run, *, lived_ms: int) -> None:
    """Close an attempt for its silence alone, and let the run go on unless another one is open; ``run`` is to be saved.

    The attempt stays unsettled: its machine reports before it takes the run again, and whoever speaks for it is refused
    once another attempt has begun.
    """
    now_ms, cause = services.clock.now_ms(), _silence(services, attempt, lived_ms)
    report = ExitReport(exit_code=None, signal=None, group_empty=True, cause=cause, time=now_ms)
    end = _end(services, connection, row, run)
    _close(services, connection, attempt, run, report, charged=True)
    if not rows.has_open(connection, org=row.org, run_id=row.id):
        move(run, conditions.after_loss(cause, end), now_ms=now_ms)


def _close(
    services: Services, connection: Connection, attempt: Any, run: Run, report: ExitReport, *, charged: bool
) -> None:
    _change(connection, attempt, closed=True, charged=charged)
    for told in run.status.attempts:
        if told.attempt == attempt.number:
            told.time_ended = services.clock.now_ms()
            told.exit_code, told.cause = report.exit_code, clean_text(report.cause) or "ended"
            told.signal = None if report.signal is None else clean_text(report.signal, limits.WORD)


def _requeue(run: Run, end: AttemptEnd, *, now_ms: int, cause: str) -> None:
    """An attempt that never began: the run waits again, or has been killed meanwhile."""
    if end.killed:
        move(run, Move(conditions.CANCELLED, "KilledByUser", "killed before it began"), now_ms=now_ms)
        run.status.observed_generation = run.metadata.generation
    else:
        move(run, Move(conditions.PENDING, "Retrying", cause or "the attempt never began"), now_ms=now_ms)


def _shrinks_from(run: Run) -> int | None:
    """The micro-batch of the newest attempt, or the largest it can have been, if the recipe lets it be halved."""
    try:
        recipe = resolve(run.spec.flow)
    except FlowProblems:
        return None
    if recipe.model.on_out_of_memory != "shrink":
        return None
    numbers = recipe.model.hyperparameters
    wanted = numbers.batch_size if numbers.micro_batch_size == "auto" else numbers.micro_batch_size
    told = [attempt.micro_batch_size for attempt in run.status.attempts]
    return min(size for size in (wanted, run.status.micro_batch_limit, *told) if size)


def _end(
    services: Services, connection: Connection, row: Any, run: Run, *, micro_batch_size: int | None = None
) -> AttemptEnd:
    attempts = rows.list_by_run(connection, org=row.org, run_id=row.id)
    return AttemptEnd(
        killed=row.killed or row.deleted,
        tries_used=sum(attempt.charged for attempt in attempts),
        tries_allowed=int(run.spec.flow.settings.get("attempts") or services.settings.attempts),
        has_checkpoint=bool(outputs.list_by_run(connection, org=row.org, run_id=row.id)),
        micro_batch_size=micro_batch_size,
    )


def _reopen(connection: Connection, attempt: Any, run: Run, *, now_ms: int) -> None:
    """Take the late report of an attempt that was closed for its silence, unless the run has gone on without it.

    What such an attempt left on disk may be a finished training, which must not be done again.

    Raises:
        Refusal: LeaseLost.
    """
    latest = rows.list_by_run(connection, org=attempt.org, run_id=attempt.run_id)[-1]
    if latest.number != attempt.number or run.condition is not conditions.PENDING:
        raise lease_lost()
    message = f"attempt {attempt.number} on {attempt.host} has reported after all"
    for told in run.status.attempts:
        if told.attempt == attempt.number:
            told.time_ended, told.cause = None, ""
    move(run, Move(conditions.RUNNING, "Stopping", message), now_ms=now_ms)


def _extend(services: Services, connection: Connection, attempt: Any) -> None:
    _change(
        connection, attempt, expires_pulse=lease_clock.read_uptime_ms(connection) + _lease_ms(services), lost_pulse=None
    )


def _change(connection: Connection, attempt: Any, **values: Any) -> None:
    rows.change(connection, org=attempt.org, run_id=attempt.run_id, number=attempt.number, values=values)


def _lease_ms(services: Services) -> int:
    return round(services.settings.lease_s * 1000)


def _grace_s(services: Services, run: Run) -> float:
    """What the kill said, else the flow, else the platform."""
    given = run.spec.grace_seconds
    if given is None:
        given = run.spec.flow.settings.get("gracePeriodSeconds")
    return services.settings.grace_s if given is None else float(given)


async def _tell(services: Services, token: AttemptToken, *, closed: bool = False) -> None:
    attempt = services.store.read(lambda connection: find(connection, token))
    services.changes.tell(run_topic(attempt.org, attempt.run_id))
    if closed:
        services.changes.tell(notifications.QUEUE)
        await deletion.purge_if_due(services, org=attempt.org, run_id=attempt.run_id)
