"""Train the built-in tiny model on real handwritten digits, and download it.

An empty list of blocks is a complete flow. The server's address and the key come from the
environment, or from ~/.runyard/credentials.json, which `runyard up` writes.
"""

import vi

with vi.Client() as client:
    run = client.runs.create(
        flow={
            "name": "Quick Training",
            "schema": "v1",
            "blocks": [],
            "settings": {},
            "tolerations": {},
        }
    )
    print(f"Started run {run.run_id}")

    run = client.runs.wait(run.run_id, timeout=600)
    progress = run.status.progress
    if progress and progress.metric is not None:
        print(f"{progress.metric_name} on held-out data: {progress.metric:.3f}")

    model = client.get_model(run.run_id, ckpt="best")
    print(f"The model is in {model.model_path}")
