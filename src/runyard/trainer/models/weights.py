"""Where the weights to start from are on this machine.

They are a base model, or an adapter with its base: a checkpoint's tree, or a folder saved by peft,
whose configuration names the base. All of them must be in the machine's model folders, apart from
what the supervisor has fetched: checkpoints of other runs, and base models of the server's machine.
"""

from pathlib import Path

from runyard.base_models import (
    BASE_KEY,
    ModelParts,
    find_folder,
    get_base_weights,
    read_base_name,
    split_checkpoint,
)
from runyard.flows.blocks import Architecture
from runyard.flows.weights import classify_weights
from runyard.model_folders import ADAPTER_CONFIG, SETTING, ModelFolders
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.models.model_folder import check_adapter_folder, check_inside


def find_weights(
    architecture: Architecture, models: dict[str, str], folders: ModelFolders
) -> ModelParts | None:
    """Return the weights to start from, by their real paths; None for the tiny model trained from
    scratch.

    ``models`` maps fetched weights to folders. All other weights must be in the machine's model
    folders.

    Raises:
        InvalidFlow: the weights are not on this machine, or not in an allowed folder.
    """
    weights = architecture.weights or get_base_weights(architecture)
    if weights is None:
        if architecture.size == "tiny":
            return None
        raise InvalidFlow(
            f"unknown size {architecture.size!r} of architecture {architecture.name!r}"
        )
    if weights in models:
        fetched = split_checkpoint(Path(models[weights]))
        if fetched.adapter is not None and classify_weights(weights) != "run":
            check_adapter_folder(fetched.adapter)
        return fetched
    if classify_weights(weights) == "folder" and folders.resolve(weights) is None:
        raise InvalidFlow(
            f"weights {weights!r} are not in a folder of this machine's setting {SETTING}"
        )
    found = find_folder(weights, folders)
    if found is None:
        raise InvalidFlow(
            f"weights {weights!r} are not on this machine, and the server has none to fetch; "
            "trainers use no other network, so download them first, then try: "
            "runyard models add FOLDER --name NAME on the server's machine"
        )
    if (found / ADAPTER_CONFIG).is_file():
        return ModelParts(_find_base(weights, found, folders), found)
    return split_checkpoint(found)


def _find_base(weights: str, adapter: Path, folders: ModelFolders) -> Path:
    """Return the folder of the base model that an adapter's folder names.

    Raises:
        InvalidFlow: the adapter is not allowed, or its base is not on this machine.
    """
    check_inside(adapter, folders)
    check_adapter_folder(adapter)
    name = read_base_name(adapter)
    found = None if name is None else find_folder(name, folders)
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
