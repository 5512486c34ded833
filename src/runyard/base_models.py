"""Base models: where one is on a machine, and which of its files another machine fetches.

A base model is a folder inside the model folders: a model, a checkpoint's tree, or an adapter,
whose configuration names its base. Fetched files have the layout of a checkpoint: ``model_full/``
and, with an adapter, ``model_adapter/``. Only kinds of files that hold weights, text or tables are
fetched: no program and no pickle.
"""

from dataclasses import dataclass
from pathlib import Path

from runyard.flows.blocks import Architecture
from runyard.flows.families import FAMILIES
from runyard.flows.weights import BASE_PREFIX, classify_weights
from runyard.ids import is_path
from runyard.model_folders import ADAPTER_CONFIG, SETTING, ModelFolders
from runyard.rundir import MODEL_ADAPTER, MODEL_FULL, CheckpointDir, read_json

BASE_KEY = "base_model_name_or_path"  # in an adapter's configuration
EXPORT = "export.json"  # of an exported adapter; names its base as flows do
# Weights, configurations, vocabularies, sentencepiece models, chat templates, BPE ranks.
FETCHED_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")


class ModelMissing(Exception):
    """A base model is not in the model folders. ``adapter`` names the adapter that needs it."""

    def __init__(self, weights: str, adapter: str | None = None):
        needed_by = "" if adapter is None else f", the base of adapter {adapter!r},"
        super().__init__(f"model {weights!r}{needed_by} is not in the model folders")
        self.weights, self.adapter = weights, adapter


class UnreadableModel(Exception):
    """A file of a base model may not be fetched; the message names it."""


@dataclass(frozen=True)
class ModelParts:
    """The folder of a base model, and that of the adapter on it, if there is one."""

    base: Path
    adapter: Path | None = None


def get_base_weights(architecture: Architecture) -> str | None:
    """Return the weights that a run loads from the model folders, as flows name them.

    None for the built-in tiny model, weights of another run, and a size that the family lacks.
    """
    if architecture.weights is not None:
        is_base = classify_weights(architecture.weights) in ("base", "hub", "folder")
        return architecture.weights if is_base else None
    family = FAMILIES.get(architecture.name)
    return None if family is None else family.sizes.get(architecture.size)


def locate_model(weights: str, folders: ModelFolders) -> ModelParts:
    """Return the parts of a base model, by their real paths.

    Raises:
        ModelMissing: it, or the base that its adapter names, is not in the model folders.
        UnreadableModel: its adapter is one on an adapter.
    """
    found = find_folder(weights, folders)
    if found is None:
        raise ModelMissing(weights)
    if not (found / ADAPTER_CONFIG).is_file():
        return split_checkpoint(found)
    name = read_base_name(found)
    base = None if name is None else find_folder(name, folders)
    if base is None:
        raise ModelMissing(str(name), adapter=weights)
    if split_checkpoint(base).adapter is not None or (base / ADAPTER_CONFIG).is_file():
        raise UnreadableModel(f"the base {name!r} of adapter {weights!r} has an adapter itself")
    return ModelParts(split_checkpoint(base).base, found)


def find_folder(weights: str, folders: ModelFolders) -> Path | None:
    """Return the real path of the folder that weights name; None if it is not a model folder."""
    match classify_weights(weights):
        case "base" | "hub":
            return folders.find(weights.removeprefix(BASE_PREFIX))
        case "folder":
            found = folders.resolve(weights)
            return found if found is not None and found.is_dir() else None
    return None


def split_checkpoint(folder: Path) -> ModelParts:
    """Return the parts of a checkpoint's tree, or of a folder that is a model by itself."""
    parts = CheckpointDir(folder)
    has_adapter = parts.has_adapter and parts.model != folder
    return ModelParts(parts.model, parts.model_adapter if has_adapter else None)


def read_base_name(adapter: Path) -> str | None:
    """Return the name of an adapter's base, as flows name weights; None if there is none."""
    exported = (read_json(adapter / EXPORT) or {}).get("base")
    name = exported.get("weights") if isinstance(exported, dict) else None
    name = name or (read_json(adapter / ADAPTER_CONFIG) or {}).get(BASE_KEY)
    return name if isinstance(name, str) else None


def list_model_files(parts: ModelParts, folders: ModelFolders) -> dict[str, Path]:
    """Return the real path of each file that another machine fetches, by its path there.

    Raises:
        UnreadableModel: a file has a name that no checkpoint may have, or is a link out of the
            model folders.
    """
    found = {}
    for name, part in ((MODEL_FULL, parts.base), (MODEL_ADAPTER, parts.adapter)):
        if part is None:
            continue
        for path in sorted(part.rglob("*")):
            inner = path.relative_to(part).parts
            is_hidden = any(word.startswith(".") for word in inner)
            if is_hidden or path.suffix not in FETCHED_SUFFIXES or not path.is_file():
                continue
            where, real = "/".join((name, *inner)), folders.resolve(path)
            if not is_path(where):
                raise UnreadableModel(f"{where!r} is not a valid path in a checkpoint")
            if real is None:
                raise UnreadableModel(
                    f"{where} is a link out of the folders of the setting {SETTING}"
                )
            found[where] = real
    return found
