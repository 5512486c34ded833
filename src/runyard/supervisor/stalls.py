"""Finds the rank that the other ranks of an attempt wait for in vain.

Every rank writes a beat when it begins a step and around every exchange with the others. When one
hangs, the others soon wait in an exchange that this one has not entered. That alone proves nothing,
since a step may be long. So an attempt is ended only for a rank that was stopped by a signal, or
that is within a step and uses no CPU. Otherwise the rank is only named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from runyard.beats import Beat

CHECK_EVERY_S = 2.0
NAME_AFTER_S, END_AFTER_S = 30.0, 45.0
IDLE_SHARE = 0.01  # of one CPU: what threads of a hanging process that only wait may use


@dataclass(frozen=True, slots=True)
class RankView:
    """What is seen of a rank: its last beat, the CPU time of its process, and whether a signal has
    stopped it.
    """

    beat: Beat
    cpu_s: float | None = None
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """A rank that has not advanced for a while. ``is_final``: it will not by itself."""

    rank: int
    message: str
    is_final: bool


@dataclass(slots=True)
class _Signs:
    """When a rank wrote its last beat, when it last showed life, and the view at that time."""

    view: RankView
    beat_at: float
    alive_at: float
    cpu_at: float


class StallDetector:
    """Compares what is seen of the ranks over time."""

    def __init__(self, *, name_after_s: float = NAME_AFTER_S, end_after_s: float = END_AFTER_S):
        self._name_after_s, self._end_after_s = name_after_s, end_after_s
        self._signs: list[_Signs] = []

    def observe(self, views: Sequence[RankView], now: float) -> Stall | None:
        """Return the rank that the others wait for, if it has not advanced for too long."""
        if not self._signs:
            self._signs = [_Signs(view, now, now, now) for view in views]
        for signs, view in zip(self._signs, views, strict=True):
            _update(signs, view, now)
        rank = _find_awaited(views)
        if rank is None:
            return None
        signs, view = self._signs[rank], views[rank]
        idle_s = now - signs.beat_at
        if idle_s < self._name_after_s:
            return None
        is_lifeless = now - signs.alive_at >= self._end_after_s
        doing = f"in step {view.beat.step + 1}" if view.beat.activity == "step" else "between steps"
        how = "is stopped by a signal" if view.is_stopped else "has not advanced"
        over_s = self._end_after_s if is_lifeless else self._name_after_s
        lifeless = "" if view.is_stopped or not is_lifeless else " and uses no CPU"
        message = f"rank {rank} {how} {doing} for over {over_s:.0f} s{lifeless}; the others wait"
        return Stall(rank, message, is_final=is_lifeless)


def _update(signs: _Signs, view: RankView, now: float) -> None:
    if view.beat != signs.view.beat:
        signs.beat_at = signs.alive_at = signs.cpu_at = now
        signs.view = view
    elif view.cpu_s is None or signs.view.cpu_s is None:
        signs.alive_at = now  # unknown
    elif now - signs.cpu_at >= CHECK_EVERY_S / 2:
        if view.cpu_s - signs.view.cpu_s > IDLE_SHARE * (now - signs.cpu_at):
            signs.alive_at = now
        signs.cpu_at, signs.view = now, view


def _find_awaited(views: Sequence[RankView]) -> int | None:
    """Return the only rank that is stopped, or else the only one that computes a step while all
    others wait.
    """
    stopped = [rank for rank, view in enumerate(views) if view.is_stopped]
    if stopped:
        return stopped[0] if len(stopped) < len(views) else None
    busy = [rank for rank, view in enumerate(views) if view.beat.activity != "waiting"]
    is_awaited = len(busy) == 1 and views[busy[0]].beat.activity == "step"
    return busy[0] if is_awaited else None
