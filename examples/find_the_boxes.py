"""Train the tiny model to locate objects: phrase grounding on the built-in canvases of digits.

This is a short run: 500 canvases and 40 steps are too few for good results. Prints the validation
metrics.
"""

import vi
from vi.api.resources.runs.responses import Run

FLOW = {
    "name": "find-digits",
    "blocks": [
        {"block": "vi-dataset", "settings": {"datasetId": "digits-grounding", "maxSamples": 500}},
        {
            "block": "vi-model",
            "settings": {"hyperparameters": {"maxSteps": 40}, "validation": {"maxSamples": 50}},
        },
    ],
}
seen: set[int] = set()


def print_step(run: Run) -> None:
    """Print a line for each new step that the server has received."""
    progress = run.status.progress
    if progress and progress.step not in seen:
        seen.add(progress.step)
        print(f"step {progress.step} of {progress.total_steps}: loss {progress.loss}")


with vi.Client() as client:
    run = client.runs.wait(
        client.runs.create(flow=FLOW).run_id, timeout=600, on_update=print_step, show_progress=False
    )
    for point in client.runs.metrics(run.run_id):
        measured = {
            name: value for name, value in point.values.items() if name.startswith("validation/")
        }
        if measured:
            print(
                f"epoch {point.epoch:.2f}: "
                + ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
            )
