"""Resuming from a checkpoint of another run: does the flow fit it, and are there steps left?

A run may resume from another run's checkpoint with a flow of its own. The saved state must fit: the
same model, the same trained parameters, the same optimizer. The rest (data, learning rates,
schedule, length, intervals) may differ. The checkpoint's ``run.json`` holds the settings it was
trained with, with every default written out.
"""

from pathlib import Path
from typing import Any

from runyard.flows import ResolvedFlow
from runyard.rundir import CheckpointDir, read_json
from runyard.trainer.checkpoints.checkpoint import TrainingProgress
from runyard.trainer.errors import InvalidFlow


def check_fits(flow: ResolvedFlow, checkpoint: Path) -> None:
    """Check that a training with this flow can resume from the state in ``checkpoint``.

    Raises:
        InvalidFlow: naming everything that differs.
    """
    saved = _read_document_settings(read_json(CheckpointDir(checkpoint).run) or {})
    requested = _read_flow_settings(flow)
    saved["training.mode"] = "lora" if CheckpointDir(checkpoint).has_adapter else "full"
    if saved["training.mode"] != "lora" or requested["training.mode"] != "lora":
        requested = {
            name: value
            for name, value in requested.items()
            if not name.startswith("training.lora.")
        }
    different = [
        f"{name} is {value!r} in the flow and {saved[name]!r} in the checkpoint"
        for name, value in requested.items()
        if name in saved and value != saved[name]
    ]
    if different:
        raise InvalidFlow(
            f"the flow does not fit checkpoint {checkpoint.name}: {'; '.join(different)}; "
            "try: the checkpoint's values, or omit resumeFrom and start from its weights with "
            "architecture.weights 'run:RUN/CHECKPOINT'"
        )


def restore_progress(
    progress: TrainingProgress, checkpoint: Path, *, total_steps: int
) -> TrainingProgress:
    """Return the counters of a run that resumes from another run's checkpoint.

    Step and epoch are kept; the other run's metrics and best checkpoint are not.

    Raises:
        InvalidFlow: no steps are left.
    """
    if progress.step >= total_steps:
        raise InvalidFlow(
            f"checkpoint {checkpoint.name} is of step {progress.step}, but the flow ends after "
            f"{total_steps} steps, so none are left; try: more hyperparameters.epochs or maxSteps"
        )
    return TrainingProgress(step=progress.step, epoch=progress.epoch)


def _read_flow_settings(flow: ResolvedFlow) -> dict[str, Any]:
    """Return the settings that flow and checkpoint must share."""
    model = flow.model
    return {
        "projectKind": flow.task,
        "architecture.name": model.architecture.name,
        "architecture.size": model.architecture.size,
        "architecture.weights": model.architecture.weights,
        "training.mode": model.training.mode,
        "training.freeze": sorted(model.training.freeze),
        "training.weightsPrecision": model.training.weights_precision,
        "training.lora.rank": model.training.lora.rank,
        "training.lora.targets": model.training.lora.targets,
        "training.lora.useDora": model.training.lora.use_dora,
        "training.lora.trainProjector": model.training.lora.train_projector,
        "hyperparameters.optimizer.name": model.hyperparameters.optimizer.name,
    }


def _read_document_settings(run: dict[str, Any]) -> dict[str, Any]:
    """Return the same settings of a ``run.json``, without those that it lacks."""
    flow = run.get("spec", {}).get("flow", {})
    blocks = {block["block"]: block["settings"] for block in flow.get("blocks", [])}
    model, found = blocks.get("vi-model", {}), dict[str, Any]()
    architecture, training = model.get("architecture", {}), model.get("training", {})
    for name, holder, key in (
        ("projectKind", blocks.get("vi-dataset", {}), "projectKind"),
        ("architecture.name", architecture, "family"),
        ("architecture.size", architecture, "size"),
        ("architecture.weights", architecture, "weights"),
        ("training.freeze", training, "freeze"),
        ("training.weightsPrecision", training, "weightsPrecision"),
        ("training.lora.rank", training.get("lora", {}), "rank"),
        ("training.lora.targets", training.get("lora", {}), "targets"),
        ("training.lora.useDora", training.get("lora", {}), "useDora"),
        ("training.lora.trainProjector", training.get("lora", {}), "trainProjector"),
        (
            "hyperparameters.optimizer.name",
            model.get("hyperparameters", {}).get("optimizer", {}),
            "name",
        ),
    ):
        if key in holder:
            found[name] = sorted(holder[key]) if name == "training.freeze" else holder[key]
    return found
