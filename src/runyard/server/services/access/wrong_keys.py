"""Requests without a valid key: limited by address, and counted in the audit log.

Each address has a token bucket. A request whose key is missing or wrong takes a token; when none is
left, such requests get ``TooManyRequests`` instead of ``Unauthorized``. The key is checked first,
in memory, so a valid key is never limited by what others send from the same address. IPv6 addresses
count by their /64, of which one host has all.

The audit log gets one row per address, key and minute with a count. At most ``MOST_ROWS`` rows a
minute name their address; requests from further ones are counted in one row, so that nobody can
fill the disk. Rows are written once a minute, when the audit log is read, and at the end, so a
crash loses at most a minute of them. Memory is bounded by ``MOST_ADDRESSES`` buckets; the least
recently used are dropped.
"""

import asyncio
import ipaddress
import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from sqlalchemy import Connection

from runyard.server.services.access.keys import Rejection
from runyard.server.services.errors import Refusal, unauthorized
from runyard.store import Store, organizations
from runyard.store import audit as rows

ACTION = "reject key"
BURST = 300  # wrong keys in a row from one address
REFILL_PER_S = 1.0
MOST_ADDRESSES = 10_000
MOST_ROWS = 20  # a minute
MINUTE_MS = 60_000
MOST_UNWRITTEN = 1000  # while the store cannot be written
ELSEWHERE = "other addresses"


@dataclass
class _Bucket:
    tokens: float
    time_s: float


@dataclass(eq=False)
class _Row:
    """An audit row whose count grows; ``number`` is None until it has been inserted."""

    org: str | None
    address: str
    target: str
    time_ms: int
    count: int = 0
    written: int = 0
    number: int | None = None


class WrongKeys:
    """Recently rejected requests; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._minute = 0
        self._rows: dict[tuple[str, str | None], _Row] = {}
        self._unwritten: deque[_Row] = deque(maxlen=MOST_UNWRITTEN)
        self._lock = asyncio.Lock()  # two writers would both insert a row that has no number yet

    def reject(self, address: str, rejection: Rejection, *, now_ms: int, now_s: float) -> Refusal:
        """Count a rejected request; return its refusal."""
        self._count(address, rejection, now_ms)
        wait_s = self._take_token(_get_network(address), now_s)
        if wait_s:
            return Refusal(
                "TooManyRequests",
                f"too many requests without a valid key came from this address; try: wait {wait_s} "
                "s and send the key of credentials.json in the data folder",
                retry_after_s=wait_s,
            )
        return unauthorized()

    async def write(self, store: Store) -> None:
        """Write the counts to the audit log.

        Rows of unknown keys belong to the first organization.
        """
        async with self._lock:
            counts = [(row, row.count) for row in self._unwritten if row.count > row.written]
            if not counts:
                return

            def write_rows(tx: Connection) -> list[int]:
                first_org = organizations.list_ids(tx)[0]
                return [_write_row(tx, row, count, first_org) for row, count in counts]

            for (row, count), number in zip(counts, await store.write(write_rows), strict=True):
                row.number, row.written = number, count
            open_rows = set(self._rows.values())
            kept = [row for row in self._unwritten if row in open_rows or row.count > row.written]
            self._unwritten = deque(kept, MOST_UNWRITTEN)

    def forget_rows(self) -> None:
        """Begin new audit rows: those that were counted up are no longer in the store."""
        self._rows.clear()
        self._unwritten.clear()

    def _count(self, address: str, rejection: Rejection, now_ms: int) -> None:
        if now_ms // MINUTE_MS != self._minute:
            self._minute = now_ms // MINUTE_MS
            self._rows.clear()
        # Unknown ids are unlimited in number, so they share a row, which names the first of them.
        key = (_get_network(address), rejection.key_id if rejection.reason != "unknown" else None)
        if key not in self._rows and len(self._rows) >= MOST_ROWS:
            key, address = (ELSEWHERE, None), ELSEWHERE
            rejection = Rejection(org=None, key_id=None, reason="more than can be listed")
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row(rejection.org, address, rejection.target, now_ms)
            self._unwritten.append(row)
        row.count += 1

    def _take_token(self, network: str, now_s: float) -> int:
        """Take a token; return 0, or the whole seconds until there is one."""
        bucket = self._buckets.pop(network, None) or _Bucket(BURST, now_s)
        self._buckets[network] = bucket
        if len(self._buckets) > MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        bucket.tokens = min(BURST, bucket.tokens + (now_s - bucket.time_s) * REFILL_PER_S)
        bucket.time_s = now_s
        if bucket.tokens < 1:
            return max(1, math.ceil((1 - bucket.tokens) / REFILL_PER_S))
        bucket.tokens -= 1
        return 0


def _write_row(tx: Connection, row: _Row, count: int, default_org: str) -> int:
    """Insert a row or update its count; return its number."""
    if row.number is not None:
        rows.set_count(tx, number=row.number, count=count)
        return row.number
    return rows.add(
        tx,
        org=row.org or default_org,
        time_ms=row.time_ms,
        actor="nobody",
        address=row.address,
        action=ACTION,
        target=row.target,
        count=count,
    )


def _get_network(address: str) -> str:
    """Return what is limited together: an IPv4 address, or the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
