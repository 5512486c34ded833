"""Best value and small curve of each run in a list, kept in memory while the run is unchanged."""

from collections.abc import Mapping, Sequence

from runyard.server.pages.runs.rows import Summary, find_key_metric
from runyard.server.services.context import Services
from runyard.server.services.runs import listing
from vi.api.resources.runs.responses import Run


async def read(services: Services, *, org: str, runs: Sequence[Run]) -> Mapping[str, Summary]:
    """Return the summary of each run."""
    metrics = {
        run.run_id: f"validation/{name}" for run in runs if (name := find_key_metric(run)[0])
    }
    best = await listing.read_best_values(services, org=org, metrics=metrics)
    return {run.run_id: Summary(best=best.get(run.run_id)) for run in runs}
