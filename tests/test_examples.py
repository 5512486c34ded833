"""Every example runs as a newcomer runs it: its own process and three environment variables."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.data.datasets import BUILT_IN
from tests.support.slow import mark_slow

FOLDER = Path(__file__).parents[1] / "examples"
# Output of each example after success.
SHOWS = {
    "ask_a_model.py": r'It shows 0; the model says .*"answer":"\d"',
    "async_runs.py": r"first: Succeeded\nsecond: Succeeded\n",
    "invalid_flow.py": r"validationFraction[\s\S]*vi-modle[\s\S]*sede|"
    r"sede[\s\S]*validationFraction[\s\S]*vi-modle",
    "resume_a_run.py": r"longer: from step 20 to step 40\nslower: from step 20 to step 40\n",
    "find_the_boxes.py": r"epoch \d\.\d\d: .*validation/loss \d",
    "kill_a_run.py": r"killed at \d+\n[\s\S]*Cancelled: KilledByUser",
    "list_runs.py": r"\d+ runs have succeeded\n[\s\S]*Succeeded[\s\S]*(epoch|step)-\d+: \{",
    "own_images.py": r"images: 60 (?:pictures|images), 60 of 60 rows accepted "
    r"\(Coco, phrase-grounding\); 0 errors[\s\S]*The model says: .*; "
    r"its boxes are drawn in answer\.png",
    "custom_flow.py": r"seed 1: exactMatch \d\.\d{3}\nseed 2: exactMatch \d\.\d{3}\n",
    "quick_training.py": r"exactMatch on held-out data: (0\.9[5-9]\d|1\.000)\nThe model is in \S+",
}
# These train models of their own.
TRAINING = {
    "async_runs.py",
    "custom_flow.py",
    "find_the_boxes.py",
    "own_images.py",
    "resume_a_run.py",
}


def write_coco(folder: Path, *, count: int = 60) -> None:
    """Some of the built-in digit canvases as a user's own folder: images, and boxes as COCO."""
    canvases = BUILT_IN["digits-grounding"](0, 0.2).train[:count]
    names: dict[str, int] = {}
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for number, canvas in enumerate(canvases, 1):
        name, (width, height) = f"images/{number:03}.png", canvas.image.size
        canvas.image.save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for grounding in canvas.truth.groundings:
            for x1, y1, x2, y2 in grounding.boxes:
                corner = [x1 * width / 1024, y1 * height / 1024]
                size = [(x2 - x1) * width / 1024, (y2 - y1) * height / 1024]
                category = names.setdefault(grounding.phrase, len(names) + 1)
                place = {"id": len(boxes) + 1, "image_id": number, "bbox": corner + size}
                boxes.append(
                    {**place, "category_id": category, "area": size[0] * size[1], "iscrowd": 0}
                )
    categories = [{"id": number, "name": name} for name, number in names.items()]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))


def test_every_example_is_tried() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(SHOWS)


def test_the_quick_training_example_trains_a_good_model(quick_training: str) -> None:
    assert re.search(SHOWS["quick_training.py"], quick_training), quick_training


@pytest.mark.parametrize(
    "name",
    mark_slow(sorted(set(SHOWS) - {"quick_training.py"}), unless=lambda name: name not in TRAINING),
)
def test_an_example_prints_what_it_documents(
    name: str, instance: Any, quick_training: str, tmp_path: Path
) -> None:
    if name == "own_images.py":
        write_coco(tmp_path / "images")
    done = subprocess.run(
        [sys.executable, FOLDER / name],
        env={**os.environ, **instance.environ, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SHOWS[name], done.stdout), done.stdout
