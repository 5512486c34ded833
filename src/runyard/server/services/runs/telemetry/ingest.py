"""Output of a trainer, recorded exactly once: log lines, metrics, progress.

A supervisor ships whole lines of a stream with the byte offset they begin at. They count only if
the server's offset is the same. The offset advances in the transaction of their effect, so a
repeated or reordered shipment changes nothing. Events drive the run's status. Measurements (steps,
evaluations, samples of the machine) become metric points; every other line, an event as readable
text, goes into the log.

A log is kept up to ``log_max_mib``. A line says that the limit is reached; later lines are counted
in the run's status. The effect of an event on conditions, progress and metrics is never left out.
One more megabyte is kept for the text of events: how a run proceeded is worth more than what it
printed.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.limits import clean_text
from runyard.protocol import Lines, LinesAccepted
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.run_changes import StoredRun, note, record_changes
from runyard.server.services.runs import conditions, leases
from runyard.server.services.runs.conditions import Transition
from runyard.server.services.runs.runs import decode_run, save, transition
from runyard.server.services.runs.telemetry import findings, log_index, samples
from runyard.server.services.runs.telemetry.measurements import (
    KINDS,
    MOST_INTEGER,
    KeyCleaner,
    Measurement,
    SystemSample,
    list_left_out,
    parse_event,
    parse_integer,
    parse_measurement,
    parse_system_sample,
    to_measurement,
)
from runyard.server.services.validation import check_count
from runyard.store import runs as run_rows
from runyard.store.lists import run_metrics
from runyard.store.tables import AnyRow
from runyard.store.telemetry import logs, metrics, offsets, packing
from runyard.store.telemetry.chunks import Point
from runyard.store.telemetry.metrics import SECONDS, STEPS
from vi.api.resources.runs.responses import Run, RunProgress
from vi.api.responses import RunFinding

EVENTS_BEYOND_LIMIT_BYTES = 1 << 20
_LIMIT_REACHED = (
    "The log has reached {mib} MiB (RUNYARD_LOG_MAX_MIB); further lines are left out and counted "
    "in the run's status.logLinesLeftOut. Metrics and conditions are kept."
)
_TOO_MANY_KEYS = (
    "The run has {most:,} metrics, as many as are kept; values of further ones are left out and "
    "counted in the run's status.metricValuesLeftOut."
)
# Text of these shapes is a key; it is removed, whatever printed it.
SECRETS = re.compile(r"\b(dtvi_|ryat_|whsec_|hf_|ghp_|AKIA)[A-Za-z0-9._-]{8,}")


async def accept(services: Services, token: AttemptToken, shipped: Lines) -> LinesAccepted:
    """Record lines if they begin at the server's offset; return the offset after that.

    Raises:
        Refusal: LeaseLost, InvalidBody (an offset that no file has).
    """
    check_count("offset", shipped.offset, most=MOST_INTEGER)
    check_count("next_offset", shipped.next_offset, most=MOST_INTEGER)
    answer, run_id = await services.store.write(
        lambda tx: _insert_lines(services, tx, token, shipped)
    )
    services.notifier.notify(run_topic(token.org, run_id))
    return answer


def _insert_lines(
    services: Services, tx: Connection, token: AttemptToken, shipped: Lines
) -> tuple[LinesAccepted, str]:
    """Insert lines and their effects, and advance the offset; return that and the run's id."""
    attempt, row = leases.get_open_attempt(services, tx, token, now_ms=services.clock.now_ms())
    key = {"org": token.org, "run_id": row.id, "attempt": attempt.number, "stream": shipped.stream}
    offset = offsets.get_offset(tx, **key)
    if shipped.offset != offset or shipped.next_offset <= offset:
        return LinesAccepted(offset=offset), row.id
    changes = _apply_lines(services, shipped, decode_run(row.document), row, attempt.number)
    if shipped.stream == "samples":
        found = samples.insert_lines(
            tx, shipped.lines, org=token.org, run_id=row.id, attempt=attempt.number
        )
        for warning in found:
            changes.log("events", changes.now_ms, f"warning: {warning}")
    record_changes(tx, changes.run)
    point_counts = _add_points(tx, changes, row)
    logs.add_log_lines(tx, changes.log_rows)
    log_index.add_complete_blocks(
        tx,
        org=token.org,
        run_id=row.id,
        count_before=row.log_count,
        count=row.log_count + len(changes.log_rows),
    )
    counts = {
        "log_count": row.log_count + len(changes.log_rows),
        "log_bytes": changes.log_bytes,
        "log_left_out": changes.log_left_out,
        **point_counts,
    }
    if changes.changed_status:
        save(tx, changes.run, counts)
    else:
        run_rows.change(tx, org=token.org, run_id=row.id, values=counts)
    offsets.advance_offset(tx, **key, to=shipped.next_offset)
    return LinesAccepted(offset=shipped.next_offset), row.id


class _RunChanges:
    """The changes that a shipment of lines makes to a run."""

    def __init__(
        self, run: StoredRun, row: Any, attempt: int, now_ms: int, *, limit_bytes: int
    ) -> None:
        self.run = run
        self.log_rows: list[dict[str, Any]] = []
        self.points: list[Point] = []
        self.changed_status = False
        self.now_ms = now_ms
        self._row, self.attempt = row, attempt
        self._limit_bytes = limit_bytes
        self._keys = KeyCleaner()
        self.log_bytes, self.log_left_out = row.log_bytes, row.log_left_out

    def log(self, stream: str, time_ms: int, text: str, *, extra_bytes: int = 0) -> None:
        """Keep a line, or count it once the log has reached its limit and ``extra_bytes``."""
        text = clean_text(SECRETS.sub("[secret]", text[: limits.LOG_LINE.value]), limits.LOG_LINE)
        size_bytes = logs.LINE_BYTES + len(text.encode())
        is_full = self.log_bytes + size_bytes > self._limit_bytes + extra_bytes
        if self._limit_bytes and (is_full or (self.log_left_out and not extra_bytes)):
            if not self.log_left_out:
                self._keep(stream, time_ms, _LIMIT_REACHED.format(mib=self._limit_bytes >> 20))
            self.log_left_out += 1
            self.run.status.log_lines_left_out = self.log_left_out
            self.changed_status = True
            return
        self.log_bytes += size_bytes
        self._keep(stream, time_ms, text)

    def _keep(self, stream: str, time_ms: int, text: str) -> None:
        self.log_rows.append(
            {
                "org": self._row.org,
                "run_id": self._row.id,
                "number": self._row.log_count + len(self.log_rows) + 1,
                "time": time_ms,
                "attempt": self.attempt,
                "stream": stream,
                "text": text,
            }
        )

    def measure(self, found: Measurement, time_ms: int) -> None:
        """Keep the values of a measurement."""
        if found.values:
            values = {self._keys[key]: value for key, value in found.values.items()}
            self.points.append(
                Point(0, found.step, found.epoch, time_ms, self.attempt, STEPS, values)
            )

    def measure_system(self, sample: SystemSample) -> None:
        """Keep a sample of the machine; its position is seconds since the run was created."""
        seconds = max(0, sample.t - self._row.time_created) // 1000
        values = {clean_text(key, limits.METRIC_NAME): one for key, one in sample.values.items()}
        if values:
            self.points.append(Point(0, seconds, 0.0, sample.t, self.attempt, SECONDS, values))

    def leave_out(self, keys: Collection[str]) -> list[Point]:
        """Leave the values of keys out and count them; return the points that have others."""
        left_out = 0
        for point in self.points:
            kept = {key: value for key, value in point.values.items() if key not in keys}
            left_out += len(point.values) - len(kept)
            point.values = kept
        status = self.run.status
        if not status.metric_values_left_out:
            text = _TOO_MANY_KEYS.format(most=limits.METRIC_KEYS.value)
            self.log("events", self.now_ms, text, extra_bytes=EVENTS_BEYOND_LIMIT_BYTES)
        status.metric_values_left_out = (status.metric_values_left_out or 0) + left_out
        self.changed_status = True
        return [point for point in self.points if point.values]


def _apply_lines(
    services: Services, shipped: Lines, run: StoredRun, row: Any, attempt: int
) -> _RunChanges:
    now_ms = services.clock.now_ms()
    changes = _RunChanges(
        run, row, attempt, now_ms, limit_bytes=services.settings.log_max_mib << 20
    )
    if shipped.stream == "events":
        _apply_events(changes, shipped.lines)
    elif shipped.stream == "system":
        for line in shipped.lines:
            if sample := parse_system_sample(line):
                changes.measure_system(sample)
    elif shipped.stream != "samples":
        for line in shipped.lines:
            changes.log(shipped.stream, now_ms, line)
    return changes


def _apply_events(changes: _RunChanges, lines: list[str]) -> None:
    """Apply the lines of a trainer's events, in order.

    Of several steps in a row only the last one is the progress of the run.
    """
    progress = _StepProgress()
    for line in lines:
        found = parse_measurement(line)
        event = None if found is not None else parse_event(line)
        if event is not None and event["ev"] in KINDS:
            found = to_measurement(event)
            if left_out := list_left_out(event, found):
                text = f"{found.ev} {found.step}: not finite numbers, left out: {left_out}"
                changes.log("events", found.t or changes.now_ms, text)
        if found is not None:
            changes.measure(found, found.t or changes.now_ms)
            if found.ev == "step":
                progress.add(found)
            else:
                progress.apply(changes)
                _apply_evaluation(changes, found)
            continue
        progress.apply(changes)
        if event is None:
            changes.log("events", changes.now_ms, line)
            continue
        text = _apply_event(changes, event)
        time_ms = parse_integer(event.get("t")) or changes.now_ms
        changes.log("events", time_ms, text, extra_bytes=EVENTS_BEYOND_LIMIT_BYTES)
    progress.apply(changes)


class _StepProgress:
    """Progress by step events that is not yet applied to the run."""

    def __init__(self) -> None:
        self._last: Measurement | None = None
        self._total_steps = 0
        self._loss: float | None = None

    def add(self, found: Measurement) -> None:
        self._last = found
        self._total_steps = found.total_steps or self._total_steps
        self._loss = found.values.get("loss", self._loss)

    def apply(self, changes: _RunChanges) -> None:
        """Apply the last step to the run, if there is one."""
        last, run = self._last, changes.run
        if last is None:
            return
        progress = run.status.progress or RunProgress()
        progress.step, progress.epoch = last.step, last.epoch
        progress.total_steps = self._total_steps or progress.total_steps
        # Lines may arrive late: only a running run has an estimate of the time left.
        is_running = run.condition is conditions.RUNNING
        progress.seconds_left = last.seconds_left if is_running else None
        progress.loss = progress.loss if self._loss is None else self._loss
        run.status.progress = progress
        changes.changed_status = True
        latest = run.status.conditions[-1]
        if latest.condition is conditions.RUNNING and latest.reason != "Stopping":
            transition(
                run,
                Transition(conditions.RUNNING, "Training", _describe_progress(run)),
                now_ms=changes.now_ms,
            )
        self._last, self._total_steps, self._loss = None, 0, None


def _apply_event(changes: _RunChanges, event: dict[str, Any]) -> str:
    """Apply an event that is no measurement to the run; return the text for the log."""
    name = str(event.get("ev"))
    if name == "phase":
        phase, message = str(event.get("phase")), event.get("message")
        _apply_phase(changes, phase, str(message) if message else None)
        return f"{phase}: {message}" if message else phase
    if name == "plan" and isinstance(event.get("plan"), dict):
        return _apply_plan(changes, event["plan"])
    if name == "checkpoint":
        return f"checkpoint {event.get('checkpoint')} saved at step {event.get('step')}"
    if name == "warning":
        _note(changes, "warning", {"message": clean_text(str(event.get("message")))})
        return f"warning: {event.get('message')}"
    if name == "finding" and (finding := findings.parse_finding(event)) is not None:
        return _apply_finding(changes, finding)
    return json.dumps(event, ensure_ascii=False)


def _apply_finding(changes: _RunChanges, finding: RunFinding) -> str:
    """Record a finding, and note it as a warning."""
    status = changes.run.status
    status.findings = findings.add_finding(status.findings, finding)
    changes.changed_status = True
    _note(changes, "warning", {"message": finding.message})
    return findings.format_finding(finding)


def _note(changes: _RunChanges, what: str, details: dict[str, Any]) -> None:
    note(changes.run, what, {"attempt": changes.attempt, **details}, now_ms=changes.now_ms)


def _apply_phase(changes: _RunChanges, phase: str, message: str | None) -> None:
    latest = changes.run.status.conditions[-1]
    is_known = (
        phase in conditions.REASONS[conditions.RUNNING] and latest.condition is conditions.RUNNING
    )
    if is_known and latest.reason != "Stopping":
        transition(
            changes.run,
            Transition(conditions.RUNNING, phase, message or _describe_progress(changes.run)),
            now_ms=changes.now_ms,
        )
        changes.changed_status = True


def _apply_plan(changes: _RunChanges, plan: dict[str, Any]) -> str:
    """Record the plan.

    It arrives before training, and again when the micro-batch was halved for lack of memory.
    """
    size_bytes = len(msgspec.json.encode(plan))
    if size_bytes > limits.PLAN.value:
        return (
            f"plan resolved; it has {size_bytes:,} bytes, more than {limits.PLAN.value:,}, and is "
            "not stored"
        )
    changes.run.status.plan = limits.clean_json(plan)
    changes.changed_status = True
    entry = plan.get("microBatchSize")
    size = parse_integer(entry.get("value")) if isinstance(entry, dict) else 0
    for attempt in changes.run.status.attempts:
        if attempt.attempt == changes.attempt and size > 0:
            attempt.micro_batch_size = size
    return f"plan resolved, microBatchSize {size}" if size else "plan resolved"


def _apply_evaluation(changes: _RunChanges, found: Measurement) -> None:
    _note(changes, "evaluation", {"step": found.step, "values": found.values})
    if found.metric_name is None:
        return
    progress = changes.run.status.progress or RunProgress()
    name = clean_text(found.metric_name, limits.METRIC_NAME)
    metric = found.values.get(f"validation/{name}", found.values.get(name))
    if metric is not None:
        progress.metric_name, progress.metric = name, metric
        progress.baseline = found.values.get(f"baseline/{name}", progress.baseline)
    changes.run.status.progress = progress
    changes.changed_status = True


def _describe_progress(run: Run) -> str | None:
    progress = run.status.progress
    if progress is None:
        return None
    return (
        f"step {progress.step} of {progress.total_steps}"
        if progress.total_steps
        else f"step {progress.step}"
    )


def _add_points(tx: Connection, changes: _RunChanges, row: AnyRow) -> dict[str, Any]:
    """Add the points of a shipment to the run; return the columns of the run that change.

    Keys beyond the limit are left out and counted.
    """
    points = changes.points
    if not points:
        return {}
    at: Any = {"org": row.org, "run_id": row.id}
    known = {found.key: found for found in metrics.list_keys(tx, **at)}
    axes = {key: point.axis for point in points for key in point.values}
    room = limits.METRIC_KEYS.value - len(known)
    new = [key for key in axes if key not in known]
    if len(new) > room:
        points = changes.leave_out(set(new[max(0, room) :]))
        new = new[: max(0, room)]
    metrics.add_keys(tx, metrics.number_keys({key: axes[key] for key in new}, known.values()), **at)
    for number, point in enumerate(points, row.metric_count + 1):
        point.number = number
    own = [run_metrics.select_own(point.step, point.values) for point in points]
    run_metrics.record(tx, **at, points=own)
    packed = packing.add(
        tx, points, **at, packed=row.metric_packed, repeats=_has_repeats(points, known)
    )
    return {"metric_count": row.metric_count + len(points), "metric_packed": packed}


def _has_repeats(points: Sequence[Point], known: Mapping[str, AnyRow]) -> bool:
    """Return whether a point has a step at or below the last packed one of a key."""
    last = {key: row.last_step for key, row in known.items() if row.last_step is not None}
    if not last or min(point.step for point in points) > max(last.values()):
        return False
    return any(point.step <= last[key] for point in points for key in point.values if key in last)
