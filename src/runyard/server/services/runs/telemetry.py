"""Output of a trainer, recorded exactly once: log lines, metrics, progress.

A supervisor ships whole lines of a stream with the byte offset they begin at. They count only if
the server's offset is the same. The offset advances in the transaction of their effect, so a
repeated or reordered shipment changes nothing. Events drive the run's status. Every line, an event
as readable text, goes into the log.

A log is kept up to ``log_max_mib``. A line says that the limit is reached; later lines are counted
in the run's status. The effect of an event on conditions, progress and metrics is never left out.
One more megabyte is kept for the text of events that are no measurements: how a run proceeded is
worth more than what it printed.
"""

import asyncio
import json
import math
import re
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.limits import clean_text
from runyard.protocol import Lines, LinesAccepted
from runyard.server.services import paging
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import conditions, leases
from runyard.server.services.runs.changes import StoredRun, note, record_changes
from runyard.server.services.runs.conditions import Transition
from runyard.server.services.runs.runs import decode_run, save, transition
from runyard.server.services.runs.runs import get as get_run
from runyard.server.services.validation import check_count
from runyard.store import runs as run_rows
from runyard.store import telemetry as rows
from runyard.store.lists import run_metrics
from runyard.store.tables import AnyRow
from vi.api.resources.runs.responses import LogLine, MetricPoint, Run, RunProgress

EVENTS_BEYOND_LIMIT_BYTES = 1 << 20
_LIMIT_REACHED = (
    "The log has reached {mib} MiB (RUNYARD_LOG_MAX_MIB); further lines are left out and counted "
    "in the run's status.logLinesLeftOut. Metrics and conditions are kept."
)
LONGEST_WAIT_S = 30.0
MOST = 1000
MOST_INTEGER = 2**53
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
    attempt, row = leases.get_open_attempt(tx, token, now_ms=services.clock.now_ms())
    key = {"org": token.org, "run_id": row.id, "attempt": attempt.number, "stream": shipped.stream}
    offset = rows.get_offset(tx, **key)
    if shipped.offset != offset or shipped.next_offset <= offset:
        return LinesAccepted(offset=offset), row.id
    changes = _apply_lines(services, shipped, decode_run(row.document), row, attempt.number)
    record_changes(tx, changes.run)
    rows.add_log_lines(tx, changes.log_rows)
    rows.add_metrics(tx, changes.metric_rows)
    run_metrics.record(tx, org=token.org, run_id=row.id, points=changes.points)
    counts = {
        "log_count": row.log_count + len(changes.log_rows),
        "log_bytes": changes.log_bytes,
        "log_left_out": changes.log_left_out,
        "metric_count": row.metric_count + len(changes.metric_rows),
    }
    if changes.changed_status:
        save(tx, changes.run, counts)
    else:
        run_rows.change(tx, org=token.org, run_id=row.id, values=counts)
    rows.advance_offset(tx, **key, to=shipped.next_offset)
    return LinesAccepted(offset=shipped.next_offset), row.id


class LogPage(msgspec.Struct):
    """A page of log lines.

    ``next`` is the number to continue from; ``ended`` says that it is the last.
    """

    items: list[LogLine]
    next: int
    ended: bool


class MetricPage(msgspec.Struct):
    """A page of metrics. ``next`` is the sequence number to continue from."""

    items: list[MetricPoint]
    next: int


async def read_log_page(
    services: Services,
    *,
    org: str,
    run_id: str,
    since: int,
    until: int | None = None,
    stream: str | None = None,
    limit: int = MOST,
    wait_s: float = 0.0,
    gone: "asyncio.Future[None] | None" = None,
) -> bytes:
    """Return a ``LogPage`` as JSON: lines numbered above ``since``.

    With ``wait_s``, wait for one unless the run has ended. ``gone`` is done when the client has
    disconnected; then nothing is waited for.

    Raises:
        Refusal: NotFound.
    """

    def fetch(tx: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.log_page(
            tx, org=org, run_id=run_id, since=after, until=until, stream=stream, limit=limit
        )

    def read_lines(tx: Connection, ended: bool) -> tuple[bool, bytes]:
        items, last, has_more = paging.gather(
            partial(fetch, tx),
            after=since,
            size=limit,
            encode=_encode_line,
            get_position=_get_number,
        )
        page = LogPage(
            items=[msgspec.Raw(item) for item in items],  # type: ignore[misc]
            next=last.number if last else since,
            ended=ended and not has_more,
        )
        return bool(items), msgspec.json.encode(page)

    clock = services.clock
    deadline = clock.monotonic_s() + min(wait_s, LONGEST_WAIT_S)
    while True:
        event = services.notifier.watch(run_topic(org, run_id))
        # State before lines: if the run ends in between, the loop repeats and misses no line.
        ended = _has_ended(services, org, run_id)
        has_lines, page = await services.store.read_in_thread(partial(read_lines, ended=ended))
        remaining_s = deadline - clock.monotonic_s()
        if (
            has_lines
            or ended
            or remaining_s <= 0
            or services.notifier.is_closed
            or (gone is not None and gone.done())
        ):
            return page
        await services.notifier.wait(event, timeout_s=remaining_s, gone=gone)


async def read_metric_page(
    services: Services, *, org: str, run_id: str, since: int, limit: int = MOST
) -> bytes:
    """Return a ``MetricPage`` as JSON: points numbered above ``since``.

    Raises:
        Refusal: NotFound.
    """
    _has_ended(services, org, run_id)

    def fetch(tx: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.metric_page(tx, org=org, run_id=run_id, since=after, limit=limit)

    def read_points(tx: Connection) -> bytes:
        items, last, _ = paging.gather(
            partial(fetch, tx),
            after=since,
            size=limit,
            encode=_encode_point,
            get_position=_get_number,
        )
        raw: list[Any] = [msgspec.Raw(item) for item in items]
        page = MetricPage(items=raw, next=last.number if last else since)
        return msgspec.json.encode(page)

    return await services.store.read_in_thread(read_points)


def _get_number(row: AnyRow) -> int:
    return int(row.number)


def _encode_line(row: AnyRow) -> bytes:
    line = LogLine(
        number=row.number, time=row.time, attempt=row.attempt, stream=row.stream, text=row.text
    )
    return msgspec.json.encode(line)


def _encode_point(row: AnyRow) -> bytes:
    values: Any = msgspec.Raw(row.measured)
    point = MetricPoint(
        step=row.step, epoch=row.epoch, time=row.time, attempt=row.attempt, values=values
    )
    return msgspec.json.encode(point)


def _has_ended(services: Services, org: str, run_id: str) -> bool:
    run = decode_run(get_run(services, org=org, run_id=run_id)[0])
    return run.condition is not None and run.condition.is_final


class _RunChanges:
    """The changes that a shipment of lines makes to a run."""

    def __init__(
        self, run: StoredRun, row: Any, attempt: int, now_ms: int, *, limit_bytes: int
    ) -> None:
        self.run = run
        self.log_rows: list[dict[str, Any]] = []
        self.metric_rows: list[dict[str, Any]] = []
        self.points: list[dict[str, float]] = []
        self.changed_status = False
        self.now_ms = now_ms
        self._row, self.attempt = row, attempt
        self._limit_bytes = limit_bytes
        self.log_bytes, self.log_left_out = row.log_bytes, row.log_left_out

    def log(self, stream: str, time_ms: int, text: str, *, extra_bytes: int = 0) -> None:
        """Keep a line, or count it once the log has reached its limit and ``extra_bytes``."""
        text = clean_text(SECRETS.sub("[secret]", text[: limits.LOG_LINE.value]), limits.LOG_LINE)
        size_bytes = rows.LINE_BYTES + len(text.encode())
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

    def measure(self, event: dict[str, Any], time_ms: int, values: dict[str, float]) -> None:
        if not values:
            return
        self.points.append(values)
        self.metric_rows.append(
            {
                "org": self._row.org,
                "run_id": self._row.id,
                "number": self._row.metric_count + len(self.metric_rows) + 1,
                "step": _parse_integer(event.get("step")),
                "epoch": _parse_number(event.get("epoch")) or 0.0,
                "time": time_ms,
                "attempt": self.attempt,
                "measured": msgspec.json.encode(values),
            }
        )


def _apply_lines(
    services: Services, shipped: Lines, run: StoredRun, row: Any, attempt: int
) -> _RunChanges:
    now_ms = services.clock.now_ms()
    changes = _RunChanges(
        run, row, attempt, now_ms, limit_bytes=services.settings.log_max_mib << 20
    )
    for line in shipped.lines:
        event = _parse_event(line) if shipped.stream == "events" else None
        if event is None:
            changes.log(shipped.stream, now_ms, line)
            continue
        time_ms = _parse_integer(event.get("t")) or now_ms
        text = _apply_event(changes, event, time_ms)
        is_measurement = event["ev"] in ("step", "evaluation")
        changes.log(
            "events", time_ms, text, extra_bytes=0 if is_measurement else EVENTS_BEYOND_LIMIT_BYTES
        )
    return changes


def _apply_event(changes: _RunChanges, event: dict[str, Any], time_ms: int) -> str:
    """Apply one event to the run; return the text for the log."""
    name = str(event.get("ev"))
    if name == "phase":
        phase, message = str(event.get("phase")), event.get("message")
        _apply_phase(changes, phase, str(message) if message else None)
        return f"{phase}: {message}" if message else phase
    if name == "step":
        return _apply_step(changes, event, time_ms)
    if name == "evaluation":
        return _apply_evaluation(changes, event, time_ms)
    if name == "plan" and isinstance(event.get("plan"), dict):
        return _apply_plan(changes, event["plan"])
    if name == "checkpoint":
        return f"checkpoint {event.get('checkpoint')} saved at step {event.get('step')}"
    if name == "warning":
        _note(changes, "warning", {"message": clean_text(str(event.get("message")))})
        return f"warning: {event.get('message')}"
    return json.dumps(event, ensure_ascii=False)


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
    size = _parse_integer(entry.get("value")) if isinstance(entry, dict) else 0
    for attempt in changes.run.status.attempts:
        if attempt.attempt == changes.attempt and size > 0:
            attempt.micro_batch_size = size
    return f"plan resolved, microBatchSize {size}" if size else "plan resolved"


def _apply_step(changes: _RunChanges, event: dict[str, Any], time_ms: int) -> str:
    values = _parse_values(event)
    changes.measure(event, time_ms, values)
    progress = changes.run.status.progress or RunProgress()
    progress.step, progress.epoch = (
        _parse_integer(event.get("step")),
        _parse_number(event.get("epoch")) or 0.0,
    )
    progress.total_steps = _parse_integer(event.get("totalSteps")) or progress.total_steps
    # Lines may arrive late: only a running run has an estimate of the time left.
    is_running = changes.run.condition is conditions.RUNNING
    progress.seconds_left = _parse_number(event.get("secondsLeft")) if is_running else None
    progress.loss = values.get("loss", progress.loss)
    changes.run.status.progress = progress
    changes.changed_status = True
    latest = changes.run.status.conditions[-1]
    if latest.condition is conditions.RUNNING and latest.reason != "Stopping":
        transition(
            changes.run,
            Transition(conditions.RUNNING, "Training", _describe_progress(changes.run)),
            now_ms=changes.now_ms,
        )
    return f"{_describe_progress(changes.run)}: {_format_values(values)}"


def _apply_evaluation(changes: _RunChanges, event: dict[str, Any], time_ms: int) -> str:
    values = _parse_values(event)
    changes.measure(event, time_ms, values)
    _note(changes, "evaluation", {"step": _parse_integer(event.get("step")), "values": values})
    name = event.get("metricName")
    if isinstance(name, str):
        progress = changes.run.status.progress or RunProgress()
        name = clean_text(name, limits.METRIC_NAME)
        metric = values.get(f"validation/{name}", values.get(name))
        if metric is not None:
            progress.metric_name, progress.metric = name, metric
        changes.run.status.progress = progress
        changes.changed_status = True
    return f"evaluation at step {event.get('step')}: {_format_values(values)}"


def _describe_progress(run: Run) -> str | None:
    progress = run.status.progress
    if progress is None:
        return None
    return (
        f"step {progress.step} of {progress.total_steps}"
        if progress.total_steps
        else f"step {progress.step}"
    )


def _format_values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _parse_event(line: str) -> dict[str, Any] | None:
    """Return the event in a line; None when the line is plain text."""
    try:
        value = json.loads(line)  # accepts NaN (a diverged loss), unlike the strict decoder
        # Lone surrogates and huge integers fit in no row and no response.
        msgspec.json.encode(value)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("ev"), str) else None


def _parse_values(event: dict[str, Any]) -> dict[str, float]:
    given = event.get("values")
    if not isinstance(given, dict):
        return {}
    numbers = (
        (str(name), number)
        for name, value in given.items()
        if (number := _parse_number(value)) is not None
    )
    return {
        clean_text(name, limits.METRIC_NAME): number
        for name, number in islice(numbers, limits.METRICS.value)
    }


def _parse_number(value: Any) -> float | None:
    """Return a finite number; JSON has no others."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _parse_integer(value: Any) -> int:
    is_plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER
    return value if is_plain else 0
