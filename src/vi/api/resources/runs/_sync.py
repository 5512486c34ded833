# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.runs``: start trainings, follow them, end them.

A run's id is made by the caller, so creating it can be repeated over a bad line and is still one run. What takes long
(``wait``, following ``logs``) outlasts a server that is away for a while: training goes on without it, so there is no
reason to stop waiting. A missing run is no such case and ends the waiting at once.
"""

import builtins
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, overload

from vi._concurrency import synchronous as concurrency
from vi._http._sync import Http
from vi._http.retry import NO_RETRY
from vi.api._arguments import (
    check_id,
    check_seconds,
    flow_document,
    if_match_headers,
    metadata_document,
    resume_document,
    spec_document,
)
from vi.api._pages._sync import PaginatedResponse, list_pages
from vi.api._progress import run_progress
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs._endings import is_over, succeeded, too_long, vanished
from vi.api.resources.runs._pages import LogSlice, MetricSlice
from vi.api.resources.runs._selection import RunIds, filter_document, filter_parameters, selection_document
from vi.api.resources.runs.responses import LogLine, MetricPoint, Run, RunOutcomes, RunSpec
from vi.api.responses import ConditionKind, DeletedResource
from vi.api.types import PaginationParams
from vi.errors import (
    PaginationError,
    ViNetworkError,
    ViNotFoundError,
    ViRateLimitError,
    ViServerError,
    ViTimeoutError,
)

T = TypeVar("T")

_AWAY = (ViNetworkError, ViTimeoutError, ViServerError, ViRateLimitError)
_PATIENCE_S = 120.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_LONG_POLL_S = 15
_MOST_LINES = 1000


class Runs:
    """The organisation's runs; iterating yields every one of them."""

    def __init__(self, http: Http, organization_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/runs"
        self._clock = clock

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
    ) -> PaginatedResponse[Run]:
        """A page of runs, newest first, of those that match every given filter.

        Args:
            pagination: page size and where to go on.
            condition: the state the runs are in now, such as ``"Running"``.
            flow: id of the flow they were made from.
            training_project: what they were made for.
            attribute: attributes they carry, all of them.
            created_after: a datetime, or epoch milliseconds; the same goes for ``created_before``.
        """
        filters = filter_parameters(
            filter_document(
                condition=condition,
                flow=flow,
                training_project=training_project,
                attribute=attribute,
                created_after=created_after,
                created_before=created_before,
            )
        )
        return list_pages(self._http, self._base, item=Run, pagination=pagination, filters=filters)

    def get(self, run_id: str) -> Run:
        """One run as it is now.

        Raises:
            ViNotFoundError: there is none with this id.
        """
        return self._http.call("GET", self._path(run_id), decode_as=Run)

    def create(
        self,
        flow: str | FlowSpec | Mapping[str, Any],
        training_project: str | None = None,
        metadata: Mapping[str, str] | None = None,
        run_id: str | None = None,
        resume_from: str | tuple[str, str] | None = None,
    ) -> Run:
        """Create a run and start it as soon as there is room.

        Args:
            flow: id of a saved flow, or the recipe itself. The run keeps its own copy.
            training_project: id of a training project or a dataset.
            metadata: attributes to find the run by.
            run_id: an id of your own; the same id with the same body is the same run.
            resume_from: id of a run to go on from, or that and one of its checkpoints: ``(run_id, checkpoint)``, where
                the checkpoint is an id, ``"latest"`` or ``"best"``. Weights, optimizer, step and random states are as
                they were saved. The run keeps its own copy, so the other one may be deleted.

        Raises:
            ViValidationError: the recipe is wrong; ``details["problems"]`` lists every fault with its path.
            ViNotFoundError: there is no such flow, or nothing of that name to resume from.
            ViConflictError: the id belongs to a run made from something else.
        """
        path = self._path(str(uuid.uuid4()) if run_id is None else run_id)
        spec: dict[str, Any]
        spec = {"flowId": check_id(flow, name="flow")} if isinstance(flow, str) else {"flow": flow_document(flow)}
        if training_project is not None:
            spec["trainingProject"] = training_project
        if resume_from is not None:
            spec["resumeFrom"] = resume_document(resume_from)
        return self._http.call("PUT", path, body={"spec": spec, **metadata_document(metadata)}, decode_as=Run)

    start = create

    def update(
        self,
        run_id: str,
        spec: RunSpec | Mapping[str, Any] | None = None,
        metadata: Mapping[str, str | None] | None = None,
        *,
        if_match: str | None = None,
    ) -> Run:
        """Change the given fields and attributes and no others; an attribute that is None goes away.

        Raises:
            ViConflictError: the run's state forbids it, or ``if_match`` is no longer its etag.
        """
        body = {
            **({} if spec is None else {"spec": spec_document(spec)}),
            **metadata_document(metadata, removable=True),
        }
        headers = if_match_headers(if_match)
        return self._http.call("PATCH", self._path(run_id), body=body, headers=headers, decode_as=Run)

    @overload
    def kill(self, run_id: str, grace_s: float | None = None) -> Run: ...

    @overload
    def kill(
        self,
        run_id: RunIds | None = None,
        grace_s: float | None = None,
        *,
        filter: Mapping[str, Any] | Literal["all"] | None = None,
        dry_run: bool = False,
    ) -> RunOutcomes: ...

    def kill(
        self,
        run_id: str | RunIds | None = None,
        grace_s: float | None = None,
        *,
        filter: Mapping[str, Any] | Literal["all"] | None = None,
        dry_run: bool = False,
    ) -> Run | RunOutcomes:
        """Ask for the end of a run, or of many. It saves and stops; ``wait`` tells when nothing of it lives any more.

        What has not ended after ``grace_s`` seconds is ended unsaved; without it the flow's
        ``settings.gracePeriodSeconds`` or the platform's own grace holds. A second kill changes nothing.

        Args:
            run_id: which run, or at most 1,000 ids: then one request, and one outcome for each run.
            grace_s: seconds for each run to save and stop.
            filter: those that wait or train and match these filters of ``list``, such as
                ``{"attribute": {"sweep": "3"}}``, or ``"all"``. At most 1,000 at once; ``more`` says that there are
                further ones.
            dry_run: say which runs it would be, and do nothing.

        Raises:
            ViConflictError: the run is over already. With several, ``outcomes.refused`` says so.
        """
        check_seconds(grace_s, name="grace_s")
        if not isinstance(run_id, str) or filter is not None or dry_run:
            grace = {} if grace_s is None else {"graceSeconds": grace_s}
            return self._with_many("kill", run_id, filter, dry_run=dry_run, **grace)
        spec: dict[str, float] = {"killedAt": time.time_ns() // 1_000_000}
        if grace_s is not None:
            spec["graceSeconds"] = grace_s
        body = {"spec": spec}
        return self._http.call("PATCH", self._path(run_id), body=body, decode_as=Run)

    @overload
    def delete(self, run_id: str) -> DeletedResource: ...

    @overload
    def delete(
        self,
        run_id: RunIds | None = None,
        *,
        filter: Mapping[str, Any] | Literal["all"] | None = None,
        dry_run: bool = False,
    ) -> RunOutcomes: ...

    def delete(
        self,
        run_id: str | RunIds | None = None,
        *,
        filter: Mapping[str, Any] | Literal["all"] | None = None,
        dry_run: bool = False,
    ) -> DeletedResource | RunOutcomes:
        """Delete a run, or many, with logs, metrics and checkpoints, for good. Those under way are killed by it.

        ``run_id``, ``filter`` and ``dry_run`` are those of ``kill``.

        Raises:
            ViNotFoundError: there is none with this id. With several, ``outcomes.refused`` says so.
        """
        if not isinstance(run_id, str) or filter is not None or dry_run:
            return self._with_many("delete", run_id, filter, dry_run=dry_run)
        self._http.call("DELETE", self._path(run_id))
        return DeletedResource(id=run_id)

    def wait(
        self,
        run_id: str,
        timeout: float | None = None,
        on_update: Callable[[Run], Any] | None = None,
        *,
        poll_interval: float | None = None,
        show_progress: bool = True,
    ) -> Run:
        """Wait until a run is over, and return it if it succeeded.

        Args:
            run_id: which run.
            timeout: seconds to wait at most; without it, as long as it takes.
            on_update: called with the run each time it has changed.
            poll_interval: seconds between two looks; without it they grow from 0.1 to 1.
            show_progress: draw a progress bar, if there is a terminal to draw on.

        Raises:
            ViRunFailedError: it ended in Failed, Error or Cancelled; the error carries the run.
            ViRunVanishedError: it was deleted meanwhile. One that never was raises ViNotFoundError.
            ViTimeoutError: it is still going on after ``timeout`` seconds.
        """
        check_seconds(timeout, name="timeout")
        check_seconds(poll_interval, name="poll_interval", least=0.001)
        path, start_s = self._path(run_id), self._clock()
        deadline_s = float("inf") if timeout is None else start_s + timeout
        pause_s = _FIRST_PAUSE_S
        run, told = self.get(run_id), None
        with run_progress(show_progress) as draw:
            while True:
                if run != told:
                    draw(run)
                    if on_update is not None:
                        concurrency.tell(on_update, run)
                    told = run
                if is_over(run):
                    return succeeded(run)
                left_s = deadline_s - self._clock()
                if left_s <= 0:
                    raise too_long(run_id, run, timeout_s=timeout or 0)
                self._http.sleep(min(poll_interval or pause_s, left_s))
                pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
                try:
                    run = self._outlast(
                        lambda: self._http.call("GET", path, decode_as=Run, retry=NO_RETRY), deadline_s=deadline_s
                    )
                except ViNotFoundError as error:
                    raise vanished(run_id, error) from error
                except _AWAY as error:
                    if self._clock() < deadline_s:
                        raise
                    raise too_long(run_id, run, timeout_s=timeout or 0) from error

    def logs(
        self,
        run_id: str,
        follow: bool = False,
        *,
        since: int = 0,
        limit: int | None = None,
        stream: Literal["events", "stdout", "stderr"] | None = None,
    ) -> Iterator[LogLine]:
        """The lines a run's trainer has written, oldest first.

        Args:
            run_id: which run.
            follow: go on with lines as they are written, until the run is over.
            since: number of the last line that is known already.
            limit: most lines to yield.
            stream: lines of this stream alone.
        """
        return self._lines(self._path(run_id) + "/logs", follow=follow, since=since, limit=limit, stream=stream)

    def metrics(self, run_id: str, *, since: int = 0) -> builtins.list[MetricPoint]:
        """Everything measured so far, oldest first; ``since`` leaves out that many of the server's points."""
        path, points, number = self._path(run_id) + "/metrics", [], since
        while True:
            piece = self._http.call("GET", path, params={"since": number}, decode_as=MetricSlice)
            points += piece.items
            if not piece.items or piece.next is None:
                return points
            number = _further(piece.next, than=number)

    def __iter__(self) -> Iterator[Run]:
        yield from (self.list(PaginationParams(page_size=100))).all_items()

    def __call__(self, **filters: Any) -> Iterator[Run]:
        """Every run that matches the filters of ``list``."""
        yield from (self.list(PaginationParams(page_size=100), **filters)).all_items()

    def _with_many(self, verb: str, run_ids: object, filter: object, *, dry_run: bool, **options: float) -> RunOutcomes:
        """Send one request for many runs.

        With ids it may be repeated when its answer got lost: what was done has the same outcome again. A filter would
        find other runs the second time.
        """
        if isinstance(run_ids, str):
            run_ids = [run_ids]
        body = {**selection_document(run_ids, filter), **options, **({"dryRun": True} if dry_run else {})}
        path, is_same_again = f"{self._base}:{verb}", filter is None
        return self._http.call("POST", path, body=body, decode_as=RunOutcomes, idempotent=is_same_again)

    def _lines(
        self, path: str, *, follow: bool, since: int, limit: int | None, stream: str | None
    ) -> Iterator[LogLine]:
        number, left = since, limit
        while left is None or left > 0:
            params = {
                "since": number,
                "limit": None if left is None else min(left, _MOST_LINES),
                "block": stream,
                "wait": _LONG_POLL_S if follow else None,
            }
            ask = partial(self._http.call, "GET", path, params=params, decode_as=LogSlice)
            piece = self._outlast(ask) if follow else ask()
            yield from piece.items[:left]
            left = None if left is None else left - len(piece.items)
            if piece.items and piece.next is not None:
                number = _further(piece.next, than=number)
            elif piece.ended or not follow:
                return
            else:
                self._http.sleep(_FIRST_PAUSE_S)  # a server that does not hold the question must not be flooded

    def _outlast(self, ask: Callable[[], T], *, deadline_s: float = float("inf")) -> T:
        """Ask until there is an answer, or the server has been away for too long."""
        patience_s = min(self._clock() + _PATIENCE_S, deadline_s)
        while True:
            try:
                return ask()
            except _AWAY:
                if self._clock() >= patience_s:
                    raise
            self._http.sleep(_LONGEST_PAUSE_S)

    def _path(self, run_id: str) -> str:
        return f"{self._base}/{check_id(run_id, name='run_id')}"


def _further(number: int, *, than: int) -> int:
    if number <= than:
        raise PaginationError(f"the server says to go on from {number}, after having been asked from {than}")
    return number
