"""Events of a run: the difference between its stored state and the one that replaces it.

Every change of a stored run is read with ``runs.decode_run``, which calls ``remember``, and written
with ``runs.save``, which calls ``record_changes``. So no change can lack its event. What leaves no
trace in a run's document, such as a warning, is added with ``note``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Connection

from runyard.server.services import events
from vi.api.resources.runs.responses import Run, RunAttempt, RunMetadata, RunSpec
from vi.api.responses import ResourceCondition

MOST_NOTES = 100  # of one shipment of lines; its log has all of them
Change = tuple[str, Mapping[str, Any]]  # what has changed, and the details
# Fields whose change is no update by a user: fixed at creation, written by the platform, or a kill.
_OTHER_FIELDS = {
    *("flow", "killed_at", "grace_seconds", "resume_from"),
    *("time_created", "last_updated", "generation"),
}
# Part of the run, field, and its name on the wire.
_USER_FIELDS = [
    (part, field.name, field.encode_name)
    for part, kind in (("spec", RunSpec), ("metadata", RunMetadata))
    for field in msgspec.structs.fields(kind)
    if field.name not in _OTHER_FIELDS
]


class StoredRun(Run, dict=True):
    """A run as it was read from the store; see ``remember``."""


@dataclass
class _Stored:
    """The state of a run in the store, as far as its changes are events, and what was noted.

    Conditions and attributes are replaced, never changed, so they need no copy. ``fields`` are
    those of ``_USER_FIELDS``.
    """

    conditions: list[ResourceCondition]
    attempt_ends: tuple[int | None, ...]
    killed_at: int | None
    fields: list[Any]
    notes: list[tuple[int, Change]]


def remember(run: StoredRun) -> None:
    """Take the state of a run as the one in the store."""
    run.__dict__["stored"] = _Stored(
        conditions=run.status.conditions,
        attempt_ends=tuple(attempt.time_ended for attempt in run.status.attempts),
        killed_at=run.spec.killed_at,
        fields=_list_user_values(run),
        notes=[],
    )


def note(run: StoredRun, what: str, details: Mapping[str, Any], *, now_ms: int) -> None:
    """Add an event that does not follow from the run's document."""
    notes = _get_stored(run).notes
    if len(notes) < MOST_NOTES:
        notes.append((now_ms, (what, details)))


def record_creation(tx: Connection, run: Run, *, actor: str) -> None:
    """Record that a run was created."""
    details = {
        "name": run.name,
        "flow": run.spec.flow.name,
        "trainingProject": run.spec.training_project,
        **_describe_condition(run.status.conditions[-1]),
    }
    _record(tx, run, run.metadata.time_created, ("created", details), actor)


def record_changes(tx: Connection, run: StoredRun, *, actor: str = "") -> None:
    """Record what has changed since the run was read or its changes were recorded."""
    stored, now_ms = _get_stored(run), run.metadata.last_updated
    for change in (*_find_updates(stored, run), *_find_attempt_changes(stored, run)):
        _record(tx, run, now_ms, change, actor)
    for time_ms, change in stored.notes:
        _record(tx, run, time_ms, change, "")
    if stored.conditions is not run.status.conditions:
        for change in _find_transitions(stored.conditions, run.status.conditions):
            _record(tx, run, now_ms, change, actor)
    remember(run)


def _list_user_values(run: Run) -> list[Any]:
    return [getattr(getattr(run, part), name) for part, name, _ in _USER_FIELDS]


def _get_stored(run: StoredRun) -> _Stored:
    return cast(_Stored, run.__dict__["stored"])


def _record(tx: Connection, run: Run, now_ms: int, change: Change, actor: str) -> None:
    what, details = change
    events.record(
        tx,
        org=run.organization_id,
        now_ms=now_ms,
        kind="run",
        target=run.run_id,
        what=what,
        actor=actor,
        document=details,
    )


def _find_updates(stored: _Stored, run: Run) -> Iterator[Change]:
    changed = [
        name
        for (_, _, name), before, now in zip(
            _USER_FIELDS, stored.fields, _list_user_values(run), strict=True
        )
        if before != now
    ]
    if changed:
        yield "updated", {"changed": changed}
    if stored.killed_at != run.spec.killed_at:
        yield "kill", {"graceSeconds": run.spec.grace_seconds}


def _find_attempt_changes(stored: _Stored, run: Run) -> Iterator[Change]:
    known = len(stored.attempt_ends)
    for index, attempt in enumerate(run.status.attempts):
        if index >= known:
            yield "attempt-started", {"attempt": attempt.attempt, "machine": attempt.machine}
        before = stored.attempt_ends[index] if index < known else None
        if attempt.time_ended is not None and before is None:
            yield "attempt-ended", _describe_end(attempt)
        elif attempt.time_ended is None and before is not None:
            yield "attempt-reopened", {"attempt": attempt.attempt, "machine": attempt.machine}


def _find_transitions(
    before: list[ResourceCondition], now: list[ResourceCondition]
) -> Iterator[Change]:
    if before and now[len(before) - 1].reason != before[-1].reason:
        yield "reason", _describe_condition(now[len(before) - 1])
    for entry in now[len(before) :]:
        yield "condition", _describe_condition(entry)


def _describe_condition(entry: ResourceCondition) -> dict[str, Any]:
    return {
        "condition": entry.condition.value,
        "reason": entry.reason,
        "message": entry.message,
    }


def _describe_end(attempt: RunAttempt) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "machine": attempt.machine,
        "cause": attempt.cause,
        "exitCode": attempt.exit_code,
        "signal": attempt.signal,
    }
