"""Where the weights to start from are on this machine.

They are a base model, or an adapter with its base: a checkpoint's tree, or a folder saved by peft,
whose configuration names the base. All of them must be in the machine's model folders, apart from
other runs' checkpoints, which the supervisor has fetched.
"""

from dataclasses import dataclass
from pathlib import Path

from runyard.flows.blocks import Architecture
from runyard.flows.families import FAMILIES
from runyard.flows.weights import BASE_PREFIX, classify_weights
from runyard.model_folders import ADAPTER_CONFIG, SETTING, ModelFolders
from runyard.rundir import CheckpointDir, read_json
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.models.model_folder import check_adapter_folder, check_inside

BASE_KEY = "base_model_name_or_path"  # in an adapter's configuration
EXPORT = "export.json"  # of an exported adapter; names its base as flows do


@dataclass(frozen=True)
class WeightSource:
    """The folder of a base model, and that of the adapter on it, if there is one."""

    base: Path
    adapter: Path | None = None


def find_weights(
    architecture: Architecture, models: dict[str, str], folders: ModelFolders
) -> WeightSource | None:
    """Return the weights to start from, by their real paths; None for the tiny model trained from
    scratch.

    ``models`` maps other runs' weights to folders. All other weights must be in the machine's model
    folders.

    Raises:
        InvalidFlow: the weights are not on this machine, or not in an allowed folder.
    """
    weights = architecture.weights
    if weights is None:
        if architecture.size == "tiny":
            return None
        family = FAMILIES.get(architecture.name)
        weights = family.sizes.get(architecture.size) if family else None
        if weights is None:
            raise InvalidFlow(
                f"unknown size {architecture.size!r} of architecture {architecture.name!r}"
            )
    found = _find_folder(weights, models, folders)
    if found is None:
        raise InvalidFlow(
            f"weights {weights!r} are not on this machine; trainers use no network, so download "
            "them first, then try: "
            "runyard models add FOLDER --name NAME"
        )
    if (found / ADAPTER_CONFIG).is_file():
        return WeightSource(_find_base(weights, found, folders), found)
    return split_checkpoint(found)


def split_checkpoint(folder: Path) -> WeightSource:
    """Return the parts of a checkpoint's tree, or of a folder that is a model by itself."""
    parts = CheckpointDir(folder)
    has_adapter = parts.has_adapter and parts.model != folder
    return WeightSource(parts.model, parts.model_adapter if has_adapter else None)


def _find_folder(weights: str, models: dict[str, str], folders: ModelFolders) -> Path | None:
    """Return the folder of these weights; None if they are not on this machine."""
    form = classify_weights(weights)
    if form == "run":
        return Path(models[weights]) if weights in models else None
    if form == "folder":
        found = folders.resolve(weights)
        if found is None:
            raise InvalidFlow(
                f"weights {weights!r} are not in a folder of this machine's setting {SETTING}"
            )
        return found if found.is_dir() else None
    return folders.find(weights.removeprefix(BASE_PREFIX)) if form is not None else None


def _find_base(weights: str, adapter: Path, folders: ModelFolders) -> Path:
    """Return the folder of the base model that an adapter's folder names.

    Raises:
        InvalidFlow: the adapter is not allowed, or its base is not on this machine.
    """
    check_inside(adapter, folders)
    check_adapter_folder(adapter)
    exported = (read_json(adapter / EXPORT) or {}).get("base")
    name = exported.get("weights") if isinstance(exported, dict) else None
    name = name or (read_json(adapter / ADAPTER_CONFIG) or {}).get(BASE_KEY)
    form = classify_weights(name) if isinstance(name, str) else None
    found = _find_folder(str(name), {}, folders) if form not in (None, "run") else None
    if found is None:
        raise InvalidFlow(
            f"the base model {name!r} of adapter {weights!r} is not on this machine; try: runyard "
            f"models add FOLDER --name NAME, and that name or path as {BASE_KEY} in the adapter's "
            f"{ADAPTER_CONFIG}"
        )
    base = split_checkpoint(found)
    if base.adapter is not None or (found / ADAPTER_CONFIG).is_file():
        raise InvalidFlow(
            f"the base {name!r} of adapter {weights!r} has an adapter itself; try: runyard models "
            "export, which merges that one"
        )
    return base.base
