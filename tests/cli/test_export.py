"""``runyard models export`` for a model of uploaded data: where held-out images are searched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.datasets.records import Interaction, Vqa
from runyard.trainer.main import train_attempt
from tests.support.commands import Runyard
from tests.support.instance import Instance
from tests.trainer.conftest import make_png, write_attempt, write_version

__all__ = ["write_attempt"]  # a fixture of the trainer's tests
IMAGE_COUNT, VERSION = 12, "0" * 16


@pytest.fixture
def dataset_id(runyard: Runyard, instance: Instance, tmp_path: Path) -> str:
    """Return a dataset of the instance that contains the images."""
    (tmp_path / "shelf").mkdir()
    for number in range(IMAGE_COUNT):
        (tmp_path / "shelf" / f"{number:02}.png").write_bytes(make_png(number))
    result = runyard(
        "datasets", "import", str(tmp_path / "shelf"), "--data-dir", str(instance.data_dir)
    )
    assert result.exit_code == 0, result.output
    return str(result.stdout.strip())


@pytest.fixture
def trained(
    dataset_id: str, write_attempt: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Path]:
    """A checkpoint whose answers depend on the images, and its dataset version's folder."""
    asked = [Vqa(interactions=[Interaction(order=1, question="How many?", answer="two")])]
    images = {f"{number:02}.png": (make_png(number), asked) for number in range(IMAGE_COUNT)}
    version = write_version(tmp_path / "versions", images)
    blocks = {
        "vi-dataset": {"datasetId": dataset_id, "projectKind": "vqa", "validationFraction": 0.5},
        "vi-model": {
            "hyperparameters": {"maxSteps": 1},
            "validation": {"every": {"steps": 1}},
            "checkpoint": {"every": {"steps": 1}},
            "evaluation": {"do_sample": True, "seed": 5, "max_new_tokens": 6},
        },
    }
    folder = write_attempt(tmp_path / "runs", blocks)
    brought = {"folder": str(version), "dataset": dataset_id, "version": VERSION}
    (folder / "dataset.json").write_text(json.dumps(brought))
    assert train_attempt(folder) == 0, (folder / "result.json").read_text()
    return next((folder / "checkpoints").iterdir()), version


def test_images_are_found_locally_else_downloaded_else_requested(
    runyard: Runyard, instance: Instance, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, version = trained
    count = len((checkpoint / "predictions.jsonl").read_text().splitlines())
    arguments = ("models", "export", str(checkpoint), "--json", "--data-dir")

    # A data folder without a server: no download is possible until the version is there.
    alone = tmp_path / "alone"
    alone.mkdir()
    result = runyard(*arguments, str(alone), "--out", "one")
    assert result.exit_code == 1
    assert "The held-out images cannot be downloaded: no instance has been started" in result.stderr
    assert (
        "try: --pictures FOLDER with these images, or export without verification (--no-replay)"
        in result.stderr
    )
    assert not Path("one").exists()
    shutil.copytree(version, alone / "datasets" / "org" / VERSION)
    result = runyard(*arguments, str(alone), "--out", "one")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["replayed"], report["different"]) == (count, 0)

    result = runyard(*arguments, str(instance.data_dir), "--out", "two")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["replayed"] == count
    result = runyard(
        *arguments, str(alone), "--out", "three", "--pictures", str(tmp_path / "shelf")
    )
    assert json.loads(result.stdout)["different"] == 0
