"""Faulty machines: suspected after failures of different runs, tested, and excluded if they fail.

What counts is the end of an attempt that points at its machine: the trainer was killed by a signal
that programs rarely cause by themselves, a device failed, or the machine fell silent. ``FAILURES``
of them in different runs within ``WINDOW_MS`` make a machine suspect: it takes no new run until its
self-test has passed. It is excluded after ``FAILED_TESTS`` failed ones, or if it becomes suspect
again within a day after it has passed, unless it only fell silent.
"""

import logging
from collections.abc import Sequence

from sqlalchemy import Connection

from runyard import limits
from runyard.limits import clean_text
from runyard.protocol import ExitReport, SelfTest
from runyard.server.services import notifications
from runyard.server.services.context import Services
from runyard.server.services.machines import EXCLUDED, JOINED, SUSPECT
from runyard.store.access import machines as rows
from runyard.store.tables import AnyRow

log = logging.getLogger(__name__)

FAILURES, WINDOW_MS = 2, 3_600_000
FAILED_TESTS = 2
RELAPSE_MS = 24 * 3_600_000
# Signals that memory, a bus or an instruction raises; SIGKILL and SIGTERM come from elsewhere.
SIGNALS = ("SIGBUS", "SIGSEGV", "SIGILL")
SILENT = "fell silent"


def find_failure(report: ExitReport) -> str | None:
    """Return what in the end of an attempt points at its machine; None if nothing does."""
    if report.signal in SIGNALS:
        return f"killed by {report.signal}"
    result = report.result or {}
    if result.get("outcome") == "MachineFailure":
        return str(result.get("message"))
    return None


def record(
    services: Services,
    tx: Connection,
    *,
    org: str,
    run_id: str,
    attempt: int,
    machine_id: str,
    kind: str,
) -> None:
    """Record a failure, and suspect the machine if it has had enough of them."""
    now_ms = services.clock.now_ms()
    rows.add_failure(
        tx,
        org=org,
        run_id=run_id,
        attempt=attempt,
        machine_id=machine_id,
        kind=clean_text(kind, limits.HOST),
        time_ms=now_ms,
    )
    row = rows.get(tx, machine_id=machine_id)
    if row is None or row.state != JOINED:
        return
    after_ms = max(now_ms - WINDOW_MS, row.suspected or 0)
    failures = rows.list_failures(tx, machine_id=machine_id, after_ms=after_ms)
    if len({(failure.org, failure.run_id) for failure in failures}) < FAILURES:
        return
    # A machine whose network fails is tested each time, but no test finds anything.
    is_silent = all(failure.kind == SILENT for failure in failures)
    is_recent = row.suspected is not None and now_ms - row.suspected < RELAPSE_MS
    has_relapsed = is_recent and not is_silent
    note = describe_failures(failures)
    if has_relapsed:
        note += "; it had passed its self-test within a day before"
    values = {
        "state": EXCLUDED if has_relapsed else SUSPECT,
        "suspected": now_ms,
        "failed_tests": 0,
        "note": note,
        "last_updated": now_ms,
    }
    rows.change(tx, machine_id=machine_id, values=values)
    log.warning("machine %s is %s: %s", row.name, values["state"], note)


def describe_failures(failures: Sequence[AnyRow]) -> str:
    """Describe failures without naming runs, since organizations share machines."""
    kinds = list(dict.fromkeys(failure.kind for failure in failures))
    runs = len({(failure.org, failure.run_id) for failure in failures})
    return f"{runs} runs failed there within an hour: {', '.join(kinds)}"


async def record_self_test(services: Services, machine_id: str, result: SelfTest) -> None:
    """Record the outcome of a self-test: a suspect machine takes runs again, or is excluded."""
    if result.id and services.self_tests.get(machine_id) == result.id:
        return
    now_ms = services.clock.now_ms()

    def write(tx: Connection) -> AnyRow | None:
        row = rows.get(tx, machine_id=machine_id)
        if row is None or row.state != SUSPECT:
            return None
        failed = 0 if result.passed else row.failed_tests + 1
        message = clean_text(result.message)
        if result.passed:
            state, note = JOINED, f"passed its self-test after: {row.note}"
        elif failed < FAILED_TESTS:
            state, note = SUSPECT, row.note
        else:
            state, note = EXCLUDED, f"failed its self-test {failed} times: {message}"
        values = {"state": state, "failed_tests": failed, "note": note, "last_updated": now_ms}
        # What was before the test does not count again.
        values |= {"suspected": now_ms} if result.passed else {}
        rows.change(tx, machine_id=machine_id, values=values)
        log.warning("machine %s is %s: %s", row.name, state, message)
        return rows.get(tx, machine_id=machine_id)

    row = await services.store.write(write)
    services.self_tests[machine_id] = result.id
    if row is not None:
        services.memberships.put([row])
        services.notifier.notify(notifications.QUEUE)


async def sweep(services: Services) -> None:
    """Remove failures that count no more."""
    before_ms = services.clock.now_ms() - RELAPSE_MS
    await services.store.write(lambda tx: rows.remove_old_failures(tx, before_ms=before_ms))
