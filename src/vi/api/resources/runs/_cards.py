"""Runs and samples in notebooks and data frames: a card, a row of a table, and a record.

The card of a run has its condition with the reason, its progress and time left, and how long it
spent in each condition. The card of a sample draws the true boxes with solid and the
predicted ones with dashed lines; it does not contain the image, which would exceed the limit.
"""

import time
from typing import TYPE_CHECKING, Any

from vi.api._display import format_duration, format_local_time
from vi.api._frames import to_datetime
from vi.api._html import (
    CONDITION_COLORS,
    Html,
    render_card,
    render_condition,
    render_progress,
    render_text,
)
from vi.api.resources.runs._summary import describe_progress, list_finding_fields
from vi.api.responses import ConditionKind

if TYPE_CHECKING:
    from vi.api.resources.runs.responses import Run, Sample

_MAX_ATTRIBUTES = 20
_TIMELINE_WIDTH = 300
_BOXES_SIZE = 200
_MAX_BOXES = 20


def render_run_card(run: "Run", *, now_ms: int | None = None) -> str:
    """Return a run as a card of HTML."""
    last = run.status.conditions[-1] if run.status.conditions else None
    fields: list[tuple[str, object]] = [("Run", run.run_id)]
    if run.status.progress is not None:
        fields.append(("Progress", _render_progress(run)))
    if last is not None and last.message:
        fields.append(("Message", last.message))
    fields += list_finding_fields(run)
    if run.status.conditions:
        fields.append(("History", _render_timeline(run, now_ms or time.time_ns() // 1_000_000)))
    if run.spec.training_project:
        fields.append(("Training project", run.spec.training_project))
    if run.spec.resume_from is not None:
        origin = run.spec.resume_from
        fields.append(("Resumed from", f"{origin.run_id}, step {origin.step:,}"))
    fields.append(("Created", format_local_time(run.metadata.time_created)))
    attributes = sorted(run.metadata.attributes.items())
    fields += [(key, value) for key, value in attributes[:_MAX_ATTRIBUTES]]
    if len(attributes) > _MAX_ATTRIBUTES:
        fields.append(("", f"and {len(attributes) - _MAX_ATTRIBUTES} attributes more"))
    return render_card(run.name or run.run_id, _render_condition(run), fields)


def render_sample_card(sample: "Sample") -> str:
    """Return a sample as a card of HTML: question, answers, scores and boxes."""
    fields: list[tuple[str, object]] = [
        ("Question", sample.question),
        ("Truth", sample.truth.text),
        ("Predicted", sample.predicted.text),
    ]
    if sample.parse != "ok":
        fields.append(("Not parsed", sample.parse))
    if sample.truth.boxes or sample.predicted.boxes:
        fields.append(("Boxes", _render_boxes(sample)))
    fields += [(name, f"{value:.4g}") for name, value in sample.scores.items()]
    if sample.image.filename:
        fields.append(("File", sample.image.filename))
    score = "" if sample.score is None else f"score {sample.score:.4g}"
    return render_card(f"Sample {sample.index}, step {sample.step:,}", score, fields)


def build_run_row(run: "Run") -> dict[str, Any]:
    """Return a run as a row of a table of HTML."""
    progress = run.status.progress
    return {
        "condition": _render_condition(run),
        "run": run.run_id,
        "name": run.name,
        "progress": _render_progress(run, is_short=True) if progress else "",
        "metric": f"{progress.metric_name} {progress.metric:.4g}"
        if progress and progress.metric is not None
        else "",
        "created": format_local_time(run.metadata.time_created),
        "attributes": ", ".join(f"{key}={value}" for key, value in run.metadata.attributes.items()),
    }


def build_run_record(run: "Run") -> dict[str, Any]:
    """Return a run as a row of a data frame; attributes are columns of their own."""
    last = run.status.conditions[-1] if run.status.conditions else None
    progress = run.status.progress
    names = (
        "step",
        "total_steps",
        "epoch",
        "loss",
        "metric_name",
        "metric",
        "baseline",
        "seconds_left",
    )
    return {
        "run_id": run.run_id,
        "name": run.name,
        "condition": last.condition.value if last else None,
        "reason": last.reason if last else None,
        "message": last.message if last else None,
        "flow": run.spec.flow.name,
        "training_project": run.spec.training_project,
        "time_created": to_datetime(run.metadata.time_created),
        "last_updated": to_datetime(run.metadata.last_updated),
        **{name: getattr(progress, name) if progress else None for name in names},
        "attempts": len(run.status.attempts),
        **{f"attributes.{key}": value for key, value in run.metadata.attributes.items()},
    }


def _render_condition(run: "Run") -> Html:
    if not run.status.conditions:
        return render_condition(None)
    last = run.status.conditions[-1]
    return render_condition(last.condition.value, last.reason)


def _render_progress(run: "Run", *, is_short: bool = False) -> Html:
    progress = run.status.progress
    if progress is None:
        return Html("")
    share = f"{progress.step:,}/{progress.total_steps:,}"
    text = share if is_short else describe_progress(progress)
    return render_progress(progress.step, progress.total_steps, text=text)


def _render_timeline(run: "Run", now_ms: int) -> Html:
    """Return the conditions as segments whose lengths are the time spent in each."""
    conditions = run.status.conditions
    starts_ms = [condition.last_transition_time for condition in conditions]
    ends_ms = [*starts_ms[1:], starts_ms[-1] if _is_final(run) else max(now_ms, starts_ms[-1])]
    total_ms = max(1, ends_ms[-1] - starts_ms[0])
    segments, texts = [], []
    for condition, start_ms, end_ms in zip(conditions, starts_ms, ends_ms, strict=True):
        name = condition.condition.value
        x = _TIMELINE_WIDTH * (start_ms - starts_ms[0]) / total_ms
        width = max(1.0, _TIMELINE_WIDTH * (end_ms - start_ms) / total_ms)
        color = CONDITION_COLORS.get(name, CONDITION_COLORS["Cancelled"])
        segments.append(f'<rect x="{x:.1f}" width="{width:.1f}" height="8" fill="{color}"/>')
        texts.append(f"{name} {format_duration((end_ms - start_ms) / 1000)}")
    if _is_final(run):
        texts[-1] = conditions[-1].condition.value
    label = render_text(", ".join(texts[-6:]), longest=200)
    return Html(
        f'<svg width="{_TIMELINE_WIDTH}" height="8" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(segments[-40:])}</svg><br>{label}"
    )


def _render_boxes(sample: "Sample") -> Html:
    image = sample.image
    scale = _BOXES_SIZE / max(1, image.width, image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shapes = [
        (box, CONDITION_COLORS["Succeeded"], "") for box in sample.truth.boxes[:_MAX_BOXES]
    ] + [
        (box, CONDITION_COLORS["Error"], ' stroke-dasharray="4 2"')
        for box in sample.predicted.boxes[:_MAX_BOXES]
    ]
    drawn = []
    for one, color, dashes in shapes:
        phrase = render_text(one.phrase, longest=30)
        left, top, right, bottom = (min(1.0, max(0.0, side)) for side in one.box)
        drawn.append(
            f'<rect x="{left * width:.1f}" y="{top * height:.1f}" '
            f'width="{max(0.0, right - left) * width:.1f}" '
            f'height="{max(0.0, bottom - top) * height:.1f}" fill="none" stroke="{color}" '
            f'stroke-width="1.5"{dashes}><title>{phrase}</title></rect>'
        )
    label = f"{len(sample.truth.boxes)} true, {len(sample.predicted.boxes)} predicted (dashed)"
    frame = f'<rect x="0" y="0" width="{width}" height="{height}" fill="rgba(128,128,128,.12)"/>'
    return Html(
        f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">{frame}'
        f"{''.join(drawn)}</svg><br>{label}"
    )


def _is_final(run: "Run") -> bool:
    return isinstance(run.condition, ConditionKind) and run.condition.is_final
