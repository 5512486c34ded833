"""Use the asyncio client: start two short runs and wait for both at once."""

import asyncio

import vi
from vi.api.resources.runs.responses import Run

SHORT = {"blocks": [{"block": "vi-model", "settings": {"hyperparameters": {"maxSteps": 20}}}]}


async def train(client: vi.AsyncClient, name: str) -> Run:
    """Run a short flow and return the finished run."""
    run = await client.runs.create(flow={"name": name, **SHORT})
    return await client.runs.wait(run.run_id, timeout=600, show_progress=False)


async def main() -> None:
    async with vi.AsyncClient() as client:
        for run in await asyncio.gather(train(client, "first"), train(client, "second")):
            print(f"{run.spec.flow.name}: {run.condition.value if run.condition else 'Unknown'}")


asyncio.run(main())
