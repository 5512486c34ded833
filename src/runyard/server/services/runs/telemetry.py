"""What a trainer says, taken exactly once: log lines, metrics, progress.

A supervisor ships whole lines of a stream with the byte offset they begin at. They count only if the server stands at
that offset, and the offset advances in the transaction of their effect, so a repeated or reordered shipment changes
nothing. Events drive the run's status; every line, an event as readable text, goes into the log.

A log is kept up to ``log_max_mib``. A line says that this is reached; what comes later is counted in the run's status.
What an event does to conditions, progress and metrics is never left out, and a megabyte more is kept of the text of
events that are no measurements: how a run went on is worth more than what it printed.
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
from runyard.server.services import pages
from runyard.server.services.access.signing import AttemptToken
from runyard.server.services.context import Services
from runyard.server.services.notifications import run_topic
from runyard.server.services.runs import conditions, leases
from runyard.server.services.runs.conditions import Move
from runyard.server.services.runs.runs import decoded, save
from runyard.server.services.runs.runs import get as get_run
from runyard.server.services.runs.runs import move as move_run
from runyard.server.services.validation import check_count
from runyard.store import runs as run_rows
from runyard.store import telemetry as rows
from runyard.store.tables import AnyRow
from vi.api.resources.runs.responses import LogLine, MetricPoint, Run, RunProgress

EVENTS_BEYOND_LIMIT_BYTES = 1 << 20
_LIMIT_REACHED = (
    "The log has reached {mib} MiB (RUNYARD_LOG_MAX_MIB); further lines are left out and counted in the run's "
    "status.logLinesLeftOut. Metrics and conditions are kept."
)
LONGEST_WAIT_S = 30.0
MOST = 1000
MOST_INTEGER = 2**53
# Whatever a library prints, these shapes are keys and go no further.
SECRETS = re.compile(r"\b(dtvi_|ryat_|whsec_|hf_|ghp_|AKIA)[A-Za-z0-9._-]{8,}")


async def accept(services: Services, token: AttemptToken, shipped: Lines) -> LinesAccepted:
    """Take lines if they begin where the server stands; the answer says where it stands now.

    Raises:
        Refusal: LeaseLost, InvalidBody (an offset that no file has).
    """
    check_count("offset", shipped.offset, most=MOST_INTEGER)
    check_count("next_offset", shipped.next_offset, most=MOST_INTEGER)

    def work(connection: Connection) -> tuple[LinesAccepted, str]:
        attempt, row = leases.open_attempt(connection, token, now_ms=services.clock.now_ms())
        place = {"org": token.org, "run_id": row.id, "attempt": attempt.number, "stream": shipped.stream}
        stands = rows.get_offset(connection, **place)
        if shipped.offset != stands or shipped.next_offset <= stands:
            return LinesAccepted(offset=stands), row.id
        effect = _effect(services, shipped, decoded(row.document), row, attempt.number)
        rows.add_log_lines(connection, effect.log_rows)
        rows.add_metrics(connection, effect.metric_rows)
        counts = {
            "log_count": row.log_count + len(effect.log_rows),
            "log_bytes": effect.log_bytes,
            "log_left_out": effect.log_left_out,
            "metric_count": row.metric_count + len(effect.metric_rows),
        }
        if effect.changed_status:
            save(connection, effect.run, counts)
        else:
            run_rows.change(connection, org=token.org, run_id=row.id, values=counts)
        rows.advance_offset(connection, **place, to=shipped.next_offset)
        return LinesAccepted(offset=shipped.next_offset), row.id

    answer, run_id = await services.store.write(work)
    services.changes.tell(run_topic(token.org, run_id))
    return answer


class LogPage(msgspec.Struct):
    """``next`` is the number to go on from; ``ended`` says that there will be no more."""

    items: list[LogLine]
    next: int
    ended: bool


class MetricPage(msgspec.Struct):
    """``next`` is the sequence number to go on from."""

    items: list[MetricPoint]
    next: int


async def log_page(
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

    With ``wait_s``, wait for one to come unless the run has ended.

    ``gone`` is done when the client has left; nothing is waited for then.

    Raises:
        Refusal: NotFound.
    """

    def fetch(connection: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.log_page(connection, org=org, run_id=run_id, since=after, until=until, stream=stream, limit=limit)

    def work(connection: Connection, ended: bool) -> tuple[bool, bytes]:
        items, last, has_more = pages.gather(
            partial(fetch, connection), after=since, size=limit, encode=_encode_line, place=_number_of
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
        event = services.changes.watch(run_topic(org, run_id))
        # State before lines: a run that ended in between is asked once more, and no line of it is missed.
        ended = _has_ended(services, org, run_id)
        has_lines, page = await services.store.read_in_thread(partial(work, ended=ended))
        remaining_s = deadline - clock.monotonic_s()
        if has_lines or ended or remaining_s <= 0 or services.changes.is_closed or (gone is not None and gone.done()):
            return page
        await services.changes.wait(event, timeout_s=remaining_s, gone=gone)


async def metric_page(services: Services, *, org: str, run_id: str, since: int, limit: int = MOST) -> bytes:
    """Return a ``MetricPage`` as JSON: points numbered above ``since``.

    Raises:
        Refusal: NotFound.
    """
    _has_ended(services, org, run_id)

    def fetch(connection: Connection, after: int, limit: int) -> Sequence[AnyRow]:
        return rows.metric_page(connection, org=org, run_id=run_id, since=after, limit=limit)

    def work(connection: Connection) -> bytes:
        items, last, _ = pages.gather(
            partial(fetch, connection), after=since, size=limit, encode=_encode_point, place=_number_of
        )
        page = MetricPage(items=[msgspec.Raw(item) for item in items], next=last.number if last else since)  # type: ignore[misc]
        return msgspec.json.encode(page)

    return await services.store.read_in_thread(work)


def _number_of(row: AnyRow) -> int:
    return int(row.number)


def _encode_line(row: AnyRow) -> bytes:
    line = LogLine(number=row.number, time=row.time, attempt=row.attempt, stream=row.stream, text=row.text)
    return msgspec.json.encode(line)


def _encode_point(row: AnyRow) -> bytes:
    values = msgspec.Raw(row.measured)
    return msgspec.json.encode(
        MetricPoint(step=row.step, epoch=row.epoch, time=row.time, attempt=row.attempt, values=values)  # type: ignore[arg-type]
    )


def _has_ended(services: Services, org: str, run_id: str) -> bool:
    run = decoded(get_run(services, org=org, run_id=run_id)[0])
    return run.condition is not None and run.condition.is_final


class _Effect:
    """What a shipment of lines changes."""

    def __init__(self, run: Run, row: Any, attempt: int, now_ms: int, *, limit_bytes: int) -> None:
        self.run = run
        self.log_rows: list[dict[str, Any]] = []
        self.metric_rows: list[dict[str, Any]] = []
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
        self.metric_rows.append(
            {
                "org": self._row.org,
                "run_id": self._row.id,
                "number": self._row.metric_count + len(self.metric_rows) + 1,
                "step": _integer(event.get("step")),
                "epoch": _number(event.get("epoch")) or 0.0,
                "time": time_ms,
                "attempt": self.attempt,
                "measured": msgspec.json.encode(values),
            }
        )


def _effect(services: Services, shipped: Lines, run: Run, row: Any, attempt: int) -> _Effect:
    now_ms = services.clock.now_ms()
    effect = _Effect(run, row, attempt, now_ms, limit_bytes=services.settings.log_max_mib << 20)
    for line in shipped.lines:
        event = _event(line) if shipped.stream == "events" else None
        if event is None:
            effect.log(shipped.stream, now_ms, line)
            continue
        time_ms = _integer(event.get("t")) or now_ms
        text = _take_event(effect, event, time_ms)
        is_measurement = event["ev"] in ("step", "evaluation")
        effect.log("events", time_ms, text, extra_bytes=0 if is_measurement else EVENTS_BEYOND_LIMIT_BYTES)
    return effect


def _take_event(effect: _Effect, event: dict[str, Any], time_ms: int) -> str:
    """Let one event work on the run; returns what the log says about it."""
    name = str(event.get("ev"))
    if name == "phase":
        phase, message = str(event.get("phase")), event.get("message")
        _phase(effect, phase, str(message) if message else None)
        return f"{phase}: {message}" if message else phase
    if name == "step":
        return _step(effect, event, time_ms)
    if name == "evaluation":
        return _evaluation(effect, event, time_ms)
    if name == "plan" and isinstance(event.get("plan"), dict):
        return _plan(effect, event["plan"])
    if name == "checkpoint":
        return f"checkpoint {event.get('checkpoint')} saved at step {event.get('step')}"
    if name == "warning":
        return f"warning: {event.get('message')}"
    return json.dumps(event, ensure_ascii=False)


def _phase(effect: _Effect, phase: str, message: str | None) -> None:
    latest = effect.run.status.conditions[-1]
    is_told = phase in conditions.REASONS[conditions.RUNNING] and latest.condition is conditions.RUNNING
    if is_told and latest.reason != "Stopping":
        move_run(effect.run, Move(conditions.RUNNING, phase, message or _where(effect.run)), now_ms=effect.now_ms)
        effect.changed_status = True


def _plan(effect: _Effect, plan: dict[str, Any]) -> str:
    """Told once before training, and again whenever want of memory has made the micro-batch smaller."""
    size_bytes = len(msgspec.json.encode(plan))
    if size_bytes > limits.PLAN.value:
        return f"plan resolved; it has {size_bytes:,} bytes, more than {limits.PLAN.value:,}, and is not kept"
    effect.run.status.plan = limits.clean_json(plan)
    effect.changed_status = True
    told = plan.get("microBatchSize")
    size = _integer(told.get("value")) if isinstance(told, dict) else 0
    for attempt in effect.run.status.attempts:
        if attempt.attempt == effect.attempt and size > 0:
            attempt.micro_batch_size = size
    return f"plan resolved, microBatchSize {size}" if size else "plan resolved"


def _step(effect: _Effect, event: dict[str, Any], time_ms: int) -> str:
    values = _values(event)
    effect.measure(event, time_ms, values)
    progress = effect.run.status.progress or RunProgress()
    progress.step, progress.epoch = _integer(event.get("step")), _number(event.get("epoch")) or 0.0
    progress.total_steps = _integer(event.get("totalSteps")) or progress.total_steps
    # Lines may come late: only a running run has time left.
    is_running = effect.run.condition is conditions.RUNNING
    progress.seconds_left = _number(event.get("secondsLeft")) if is_running else None
    progress.loss = values.get("loss", progress.loss)
    effect.run.status.progress = progress
    effect.changed_status = True
    latest = effect.run.status.conditions[-1]
    if latest.condition is conditions.RUNNING and latest.reason != "Stopping":
        move_run(effect.run, Move(conditions.RUNNING, "Training", _where(effect.run)), now_ms=effect.now_ms)
    return f"{_where(effect.run)}: {_told(values)}"


def _evaluation(effect: _Effect, event: dict[str, Any], time_ms: int) -> str:
    values = _values(event)
    effect.measure(event, time_ms, values)
    name = event.get("metricName")
    if isinstance(name, str):
        progress = effect.run.status.progress or RunProgress()
        name = clean_text(name, limits.METRIC_NAME)
        metric = values.get(f"validation/{name}", values.get(name))
        if metric is not None:
            progress.metric_name, progress.metric = name, metric
        effect.run.status.progress = progress
        effect.changed_status = True
    return f"evaluation at step {event.get('step')}: {_told(values)}"


def _where(run: Run) -> str | None:
    progress = run.status.progress
    if progress is None:
        return None
    return f"step {progress.step} of {progress.total_steps}" if progress.total_steps else f"step {progress.step}"


def _told(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _event(line: str) -> dict[str, Any] | None:
    """The event in a line; None when it is not one, and then it is only text."""
    try:
        value = json.loads(line)  # takes NaN, which a diverged loss may be, where the strict decoder does not
        msgspec.json.encode(value)  # half characters and endless integers fit in no row and no answer
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("ev"), str) else None


def _values(event: dict[str, Any]) -> dict[str, float]:
    given = event.get("values")
    if not isinstance(given, dict):
        return {}
    numbers = ((str(name), number) for name, value in given.items() if (number := _number(value)) is not None)
    return {clean_text(name, limits.METRIC_NAME): number for name, number in islice(numbers, limits.METRICS.value)}


def _number(value: Any) -> float | None:
    """A finite number; JSON has no others."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _integer(value: Any) -> int:
    is_plain = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER
    return value if is_plain else 0
