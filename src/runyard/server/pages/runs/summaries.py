"""Best value and small curve of each run in a list."""

from collections.abc import Mapping, Sequence

from runyard.server.pages.runs.rows import Summary, draw_spark, find_key_metric
from runyard.server.services.context import Services
from runyard.server.services.runs import listing
from runyard.server.services.runs.telemetry import curves
from vi.api.resources.runs.responses import Run

CURVE = "loss"


async def read_summaries(
    services: Services, *, org: str, runs: Sequence[Run], has_curves: bool
) -> Mapping[str, Summary]:
    """Return the summary of each run; without curves if the list does not show them."""
    metrics = {
        run.run_id: f"validation/{name}" for run in runs if (name := find_key_metric(run)[0])
    }
    best = await listing.read_best_values(services, org=org, metrics=metrics)
    # The etag does not change while a run trains.
    versions = {
        run.run_id: f"{run.metadata.last_updated} {run.status.progress.step}"
        for run in runs
        if has_curves and run.status.progress is not None
    }
    found = await curves.read_curves(services, org=org, versions=versions, key=CURVE)
    return {
        run.run_id: Summary(best=best.get(run.run_id), spark=draw_spark(found.get(run.run_id, ())))
        for run in runs
    }
