"""Everything that the tabs of a run read from services, gathered in one place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from runyard.server.http.request import Request, get_actor, get_origin, get_services
from runyard.server.pages.run.causes import get_plan_value
from runyard.server.pages.run.head import TIMED_STEPS, Recent, RunHead, Step, build_head
from runyard.server.services import events
from runyard.server.services.context import Services
from runyard.server.services.events import EventFilter
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs import models, runs
from runyard.server.services.runs.conditions import RUNNING
from runyard.server.services.runs.telemetry import newest, samples
from runyard.server.services.runs.telemetry.samples import SamplePage, SampleQuery
from vi.api.resources.events.responses import Event
from vi.api.resources.models.responses import Model
from vi.api.resources.runs.responses import Run

MOST_EVENTS = 1000
MOST_SAMPLES = 24
LOSS, THROUGHPUT = "loss", "samplesPerSecond"
MEMORY, GPU_MEMORY = "system/memoryBytes", "system/acceleratorMemoryBytes"
RECENT_KEYS = (LOSS, THROUGHPUT, MEMORY, GPU_MEMORY)


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
    """Return the newest measurements of a run; nothing once it has ended."""
    if run.condition is not RUNNING:
        return Recent()
    found = await newest.read_newest(
        services, org=org, run_id=run.run_id, keys=RECENT_KEYS, steps=TIMED_STEPS
    )
    throughput, loss = found.get(THROUGHPUT), found.get(LOSS, [])
    memory = sum(points[-1].value for key, points in found.items() if key.startswith(GPU_MEMORY))
    if not memory and found.get(MEMORY):
        memory = found[MEMORY][-1].value
    return Recent(
        steps=[Step(number=point.step, time_ms=point.time) for point in loss],
        samples_per_second=throughput[-1].value if throughput else None,
        memory_bytes=memory or None,
        total_memory_bytes=_get_total_memory(run),
    )


def _get_total_memory(run: Run) -> float | None:
    """Return the memory of the machine, or of its accelerators, that the plan has detected."""
    hardware = get_plan_value(run, "hardware")
    if not isinstance(hardware, dict):
        return None
    accelerators = hardware.get("accelerators")
    sizes = [
        item.get("memoryGiB")
        for item in (accelerators if isinstance(accelerators, list) else [])
        if isinstance(item, dict)
    ] or [hardware.get("memoryGiB")]
    numbers = [size for size in sizes if isinstance(size, int | float)]
    return sum(numbers) * 2**30 if numbers else None


def list_evaluations(found: Sequence[Event]) -> list[tuple[int, int]]:
    """Return the steps of all evaluations and their times, oldest first."""
    times = {
        step: event.time
        for event in found
        if event.what == "evaluation" and isinstance(step := event.details.get("step"), int)
    }
    return sorted(times.items())


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


async def load_samples(
    services: Services,
    org: str,
    run_id: str,
    *,
    query: SampleQuery,
    token: str | None = None,
    size: int = MOST_SAMPLES,
) -> SamplePage:
    """Return a page of samples of an evaluation, or of one image in all of them.

    Raises:
        Refusal: NotFound (no evaluation at this step), InvalidPageToken.
    """
    page_request = PageRequest(size=size, token=token, question=f"samples {run_id} {query}")
    page = await samples.read_sample_page(
        services, org=org, run_id=run_id, query=query, page_request=page_request
    )
    return msgspec.json.decode(page, type=SamplePage)
