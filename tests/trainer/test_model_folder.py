"""Which model folders are refused, and that nothing of them is executed before."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.errors import InvalidFlow
from runyard.trainer.main import train_attempt
from runyard.trainer.model_folder import check_model_folder, check_safetensors


@pytest.fixture
def folder(miniature: Callable[[str], Path], tmp_path: Path) -> Path:
    copy = tmp_path / "models" / "llava"
    shutil.copytree(miniature("llava"), copy)
    return copy


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_good_folder_says_its_type(folder: Path) -> None:
    assert check_model_folder(folder) == "llava"


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_generate"])
@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_folder_that_names_code_is_refused(folder: Path, name: str, key: str) -> None:
    change(folder / name, inner={"deeper": [{key: {"AutoModel": "canary.Model"}}]})
    with pytest.raises(InvalidFlow, match=f"{name} holds '{key}'"):
        check_model_folder(folder)


@pytest.mark.parametrize(
    "name", ["modeling.py", "deep/er/x.py", "pytorch_model.bin", "weights.pt", "x.PKL", "opt.ckpt"]
)
def test_programs_and_pickles_are_refused_wherever_they_lie(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(InvalidFlow, match="may not be in a model folder"):
        check_model_folder(folder)


@pytest.mark.parametrize("model_type", ["nvila", None, 7, "../llava"])
def test_an_unknown_family_is_refused(folder: Path, model_type: Any) -> None:
    change(folder / "config.json", model_type=model_type)
    with pytest.raises(InvalidFlow, match="not a family known here"):
        check_model_folder(folder)


def test_a_canary_in_the_folder_never_runs(folder: Path, make_attempt: Any, tmp_path: Path) -> None:
    canary = tmp_path / "sang"
    change(folder / "config.json", auto_map={"AutoModelForImageTextToText": "canary.Model"})
    (folder / "canary.py").write_text(f"open({str(canary)!r}, 'w')")
    attempt = make_attempt({"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}})
    assert train_attempt(attempt) == 64
    assert json.loads((attempt / "result.json").read_text())["reason"] == "InvalidFlow"
    assert not canary.exists()


def test_weights_of_another_family_than_named_are_refused(folder: Path, make_attempt: Any) -> None:
    architecture = {"name": "qwen3vl", "weights": str(folder)}
    attempt = make_attempt({"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": architecture}})
    assert train_attempt(attempt) == 64
    assert "are of family 'llava'" in json.loads((attempt / "result.json").read_text())["message"]


def test_missing_tensors_are_not_made_up(folder: Path, make_attempt: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if "multi_modal_projector" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    attempt = make_attempt({"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}})
    assert train_attempt(attempt) == 64
    assert "lack 1 tensors" in json.loads((attempt / "result.json").read_text())["message"]


def test_a_template_bomb_and_a_folder_without_weights_are_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x" * (300 << 10))
    with pytest.raises(InvalidFlow, match="at most 262144 are read"):
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
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, size: int) -> None:
    with pytest.raises(InvalidFlow):
        check_safetensors(tensors_file(tmp_path / "x.safetensors", header, size), "x.safetensors")


def test_a_header_with_twins_or_without_end_is_refused(tmp_path: Path) -> None:
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
