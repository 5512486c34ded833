"""Where base models are, and which weights a run starts from."""

import json
from pathlib import Path

import pytest

from runyard.base_models import (
    ModelMissing,
    ModelParts,
    UnreadableModel,
    get_base_weights,
    list_model_files,
    locate_model,
)
from runyard.flows.blocks import Architecture
from runyard.model_folders import ModelFolders
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.models.weights import find_weights


@pytest.fixture
def folders(tmp_path: Path) -> ModelFolders:
    return ModelFolders((tmp_path / "models",), tmp_path)


def make_adapter(folder: Path, base: str, *, exported: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if exported is not None:
        (folder / "export.json").write_text(json.dumps({"base": {"weights": exported}}))
    return folder


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (Architecture(), None),
        (Architecture(name="qwen25vl", size="3B"), "Qwen/Qwen2.5-VL-3B-Instruct"),
        (Architecture(name="qwen25vl", size="1T"), None),
        (Architecture(name="auto", weights="base:mine"), "base:mine"),
        (Architecture(name="auto", weights="owner/model"), "owner/model"),
        (Architecture(name="auto", weights="/models/x"), "/models/x"),
        (Architecture(name="auto", weights="run:r/latest"), None),
        (Architecture(name="auto", weights="../x"), None),
    ],
)
def test_get_base_weights(architecture: Architecture, expected: str | None) -> None:
    assert get_base_weights(architecture) == expected


@pytest.mark.parametrize("exported", [None, "base:base"])
def test_an_adapter_names_its_base_as_flows_do(
    folders: ModelFolders, tmp_path: Path, exported: str | None
) -> None:
    base = tmp_path / "models" / "base"
    base.mkdir(parents=True)
    named = str(base) if exported is None else "elsewhere"
    adapter = make_adapter(tmp_path / "models" / "tuned", named, exported=exported)
    assert locate_model("base:tuned", folders) == ModelParts(base, adapter)


@pytest.mark.parametrize("base", ["base:none", "run:r/best", "/etc", "nonsense"])
def test_an_adapter_without_its_base_is_missing(
    folders: ModelFolders, tmp_path: Path, base: str
) -> None:
    make_adapter(tmp_path / "models" / "tuned", base)
    with pytest.raises(ModelMissing, match="the base of adapter 'base:tuned'"):
        locate_model("base:tuned", folders)


def test_an_adapter_on_an_adapter_is_refused(folders: ModelFolders, tmp_path: Path) -> None:
    make_adapter(tmp_path / "models" / "first", "base:none")
    make_adapter(tmp_path / "models" / "second", "base:first")
    with pytest.raises(UnreadableModel, match="has an adapter itself"):
        locate_model("base:second", folders)


def test_links_inside_the_model_folders_are_resolved(folders: ModelFolders, tmp_path: Path) -> None:
    stored = tmp_path / "models" / ".blobs" / "0123"
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    model = tmp_path / "models" / "mine"
    model.mkdir()
    (model / "config.json").symlink_to(stored)
    assert list_model_files(ModelParts(model), folders) == {"model_full/config.json": stored}


def test_a_fetched_model_counts_before_the_model_folders(
    folders: ModelFolders, tmp_path: Path
) -> None:
    fetched = tmp_path / "weights" / "org" / "base-0123"
    (fetched / "model_full").mkdir(parents=True)
    architecture = Architecture(name="qwen25vl", size="3B")
    models = {"Qwen/Qwen2.5-VL-3B-Instruct": str(fetched)}
    assert find_weights(architecture, models, folders) == ModelParts(fetched / "model_full")
    with pytest.raises(InvalidFlow, match="the server has none to fetch"):
        find_weights(architecture, {}, folders)


def test_a_fetched_adapter_is_checked_as_one_in_the_model_folders(
    folders: ModelFolders, tmp_path: Path
) -> None:
    fetched = tmp_path / "weights" / "org" / "base-0123"
    (fetched / "model_full").mkdir(parents=True)
    make_adapter(fetched / "model_adapter", "base:base")
    (fetched / "model_adapter" / "adapter_model.safetensors").write_bytes(b"not safetensors")
    architecture = Architecture(name="auto", weights="base:tuned")
    with pytest.raises(InvalidFlow, match="not a safetensors file"):
        find_weights(architecture, {"base:tuned": str(fetched)}, folders)
