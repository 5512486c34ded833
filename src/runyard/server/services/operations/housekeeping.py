"""Housekeeping that keeps a long-running server from filling its disk.

Logs of runs that ended long ago are removed where a setting says so, and free space of the database
is returned. Nothing here is urgent: each piece is a short transaction, and the next sweep does what
is left.
"""

import logging
from functools import partial
from typing import Any

from sqlalchemy import Connection

from runyard.server.services.context import Actor, Services
from runyard.server.services.runs.deletion import thin_out_log
from runyard.server.services.runs.runs import decode_run
from runyard.store import StoreUnavailable
from runyard.store import runs as rows
from runyard.store.telemetry import logs
from vi.api.responses import ConditionKind

log = logging.getLogger(__name__)

DAY_MS = 24 * 3600 * 1000
FINAL = tuple(kind.value for kind in ConditionKind if kind.is_final)
RETENTION = "retention"


def start(services: Services) -> None:
    """Sweep in a separate task, one at a time: leases must not wait until gigabytes are freed."""
    services.jobs.start(("housekeeping", "", ""), lambda: sweep(services))


async def sweep(services: Services) -> None:
    """Remove logs that are older than they are kept, then return free space to the disk."""
    try:
        await _remove_old_logs(services)
        await services.store.reclaim()
    except StoreUnavailable as error:
        log.error("disk space could not be reclaimed: %s", error)


async def _remove_old_logs(services: Services) -> None:
    days = services.settings.keep_logs_days
    if days <= 0:
        return
    before_ms = services.clock.now_ms() - round(days * DAY_MS)
    # A run that ended before then was created before then.
    candidates = services.store.read(
        partial(rows.list_with_log, conditions=FINAL, created_before=before_ms)
    )
    for row in candidates:
        if decode_run(row.document).status.conditions[-1].last_transition_time < before_ms:
            await _remove_log(services, row.org, row.id, days)


async def _remove_log(services: Services, org: str, run_id: str, days: float) -> None:
    key: Any = {"org": org, "run_id": run_id}
    await thin_out_log(services, **key)
    now_ms = services.clock.now_ms()

    def delete_log(tx: Connection) -> None:
        row = rows.get(tx, **key)
        if row is None or not row.log_bytes:
            return
        logs.remove_log(tx, **key)
        number = row.log_count + 1
        line = {
            **key,
            "number": number,
            "time": now_ms,
            "attempt": 0,
            "stream": "events",
            "text": f"The log was removed {days:g} days after the end of the run "
            "(RUNYARD_KEEP_LOGS_DAYS).",
        }
        logs.add_log_lines(tx, [line])
        rows.change(tx, **key, values={"log_bytes": 0, "log_count": number})
        actor = Actor(org=org, name=RETENTION, role="", address="")
        services.audit(actor, "remove log", run_id)(tx)

    await services.store.write(delete_log)
