"""Going on from a checkpoint of another run: does the recipe fit it, and is there anything left to do?

A run continues another one with a recipe of its own. What the saved state is made of has to be the same: the model,
what of it is trained, the rule by which it moves. The rest (data, rates, schedule, length, paces) may differ. What a
checkpoint was trained with stands in its ``run.json``, which has every default written out.
"""

from pathlib import Path
from typing import Any

from runyard.flows import ResolvedFlow
from runyard.rundir import MODEL_ADAPTER, MODEL_FULL, read_json
from runyard.trainer.checkpoints.checkpoint import RUN, Progress
from runyard.trainer.errors import InvalidFlow


def check_fits(recipe: ResolvedFlow, checkpoint: Path) -> None:
    """Refuse a recipe whose training cannot take up the state in ``checkpoint``.

    Raises:
        InvalidFlow: naming everything that differs.
    """
    saved, wanted = _of_document(read_json(checkpoint / MODEL_FULL / RUN) or {}), _of_recipe(recipe)
    saved["training.mode"] = "lora" if (checkpoint / MODEL_ADAPTER).is_dir() else "full"
    if saved["training.mode"] != "lora" or wanted["training.mode"] != "lora":
        wanted = {name: value for name, value in wanted.items() if not name.startswith("training.lora.")}
    different = [
        f"{name} is {value!r} in the recipe and {saved[name]!r} in the checkpoint"
        for name, value in wanted.items()
        if name in saved and value != saved[name]
    ]
    if different:
        raise InvalidFlow(
            f"the recipe does not fit checkpoint {checkpoint.name}: {'; '.join(different)}. Take the checkpoint's "
            "values, or leave resumeFrom out and begin from its weights with architecture.weights 'run:RUN/CHECKPOINT'"
        )


def taken_up(progress: Progress, checkpoint: Path, *, total_steps: int) -> Progress:
    """The counters of a run that continues another: where it stands, and nothing of how good the other one was.

    Raises:
        InvalidFlow: the recipe ends where the checkpoint stands, or before.
    """
    if progress.step >= total_steps:
        raise InvalidFlow(
            f"checkpoint {checkpoint.name} stands at step {progress.step}, and the recipe ends after {total_steps} "
            "steps, so nothing is left to do; raise hyperparameters.epochs or maxSteps"
        )
    return Progress(step=progress.step, epoch=progress.epoch)


def _of_recipe(recipe: ResolvedFlow) -> dict[str, Any]:
    model = recipe.model
    return {
        "projectKind": recipe.task,
        "architecture.name": model.architecture.name,
        "architecture.size": model.architecture.size,
        "architecture.weights": model.architecture.weights,
        "training.mode": model.training.mode,
        "training.freeze": sorted(model.training.freeze),
        "training.lora.rank": model.training.lora.rank,
        "training.lora.targets": model.training.lora.targets,
        "training.lora.useDora": model.training.lora.use_dora,
        "hyperparameters.optimizer.name": model.hyperparameters.optimizer.name,
    }


def _of_document(run: dict[str, Any]) -> dict[str, Any]:
    """The same of a ``run.json``, as far as it says so."""
    blocks = {block["block"]: block["settings"] for block in run.get("spec", {}).get("flow", {}).get("blocks", [])}
    model, found = blocks.get("vi-model", {}), dict[str, Any]()
    architecture, training = model.get("architecture", {}), model.get("training", {})
    for name, holder, key in (
        ("projectKind", blocks.get("vi-dataset", {}), "projectKind"),
        ("architecture.name", architecture, "family"),
        ("architecture.size", architecture, "size"),
        ("architecture.weights", architecture, "weights"),
        ("training.freeze", training, "freeze"),
        ("training.lora.rank", training.get("lora", {}), "rank"),
        ("training.lora.targets", training.get("lora", {}), "targets"),
        ("training.lora.useDora", training.get("lora", {}), "useDora"),
        ("hyperparameters.optimizer.name", model.get("hyperparameters", {}).get("optimizer", {}), "name"),
    ):
        if key in holder:
            found[name] = sorted(holder[key]) if name == "training.freeze" else holder[key]
    return found
