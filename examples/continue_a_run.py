"""Train a little, look at the result, and go on from there: longer, and with a branch that learns more slowly.

A run that goes on from another one takes up weights, optimizer, step and random states as they were saved.
"""

import vi


def recipe(steps: int, learning_rate: float) -> dict[str, object]:
    """A constant schedule looks the same however long the run is, so going on is as if it had never stopped."""
    numbers = {"maxSteps": steps, "learningRate": learning_rate, "schedule": {"name": "constant"}}
    return {"name": "continued", "blocks": [{"block": "vi-model", "settings": {"hyperparameters": numbers}}]}


with vi.Client() as client:
    first = client.runs.create(recipe(20, 0.003))
    client.runs.wait(first.run_id, timeout=600)

    longer = client.runs.create(recipe(40, 0.003), resume_from=first.run_id)
    slower = client.runs.create(recipe(40, 0.001), resume_from=(first.run_id, "best"))
    client.runs.delete(first.run_id)  # the others have what they need

    for name, run in (("longer", longer), ("slower", slower)):
        run = client.runs.wait(run.run_id, timeout=600)
        origin, progress = run.spec.resume_from, run.status.progress
        print(f"{name}: from step {origin.step if origin else 0} to step {progress.step if progress else 0}")
