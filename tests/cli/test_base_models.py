"""``runyard models add``, ``list --base`` and ``remove``: model folders of this machine."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.resources import base_models

# The header and the bytes of one tensor of four numbers.
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(16)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder like the hub's cache: files are links."""
    blobs = make(tmp_path / "cache" / "blobs")
    snapshot = tmp_path / "cache" / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    (snapshot / ".cache").mkdir()
    (snapshot / ".cache" / "x.lock").write_text("")
    return snapshot


@pytest.mark.parametrize("name", ["qwen-2b", "Qwen/Qwen2.5-VL"])
@pytest.mark.parametrize("link", [False, True])
def test_a_model_is_added_listed_and_removed(
    runyard: Any, source: Path, tmp_path: Path, name: str, link: bool
) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    added = runyard(
        "models", "add", str(source), "--name", name, *(("--link",) if link else ()), *data
    )
    assert (added.exit_code, added.stdout) == (0, f"base:{name}\n"), added.output
    folder = tmp_path / "data" / "models" / name
    assert contents(folder) == contents(tmp_path / "cache" / "blobs")
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    same = (folder / "model.safetensors").samefile(source / "model.safetensors")
    assert same == link
    [listed] = json.loads(runyard("models", "list", "--base", "--json", *data).stdout)["items"]
    assert listed == {
        "name": name,
        "modelType": "llava",
        "sizeBytes": sum(map(len, contents(folder).values())),
        "folder": str(folder.resolve()),
    }
    assert f"base:{name}" in runyard("models", "list", "--base", *data).stdout
    shutil.rmtree(tmp_path / "cache")  # neither a copy nor a hard link needs it
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert runyard("models", "remove", name, "--yes", *data).exit_code == 0
    assert not folder.exists()
    assert runyard("models", "remove", name, "--yes", *data).exit_code == 4


def test_both_parts_of_a_checkpoint_are_added_and_its_training_state_is_not(
    runyard: Any, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "epoch-1"
    make(checkpoint / "model_full")
    make(checkpoint / "model_adapter")
    (checkpoint / "model_adapter" / "config.json").rename(
        checkpoint / "model_adapter" / "adapter_config.json"
    )
    (checkpoint / "model_adapter" / "model.safetensors").rename(
        checkpoint / "model_adapter" / "adapter_model.safetensors"
    )
    (checkpoint / "training_state").mkdir()
    (checkpoint / "training_state" / "state.json").write_text("{}")
    data = ("--data-dir", str(tmp_path / "data"))
    assert runyard("models", "add", str(checkpoint), "--name", "mine", *data).exit_code == 0
    names = {path.split("/")[0] for path in contents(tmp_path / "data" / "models" / "mine")}
    assert names == {"model_full", "model_adapter"}
    [listed] = json.loads(runyard("models", "list", "--base", "--json", *data).stdout)["items"]
    assert listed["modelType"] == "llava"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".hidden",
        "../x",
        "a/b/c",
        "/etc",
        "a//b",
        "x" * 200,
        "a b",
        "-x",
        "a/..",
        "base:x",
        "a\n",
    ],
)
def test_a_name_that_no_flow_could_use_is_refused(
    runyard: Any, source: Path, tmp_path: Path, name: str
) -> None:
    answer = runyard(
        "models", "add", str(source), f"--name={name}", "--data-dir", str(tmp_path / "data")
    )
    assert answer.exit_code == 2
    assert not (tmp_path / "data").exists()


def test_a_folder_that_no_trainer_would_open_is_not_added(
    runyard: Any, source: Path, tmp_path: Path
) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert runyard("models", "add", str(tmp_path / "nothing"), "--name", "x", *data).exit_code == 4
    (source / "modeling.py").write_text("")
    answer = runyard("models", "add", str(source), "--name", "x", *data)
    assert answer.exit_code == 1 and "modeling.py is not allowed in a model folder" in answer.stderr
    assert not list((tmp_path / "data").rglob("*"))


def test_a_name_in_use_is_refused_and_nothing_is_left(
    runyard: Any, source: Path, tmp_path: Path
) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    assert runyard("models", "add", str(source), "--name", "x", *data).exit_code == 0
    before = contents(tmp_path / "data")
    answer = runyard("models", "add", str(source), "--name", "x", *data)
    assert answer.exit_code == 1 and "runyard models remove x" in answer.stderr
    assert contents(tmp_path / "data") == before


def test_a_disk_without_enough_space_is_left_unchanged(
    runyard: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_models, "free_bytes", lambda folder: (1024 << 20) + len(WEIGHTS))
    data = ("--data-dir", str(tmp_path / "data"))
    answer = runyard("models", "add", str(source), "--name", "x", *data)
    assert answer.exit_code == 1 and "not enough disk space" in answer.stderr
    assert runyard("models", "add", str(source), "--name", "x", "--link", *data).exit_code == 0


def test_a_copy_that_is_interrupted_leaves_nothing_under_the_name(
    runyard: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command removes what a killed one left."""
    data = ("--data-dir", str(tmp_path / "data"))
    left = tmp_path / "data" / "models" / f"{base_models.ADDING}{2**22 + 1}"
    make(left)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    assert runyard("models", "add", str(source), "--name", "x", *data).exit_code == 130
    assert list((tmp_path / "data" / "models").iterdir()) == []
    assert json.loads(runyard("models", "list", "--base", "--json", *data).stdout) == {"items": []}


def test_a_list_is_of_a_run_or_of_this_machine(runyard: Any, tmp_path: Path) -> None:
    for arguments in ((), ("run-1", "--base")):
        assert runyard("models", "list", *arguments, "--data-dir", str(tmp_path)).exit_code == 2


def test_the_first_folder_of_the_setting_takes_new_models(
    runyard: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "two" / "old")
    monkeypatch.setenv("RUNYARD_MODEL_FOLDERS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    assert runyard("models", "add", str(source), "--name", "new").exit_code == 0
    assert (tmp_path / "one" / "new" / "config.json").is_file()
    items = json.loads(runyard("models", "list", "--base", "--json").stdout)["items"]
    assert [item["name"] for item in items] == ["new", "old"]
    monkeypatch.setenv("RUNYARD_MODEL_FOLDERS", str(tmp_path))
    refused = runyard("models", "list", "--base", "--data-dir", str(tmp_path / "data"))
    assert refused.exit_code == 2 and "contains or is inside the data folder" in refused.stderr


def test_an_adapter_saved_by_peft_is_added_and_listed(runyard: Any, tmp_path: Path) -> None:
    source, data = tmp_path / "adapter", ("--data-dir", str(tmp_path / "data"))
    source.mkdir()
    (source / "adapter_model.safetensors").write_bytes(WEIGHTS)
    config = source / "adapter_config.json"
    config.write_text('{"peft_type": "IA3"}')
    refused = runyard("models", "add", str(source), "--name", "reader", *data)
    assert refused.exit_code != 0 and "peft_type 'IA3'" in refused.output
    config.write_text('{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}')
    added = runyard("models", "add", str(source), "--name", "reader", *data)
    assert (added.exit_code, added.stdout) == (0, "base:reader\n"), added.output
    listed = json.loads(runyard("models", "list", "--base", "--json", *data).stdout)["items"]
    assert [(item["name"], item["modelType"]) for item in listed] == [("reader", "adapter")]
