# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.runs``: create, monitor and end training runs.

The client generates the id of a run, so that a retried creation never creates a second run. Long
calls (``wait``, following ``logs``) tolerate a server that is unavailable for up to two minutes,
because training continues without it. A missing run ends them at once.
"""

import builtins
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, overload

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi._http.requests import QueryValue
from vi._http.retry import NO_RETRY
from vi.api._arguments import (
    build_if_match_headers,
    check_event_number,
    check_id,
    check_index,
    check_seconds,
    check_text,
    encode_flow,
    encode_resume_from,
    encode_spec,
)
from vi.api._availability._sync import UNAVAILABLE_ERRORS, retry_while_unavailable
from vi.api._pages._sync import PaginatedResponse, fetch_page
from vi.api._progress import run_progress
from vi.api.resources.events._sync import Events
from vi.api.resources.events.responses import Event
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs._findings import list_results, warn_of_findings
from vi.api.resources.runs._logs import (
    MAX_LINES,
    Level,
    LogRequest,
    Point,
    Stream,
    make_log_request,
)
from vi.api.resources.runs._outcome import (
    is_finished,
    require_success,
    run_vanished_error,
    wait_timeout_error,
)
from vi.api.resources.runs._pages import LogSlice, MetricSlice, SampleSteps
from vi.api.resources.runs._selection import (
    RunIds,
    check_tags,
    encode_filters,
    encode_run_metadata,
    encode_selection,
    to_query_parameters,
)
from vi.api.resources.runs.responses import (
    LogLine,
    MetricPoint,
    Run,
    RunChange,
    RunCount,
    RunOutcomes,
    RunSpec,
    Sample,
)
from vi.api.resources.runs.series import (
    MetricSeriesList,
    SeriesAnswer,
    build_series_query,
    list_run_ids,
)
from vi.api.resources.runs.watch._sync import RunWatch
from vi.api.responses import ConditionKind, DeletedResource
from vi.api.types import PaginationParams
from vi.errors import (
    PaginationError,
    ViInvalidParameterError,
    ViNotFoundError,
)

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0
_LONG_POLL_S = 15


class Runs:
    """Runs of the organization; iteration yields all of them."""

    def __init__(
        self, http: Http, organization_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/runs"
        self._clock = clock
        self._watch = RunWatch(http, organization_id, clock=clock)
        self._events = Events(http, organization_id, clock=clock)

    def list(
        self,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(),
        *,
        condition: ConditionKind | str | None = None,
        flow: str | None = None,
        training_project: str | None = None,
        attribute: Mapping[str, str] | None = None,
        created_after: datetime | int | None = None,
        created_before: datetime | int | None = None,
        filter: str | None = None,
        order_by: str | None = None,
    ) -> PaginatedResponse[Run]:
        """Return a page of the runs that match every given filter, newest first.

        Args:
            pagination: Page size and page token.
            condition: Current state, such as ``"Running"``.
            flow: Id of the flow that the runs were created from.
            training_project: Id of a training project or dataset.
            attribute: Attributes that the runs must all have.
            created_after: Earliest creation time, as a datetime or epoch milliseconds.
            created_before: Latest creation time, as a datetime or epoch milliseconds.
            filter: Filter text, such as ``"condition:Failed metric.iou>0.6 owner=kim"``.
            order_by: ``"created"``, ``"name"``, ``"duration"`` or ``"metric.KEY"``, with ``-`` in
                front for descending order. Default: ``"-created"``.

        Raises:
            ViInvalidParameterError: An argument is malformed.
            ViValidationError: The server cannot parse the filter; the message has the position.
        """
        filters = to_query_parameters(
            encode_filters(
                condition=condition,
                flow=flow,
                training_project=training_project,
                attribute=attribute,
                created_after=created_after,
                created_before=created_before,
            ),
            filter=filter,
            order_by=order_by,
        )
        return fetch_page(self._http, self._base, item=Run, pagination=pagination, filters=filters)

    def count(self, filter: str | None = None) -> RunCount:
        """Return the number of runs that match a filter text, in total and by condition.

        Args:
            filter: Filter text as for ``list``; None counts every run.

        Raises:
            ViValidationError: The server cannot parse the filter; the message has the position.
        """
        params = to_query_parameters({}, filter=filter)
        return self._http.call("GET", f"{self._base}:count", params=params, decode_as=RunCount)

    def get(self, run_id: str) -> Run:
        """Return the current state of a run.

        Raises:
            ViNotFoundError: No run has this id.
        """
        return self._http.call("GET", self._path(run_id), decode_as=Run)

    def create(
        self,
        flow: str | FlowSpec | Mapping[str, Any],
        training_project: str | None = None,
        metadata: Mapping[str, str] | None = None,
        run_id: str | None = None,
        resume_from: str | tuple[str, str] | None = None,
        *,
        name: str | None = None,
    ) -> Run:
        """Create a run; it starts as soon as a machine is free.

        Warns of what its results will be limited by, as the built-in tiny model is.

        Args:
            flow: Id of a saved flow, or the flow itself. The run keeps its own copy.
            training_project: Id of a training project or a dataset.
            metadata: Attributes, which ``list`` can filter by.
            run_id: Id of the run. Repeating the call with the same id and body returns the same
                run.
            resume_from: Id of a run to resume, or ``(run_id, checkpoint)``, where the checkpoint is
                an id, ``"latest"`` or ``"best"``. Weights, optimizer, step and random states are
                restored. The new run copies the checkpoint, so the other run may be deleted.
            name: Name of the run. Default: the name of the flow.

        Raises:
            ViValidationError: The flow is invalid; ``details["problems"]`` lists each problem and
                path.
            ViNotFoundError: The flow, or the run or checkpoint to resume from, does not exist.
            ViConflictError: The id belongs to a run with a different body.
        """
        path = self._path(str(uuid.uuid4()) if run_id is None else run_id)
        spec: dict[str, Any]
        spec = (
            {"flowId": check_id(flow, name="flow")}
            if isinstance(flow, str)
            else {"flow": encode_flow(flow)}
        )
        if training_project is not None:
            spec["trainingProject"] = training_project
        if resume_from is not None:
            spec["resumeFrom"] = encode_resume_from(resume_from)
        body = {"spec": spec, **encode_run_metadata(metadata, name)}
        run = self._http.call("PUT", path, body=body, decode_as=Run)
        warn_of_findings(run.status.findings)
        return run

    start = create

    def update(
        self,
        run_id: str,
        spec: RunSpec | Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        name: str | None = None,
        if_match: str | None = None,
    ) -> Run:
        """Change only the given fields and attributes of a run.

        Args:
            run_id: Id of the run.
            spec: Fields of the spec to change.
            metadata: Attributes to set; None as a value removes an attribute.
            name: New name of the run; an empty one is replaced by the name of the flow.
            if_match: Etag; the change fails if the run has changed since.

        Raises:
            ViNotFoundError: No run has this id.
            ViConflictError: The state of the run forbids the change, or ``if_match`` is outdated.
        """
        body = {
            **({} if spec is None else {"spec": encode_spec(spec)}),
            **encode_run_metadata(metadata, name, removable=True),
        }
        headers = build_if_match_headers(if_match)
        return self._http.call(
            "PATCH", self._path(run_id), body=body, headers=headers, decode_as=Run
        )

    @overload
    def kill(self, run_id: str, grace_s: float | None = None) -> Run: ...

    @overload
    def kill(
        self, run_id: str, grace_s: float | None = None, *, dry_run: Literal[True]
    ) -> RunOutcomes: ...

    @overload
    def kill(
        self,
        run_id: RunIds | None = None,
        grace_s: float | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
    ) -> RunOutcomes: ...

    def kill(
        self,
        run_id: str | RunIds | None = None,
        grace_s: float | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
    ) -> Run | RunOutcomes:
        """Request the end of one or many runs; each saves a checkpoint and stops.

        ``wait`` returns when all processes of a run have exited. A run that does not stop within
        the grace period is ended without saving. A second kill has no effect.

        Args:
            run_id: Id of a run, or up to 1,000 ids for one bulk request with one outcome per run.
            grace_s: Seconds for each run to save and stop. Default: ``settings.gracePeriodSeconds``
                of the flow, else the value of the platform.
            filter: Filters of ``list``, such as ``{"attribute": {"sweep": "3"}}``, a text such as
                ``"sweep=3"``, or ``"all"``, to select pending and running runs. At most 1,000
                per call; ``more`` is True if further runs match.
            dry_run: Return the runs that would be killed, without killing them.

        Raises:
            ViNotFoundError: No run has this id. For several runs, see ``outcomes.refused``.
            ViConflictError: The run has already ended. For several runs, see ``outcomes.refused``.
        """
        check_seconds(grace_s, name="grace_s")
        if not isinstance(run_id, str) or filter is not None or dry_run:
            grace = {} if grace_s is None else {"graceSeconds": grace_s}
            return self._change_many("kill", run_id, filter, dry_run=dry_run, **grace)
        spec: dict[str, float] = {"killedAt": time.time_ns() // 1_000_000}
        if grace_s is not None:
            spec["graceSeconds"] = grace_s
        body = {"spec": spec}
        return self._http.call("PATCH", self._path(run_id), body=body, decode_as=Run)

    @overload
    def delete(self, run_id: str) -> DeletedResource: ...

    @overload
    def delete(self, run_id: str, *, dry_run: Literal[True]) -> RunOutcomes: ...

    @overload
    def delete(
        self,
        run_id: RunIds | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
    ) -> RunOutcomes: ...

    def delete(
        self,
        run_id: str | RunIds | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
    ) -> DeletedResource | RunOutcomes:
        """Delete one or many runs permanently, with logs, metrics and checkpoints.

        Runs that have not ended are killed first.

        Args:
            run_id: Id of a run, or up to 1,000 ids for one bulk request with one outcome per run.
            filter: Filters of ``list``, a filter text, or ``"all"``. At most 1,000 runs per call;
                ``more`` is True if further runs match.
            dry_run: Return the runs that would be deleted, without deleting them.

        Raises:
            ViNotFoundError: No run has this id. For several runs, see ``outcomes.refused``.
        """
        if not isinstance(run_id, str) or filter is not None or dry_run:
            return self._change_many("delete", run_id, filter, dry_run=dry_run)
        self._http.call("DELETE", self._path(run_id))
        return DeletedResource(id=run_id)

    def tag(
        self,
        run_id: str | RunIds | None = None,
        set: Mapping[str, str | None] | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
    ) -> RunOutcomes:
        """Set or remove attributes of one or many runs.

        Args:
            run_id: Id of a run, or up to 1,000 ids.
            set: Attributes to set; None as a value removes an attribute.
            filter: Filters of ``list``, a filter text, or ``"all"``. At most 1,000 runs that differ
                from ``set`` per call; ``more`` is True if further runs match.
            dry_run: Return the runs that would be changed, without changing them.

        Raises:
            ViInvalidParameterError: An argument is malformed.
            ViValidationError: The server cannot parse the filter; the message has the position.
        """
        return self._change_many("tag", run_id, filter, dry_run=dry_run, set=check_tags(set))

    def wait(
        self,
        run_id: str,
        timeout: float | None = None,
        on_update: Callable[[Run], Any] | None = None,
        *,
        poll_interval: float | None = None,
        show_progress: bool = True,
    ) -> Run:
        """Wait until a run has ended, and return it if it succeeded.

        Warns if it has learned nothing; ``run.status.findings`` says why and what to try.

        Args:
            run_id: Id of the run.
            timeout: Maximum seconds to wait; None waits without limit.
            on_update: Called with the run whenever it has changed.
            poll_interval: Seconds between requests; None increases them from 0.1 to 1.
            show_progress: Draw a progress bar if standard error is a terminal.

        Raises:
            ViRunFailedError: The run ended in Failed, Error or Cancelled; ``error.run`` is the run.
            ViRunVanishedError: The run was deleted during the wait.
            ViNotFoundError: No run has this id.
            ViTimeoutError: The run has not ended after ``timeout`` seconds; it continues.
        """
        check_seconds(timeout, name="timeout")
        check_seconds(poll_interval, name="poll_interval", minimum=0.001)
        path, start_s = self._path(run_id), self._clock()
        deadline_s = float("inf") if timeout is None else start_s + timeout
        pause_s = _FIRST_PAUSE_S
        run, reported = self.get(run_id), None
        with run_progress(show_progress) as draw:
            while True:
                if run != reported:
                    draw(run)
                    if on_update is not None:
                        concurrency.call_listener(on_update, run)
                    reported = run
                if is_finished(run):
                    warn_of_findings(list_results(run))
                    return require_success(run)
                left_s = deadline_s - self._clock()
                if left_s <= 0:
                    raise wait_timeout_error(run_id, run, timeout_s=timeout or 0)
                self._http.sleep(min(poll_interval or pause_s, left_s))
                pause_s = min(pause_s * 1.5, _MAX_PAUSE_S)
                try:
                    run = self._retry_while_unavailable(
                        lambda: self._http.call("GET", path, decode_as=Run, retry=NO_RETRY),
                        deadline_s=deadline_s,
                    )
                except ViNotFoundError as error:
                    raise run_vanished_error(run_id, error) from error
                except UNAVAILABLE_ERRORS as error:
                    if self._clock() < deadline_s:
                        raise
                    raise wait_timeout_error(run_id, run, timeout_s=timeout or 0) from error

    def watch(
        self,
        run_id: str | None = None,
        *,
        filter: str | None = None,
        after: int | None = None,
    ) -> Iterator[RunChange]:
        """Iterate over the changes of runs as they happen, each once and in order.

        The watch of one run begins with its current state and ends when the run has ended or is
        deleted. That of several runs has no end. A server that is unavailable for up to two minutes
        is waited for.

        Args:
            run_id: Id of the run; None watches all runs, or those that ``filter`` matches.
            filter: Filter text, such as ``"condition:Running owner=kim"``. A change after which a
                run is not matched any more is the last one of that run.
            after: ``number`` of the last change that was processed; the watch continues there.

        Raises:
            ViNotFoundError: No run has this id.
            ViInvalidParameterError: An argument is malformed.
        """
        number = check_event_number(after, name="after")
        if run_id is None:
            return self._watch.watch_all(check_text(filter, name="filter"), number)
        if filter is not None:
            raise ViInvalidParameterError(
                "run_id and filter were both given, expected: one of them",
                suggestion="try: run_id to watch one run, filter to watch several",
            )
        return self._watch.watch_one(check_id(run_id, name="run_id"), number)

    def events(
        self, run_id: str | None = None, *, after: int | None = None, follow: bool = False
    ) -> Iterator[Event]:
        """Iterate over the events of a run, or of all runs, oldest first.

        Args:
            run_id: Id of the run; None for all runs.
            after: Number of the last event to skip; None begins with the oldest that is kept.
            follow: Keep yielding new events, without end; see ``client.events.iterate``.

        Raises:
            ViInvalidParameterError: An argument is malformed.
        """
        number = check_event_number(after, name="after")
        return self._events.iterate(number, run_id=run_id, kind="run", follow=follow)

    def logs(
        self,
        run_id: str,
        follow: bool = False,
        *,
        since: Point = 0,
        limit: int | None = None,
        stream: Stream | None = None,
        until: Point | None = None,
        tail: int | None = None,
        search: str | None = None,
        regex: bool = False,
        case_sensitive: bool = False,
        level: Level | None = None,
        attempt: int | None = None,
    ) -> Iterator[LogLine]:
        """Iterate over the log lines of a run's trainer, oldest first.

        Args:
            run_id: Id of the run.
            follow: Keep yielding new lines until the run has ended.
            since: Where to begin: the number of the last line to skip, a datetime, or a timedelta
                before now.
            limit: Maximum number of lines.
            stream: Yield lines of this stream only.
            until: Last line, in the same forms as ``since``.
            tail: Begin with this many of the newest lines, counted after all filters.
            search: Text that a line contains.
            regex: ``search`` is a regular expression of RE2: no lookaround, no backreferences.
            case_sensitive: Distinguish upper and lower case in ``search``.
            level: Least level of a line: debug, info, warning or error.
            attempt: Yield lines of this attempt only.

        Raises:
            ViNotFoundError: No run has this id.
            ViInvalidParameterError: An argument is malformed.
        """
        request = make_log_request(
            since=since,
            until=until,
            limit=limit,
            tail=tail,
            stream=stream,
            search=search,
            regex=regex,
            case_sensitive=case_sensitive,
            level=level,
            attempt=attempt,
        )
        return self._iterate_lines(self._path(run_id) + "/logs", request, follow=follow)

    def samples(
        self,
        run_id: str,
        evaluation: int | Literal["latest"] = "latest",
        order_by: Literal["score", "index"] = "score",
        *,
        index: int | None = None,
        pagination: PaginationParams | dict[str, Any] = PaginationParams(),
    ) -> PaginatedResponse[Sample]:
        """Return a page of the sample predictions of an evaluation, or of one image in all of them.

        Of each evaluation the first 64 held-out samples are kept, and the 64 others with the lowest
        score.

        Args:
            run_id: Id of the run.
            evaluation: Step of the evaluation, see ``evaluations``; ``"latest"`` is the newest.
            order_by: ``"score"``: worst first; ``"index"``: by place in the held-out data.
            index: Return this sample in every evaluation, by step; ``evaluation`` is ignored.
            pagination: Page size and page token.

        Raises:
            ViNotFoundError: No run has this id, or no evaluation was made at this step.
        """
        filters: builtins.list[tuple[str, QueryValue]] = [("orderBy", order_by)]
        filters.append(("evaluation", evaluation) if index is None else ("index", index))
        path = self._path(run_id) + "/samples"
        return fetch_page(self._http, path, item=Sample, pagination=pagination, filters=filters)

    def evaluations(self, run_id: str) -> builtins.list[int]:
        """Return the steps of the evaluations whose samples can be read, in order.

        Raises:
            ViNotFoundError: No run has this id.
        """
        path = self._path(run_id) + "/samples"
        found = self._http.call("GET", path, params={"s": 1}, decode_as=SampleSteps)
        return found.evaluations

    def sample_image(self, run_id: str, index: int, size: int | None = None) -> bytes:
        """Return the image of a sample: the file itself, or a thumbnail.

        Args:
            run_id: Id of the run.
            index: Index of the sample.
            size: 160, 320 or 640: return a WebP at most this many pixels wide and high, or a PNG
                that is as small.

        Raises:
            ViNotFoundError: No run has this id or no sample this index, or its dataset was deleted.
            ViInvalidParameterError: The index is not a whole number.
        """
        path = f"{self._path(run_id)}/samples/{check_index(index, name='index')}/image"
        headers = {"Accept": "image/*"}
        answer = self._http.send("GET", path, params={"size": size}, headers=headers)
        return answer.body

    @overload
    def metrics(self, run_id: str, *, since: int = 0) -> builtins.list[MetricPoint]: ...
    @overload
    def metrics(
        self,
        run_id: str | None = None,
        *,
        points: int,
        keys: str | Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> MetricSeriesList: ...
    @overload
    def metrics(
        self,
        run_id: str | None = None,
        *,
        keys: str | Sequence[str],
        ids: Sequence[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> MetricSeriesList: ...
    @overload
    def metrics(
        self,
        *,
        ids: Sequence[str],
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> MetricSeriesList: ...
    def metrics(
        self,
        run_id: str | None = None,
        *,
        since: int = 0,
        points: int | None = None,
        keys: str | Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> builtins.list[MetricPoint] | MetricSeriesList:
        """Return every metric point of a run, or with ``points`` or ``keys`` series of one or more.

        Without any of the other arguments these are all points recorded so far, oldest first. With
        one of them, the server reduces each series to at most ``points`` buckets of steps, however
        long it is; see ``series``.

        Args:
            run_id: Id of the run.
            since: Number of points to skip.
            points: Maximum number of points of each series; 500 by default.
            keys: Metrics, such as ``["loss", "validation/loss"]``; all by default.
            ids: Ids of up to 20 runs, in place of ``run_id``.
            from_step: First step.
            to_step: Last step.

        Raises:
            ViNotFoundError: No run has this id.
            ViInvalidParameterError: An argument is malformed.
        """
        if run_id is None or any(
            value is not None for value in (points, keys, ids, from_step, to_step)
        ):
            return self.series(
                run_id, points=points, keys=keys, ids=ids, from_step=from_step, to_step=to_step
            )
        return self._fetch_points(run_id, since)

    def series(
        self,
        run_id: str | None = None,
        *,
        points: int | None = None,
        keys: str | Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        bucket_steps: int | None = None,
        since: int | None = None,
    ) -> MetricSeriesList:
        """Return metric series of one or several runs, reduced by the server, in one request.

        A point of a series is a bucket of steps with the minimum, the maximum and the last of its
        values. ``bucket_steps`` of the answer is the smallest power of two with which a series has
        at most ``points`` buckets; 1 means that these are all points.

        Args:
            run_id: Id of the run.
            points: Maximum number of buckets of each series, up to 5,000; 500 by default.
            keys: Metrics, such as ``["loss", "validation/loss"]``; all by default.
            ids: Ids of up to 20 runs, in place of ``run_id``.
            from_step: First step; the bucket that contains it is the first one.
            to_step: Last step.
            bucket_steps: Steps of a bucket, a power of two, in place of ``points``.
            since: ``next`` of an earlier answer: return only buckets that are new or have changed
                since, and those after them.

        Returns:
            The series, by run and key.

        Raises:
            ViNotFoundError: No run has this id.
            ViInvalidParameterError: An argument is malformed.
        """
        wanted = list_run_ids(run_id, ids)
        query = build_series_query(
            points=points,
            keys=keys,
            from_step=from_step,
            to_step=to_step,
            bucket_steps=bucket_steps,
            since=since,
        )
        if ids is None:
            path = f"{self._path(wanted[0])}/metrics:series"
        else:
            path, query = f"{self._base}:series", [*(("id", one) for one in wanted), *query]
        answer = self._http.call("GET", path, params=query, decode_as=SeriesAnswer)
        return MetricSeriesList(answer.items, answer.keys)

    def _fetch_points(self, run_id: str, since: int) -> builtins.list[MetricPoint]:
        path, points, number = self._path(run_id) + "/metrics", [], since
        while True:
            slice_ = self._http.call("GET", path, params={"since": number}, decode_as=MetricSlice)
            points += slice_.items
            if not slice_.items or slice_.next is None:
                return points
            number = _check_advances(slice_.next, than=number)

    def __iter__(self) -> Iterator[Run]:
        yield from (self.list(PaginationParams(page_size=100))).all_items()

    def __call__(self, **filters: Any) -> Iterator[Run]:
        """Iterate over every run that matches the filters of ``list``."""
        yield from (self.list(PaginationParams(page_size=100), **filters)).all_items()

    def _change_many(
        self, verb: str, run_ids: object, filter: object, *, dry_run: bool, **options: Any
    ) -> RunOutcomes:
        """Send one bulk request.

        With ids it is idempotent: a retry has the same outcome. A filter could match other runs on
        a retry.
        """
        if isinstance(run_ids, str):
            run_ids = [run_ids]
        body = {
            **encode_selection(run_ids, filter),
            **options,
            **({"dryRun": True} if dry_run else {}),
        }
        return self._http.call(
            "POST",
            f"{self._base}:{verb}",
            body=body,
            decode_as=RunOutcomes,
            idempotent=filter is None,
        )

    def _iterate_lines(self, path: str, request: LogRequest, *, follow: bool) -> Iterator[LogLine]:
        number, left = request.since, request.limit
        if request.tail is not None:
            lines, number = self._fetch_tail(path, request, tail=request.tail)
            for line in lines[:left]:
                yield line
            left = None if left is None else max(0, left - len(lines))
            if not follow:
                return
        while left is None or left > 0:
            params = {
                "since": number,
                "limit": None if left is None else min(left, MAX_LINES),
                "wait": _LONG_POLL_S if follow else None,
                **request.filters,
            }
            call = partial(self._http.call, "GET", path, params=params, decode_as=LogSlice)
            slice_ = self._retry_while_unavailable(call) if follow else call()
            for line in slice_.items[:left]:
                yield line
            left = None if left is None else left - len(slice_.items)
            if (slice_.items or slice_.has_more) and slice_.next is not None:
                number = _check_advances(slice_.next, than=number)
            elif slice_.ended or not follow:
                return
            else:
                # A search may have advanced without a match.
                number = max(number, slice_.next or 0)
                self._http.sleep(_FIRST_PAUSE_S)  # for servers that ignore the long poll

    def _fetch_tail(
        self, path: str, request: LogRequest, *, tail: int
    ) -> tuple[builtins.list[LogLine], int]:
        """Return the newest lines, and the number after which newer ones follow."""
        pages: builtins.list[builtins.list[LogLine]] = []
        number = before = None
        while tail > 0:
            position = {"tail": min(tail, MAX_LINES)} if before is None else {"before": before}
            params = {**position, "limit": min(tail, MAX_LINES), **request.filters}
            if request.since:
                params["since"] = request.since
            slice_ = self._http.call("GET", path, params=params, decode_as=LogSlice)
            number = slice_.next if number is None else number
            pages.append(slice_.items)
            tail -= len(slice_.items)
            if slice_.previous is None:
                break
            if before is not None:
                _check_advances(before, than=slice_.previous)
            before = slice_.previous
        lines = [line for page in reversed(pages) for line in page]
        return lines, number or 0

    def _retry_while_unavailable(
        self, request: Callable[[], T], *, deadline_s: float = float("inf")
    ) -> T:
        """Repeat a request until it succeeds, or the server was unavailable for too long."""
        return retry_while_unavailable(
            self._http, request, clock=self._clock, deadline_s=deadline_s
        )

    def _path(self, run_id: str) -> str:
        return f"{self._base}/{check_id(run_id, name='run_id')}"


def _check_advances(number: int, *, than: int) -> int:
    if number <= than:
        raise PaginationError(
            f"the server returned {number} as the next number after {than}, expected: a larger one"
        )
    return number
