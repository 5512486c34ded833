"""The tabs of a run, each with its own address, and the parts of them that are fetched again."""

from collections.abc import Sequence
from typing import Any

import msgspec

from runyard.server.http.request import Id, Query, Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.run import facts, overview, predictions
from runyard.server.pages.run.facts import LoadedRun
from runyard.server.pages.run.files import FilesTab, build_files
from runyard.server.pages.run.flow import FlowTab, build_flow
from runyard.server.pages.run.head import RunHead, Tab, list_tabs
from runyard.server.pages.run.overview import Chart, ChartSettings, Checkpoints
from runyard.server.pages.run.predictions import Predictions
from runyard.server.pages.run.timeline import Timeline, build_timeline
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import deletion
from runyard.server.services.runs.telemetry.samples import Order, SampleQuery
from vi.api.resources.runs.responses import Sample

MOST_EVALUATIONS = 100
LEVELS = (("", "all levels"), ("info", "info"), ("warning", "warning"), ("error", "error"))


class TabPage(msgspec.Struct, frozen=True, kw_only=True):
    """What every tab has."""

    head: RunHead
    tabs: list[Tab]


class OverviewPage(TabPage, frozen=True, kw_only=True):
    """Charts, checkpoints, and a sample of the newest evaluation."""

    charts: list[Chart]
    settings: ChartSettings
    checkpoints: Checkpoints
    predictions: Predictions


class PredictionsPage(TabPage, frozen=True, kw_only=True):
    """The gallery of an evaluation."""

    predictions: Predictions


class LogForm(msgspec.Struct, frozen=True, kw_only=True):
    """The search form of the log, as the address states it."""

    q: str
    is_regex: bool
    is_case_sensitive: bool
    level: str
    levels: list[tuple[str, str]]
    follows: bool
    shows_time: bool
    wraps: bool
    download_href: str
    empty: str


class LogTabPage(TabPage, frozen=True, kw_only=True):
    """The log."""

    log: LogForm


class TimelinePage(TabPage, frozen=True, kw_only=True):
    """The timeline."""

    timeline: Timeline


class FlowPage(TabPage, frozen=True, kw_only=True):
    """Flow, plan and environment."""

    flow: FlowTab


class FilesPage(TabPage, frozen=True, kw_only=True):
    """The files of a run."""

    files: FilesTab


class GonePage(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was deleted."""

    id: str
    is_removed: bool


async def get_overview(request: Request, run_id: Id) -> Response:
    """Show charts, checkpoints and a sample."""
    if (gone := _find_deleted(request, run_id)) is not None:
        return templates.render_page(request, "run_gone.html", gone, status=404)
    loaded, query = await facts.load_run(request, run_id), Query(request)
    page = OverviewPage(
        head=loaded.head,
        tabs=list_tabs(loaded.head.base, ""),
        charts=overview.list_charts(loaded.run),
        settings=overview.parse_settings(
            query.text("x"),
            query.text("smooth"),
            query.text("y"),
            is_zoomed=query.text("from") is not None,
        ),
        checkpoints=await _build_checkpoints(loaded),
        predictions=await _build_predictions(loaded, Query(request)),
    )
    return templates.render_page(request, "run_overview.html", page)


async def get_head(request: Request, run_id: Id) -> Response:
    """Return the head of a run, or that the run was deleted."""
    if (gone := _find_deleted(request, run_id)) is not None:
        return templates.render_fragment(request, "parts/_run_gone.html", gone)
    return render_head(request, await facts.load_run(request, run_id))


def render_head(request: Request, loaded: LoadedRun) -> Response:
    """Return the head as a part of a page."""
    page = TabPage(head=loaded.head, tabs=[])
    return templates.render_fragment(request, "parts/_run_head.html", page)


async def get_checkpoints(request: Request, run_id: Id) -> Response:
    """Return the list of checkpoints."""
    loaded = await facts.load_run(request, run_id)
    page = CheckpointsPart(checkpoints=await _build_checkpoints(loaded))
    return templates.render_fragment(request, "parts/_run_checkpoints.html", page)


class CheckpointsPart(msgspec.Struct, frozen=True, kw_only=True):
    """The list of checkpoints alone."""

    checkpoints: Checkpoints


async def get_sample(request: Request, run_id: Id) -> Response:
    """Return a sample of the newest evaluation."""
    loaded = await facts.load_run(request, run_id)
    page = PredictionsPage(
        head=loaded.head, tabs=[], predictions=await _build_predictions(loaded, Query(request))
    )
    return templates.render_fragment(request, "parts/_run_now.html", page)


async def get_predictions(request: Request, run_id: Id) -> Response:
    """Show the samples of an evaluation; for htmx the gallery alone."""
    loaded = await facts.load_run(request, run_id)
    page = PredictionsPage(
        head=loaded.head,
        tabs=list_tabs(loaded.head.base, "predictions"),
        predictions=await _build_predictions(loaded, Query(request)),
    )
    if templates.is_fragment(request):
        return templates.render_fragment(request, "parts/_run_predictions.html", page)
    return templates.render_page(request, "run_predictions.html", page)


async def get_log(request: Request, run_id: Id) -> Response:
    """Show the log."""
    loaded, query = await facts.load_run(request, run_id), Query(request)
    is_final = loaded.head.is_final
    form = LogForm(
        q=query.text("q") or "",
        is_regex=query.text("regex") == "1",
        is_case_sensitive=query.text("case") == "1",
        level=query.text("level") or "",
        levels=list(LEVELS),
        follows=query.text("follow") != "0" and query.text("at") is None,
        shows_time=query.text("time") != "0",
        wraps=query.text("wrap") == "1",
        download_href=f"{loaded.head.api}/logs/file",
        empty="The run wrote no log."
        if is_final
        else "No lines yet. They appear when the trainer starts.",
    )
    page = LogTabPage(head=loaded.head, tabs=list_tabs(loaded.head.base, "log"), log=form)
    return templates.render_page(request, "run_log.html", page)


async def get_timeline(request: Request, run_id: Id) -> Response:
    """Show the timeline; for htmx the timeline alone."""
    loaded = await facts.load_run(request, run_id)
    found = await facts.load_events(loaded.services, loaded.org, run_id)
    page = TimelinePage(
        head=loaded.head,
        tabs=list_tabs(loaded.head.base, "timeline"),
        timeline=build_timeline(
            loaded.run,
            models=loaded.models,
            events=found,
            evaluations=facts.list_evaluations(found),
            base=loaded.head.base,
            now_ms=loaded.now_ms,
        ),
    )
    if templates.is_fragment(request):
        return templates.render_fragment(request, "parts/_run_timeline.html", page)
    return templates.render_page(request, "run_timeline.html", page)


async def get_flow(request: Request, run_id: Id) -> Response:
    """Show flow, plan and environment."""
    loaded = await facts.load_run(request, run_id)
    page = FlowPage(
        head=loaded.head,
        tabs=list_tabs(loaded.head.base, "flow"),
        flow=build_flow(loaded.run),
    )
    return templates.render_page(request, "run_flow.html", page)


async def get_files(request: Request, run_id: Id) -> Response:
    """Show what the server holds of a run."""
    loaded = await facts.load_run(request, run_id)
    found = await deletion.read_contents(loaded.services, org=loaded.org, run_id=run_id)
    page = FilesPage(
        head=loaded.head,
        tabs=list_tabs(loaded.head.base, "files"),
        files=build_files(found, loaded.models, api=loaded.head.api),
    )
    return templates.render_page(request, "run_files.html", page)


async def get_removal(request: Request, run_id: Id) -> Response:
    """Return whether the bytes of a deleted run are removed."""
    gone = _find_deleted(request, run_id)
    if gone is None:
        raise Refusal("NotFound", f"run {run_id!r} was not deleted; nothing is being removed")
    return templates.render_fragment(request, "parts/_run_removal.html", gone)


def _find_deleted(request: Request, run_id: str) -> GonePage | None:
    services, org = get_services(request), get_actor(request).org
    if not deletion.is_deleted(services, org=org, run_id=run_id):
        return None
    is_removed = deletion.is_removed(services, org=org, run_id=run_id)
    return GonePage(id=run_id, is_removed=is_removed)


async def _build_checkpoints(loaded: LoadedRun) -> Checkpoints:
    found = await facts.load_events(loaded.services, loaded.org, loaded.run.run_id)
    return overview.build_checkpoints(
        loaded.run,
        loaded.models,
        evaluations=facts.list_evaluations(found),
        saved=len(
            {event.details.get("checkpoint") for event in found if event.what == "checkpoint"}
        ),
        base=loaded.head.base,
        now_ms=loaded.now_ms,
    )


async def _build_predictions(loaded: LoadedRun, query: Query) -> Predictions:
    key: Any = {"services": loaded.services, "org": loaded.org, "run_id": loaded.run.run_id}
    order: Order = "index" if query.text("orderBy") == "index" else "score"
    index, step = query.integer("index"), query.integer("evaluation")
    nearest = await _find_evaluation(key, step)
    found = await facts.load_samples(
        **key, query=SampleQuery(step=nearest, order=order), token=query.text("p")
    )
    shown = predictions.choose_sample(found.items, index)
    history: Sequence[Sample] = ()
    if shown is not None:
        one = SampleQuery(index=shown.index)
        history = (await facts.load_samples(**key, query=one, size=MOST_EVALUATIONS)).items
    return predictions.build_predictions(
        found,
        shown=shown,
        history=history,
        order=order,
        base=loaded.head.base,
        empty=explain_no_samples(loaded),
    )


async def _find_evaluation(key: Any, step: int | None) -> int | None:
    """Return the evaluation at a step or the last one before it; None for the latest."""
    if step is None:
        return None
    found = await facts.load_samples(**key, query=SampleQuery(), size=1)
    earlier = [one for one in found.evaluations if one <= step]
    return earlier[-1] if earlier else next(iter(found.evaluations), None)


def explain_no_samples(loaded: LoadedRun) -> str:
    """Return why there are no predictions."""
    if loaded.head.is_final:
        return "The run ended before its first evaluation, so there are no predictions."
    return (
        "No evaluation yet. Predictions appear after the first one, which is at the end of an "
        "epoch unless the flow says otherwise."
    )
