"""Kill a run that trains too long: follow its log, kill it, and wait until its processes have
exited.

`kill` requests a stop: the run saves a checkpoint and ends. It becomes `Cancelled` once all of its
processes exited.
"""

import vi

ENDLESS = {"blocks": [{"block": "vi-model", "settings": {"hyperparameters": {"epochs": 10_000}}}]}

with vi.Client() as client:
    run = client.runs.create(flow=ENDLESS, metadata={"example": "kill"})
    for line in client.runs.logs(run.run_id, follow=True):
        print(line.text)
        if line.text.startswith("step "):
            break

    print(f"killed at {client.runs.kill(run.run_id).spec.killed_at}")
    try:
        client.runs.wait(run.run_id, timeout=120)
    except vi.ViRunFailedError as error:
        print(error)

    for condition in client.runs.get(run.run_id).status.conditions:
        print(f"{condition.condition.value}: {condition.reason} {condition.message or ''}")
