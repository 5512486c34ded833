"""Train the built-in tiny model on real handwritten digits, and fetch it: the whole way in one screen.

An empty list of blocks is a complete recipe. Where the server is and which key to use come from the environment, or
from ~/.runyard/credentials.json, which `runyard up` has written.
"""

import vi

with vi.Client() as client:
    run = client.runs.create(
        flow={"name": "Quick Training", "schema": "v1", "blocks": [], "settings": {}, "tolerations": {}}
    )
    print(f"Started run {run.run_id}")

    run = client.runs.wait(run.run_id, timeout=600)
    progress = run.status.progress
    if progress and progress.metric is not None:
        print(f"{progress.metric_name} on held-out data: {progress.metric:.3f}")

    model = client.get_model(run.run_id, ckpt="best")
    print(f"The model lies in {model.model_path}")
