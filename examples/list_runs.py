"""List runs: pages, filters, and one run in full."""

import vi
from vi.api.types import PaginationParams

with vi.Client() as client:
    for page in client.runs.list(pagination=PaginationParams(page_size=20)):
        for run in page.items:
            state = run.condition.value if run.condition else "Unknown"
            print(f"{run.run_id}  {state:<10} {run.spec.flow.name}")

    succeeded = list(client.runs.list(condition="Succeeded").all_items())
    print(f"{len(succeeded)} runs have succeeded")
    if succeeded:
        succeeded[0].info()
        for model in client.models.list(succeeded[0].run_id).items:
            best = " (best)" if model.spec.is_best else ""
            print(f"{model.model_id}: {model.spec.evaluation_metrics}{best}")
