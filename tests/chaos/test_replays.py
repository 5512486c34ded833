"""The short form of ``chaos --replays 1000``: repeats of one create, over a link that loses half of
all answers.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_repeating_a_create_whose_answers_are_lost_creates_one_run() -> None:
    command = [sys.executable, "-m", "tests.chaos.chaos", "--replays", "30", "--threads", "10"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.stdout, ended.stderr[-4000:]
    numbers = json.loads(ended.stdout)
    assert numbers["problems"] == []
    assert numbers["lostAnswers"] > 0
