"""Everything that the tabs of a run read from services, gathered in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from runyard.server.http.request import Request, get_actor, get_origin, get_services
from runyard.server.pages.run.head import Recent, RunHead, build_head
from runyard.server.services import events
from runyard.server.services.context import Services
from runyard.server.services.events import EventFilter
from runyard.server.services.runs import models, runs
from vi.api.resources.events.responses import Event
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run

MOST_EVENTS = 1000


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A run with what every tab shows of it."""

    services: Services
    org: str
    run: Run
    models: Sequence[Model]
    head: RunHead
    now_ms: int


async def load_run(request: Request, run_id: str) -> LoadedRun:
    """Return a run and its head.

    Raises:
        Refusal: NotFound.
    """
    services, org = get_services(request), get_actor(request).org
    run = runs.decode_run(runs.get(services, org=org, run_id=run_id)[0])
    found = models.list_models(services, org=org, run_id=run_id, origin=get_origin(request))
    now_ms = services.clock.now_ms()
    recent = await load_recent(services, org, run)
    head = build_head(run, now_ms=now_ms, recent=recent, has_checkpoint=bool(found))
    return LoadedRun(services=services, org=org, run=run, models=found, head=head, now_ms=now_ms)


async def load_recent(services: Services, org: str, run: Run) -> Recent:
    """Return the newest measurements of a run."""
    return Recent()


async def load_evaluations(services: Services, org: str, run: Run) -> list[tuple[int, int]]:
    """Return the steps of all evaluations and their times, oldest first."""
    found = await load_events(services, org, run.run_id)
    return [
        (step, event.time)
        for event in found
        if event.what == "evaluation" and isinstance(step := event.details.get("step"), int)
    ]


async def load_events(services: Services, org: str, run_id: str) -> Sequence[Event]:
    """Return the events of a run that are kept, oldest first."""
    find = partial(
        events.find,
        org=org,
        after=None,
        limit=MOST_EVENTS,
        filter=EventFilter(run_id=run_id),
    )
    found = await services.store.read_in_thread(find)
    return [msgspec.json.decode(item, type=Event) for item in found.items]
