"""Train a little, then resume from the checkpoint twice: for more steps, and with a lower learning
rate.

A resumed run restores weights, optimizer, step and random states as they were saved.
"""

import vi


def make_flow(steps: int, learning_rate: float) -> dict[str, object]:
    """Make a flow with a constant schedule, so that resuming gives the same result as one longer
    run.
    """
    numbers = {"maxSteps": steps, "learningRate": learning_rate, "schedule": {"name": "constant"}}
    return {
        "name": "resumed",
        "blocks": [{"block": "vi-model", "settings": {"hyperparameters": numbers}}],
    }


with vi.Client() as client:
    first = client.runs.create(make_flow(20, 0.003))
    client.runs.wait(first.run_id, timeout=600)

    longer = client.runs.create(make_flow(40, 0.003), resume_from=first.run_id)
    slower = client.runs.create(make_flow(40, 0.001), resume_from=(first.run_id, "best"))
    client.runs.delete(first.run_id)  # the other runs have their own copy of the checkpoint

    for name, run in (("longer", longer), ("slower", slower)):
        run = client.runs.wait(run.run_id, timeout=600)
        origin, progress = run.spec.resume_from, run.status.progress
        print(
            f"{name}: from step {origin.step if origin else 0} to step "
            f"{progress.step if progress else 0}"
        )
