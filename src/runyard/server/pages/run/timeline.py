"""The tab *Timeline*: conditions, attempts, checkpoints, evaluations and kills on one time axis.

Positions are percentages of the time from creation to the end, or to now. The same facts follow as
a list, newest last, which screen readers and phones use.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from runyard.server.pages.views import format_clock, format_duration, format_iso, split_words
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run

_MIN_WIDTH = 0.4
_TICKS = 5
_MOST_ENTRIES = 400
# Pixels of a letter and of the space around a text, and of the narrowest lanes.
_LETTER, _AROUND, _LANE, _LANE_ON_PHONE = 7.5, 14, 560, 270
# Events that have a bar or a mark of their own, or repeat what a condition says.
_HIDDEN = {"checkpoint", "condition", "evaluation", "attempt-started", "attempt-ended"}


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A span or a mark in a lane: percentages of the lane, and what it says.

    A text that does not fit is left out; ``is_wide_text`` says that it does not fit on a phone.
    """

    left: str
    width: str
    style: str
    text: str
    is_wide_text: bool
    title: str
    href: str


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the timeline."""

    name: str
    bars: list[Bar]
    marks: list[Bar]


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """A position on the time axis."""

    left: str
    text: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the list below the lanes."""

    time_ms: int
    iso: str
    clock: str
    style: str
    what: str
    detail: str
    href: str


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that happened to a run."""

    lanes: list[Lane]
    ticks: list[Tick]
    entries: list[Entry]
    startup: list[Entry]
    took: str


class Moments(msgspec.Struct, frozen=True, kw_only=True):
    """The time axis: first and last moment, in epoch milliseconds."""

    start: int
    end: int

    def place(self, time_ms: int) -> float:
        """Return a position as a percentage."""
        return min(max(100 * (time_ms - self.start) / max(self.end - self.start, 1), 0.0), 100.0)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that was saved; ``note`` says whether it is the best one, or deleted."""

    id: str
    step: int | None
    time_ms: int
    note: str

    @property
    def text(self) -> str:
        return f"step {self.step}{f', {self.note}' if self.note else ''}"


def build_timeline(
    run: Run,
    *,
    models: Sequence[Model],
    events: Sequence[Any],
    evaluations: Sequence[tuple[int, int]],
    base: str,
    now_ms: int,
) -> Timeline:
    """Return the timeline; ``evaluations`` are steps with their times."""
    latest = run.status.conditions[-1]
    end = latest.last_transition_time if latest.condition.is_final else now_ms
    axis = Moments(start=run.metadata.time_created, end=max(end, run.metadata.time_created + 1))
    saved = _list_saved(models, events)
    lanes = [
        _build_conditions(run, axis, base),
        _build_attempts(run, axis, base),
        _build_checkpoints(saved, axis, base),
        _build_evaluations(evaluations, axis, base),
        _build_kills(run, events, axis, base),
    ]
    entries = sorted(
        [
            *_list_events(run, events, base),  # what happened, before what it led to
            *_list_conditions(run, base),
            *_list_attempts(run, base),
            *_list_checkpoints(saved, base),
            *_list_evaluations(evaluations, base),
        ],
        key=lambda entry: entry.time_ms,
    )
    return Timeline(
        lanes=[lane for lane in lanes if lane.bars or lane.marks],
        ticks=_build_ticks(axis),
        entries=entries[-_MOST_ENTRIES:],
        startup=_list_startup(run, events, base),
        took=format_duration((axis.end - axis.start) / 1000),
    )


def _build_ticks(axis: Moments) -> list[Tick]:
    span_s = (axis.end - axis.start) / 1000
    return [
        Tick(
            left=f"{100 * i / _TICKS:g}%",
            text="0" if i == 0 else _format_offset(span_s * i / _TICKS),
        )
        for i in range(_TICKS + 1)
    ]


def _format_offset(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)


def _build_bar(
    axis: Moments, start: int, end: int, *, style: str, text: str, title: str, href: str
) -> Bar:
    left, right = axis.place(start), axis.place(end)
    width = max(right - left, _MIN_WIDTH)
    left, needed = min(left, 100 - width), 100 * (_LETTER * len(text) + _AROUND)
    return Bar(
        left=f"{left:.3f}%",
        width=f"{width:.3f}%",
        style=style,
        text=text if width >= needed / _LANE else "",
        is_wide_text=width < needed / _LANE_ON_PHONE,
        title=title,
        href=href,
    )


def _link_log(base: str, time_ms: int) -> str:
    return f"{base}/log?at={time_ms}&follow=0"


def _build_conditions(run: Run, axis: Moments, base: str) -> Lane:
    history = run.status.conditions
    bars = []
    for index, entry in enumerate(history):
        start = entry.last_transition_time
        end = history[index + 1].last_transition_time if index + 1 < len(history) else axis.end
        kind = entry.condition.value
        bars.append(
            _build_bar(
                axis,
                start,
                end,
                style=kind.lower(),
                text=kind,
                title=f"{kind} {split_words(entry.reason or '')}".strip()
                + f", {format_duration((end - start) / 1000)}",
                href=_link_log(base, start),
            )
        )
    return Lane(name="Condition", bars=bars, marks=[])


def _build_attempts(run: Run, axis: Moments, base: str) -> Lane:
    bars = [
        _build_bar(
            axis,
            attempt.time_started,
            attempt.time_ended or axis.end,
            style="attempt" if attempt.exit_code in (None, 0, 75) else "attempt-bad",
            text=f"attempt {attempt.attempt}",
            title=", ".join(_describe_attempt(attempt)),
            href=_link_log(base, attempt.time_started),
        )
        for attempt in run.status.attempts
    ]
    return Lane(name="Attempts", bars=bars, marks=[])


def _describe_attempt(attempt: Any) -> list[str]:
    facts = [f"attempt {attempt.attempt}"]
    if attempt.machine:
        facts.append(f"on {attempt.machine}")
    if attempt.exit_code is not None:
        facts.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        facts.append(attempt.signal)
    if attempt.micro_batch_size:
        facts.append(f"micro-batch {attempt.micro_batch_size}")
    if attempt.cause:
        facts.append(attempt.cause)
    return facts


def _list_saved(models: Sequence[Model], events: Sequence[Any]) -> list[Saved]:
    """Return every checkpoint that has an event, and those that are kept."""
    kept = {model.model_id: model for model in models}
    found = {
        str(event.details.get("checkpoint")): Saved(
            id=str(event.details.get("checkpoint")),
            step=event.details.get("step"),
            time_ms=event.time,
            note="deleted since",
        )
        for event in events
        if event.what == "checkpoint"
    }
    for id, model in kept.items():
        found[id] = Saved(
            id=id,
            step=model.spec.step,
            time_ms=found[id].time_ms if id in found else model.metadata.time_created,
            note="best" if model.spec.is_best else "",
        )
    return sorted(found.values(), key=lambda each: each.time_ms)


def _build_checkpoints(saved: Sequence[Saved], axis: Moments, base: str) -> Lane:
    marks = [
        _build_bar(
            axis,
            each.time_ms,
            each.time_ms,
            style={"best": "best", "": "checkpoint"}.get(each.note, "deleted"),
            text="",
            title=f"{each.id}, {each.text}",
            href=_link_log(base, each.time_ms),
        )
        for each in saved
    ]
    return Lane(name="Checkpoints", bars=[], marks=marks)


def _build_evaluations(evaluations: Sequence[tuple[int, int]], axis: Moments, base: str) -> Lane:
    marks = [
        _build_bar(
            axis,
            time_ms,
            time_ms,
            style="evaluation",
            text="",
            title=f"evaluation at step {step}",
            href=f"{base}/predictions?evaluation={step}",
        )
        for step, time_ms in evaluations
    ]
    return Lane(name="Evaluations", bars=[], marks=marks)


def _build_kills(run: Run, events: Sequence[Any], axis: Moments, base: str) -> Lane:
    marks = [
        _build_bar(
            axis,
            event.time,
            event.time,
            style="kill",
            text="",
            title=f"{event.what} by {event.actor}" if event.actor else event.what,
            href=_link_log(base, event.time),
        )
        for event in events
        if event.what in ("kill", "warning")
    ]
    killed_at = run.spec.killed_at
    if killed_at is not None and not any(event.what == "kill" for event in events):
        marks.append(
            _build_bar(
                axis,
                killed_at,
                killed_at,
                style="kill",
                text="",
                title="kill",
                href=_link_log(base, killed_at),
            )
        )
    return Lane(name="Kills, warnings", bars=[], marks=marks)


def _build_entry(time_ms: int, style: str, what: str, detail: str, href: str) -> Entry:
    return Entry(
        time_ms=time_ms,
        iso=format_iso(time_ms),
        clock=format_clock(time_ms),
        style=style,
        what=what,
        detail=detail,
        href=href,
    )


def _list_conditions(run: Run, base: str) -> list[Entry]:
    return [
        _build_entry(
            entry.last_transition_time,
            entry.condition.value.lower(),
            entry.condition.value,
            ": ".join(filter(None, (split_words(entry.reason or ""), entry.message or ""))),
            _link_log(base, entry.last_transition_time),
        )
        for entry in run.status.conditions
    ]


def _list_attempts(run: Run, base: str) -> list[Entry]:
    entries = []
    for attempt in run.status.attempts:
        number, where = f"Attempt {attempt.attempt}", f"on {attempt.machine}"
        entries.append(
            _build_entry(
                attempt.time_started,
                "attempt",
                f"{number} started",
                where,
                _link_log(base, attempt.time_started),
            )
        )
        if attempt.time_ended:
            end = ", ".join(_describe_attempt(attempt)[1:])
            entries.append(
                _build_entry(
                    attempt.time_ended,
                    "attempt",
                    f"{number} ended",
                    end,
                    _link_log(base, max(attempt.time_ended - 5000, 0)),
                )
            )
    return entries


def _list_checkpoints(saved: Sequence[Saved], base: str) -> list[Entry]:
    return [
        _build_entry(
            each.time_ms,
            "checkpoint",
            f"Checkpoint {each.id}",
            each.text,
            _link_log(base, each.time_ms),
        )
        for each in saved
    ]


def _list_evaluations(evaluations: Sequence[tuple[int, int]], base: str) -> list[Entry]:
    return [
        _build_entry(
            time_ms,
            "evaluation",
            "Evaluation",
            f"step {step}",
            f"{base}/predictions?evaluation={step}",
        )
        for step, time_ms in evaluations
    ]


def _list_events(run: Run, events: Sequence[Any], base: str) -> list[Entry]:
    entries = [
        _build_entry(
            event.time,
            "kill" if event.what == "kill" else event.what,
            split_words(event.what.capitalize().replace("-", " ")),
            describe_event(event),
            _link_log(base, event.time),
        )
        for event in events
        if event.what not in _HIDDEN and event.what != "reason"
    ]
    if run.spec.killed_at is not None and not any(event.what == "kill" for event in events):
        killed_at = run.spec.killed_at
        entries.append(_build_entry(killed_at, "kill", "Kill", "", _link_log(base, killed_at)))
    return entries


def describe_event(event: Any) -> str:
    """Return what an event says beyond its name: who, and its details as text."""
    details = event.details if isinstance(event.details, dict) else {}
    facts = [f"by {event.actor}"] if event.actor else []
    facts += [
        f"{name} {value}" if name not in ("message", "reason") else str(value)
        for name, value in details.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
    ]
    return ", ".join(facts)[:300]


def _list_startup(run: Run, events: Sequence[Any], base: str) -> list[Entry]:
    """Return how long each part of the start took: waiting, preparing, the first step."""
    if not run.status.attempts:
        return []
    created, started = run.metadata.time_created, run.status.attempts[0].time_started
    reasons = [
        (event.time, str((event.details or {}).get("reason", "")))
        for event in events
        if event.what in ("reason", "condition")
    ]
    training = next((time for time, reason in reasons if reason == "Training"), None)
    parts = [("Waited for a machine", created, started)]
    if training is not None and training >= started:
        parts.append(("Prepared data and model", started, training))
    return [
        _build_entry(
            start, "startup", what, _format_offset((end - start) / 1000), _link_log(base, start)
        )
        for what, start, end in parts
    ]
