"""Recent use of a project: unit-seconds that decay with a half-life of 24 h.

An attempt counts for at least ten minutes from the moment it is placed, the time for which it
cannot be preempted. Otherwise one project would be given every machine that is free at the same
moment, since none of its new runs has used anything yet.
"""

from collections import deque
from math import exp, log

from runyard.server.scheduling.view import ProjectKey, RunKey, Share

HALF_LIFE_MS = 24 * 3600 * 1000
DECAY_PER_MS = log(2) / HALF_LIFE_MS
PREPAID_MS = 600_000


class ProjectUse:
    """Use, limits and running units of a project or an organization."""

    __slots__ = (
        "_prepaid", "_prepaid_starts", "_prepaid_units", "_recent", "at_ms", "guaranteed", "key",
        "limit", "running", "used_s", "weight",
    )  # fmt: skip

    def __init__(self, share: Share) -> None:
        self.key = ProjectKey(share.org, share.project)
        self.running = 0
        self._recent: deque[tuple[int, RunKey]] = deque()  # by start, including ended ones
        self._prepaid: dict[RunKey, tuple[int, int]] = {}  # start and units
        self._prepaid_units = self._prepaid_starts = 0
        self.used_s, self.at_ms = share.used_s, share.at_ms
        self.configure(share)

    def configure(self, share: Share) -> None:
        """Set weight, guaranteed share and limit; what was used stays."""
        self.weight, self.guaranteed, self.limit = share.weight, share.guaranteed, share.limit

    def to_share(self) -> Share:
        """Return the state as part of a view."""
        return Share(
            org=self.key.org,
            project=self.key.project,
            weight=self.weight,
            guaranteed=self.guaranteed,
            limit=self.limit,
            used_s=self.used_s,
            at_ms=self.at_ms,
        )

    def compute_used_s(self, now_ms: int) -> float:
        """Return the decayed use, running attempts included."""
        decay = exp(-DECAY_PER_MS * max(0, now_ms - self.at_ms))
        return self.used_s * decay + self.running * (1 - decay) / DECAY_PER_MS / 1000

    def compute_weighted_use(self, now_ms: int) -> float:
        """Return what the order of projects compares. A weight of 0 comes last."""
        while self._recent and self._recent[0][0] <= now_ms - PREPAID_MS:
            self._forget_prepaid(self._recent.popleft()[1], before_ms=now_ms - PREPAID_MS)
        prepaid_ms = self._prepaid_units * (PREPAID_MS - now_ms) + self._prepaid_starts
        used_s = self.compute_used_s(now_ms) + prepaid_ms / 1000
        return used_s / self.weight if self.weight > 0 else float("inf")

    def start(self, run: RunKey, units: int, *, started_ms: int, now_ms: int) -> None:
        """Count an attempt from ``now_ms``; what it used before is in ``used_s``."""
        self._settle(now_ms)
        self.running += units
        self._recent.append((started_ms, run))
        self._prepaid[run] = (started_ms, units)
        self._prepaid_units += units
        self._prepaid_starts += units * started_ms

    def restore(self, run: RunKey, units: int, *, started_ms: int) -> None:
        """Count an attempt whose use is part of the share; call in the order of starts."""
        self.start(run, units, started_ms=started_ms, now_ms=self.at_ms)

    def end(self, run: RunKey, units: int, *, now_ms: int) -> None:
        """Count an attempt no longer; only what it really used remains."""
        self._settle(now_ms)
        self.running -= units
        self._forget_prepaid(run, before_ms=now_ms)

    def _settle(self, now_ms: int) -> None:
        if now_ms > self.at_ms:
            self.used_s, self.at_ms = self.compute_used_s(now_ms), now_ms

    def _forget_prepaid(self, run: RunKey, *, before_ms: int) -> None:
        # An older entry of a run that has started again must not remove the newer one.
        found = self._prepaid.get(run)
        if found is not None and found[0] <= before_ms:
            started_ms, units = self._prepaid.pop(run)
            self._prepaid_units -= units
            self._prepaid_starts -= units * started_ms
