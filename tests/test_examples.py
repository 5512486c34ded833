"""Every example runs as a newcomer would run it: a process of its own, the three variables set, nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# What each example has shown when it did its work.
SHOWS = {
    "ask_a_model.py": r'It shows 0; the model says .*"answer":"\d"',
    "async_runs.py": r"first: Succeeded\nsecond: Succeeded\n",
    "bad_recipe.py": r"validationFraction[\s\S]*vi-modle[\s\S]*sede|sede[\s\S]*validationFraction[\s\S]*vi-modle",
    "continue_a_run.py": r"longer: from step 20 to step 40\nslower: from step 20 to step 40\n",
    "find_the_boxes.py": r"epoch \d\.\d\d: .*validation/loss \d",
    "kill_a_run.py": r"killed at \d+\n[\s\S]*Cancelled: KilledByUser",
    "list_runs.py": r"\d+ runs have succeeded\n[\s\S]*Succeeded[\s\S]*(epoch|step)-\d+: \{",
    "own_recipe.py": r"seed 1: exactMatch \d\.\d{3}\nseed 2: exactMatch \d\.\d{3}\n",
    "quick_training.py": r"exactMatch on held-out data: (0\.9[5-9]\d|1\.000)\nThe model lies in \S+",
}


def test_every_example_is_tried() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(SHOWS)


def test_the_quick_training_example_trains_a_good_model(quick_training: str) -> None:
    assert re.search(SHOWS["quick_training.py"], quick_training), quick_training


@pytest.mark.parametrize("name", sorted(set(SHOWS) - {"quick_training.py"}))
def test_an_example_does_what_it_says(name: str, instance: Any, quick_training: str, tmp_path: Path) -> None:
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
