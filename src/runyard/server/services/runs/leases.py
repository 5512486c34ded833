"""Leases: which supervisor works on which run, for how long, and how an attempt ends.

A claim gives a controller one attempt, a fencing token and some seconds. The token speaks for that
attempt until it is *closed*: by its exit report, by the controller's report on what it found, or by
silence that lasted too long. A refused supervisor (``LeaseLost``) must end its trainer at once.
Therefore nothing is refused while the attempt is still open, however late a request arrives.

    claimed  --process report-->  started  --exit report, nothing left alive-->  closed
       |                             |
       lease runs out: closed,       lease runs out: lost, the run's reason says so; a renewal
       not charged                   restores it; silent for too long: closed as lost

Leases run in server uptime: ``tick`` adds what the server itself lived through, at most
``LONGEST_TICK_S`` at once. So neither a stopped server nor a suspended machine makes a lease run
out.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.flows import FlowProblems, resolve
from runyard.limits import clean_text
from runyard.protocol import (
    Assignment,
    Claim,
    ClaimResult,
    DesiredState,
    ExitReport,
    Placements,
    ProcessReport,
    Renewal,
)
from runyard.server.services import machine_failures, membership, notifications
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import JOINED, REMOVED
from runyard.server.services.notifications import run_topic
from runyard.server.services.run_changes import StoredRun
from runyard.server.services.runs import conditions, deletion, placement, waiting_reasons
from runyard.server.services.runs.conditions import AttemptEnd, Transition
from runyard.server.services.runs.runs import decode_run, save, transition
from runyard.server.services.validation import LONGEST_HOST, check_count, check_id, check_text
from runyard.store import attempts as rows
from runyard.store import lease_clock, organizations, outputs, queue
from runyard.store import runs as run_rows
from runyard.store.requirements import Requirements
from vi.api.resources.runs.responses import Run, RunAttempt

LONGEST_WAIT_S = 30.0
TICK_S = 1.0
LONGEST_TICK_S = 2.0
CANDIDATES, CLAIM_TRIES = 8, 3  # of one claim, since other claims may take the first candidates

# How long a started attempt may be silent before the server stops waiting for proof that none of
# its processes is alive. A retry is safe early: on the same machine the run's lock separates two
# trainers; on another one, fencing and the time that a trainer continues without the server bound
# the overlap, so another machine may claim the run as soon as it is lost. A final condition is not
# safe early.
RETRY_AFTER_S = 60.0
GIVE_UP_AFTER_S = 1800.0
# How long a run that a machine has failed waits for another one that fits.
AVOID_FOR_S = 60.0
# A controller asks every half minute what its machine should run. An attempt that ended between a
# backup and its restore is reported by a supervisor that the controller starts then; if the lease
# ended earlier, the attempt would be repeated.
ASKED_WITHIN_S = 30.0


async def claim(
    services: Services, actor: Actor, offer: Claim, *, gone: "asyncio.Future[None] | None" = None
) -> ClaimResult:
    """Give a controller the next run that fits, waiting for one if there is none.

    ``gone`` is done when the controller has disconnected; it is given no run then.

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
            return ClaimResult(assignment=None)
        event = services.notifier.watch(notifications.QUEUE)
        assignment = await _try_claim(services, actor, offer)
        remaining_s = until - clock.monotonic_s()
        if assignment is not None or remaining_s <= 0 or services.notifier.is_closed:
            return ClaimResult(assignment=assignment)
        await services.notifier.wait(event, timeout_s=remaining_s, gone=gone)


async def list_placed(services: Services, machine_id: str) -> Placements:
    """Return every open attempt of a machine, lost ones included.

    The controller reports on those that it does not hold.
    """

    def find_open_attempts(tx: Connection) -> list[Assignment]:
        return [
            _build_assignment(services, tx, attempt, run)
            for attempt in rows.list_unsettled(tx, machine_id=machine_id)
            if (run := run_rows.get(tx, org=attempt.org, run_id=attempt.run_id)) is not None
        ]

    return Placements(attempts=await services.store.read_in_thread(find_open_attempts))


async def report_process(
    services: Services, token: AttemptToken, report: ProcessReport
) -> DesiredState:
    """Record the supervisor's process: from now on the attempt counts, and the run is Running.

    Raises:
        Refusal: LeaseLost, InvalidId, InvalidBody.
    """
    check_id("machine", report.machine_id)
    check_id("boot", report.boot_id)
    check_count("pid", report.pid, most=2**31 - 1)
    check_count("start_ticks", report.start_ticks, most=2**63 - 1)
    desired = await services.store.write(lambda tx: _start_attempt(services, tx, token, report))
    await _notify_run(services, token)
    return desired


def _start_attempt(
    services: Services, tx: Connection, token: AttemptToken, report: ProcessReport
) -> DesiredState:
    attempt, row = get_open_attempt(services, tx, token, now_ms=services.clock.now_ms())
    run = decode_run(row.document)
    _change_attempt(
        tx,
        attempt,
        boot_id=report.boot_id,
        pid=report.pid,
        start_ticks=report.start_ticks,
        machine_id=report.machine_id,
    )
    _extend_lease(services, tx, attempt)
    _mark_started(services, tx, attempt, row, run)
    return _answer_supervisor(services, tx, attempt, row, run)


async def renew(services: Services, token: AttemptToken, renewal: Renewal) -> DesiredState:
    """Renew a lease. An attempt that was considered lost is restored."""
    return await services.store.write(lambda tx: _renew_lease(services, tx, token, renewal))


def _renew_lease(
    services: Services, tx: Connection, token: AttemptToken, renewal: Renewal
) -> DesiredState:
    attempt, row = get_open_attempt(services, tx, token, now_ms=services.clock.now_ms())
    run = decode_run(row.document)
    _extend_lease(services, tx, attempt)
    _mark_started(services, tx, attempt, row, run)  # a restore may have reverted its report
    if attempt.lost_pulse is not None and not row.killed:
        phase = (
            renewal.phase if renewal.phase in conditions.REASONS[conditions.RUNNING] else "Training"
        )
        transition(
            run,
            Transition(conditions.RUNNING, phase, "reported again"),
            now_ms=services.clock.now_ms(),
        )
        save(tx, run)
    elif renewal.note and not row.killed and run.condition is conditions.RUNNING:
        newest = run.status.conditions[-1]
        if newest.message != renewal.note:
            transition(
                run,
                Transition(conditions.RUNNING, str(newest.reason), renewal.note),
                now_ms=services.clock.now_ms(),
            )
            save(tx, run)
    return _answer_supervisor(services, tx, attempt, row, run)


async def finish(services: Services, token: AttemptToken, report: ExitReport) -> None:
    """Record the end of an attempt.

    The attempt is closed, and the run changes, only when none of its processes is alive. Repeats
    change nothing.
    """
    has_closed = await services.store.write(lambda tx: _close_attempt(services, tx, token, report))
    if machine_failures.find_failure(report) is not None:
        await membership.refresh(services)
    if has_closed:
        await _notify_run(services, token, closed=True)


def _close_attempt(
    services: Services, tx: Connection, token: AttemptToken, report: ExitReport
) -> bool:
    attempt = find_attempt(services, tx, token)
    row = run_rows.get(tx, org=token.org, run_id=attempt.run_id)
    if row is None:
        raise lease_lost()
    if report.store_id not in ("", _read_store_id(tx)):
        raise Refusal(
            "StoreRestored",
            "a backup was restored since; try: send again what came after it, then report",
        )
    run, now_ms = decode_run(row.document), services.clock.now_ms()
    if attempt.closed and attempt.lost_pulse is None:
        return False  # closed by this same report, whose response was lost
    if attempt.closed and report.group_empty and _has_moved_on(tx, attempt, run):
        _change_attempt(tx, attempt, lost_pulse=None)  # proven: a kill need not wait for it
        return False
    if attempt.closed:
        _reopen_attempt(tx, attempt, run, now_ms=now_ms)
    if not report.group_empty:
        message = f"processes of attempt {attempt.number} are still alive on {attempt.host}"
        kind = run.condition or conditions.RUNNING
        transition(run, Transition(kind, "Stopping", message), now_ms=now_ms)
        save(tx, run)
        return False
    if report.exit_code is not None and not attempt.started:
        _begin_attempt(services, run, attempt)  # it ran and ended before it reported its process
    micro_batch_size = _find_micro_batch_size(run) if conditions.is_out_of_memory(report) else None
    is_charged = conditions.is_charged(
        report, micro_batch_size=micro_batch_size, has_progress=_has_progress(tx, attempt)
    )
    charged = (attempt.started or report.exit_code is not None) and is_charged
    _write_attempt_end(services, tx, attempt, run, report, charged=charged)
    if (failure := machine_failures.find_failure(report)) is not None:
        _record_failure(services, tx, attempt, failure)
    _change_attempt(tx, attempt, lost_pulse=None)  # settled: this was its own report
    end = _load_attempt_end(services, tx, row, run, micro_batch_size=micro_batch_size)
    end = replace(end, is_charged=is_charged)
    if rows.has_open(tx, org=row.org, run_id=row.id):
        pass  # killed, and an older attempt is not settled yet: the last one to close decides
    elif run.condition is conditions.PENDING:
        _end_unstarted(run, end, now_ms=now_ms, cause=report.cause)
    else:
        transition(run, conditions.decide_after_exit(report, end), now_ms=now_ms)
        if run.condition is conditions.PENDING:
            smaller = conditions.halve_micro_batch(report, micro_batch_size)
            run.status.micro_batch_limit = smaller or run.status.micro_batch_limit
    if row.killed:
        run.status.observed_generation = run.metadata.generation
    save(tx, run)
    return True


async def tick(services: Services, elapsed_s: float) -> None:
    """Age leases by the server's own uptime, and act on those that ran out."""
    if services.store.read(rows.count_open) == 0:
        return
    expired = await services.store.write(lambda tx: _expire_leases(services, tx, elapsed_s))
    if expired:
        await membership.refresh(services)
    for attempt in expired:
        services.notifier.notify(run_topic(attempt.org, attempt.run_id))
        services.notifier.notify(notifications.QUEUE)
        await deletion.purge_if_due(services, org=attempt.org, run_id=attempt.run_id)


def _expire_leases(services: Services, tx: Connection, elapsed_s: float) -> list[Any]:
    uptime_ms = lease_clock.advance(tx, round(min(elapsed_s, LONGEST_TICK_S) * 1000))
    expired = [row for row in rows.list_open(tx) if row.expires_pulse < uptime_ms]
    return [attempt for attempt in expired if _expire_lease(services, tx, attempt, uptime_ms)]


def get_restore_lease_ms(services: Services) -> int:
    """Return how long an open attempt has to report after a backup has been restored."""
    return round((services.settings.lease_s + ASKED_WITHIN_S) * 1000)


def find_attempt(services: Services, tx: Connection, token: AttemptToken) -> Any:
    """Return the attempt that a token speaks for.

    Raises:
        Refusal: LeaseLost.
    """
    attempt = rows.find_by_token(
        tx, org=token.org, store_id=token.store_id, token_number=token.number
    )
    if attempt is None or services.memberships.get_state(attempt.machine_id) == REMOVED:
        raise lease_lost()
    return attempt


def get_open_attempt(
    services: Services, tx: Connection, token: AttemptToken, *, now_ms: int | None = None
) -> tuple[Any, Any]:
    """Return the rows of attempt and run, if the attempt may still report.

    An attempt that was closed only because it was silent may, until another one has begun. With
    ``now_ms``, in a transaction that writes, it is reopened.

    Raises:
        Refusal: LeaseLost.
    """
    attempt = find_attempt(services, tx, token)
    row = run_rows.get(tx, org=token.org, run_id=attempt.run_id)
    if row is None or (attempt.closed and attempt.lost_pulse is None):
        raise lease_lost()
    if attempt.closed:
        run = decode_run(row.document)
        _reopen_attempt(tx, attempt, run, now_ms=row.time_created if now_ms is None else now_ms)
        if now_ms is not None:
            _change_attempt(tx, attempt, closed=False)
            save(tx, run)
            row = run_rows.get(tx, org=token.org, run_id=attempt.run_id)
    return attempt, row


def lease_lost() -> Refusal:
    """Build the refusal of a closed attempt."""
    return Refusal("LeaseLost", "attempt is closed (lease lost): stop its processes")


async def _try_claim(services: Services, actor: Actor, offer: Claim) -> Assignment | None:
    clock = services.clock
    labels = services.memberships.add_labels(offer.machine_id, offer.labels)
    name = services.memberships.get_name(offer.machine_id, offer.host)
    offer = msgspec.structs.replace(offer, labels=labels, host=name)
    if services.machines.record_claim(offer, now_ms=clock.now_ms(), uptime_s=clock.monotonic_s()):
        await waiting_reasons.refresh(services)
    takes_runs = services.memberships.get_state(offer.machine_id) == JOINED
    has_free_slot = takes_runs and offer.slots > 0 and not offer.lacks_disk

    # Read without the writer first: most claims find nothing, and should not cost an fsync each.
    def find_candidates(tx: Connection) -> list[Candidate] | None:
        if rows.find_by_claim(tx, claim_id=offer.claim_id) is not None:
            return []
        return (_list_candidates(services, tx, offer) or None) if has_free_slot else None

    for _ in range(CLAIM_TRIES):
        candidates = await services.store.read_in_thread(find_candidates)
        if candidates is None:
            return None
        claim_first = partial(
            _claim_first, services, actor=actor, offer=offer, candidates=candidates
        )
        assignment = await services.store.write(claim_first)
        if assignment is not None or not candidates:
            return assignment
    return None  # other claims were faster each time


def _claim_first(
    services: Services,
    tx: Connection,
    actor: Actor,
    offer: Claim,
    candidates: Sequence["Candidate"],
) -> Assignment | None:
    """Claim the first candidate that is still waiting.

    A repeated claim returns what it was given before.
    """
    if (attempt := rows.find_by_claim(tx, claim_id=offer.claim_id)) is not None:
        held = run_rows.get(tx, org=attempt.org, run_id=attempt.run_id)
        return (
            None
            if attempt.closed or held is None
            else _build_assignment(services, tx, attempt, held)
        )
    if membership.read_state(tx, offer.machine_id) != JOINED:
        return None
    for candidate in candidates:
        if (row := _lock_candidate(services, tx, offer, candidate)) is not None:
            return _insert_attempt(services, tx, actor, offer, row, decode_run(row.document))
    return None


@dataclass(frozen=True)
class Candidate:
    """A run that a claim may take: the first with given requirements, or one lost elsewhere."""

    key: str
    lost: tuple[str, str] | None = None  # organization and run
    avoid_since_ms: int = queue.NEVER


def _list_candidates(services: Services, tx: Connection, offer: Claim) -> list[Candidate]:
    """Return the candidates that fit the machine, in the order of the queue.

    If a run waits until enough accelerators of this machine are free, none of lower priority takes
    those that are.
    """
    machine_id = offer.machine_id
    required = {key: placement.get_requirements(tx, key) for key in queue.list_requirements(tx)}
    whole = msgspec.structs.replace(
        offer, accelerators=services.machines.count_accelerators(machine_id)
    )
    keys, later = list[str](), list[str]()
    avoid_since_ms: dict[str, int] = {}
    for key, requested in required.items():
        if requested is not None and _is_offered(requested, offer):
            keys.append(key)
            if placement.fits_elsewhere(services, requested, machine_id=machine_id):
                avoid_since_ms[key] = services.clock.now_ms() - round(AVOID_FOR_S * 1000)
        elif requested is not None and _is_offered(requested, whole):
            later.append(key)
    found = [
        (
            queue.sort_key(row),
            Candidate(
                row.requirements, avoid_since_ms=avoid_since_ms.get(row.requirements, queue.NEVER)
            ),
        )
        for row in queue.list_first_runs(
            tx, keys=keys, machine_id=machine_id, avoid_since_ms=avoid_since_ms
        )
    ]
    for row in queue.list_lost_elsewhere(tx, machine_id=machine_id):
        run = run_rows.get(tx, org=row.org, run_id=row.id)
        if run is not None and _may_retry(services, tx, offer, run):
            found.append((queue.sort_key(row), Candidate(row.requirements, (row.org, row.id))))
    for row in queue.list_first_runs(tx, keys=later, machine_id=machine_id)[:1]:
        found = [item for item in found if item[0][0] <= -row.priority]
    return [candidate for _, candidate in sorted(found, key=itemgetter(0))[:CANDIDATES]]


def _is_offered(requested: Requirements, offer: Claim) -> bool:
    """Return whether a machine has the labels, and as many free accelerators."""
    has_enough = requested.accelerators <= offer.accelerators
    return has_enough and placement.fits(requested.labels, offer.labels)


def _may_retry(services: Services, tx: Connection, offer: Claim, row: Any) -> bool:
    """Return whether a claim may take a run that was lost elsewhere.

    All its open attempts must be silent, and on other machines.
    """
    attempts = _list_open_attempts(tx, row)
    return (
        bool(attempts)
        and all(
            attempt.lost_pulse is not None and attempt.machine_id != offer.machine_id
            for attempt in attempts
        )
        and _is_offered(placement.read_requirements(decode_run(row.document).spec.flow), offer)
        and not _is_last_try(services, tx, row)
    )


def _list_open_attempts(tx: Connection, row: Any) -> list[Any]:
    return [
        attempt
        for attempt in rows.list_by_run(tx, org=row.org, run_id=row.id)
        if not attempt.closed
    ]


def _is_last_try(services: Services, tx: Connection, row: Any) -> bool:
    """Return whether a run's current attempt is its last: then only proof ends it."""
    end = _load_attempt_end(services, tx, row, decode_run(row.document))
    return end.killed or end.tries_used >= end.tries_allowed


def _lock_candidate(services: Services, tx: Connection, offer: Claim, candidate: Candidate) -> Any:
    """Lock a candidate until the transaction ends.

    Return None when it is gone, or when another claim is taking it.
    """
    if candidate.lost is None:
        return queue.lock_first(
            tx,
            key=candidate.key,
            machine_id=offer.machine_id,
            avoid_since_ms=candidate.avoid_since_ms,
        )
    org, run_id = candidate.lost
    row = queue.lock_lost(tx, org=org, run_id=run_id)
    if row is None or not _may_retry(services, tx, offer, row):
        return None  # it has reported again, or has ended
    run = decode_run(row.document)
    for attempt in _list_open_attempts(tx, row):
        _close_silent_attempt(
            services, tx, attempt, row, run, uptime_ms=lease_clock.read_uptime_ms(tx)
        )
    save(tx, run)
    return run_rows.get(tx, org=org, run_id=run_id)


def _insert_attempt(
    services: Services, tx: Connection, actor: Actor, offer: Claim, row: Any, run: StoredRun
) -> Assignment | None:
    past = rows.list_by_run(tx, org=row.org, run_id=row.id)
    values = {
        "org": row.org,
        "run_id": row.id,
        "number": past[-1].number + 1 if past else 1,
        "epoch": _read_store_id(tx),
        "token_number": lease_clock.next_token_number(tx),
        "claim_id": offer.claim_id,
        "machine_id": offer.machine_id,
        "host": clean_text(offer.host, limits.HOST),
        "expires_pulse": lease_clock.read_uptime_ms(tx) + _lease_ms(services),
        "time_claimed": services.clock.now_ms(),
    }
    rows.add(tx, values)
    transition(
        run,
        Transition(conditions.PENDING, "WaitingForWorker", f"placed on {offer.host}"),
        now_ms=values["time_claimed"],
    )
    run.status.observed_generation = run.metadata.generation
    save(tx, run)
    services.audit(actor, "claim run", f"{row.org}/{row.id}/{values['number']}")(tx)
    attempt = rows.find_by_claim(tx, claim_id=offer.claim_id)
    fresh = run_rows.get(tx, org=row.org, run_id=row.id)
    return _build_assignment(services, tx, attempt, fresh)


def _build_assignment(services: Services, tx: Connection, attempt: Any, row: Any) -> Assignment:
    run = decode_run(row.document)
    proven = outputs.list_by_run(tx, org=attempt.org, run_id=attempt.run_id)
    return Assignment(
        organization_id=attempt.org,
        run_id=attempt.run_id,
        attempt=attempt.number,
        token=services.signer.sign_attempt_token(
            AttemptToken(attempt.org, attempt.epoch, attempt.token_number)
        ),
        lease_s=services.settings.lease_s,
        grace_s=_grace_s(services, run),
        store_id=attempt.epoch,
        current_store_id=_read_store_id(tx),
        server_boot_id=services.boot_id,
        run=run,
        resume_checkpoint=proven[-1].id if proven else None,
    )


def _read_store_id(tx: Connection) -> str:
    """Return the id of the store incarnation.

    Read where it is used: a restore may have changed it in the transaction before.
    """
    return organizations.get_meta(tx, organizations.STORE_ID) or ""


def _mark_started(
    services: Services, tx: Connection, attempt: Any, row: Any, run: StoredRun
) -> None:
    """Mark an attempt as started.

    There is a process, so from now on only proof closes the attempt.
    """
    if attempt.started:
        return
    _change_attempt(tx, attempt, started=True, charged=True)
    _begin_attempt(services, run, attempt)
    if row.killed or row.deleted:
        transition(
            run,
            Transition(conditions.RUNNING, "Stopping", "killed"),
            now_ms=services.clock.now_ms(),
        )
    save(tx, run)


def _begin_attempt(services: Services, run: Run, attempt: Any) -> None:
    now_ms = services.clock.now_ms()
    run.status.attempts.append(
        RunAttempt(
            attempt=attempt.number, machine=attempt.host or attempt.machine_id, time_started=now_ms
        )
    )
    transition(
        run,
        Transition(conditions.RUNNING, "Preparing", f"attempt {attempt.number} on {attempt.host}"),
        now_ms=now_ms,
    )


def _answer_supervisor(
    services: Services, tx: Connection, attempt: Any, row: Any, run: StoredRun
) -> DesiredState:
    is_unwanted = row.killed or row.deleted
    if is_unwanted and run.status.observed_generation != run.metadata.generation:
        run.status.observed_generation = run.metadata.generation
        save(tx, run)
    must_stop = services.memberships.must_stop_runs(
        attempt.machine_id, now_ms=services.clock.now_ms()
    )
    return DesiredState(
        action="kill" if is_unwanted else "stop" if must_stop else "continue",
        store_id=_read_store_id(tx),
        lease_s=services.settings.lease_s,
        grace_s=_grace_s(services, run),
    )


def _expire_lease(services: Services, tx: Connection, attempt: Any, uptime_ms: int) -> bool:
    """Act on one lease that ran out; return whether anything changed."""
    row = run_rows.get(tx, org=attempt.org, run_id=attempt.run_id)
    if row is None:
        return False
    run, now_ms = decode_run(row.document), services.clock.now_ms()
    if not attempt.started:
        # No process was ever reported, and one that reports now is refused: none can be alive.
        _change_attempt(tx, attempt, closed=True)
        cause = f"no process was started on {attempt.host}"
        _end_unstarted(run, _load_attempt_end(services, tx, row, run), now_ms=now_ms, cause=cause)
        save(tx, run)
        return True
    if attempt.lost_pulse is None:
        _change_attempt(tx, attempt, lost_pulse=uptime_ms)
        kind = run.condition or conditions.RUNNING
        cause = _describe_silence(services, attempt, uptime_ms)
        message = (
            f"{cause}; waiting for proof that no process of attempt {attempt.number} is left there"
        )
        transition(run, Transition(kind, "Stopping", message), now_ms=now_ms)
        save(tx, run)
        return True
    is_final = _is_last_try(services, tx, row)
    if uptime_ms - attempt.lost_pulse < 1000 * (GIVE_UP_AFTER_S if is_final else RETRY_AFTER_S):
        return False
    _close_silent_attempt(services, tx, attempt, row, run, uptime_ms=uptime_ms)
    save(tx, run)
    return True


def _describe_silence(services: Services, attempt: Any, uptime_ms: int) -> str:
    silence_s = (uptime_ms - attempt.expires_pulse) // 1000 + round(services.settings.lease_s)
    return f"no report from {attempt.host} for {silence_s} s"


def _close_silent_attempt(
    services: Services, tx: Connection, attempt: Any, row: Any, run: Run, *, uptime_ms: int
) -> None:
    """Close an attempt only because it was silent, and retry its run.

    Another open attempt prevents the retry. The caller saves ``run``. The attempt stays unsettled:
    its machine reports before it claims the run again, and its supervisor is refused once another
    attempt has begun.
    """
    now_ms, cause = services.clock.now_ms(), _describe_silence(services, attempt, uptime_ms)
    report = ExitReport(exit_code=None, signal=None, group_empty=True, cause=cause, time=now_ms)
    end = _load_attempt_end(services, tx, row, run)
    _write_attempt_end(services, tx, attempt, run, report, charged=True)
    _record_failure(services, tx, attempt, machine_failures.SILENT)
    if not rows.has_open(tx, org=row.org, run_id=row.id):
        transition(run, conditions.decide_after_loss(cause, end), now_ms=now_ms)


def _record_failure(services: Services, tx: Connection, attempt: Any, kind: str) -> None:
    machine_failures.record(
        services,
        tx,
        org=attempt.org,
        run_id=attempt.run_id,
        attempt=attempt.number,
        machine_id=attempt.machine_id,
        kind=kind,
    )


def _write_attempt_end(
    services: Services, tx: Connection, attempt: Any, run: Run, report: ExitReport, *, charged: bool
) -> None:
    _change_attempt(tx, attempt, closed=True, charged=charged)
    for status in run.status.attempts:
        if status.attempt == attempt.number:
            status.time_ended = services.clock.now_ms()
            status.exit_code, status.cause = report.exit_code, clean_text(report.cause) or "ended"
            status.signal = (
                None if report.signal is None else clean_text(report.signal, limits.WORD)
            )


def _end_unstarted(run: Run, end: AttemptEnd, *, now_ms: int, cause: str) -> None:
    """Move a run whose attempt never started back to waiting, or to Cancelled if it was killed."""
    if end.killed:
        transition(
            run,
            Transition(conditions.CANCELLED, "KilledByUser", "killed before it started"),
            now_ms=now_ms,
        )
        run.status.observed_generation = run.metadata.generation
    else:
        transition(
            run,
            Transition(conditions.PENDING, "Retrying", cause or "the attempt never started"),
            now_ms=now_ms,
        )


def _find_micro_batch_size(run: Run) -> int | None:
    """Return the smallest micro-batch size in use so far, if the flow lets it be halved."""
    try:
        resolved = resolve(run.spec.flow)
    except FlowProblems:
        return None
    if resolved.model.on_out_of_memory != "shrink":
        return None
    numbers = resolved.model.hyperparameters
    initial = numbers.batch_size if numbers.micro_batch_size == "auto" else numbers.micro_batch_size
    sizes = [attempt.micro_batch_size for attempt in run.status.attempts]
    return min(size for size in (initial, run.status.micro_batch_limit, *sizes) if size)


def _has_progress(tx: Connection, attempt: Any) -> bool:
    """Return whether an attempt has stored a later checkpoint than all before it."""
    stored = outputs.list_by_run(tx, org=attempt.org, run_id=attempt.run_id)
    before = [item.step for item in stored if item.attempt < attempt.number]
    own = [item.step for item in stored if item.attempt == attempt.number]
    return max(own, default=0) > max(before, default=0)


def _load_attempt_end(
    services: Services, tx: Connection, row: Any, run: Run, *, micro_batch_size: int | None = None
) -> AttemptEnd:
    attempts = rows.list_by_run(tx, org=row.org, run_id=row.id)
    return AttemptEnd(
        killed=row.killed or row.deleted,
        tries_used=sum(attempt.charged for attempt in attempts),
        tries_allowed=int(run.spec.flow.settings.get("attempts") or services.settings.attempts),
        has_checkpoint=bool(outputs.list_by_run(tx, org=row.org, run_id=row.id)),
        micro_batch_size=micro_batch_size,
    )


def _reopen_attempt(tx: Connection, attempt: Any, run: Run, *, now_ms: int) -> None:
    """Reopen an attempt that was closed for its silence, unless the run has moved on without it.

    Such an attempt may have left a finished training on disk, which must not be repeated.

    Raises:
        Refusal: LeaseLost.
    """
    if _has_moved_on(tx, attempt, run):
        raise lease_lost()
    message = f"attempt {attempt.number} on {attempt.host} has reported late"
    for status in run.status.attempts:
        if status.attempt == attempt.number:
            status.time_ended, status.cause = None, ""
    transition(run, Transition(conditions.RUNNING, "Stopping", message), now_ms=now_ms)


def _has_moved_on(tx: Connection, attempt: Any, run: Run) -> bool:
    """Return whether a run no longer waits for an attempt that was closed for its silence."""
    latest = rows.list_by_run(tx, org=attempt.org, run_id=attempt.run_id)[-1]
    return latest.number != attempt.number or run.condition is not conditions.PENDING


def _extend_lease(services: Services, tx: Connection, attempt: Any) -> None:
    _change_attempt(
        tx,
        attempt,
        expires_pulse=lease_clock.read_uptime_ms(tx) + _lease_ms(services),
        lost_pulse=None,
    )


def _change_attempt(tx: Connection, attempt: Any, **values: Any) -> None:
    rows.change(tx, org=attempt.org, run_id=attempt.run_id, number=attempt.number, values=values)


def _lease_ms(services: Services) -> int:
    return round(services.settings.lease_s * 1000)


def _grace_s(services: Services, run: Run) -> float:
    """Return the grace period in seconds: of the kill, else of the flow, else of the settings."""
    given = run.spec.grace_seconds
    if given is None:
        given = run.spec.flow.settings.get("gracePeriodSeconds")
    return services.settings.grace_s if given is None else float(given)


async def _notify_run(services: Services, token: AttemptToken, *, closed: bool = False) -> None:
    attempt = services.store.read(lambda tx: find_attempt(services, tx, token))
    services.notifier.notify(run_topic(attempt.org, attempt.run_id))
    if closed:
        services.notifier.notify(notifications.QUEUE)
        await deletion.purge_if_due(services, org=attempt.org, run_id=attempt.run_id)
