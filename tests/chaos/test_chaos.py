"""The short form of ``make chaos``: a dozen real faults, of as many kinds as possible here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS, KINDS = 12, 6


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.usefixtures("memory_kills")
def test_every_run_survives_a_dozen_real_faults() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.chaos.chaos",
        "--short",
        "--faults",
        str(FAULTS),
        "--seed",
        "1",
        "--json",
    ]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert ended.stdout, ended.stderr[-4000:]
    tally = json.loads(ended.stdout)
    assert tally["problems"] == []
    assert tally["faults"] + len(tally["not_run"]) >= FAULTS
    forbidden = {name.partition(":")[0] for name in tally["not_run"]}  # with the reason why
    assert len(set(tally["kinds"]) | forbidden) >= KINDS
