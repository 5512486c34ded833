"""Kill a run that trains too long: watch it, kill it, and wait until its processes have exited.

`kill` requests a stop: the run saves a checkpoint and ends. It becomes `Cancelled` once all of its
processes exited.
"""

import vi

ENDLESS = {"blocks": [{"block": "vi-model", "settings": {"hyperparameters": {"epochs": 10_000}}}]}

with vi.Client() as client:
    run = client.runs.create(flow=ENDLESS, metadata={"example": "kill"})
    for change in client.runs.watch(run.run_id):
        newest = change.run.status.conditions[-1] if change.run else None
        if newest is not None and newest.reason == "Training":
            break

    print(f"killed at {client.runs.kill(run.run_id).spec.killed_at}")
    try:
        client.runs.wait(run.run_id, timeout=120)
    except vi.ViRunFailedError as error:
        print(error)

    for condition in client.runs.get(run.run_id).status.conditions:
        print(f"{condition.condition.value}: {condition.reason} {condition.message or ''}")
