"""Hints: what a run has now, and for pages that show its curves the points that are new.

Nothing depends on a hint: a reader that misses one fetches more later. The streams of an
organization take the hints of a run at the same moments, so what one reads is kept for the others.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
from sqlalchemy import Connection

from runyard.store import Store
from runyard.store import runs as run_rows
from runyard.store.telemetry import metrics
from vi.api.resources.events.responses import RunHint

MOST_POINTS = 200  # of one hint; a page fetches what is more as buckets
KEPT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUpdate:
    """A hint of a run and its new points as server-sent events. ``count`` is that of all points."""

    run_id: str
    hint: bytes
    points: bytes
    count: int


class NewPoint(msgspec.Struct, array_like=True, frozen=True):
    """A metric point; ``time`` is epoch milliseconds."""

    step: int
    time: int
    epoch: float
    values: Mapping[str, float]


class NewPoints(msgspec.Struct, frozen=True):
    """The points of a run that follow the one numbered ``after``, without a gap."""

    run: str
    after: int
    rows: list[NewPoint]


Updates = Mapping[str, RunUpdate]


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of several runs, and of which state: ``version`` is that of the notifier."""

    version: int
    time_s: float
    updates: "asyncio.Task[Updates]"

    def get_count(self, run_id: str) -> int | None:
        """Return how many points the run had, if that is known."""
        if not self.updates.done() or self.updates.cancelled() or self.updates.exception():
            return None
        update = self.updates.result().get(run_id)
        return None if update is None else update.count


class Hints:
    """The newest hints of runs that change; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._reads: dict[tuple[str, str], _Read] = {}
        self._watched: Counter[tuple[str, str]] = Counter()

    @contextlib.contextmanager
    def watch(self, org: str, run_ids: Collection[str]) -> Iterator[None]:
        """Read new points of these runs as well while the block runs."""
        watched = [(org, run_id) for run_id in run_ids]
        self._watched.update(watched)
        try:
            yield
        finally:
            self._watched.subtract(watched)
            self._watched = +self._watched

    async def read(self, store: Store, org: str, runs: Mapping[str, int]) -> list[RunUpdate]:
        """Return what is new of runs, given for each the version that its hint must have seen.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        missing = {
            run_id: version
            for run_id, version in runs.items()
            if (found := self._reads.get((org, run_id))) is None or found.version < version
        }
        if missing:
            self._start_read(store, org, missing)
        # A stream that ends must not cancel what others wait for.
        parts = dict.fromkeys(self._reads[org, run_id].updates for run_id in runs)
        updates: dict[str, RunUpdate] = {}
        for part in parts:
            updates |= await asyncio.shield(part)
        return [updates[run_id] for run_id in runs if run_id in updates]

    def _start_read(self, store: Store, org: str, runs: Mapping[str, int]) -> None:
        now_s = asyncio.get_running_loop().time()
        known = {
            run_id: found.get_count(run_id) if self._watched[org, run_id] else None
            for run_id in runs
            for found in [self._reads.get((org, run_id))]
            if found is not None
        }
        task = asyncio.ensure_future(
            store.read_in_thread(partial(_read_updates, org=org, run_ids=list(runs), known=known))
        )
        self._reads = {
            key: read for key, read in self._reads.items() if now_s - read.time_s < KEPT_S
        }
        for run_id, version in runs.items():
            self._reads[org, run_id] = _Read(version, now_s, task)


def _read_updates(
    tx: Connection, *, org: str, run_ids: Collection[str], known: Mapping[str, int | None]
) -> Updates:
    found = {run_id: _read_update(tx, org, run_id, known.get(run_id)) for run_id in run_ids}
    return {run_id: update for run_id, update in found.items() if update is not None}


class _Progress(msgspec.Struct, rename="camel"):
    step: int = 0
    total_steps: int = 0


class _StatusOutline(msgspec.Struct):
    progress: _Progress | None = None


class _RunOutline(msgspec.Struct):
    """The part of a run's document that a hint needs."""

    status: _StatusOutline


_decode_outline = msgspec.json.Decoder(_RunOutline).decode


def _read_update(tx: Connection, org: str, run_id: str, known: int | None) -> RunUpdate | None:
    row = run_rows.get(tx, org=org, run_id=run_id)
    if row is None or row.deleted:
        return None
    progress = _decode_outline(row.document).status.progress or _Progress()
    hint = RunHint(
        run=run_id,
        points=row.metric_count,
        lines=row.log_count,
        step=progress.step,
        total_steps=progress.total_steps,
        etag=row.etag,
    )
    new = None if known is None else _list_new(tx, org, run_id, known, row.metric_count)
    return RunUpdate(
        run_id=run_id,
        hint=_encode("hint", hint),
        points=_encode("points", new) if new else b"",
        count=row.metric_count,
    )


def _list_new(tx: Connection, org: str, run_id: str, after: int, count: int) -> NewPoints | None:
    """Return the points numbered above ``after``; None if they are none, too many, or packed."""
    if not 0 < count - after <= MOST_POINTS:
        return None
    rows = metrics.list_rows(tx, org=org, run_id=run_id, after=after, limit=count - after)
    if [row.number for row in rows] != list(range(after + 1, count + 1)):
        return None
    points = [NewPoint(row.step, row.time, row.epoch, row.values) for row in rows]
    return NewPoints(run=run_id, after=after, rows=points)


def _encode(name: str, value: RunHint | NewPoints) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
