"""Replay of stored predictions: uploaded images from any folder, sampled answers, and refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.datasets.records import Interaction, Vqa
from runyard.trainer.errors import ExportFailed
from runyard.trainer.export.export import export_model
from runyard.trainer.main import train_attempt
from tests.trainer.conftest import make_png, write_version

IMAGES = 24


def make_image(number: int) -> bytes:
    return b"not an image" if number == 5 else make_png(number)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the training data: uploaded images, one broken, each with two questions."""
    home = tmp_path_factory.mktemp("uploaded")
    asked = [
        Vqa(
            interactions=[
                Interaction(order=n, question=f"How many {n}?", answer="two") for n in (1, 2)
            ]
        )
    ]
    write_version(
        home / "versions", {f"shelf/{n:02}.png": (make_image(n), asked) for n in range(IMAGES)}
    )
    return home


@pytest.fixture
def version(home: Path, tmp_path: Path) -> Path:
    """Return a copy of the version, which the test may change."""
    return Path(shutil.copytree(next((home / "versions").iterdir()), tmp_path / "version"))


@pytest.fixture(scope="module")
def checkpoint(home: Path, write_attempt: Callable[..., Path]) -> Path:
    """The tiny model after one step: its answers are sampled with a seed."""
    blocks = {
        "vi-dataset": {"datasetId": "shelves", "projectKind": "vqa", "validationFraction": 0.5},
        "vi-model": {
            "hyperparameters": {"maxSteps": 1},
            "validation": {"every": {"steps": 1}},
            "checkpoint": {"every": {"steps": 1}},
            "evaluation": {"do_sample": True, "seed": 5, "max_new_tokens": 6},
        },
    }
    folder = write_attempt(home, blocks)
    brought = {
        "folder": str(next((home / "versions").iterdir())),
        "dataset": "shelves",
        "version": "0" * 16,
    }
    (folder / "dataset.json").write_text(json.dumps(brought))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return next((folder / "checkpoints").iterdir())


def lines_of(checkpoint: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (checkpoint / "predictions.jsonl").read_text().splitlines()
    ]


def test_sampled_answers_are_the_same_from_a_version_and_from_plain_files(
    checkpoint: Path, version: Path, tmp_path: Path
) -> None:
    lines = lines_of(checkpoint)
    assert len({line["raw"] for line in lines}) > len(lines) / 2  # so only these images give them
    done: list[tuple[str, int, int]] = []
    document = export_model(
        checkpoint, tmp_path / "one", images=version, on_progress=lambda *doing: done.append(doing)
    )
    assert (document["form"], document["replayed"], document["different"]) == (
        "full",
        len(lines),
        0,
    )
    assert [item for item in done if item[0] == "Replaying"][-1] == (
        "Replaying",
        len(lines),
        len(lines),
    )
    for number in range(IMAGES):
        path = tmp_path / "pictures" / "shelf" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(number))
    document = export_model(checkpoint, tmp_path / "two", images=tmp_path / "pictures")
    assert (document["replayed"], document["different"]) == (len(lines), 0)
    # The images matter.
    first = tmp_path / "pictures" / lines[0]["filename"]
    first.write_bytes(make_png(250))
    with pytest.raises(ExportFailed, match=r"answers .* so nothing was exported"):
        export_model(checkpoint, tmp_path / "three", images=tmp_path / "pictures")
    assert not (tmp_path / "three").exists()


def test_missing_images_are_reported_with_a_fix(
    checkpoint: Path, version: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        ExportFailed, match=r"dataset 'shelves' are not on this machine.*--pictures.*--no-replay"
    ):
        export_model(checkpoint, out)
    (tmp_path / "empty").mkdir()
    name = lines_of(checkpoint)[0]["filename"]
    with pytest.raises(
        ExportFailed, match=rf"image '{name}', which was predicted, cannot be read from"
    ):
        export_model(checkpoint, out, images=tmp_path / "empty")
    manifest = version / "manifest.jsonl"
    manifest.write_text(
        "".join(line for line in manifest.read_text().splitlines(True) if name not in line)
    )
    with pytest.raises(
        ExportFailed, match=rf"image '{name}', which was predicted, cannot be read from"
    ):
        export_model(checkpoint, out, images=version)
    (version / "contents.jsonl").write_text("{")
    with pytest.raises(ExportFailed, match="is a damaged dataset version"):
        export_model(checkpoint, out, images=version)
    assert export_model(checkpoint, out, with_replay=False)["replayed"] == 0


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint, which the test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def write_lines(checkpoint: Path, lines: list[dict[str, Any]]) -> None:
    (checkpoint / "predictions.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )


def test_no_image_is_read_from_outside_the_folder(
    copy: Path, version: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "outside.png").write_bytes(make_png(1))
    write_lines(copy, [{**lines_of(copy)[0], "filename": "../outside.png"}])
    for folder in (tmp_path / "pictures", version):
        with pytest.raises(
            ExportFailed, match=r"image '../outside.png', which was predicted, cannot be read"
        ):
            export_model(copy, tmp_path / "out", images=folder)


def test_answers_sampled_without_a_seed_cannot_be_compared(
    copy: Path, version: Path, tmp_path: Path
) -> None:
    path = copy / "model_full" / "run.json"
    document = json.loads(path.read_text())
    document["spec"]["flow"]["blocks"][-1]["settings"]["evaluation"]["seed"] = -1
    path.write_text(json.dumps(document))
    with pytest.raises(ExportFailed, match="sampled without a seed"):
        export_model(copy, tmp_path / "out", images=version)


def test_malformed_predictions_are_named(copy: Path, version: Path, tmp_path: Path) -> None:
    (copy / "predictions.jsonl").write_text('{"index": 0, "question": "How many?"}\n')
    with pytest.raises(
        ExportFailed, match=r"predictions.jsonl does not contain predictions \(KeyError\('raw'\)\)"
    ):
        export_model(copy, tmp_path / "out", images=version)


def test_a_held_out_sample_that_changed_is_named(copy: Path, tmp_path: Path) -> None:
    path = copy / "model_full" / "run.json"
    document = json.loads(path.read_text())
    document["spec"]["flow"]["blocks"][1]["settings"] |= {"datasetId": "digits", "maxSamples": 2}
    path.write_text(json.dumps(document))
    with pytest.raises(
        ExportFailed,
        match=r"held-out sample #0 of dataset 'digits' is not the one that was predicted",
    ):
        export_model(copy, tmp_path / "out")
