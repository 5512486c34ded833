"""Refused model folders: none of their code is executed."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.errors import InvalidFlow
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model_folder import check_model_folder, check_safetensors


@pytest.fixture
def folder(miniature: Callable[[str], Path], tmp_path: Path) -> Path:
    copy = tmp_path / "models" / "llava"
    shutil.copytree(miniature("llava"), copy)
    return copy


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_valid_folder_has_a_known_model_type(folder: Path) -> None:
    assert check_model_folder(folder) == "llava"


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_generate"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"],
)
def test_a_folder_that_names_code_is_refused(folder: Path, name: str, key: str) -> None:
    change(folder / name, inner={"deeper": [{key: {"AutoModel": "canary.Model"}}]})
    with pytest.raises(InvalidFlow, match=f"{name} has '{key}'"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "name", ["modeling.py", "deep/er/x.py", "pytorch_model.bin", "weights.pt", "x.PKL", "opt.ckpt"]
)
def test_programs_and_pickles_are_refused_in_any_subfolder(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(InvalidFlow, match="is not allowed in a model folder"):
        check_model_folder(folder)


@pytest.mark.parametrize("model_type", ["nvila", None, 7, "../llava"])
def test_an_unknown_family_is_refused(folder: Path, model_type: Any) -> None:
    change(folder / "config.json", model_type=model_type)
    with pytest.raises(InvalidFlow, match="is not a known family"):
        check_model_folder(folder)


def test_a_canary_in_the_folder_never_runs(folder: Path, make_attempt: Any, tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    change(folder / "config.json", auto_map={"AutoModelForImageTextToText": "canary.Model"})
    (folder / "canary.py").write_text(f"open({str(canary)!r}, 'w')")
    attempt = make_attempt(
        {"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}}
    )
    assert train_attempt(attempt) == 64
    assert json.loads((attempt / "result.json").read_text())["reason"] == "InvalidFlow"
    assert not canary.exists()


def test_weights_of_another_family_than_named_are_refused(folder: Path, make_attempt: Any) -> None:
    architecture = {"name": "qwen3vl", "weights": str(folder)}
    attempt = make_attempt(
        {"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": architecture}}
    )
    assert train_attempt(attempt) == 64
    assert "are of family 'llava'" in json.loads((attempt / "result.json").read_text())["message"]


def test_missing_tensors_are_not_made_up(folder: Path, make_attempt: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "multi_modal_projector" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    attempt = make_attempt(
        {"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}}
    )
    assert train_attempt(attempt) == 64
    assert "lack 1 tensors" in json.loads((attempt / "result.json").read_text())["message"]


def test_a_template_bomb_and_a_folder_without_weights_are_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * (300 << 10))
    with pytest.raises(InvalidFlow, match="the limit is 262144"):
        check_model_folder(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidFlow, match="no safetensors weights"):
        check_model_folder(folder)


def tensors_file(path: Path, header: object, size: int, *, text: str | None = None) -> Path:
    raw = (text if text is not None else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    return path


GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": GOOD}, 15),
        ({"a": GOOD}, 17),
        ({"a": GOOD | {"shape": [2, 3]}}, 16),
        ({"a": GOOD | {"shape": [-2, -2]}}, 16),
        ({"a": GOOD | {"shape": [2**62, 4]}}, 16),
        ({"a": GOOD | {"dtype": "OBJECT"}}, 16),
        ({"a": GOOD, "b": GOOD}, 16),
        ({"a": GOOD, "b": GOOD | {"data_offsets": [20, 36]}}, 36),
        ({"a": "x"}, 0),
        ([], 0),
    ],
)
def test_a_false_header_is_refused(tmp_path: Path, header: object, size: int) -> None:
    with pytest.raises(InvalidFlow):
        check_safetensors(tensors_file(tmp_path / "x.safetensors", header, size), "x.safetensors")


def test_a_header_with_duplicate_keys_or_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    check_safetensors(tensors_file(path, {"a": GOOD, "__metadata__": {"format": "pt"}}, 16), "x")
    twice = json.dumps({"a": GOOD})
    with pytest.raises(InvalidFlow, match="twice"):
        check_safetensors(tensors_file(path, None, 16, text=twice[:-1] + "," + twice[1:]), "x")
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InvalidFlow, match="header would have"):
        check_safetensors(path, "x")
    path.write_bytes(b"abc")
    with pytest.raises(InvalidFlow, match="header would have"):
        check_safetensors(path, "x")


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/x.safetensors", "..", "a/b.safetensors", "a\\b"]
)
@pytest.mark.parametrize("place", ["weight_map", "tokenizer_file", "vocab_file"])
def test_a_folder_that_names_files_elsewhere_is_refused(
    folder: Path, place: str, name: str
) -> None:
    """Libraries join such names to the folder's path, and open what is there."""
    if place == "weight_map":
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": name}})
        )
    else:
        change(folder / "tokenizer_config.json", **{place: name})
    with pytest.raises(InvalidFlow, match=f"names a file of another folder in '{place}'"):
        check_model_folder(folder)


def test_a_folder_that_names_the_base_of_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/somewhere/else"})
    )
    with pytest.raises(InvalidFlow, match=r"adapter_config\.json is not allowed in a model folder"):
        check_model_folder(folder)


def test_a_pipe_in_a_folder_does_not_block(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InvalidFlow, match=r"config\.json in llava is neither a file nor a folder"):
        check_model_folder(folder)


def message_of(attempt: Path) -> str:
    assert train_attempt(attempt) == 64
    return str(json.loads((attempt / "result.json").read_text())["message"])


@pytest.mark.parametrize(
    "path", ["/etc", "/no/such/folder", "{root}/runs", "{root}", "{root}/models/out", "~nobody/x"]
)
def test_a_trainer_reads_only_the_operators_folders_and_rejects_others_alike(
    make_attempt: Any, tmp_path: Path, miniature: Callable[[str], Path], path: str
) -> None:
    (tmp_path / "models").mkdir()
    shutil.copytree(miniature("llava"), tmp_path / "runs")
    (tmp_path / "models" / "out").symlink_to(tmp_path / "runs")
    given = path.format(root=tmp_path)
    attempt = make_attempt({"vi-model": {"architecture": {"weights": given}}})
    assert (
        message_of(attempt)
        == f"weights {given!r} are not in a folder of this machine's setting model_folders"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "chat_template.jinja", "tokenizer.json", "templates"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_out_of_the_model_folders_is_not_followed(
    folder: Path, make_attempt: Any, tmp_path: Path, name: str, exists: bool
) -> None:
    outside = tmp_path / "outside" / name
    (folder / name).unlink(missing_ok=True)
    if exists:
        outside.mkdir(parents=True)
    (folder / name).symlink_to(outside)
    attempt = make_attempt({"vi-model": {"architecture": {"weights": str(folder)}}})
    assert (
        message_of(attempt)
        == f"{name} in llava is a link out of the folders of the setting model_folders"
    )


def test_a_folder_swapped_for_a_link_while_it_is_read_is_not_trained_from(
    folder: Path, make_attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.trainer.models import model

    shutil.copytree(folder, tmp_path / "secret")

    def swapped(path: Path) -> str:
        found = check_model_folder(path)
        shutil.rmtree(folder)
        folder.symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(model, "check_model_folder", swapped)
    attempt = make_attempt(
        {"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}}
    )
    assert (
        message_of(attempt)
        == "model folder llava is not in a folder of this machine's setting model_folders"
    )


def test_model_names_and_hub_ids_are_looked_up_only_in_the_operators_folders(
    folder: Path, make_attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "here" / "owner" / "llava")
    monkeypatch.chdir(tmp_path / "here")
    blocks: dict[str, dict[str, Any]] = {
        "vi-dataset": {"maxSamples": 8},
        "vi-model": {"hyperparameters": {"maxSteps": 1}},
    }
    architecture: dict[str, Any] = {"weights": "owner/llava", "name": "auto"}
    blocks["vi-model"] |= {"architecture": architecture, "evaluation": {"max_new_tokens": 2}}
    assert "are not on this machine" in message_of(make_attempt(blocks, run="elsewhere"))
    shutil.copytree(folder, tmp_path / "models" / "owner" / "llava")
    for number, weights in enumerate(("owner/llava", "base:owner/llava", "base:llava")):
        architecture["weights"] = weights
        assert train_attempt(make_attempt(blocks, run=f"run-{number}")) == 0
    architecture["weights"] = "base:other"
    assert "'base:other' are not on this machine" in message_of(make_attempt(blocks, run="other"))
