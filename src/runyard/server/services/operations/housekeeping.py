"""Housekeeping that keeps a long-running server from filling its disk.

Logs of runs that ended long ago are removed where a setting says so, metric points of a database or
a backup from before they were packed are packed, and free space of the database is returned.
Nothing here is urgent: each piece is a short transaction, and the next sweep does what is left.
"""

import logging
from functools import partial
from typing import Any

from sqlalchemy import Connection

from runyard.server.services.context import Actor, Services
from runyard.server.services.runs.deletion import thin_out_log
from runyard.server.services.runs.runs import decode_run
from runyard.store import StoreUnavailable, organizations
from runyard.store import runs as rows
from runyard.store.telemetry import logs, metrics, packing
from runyard.store.telemetry.chunks import CHUNK_POINTS
from vi.api.responses import ConditionKind

log = logging.getLogger(__name__)

DAY_MS = 24 * 3600 * 1000
FINAL = tuple(kind.value for kind in ConditionKind if kind.is_final)
RETENTION = "retention"
METRICS_PACKED = "metrics packed"  # a fact about the store, see ``organizations.get_meta``
RUNS_AT_ONCE = 100


def start(services: Services) -> None:
    """Sweep in a separate task, one at a time: leases must not wait until gigabytes are freed."""
    services.jobs.start(("housekeeping", "", ""), lambda: sweep(services))


async def sweep(services: Services) -> None:
    """Remove old logs, pack old metrics, then return free space to the disk."""
    try:
        await _remove_old_logs(services)
        await _pack_old_metrics(services)
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


async def _pack_old_metrics(services: Services) -> None:
    """Pack the metric points of every run once, unless that was done in this store before.

    Points that arrive later are packed as they come.
    """
    store = services.store
    if store.read(lambda tx: organizations.get_meta(tx, METRICS_PACKED)) is not None:
        return
    last = ("", "")
    while found := await store.read_in_thread(
        partial(metrics.find_unpacked, after=last, limit=RUNS_AT_ONCE)
    ):
        for org, run_id in found:
            while await store.write(partial(_pack_some, org=org, run_id=run_id)):
                pass
        last = found[-1]

    def set_packed(tx: Connection) -> None:
        if organizations.get_meta(tx, METRICS_PACKED) is None:
            organizations.set_meta(tx, METRICS_PACKED, "yes")

    await store.write(set_packed)


def _pack_some(tx: Connection, *, org: str, run_id: str) -> bool:
    """Pack the oldest points of a run, if there are enough; return whether to continue."""
    counts = metrics.get_counts(tx, org=org, run_id=run_id)
    if counts is None or counts.metric_count - counts.metric_packed < CHUNK_POINTS:
        return False
    packed = packing.pack_rows(tx, org=org, run_id=run_id, packed=counts.metric_packed)
    rows.change(tx, org=org, run_id=run_id, values={"metric_packed": packed})
    return packed > int(counts.metric_packed)


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
