"""Save a flow, run it twice with different seeds, and compare.

A flow contains only what differs from the defaults; docs/flow-reference.md lists every field.
"""

import vi

FLOW = {
    "name": "short-digits",
    "blocks": [
        {"block": "vi-dataset", "settings": {"datasetId": "digits", "validationFraction": 0.25}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {
                    "maxSteps": 30,
                    "batchSize": 64,
                    "schedule": {"name": "linear"},
                },
                "validation": {"previews": 4},
            },
        },
    ],
}

with vi.Client() as client:
    flow = client.flows.create(spec=FLOW, metadata={"example": "custom-flow"})
    runs = []
    for seed in (1, 2):
        flow = client.flows.update(flow.flow_id, spec={"settings": {"seed": seed}})
        # A run keeps the flow as it is now; later changes of the flow do not affect it.
        runs.append(
            client.runs.create(
                flow=flow.flow_id, metadata={"example": "custom-flow", "seed": str(seed)}
            )
        )

    for run in runs:
        run = client.runs.wait(run.run_id, timeout=600)
        progress = run.status.progress
        print(
            f"seed {run.metadata.attributes['seed']}: "
            f"{progress.metric_name if progress else 'metric'}",
            end=" ",
        )
        print(
            f"{progress.metric:.3f}" if progress and progress.metric is not None else "not measured"
        )
