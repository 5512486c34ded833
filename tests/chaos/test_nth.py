"""A seeded tenth of ``make faults-nth``: the n-th fsync, rename, open or write of a run's life fails or is the last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).with_name("chaos.py")


# In two parts, so that two processes may share them: only saving takes torch.
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("operations", "least"),
    [(("create", "claim", "finish", "delete"), 50), (("save",), 25)],
    ids=["server", "trainer"],
)
def test_a_tenth_of_all_calls_may_fail_and_nothing_is_lost_or_torn(operations: tuple[str, ...], least: int) -> None:
    chosen = [word for name in operations for word in ("--operation", name)]
    command = [sys.executable, CHAOS, "--nth", "0.1", "--seed", "1", *chosen]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.stdout, ended.stderr[-4000:]
    numbers = json.loads(ended.stdout)
    if "notRun" in numbers:
        pytest.skip(numbers["notRun"])
    assert numbers["problems"] == []
    assert numbers["injections"] >= least
    assert set(numbers["of"]) == set(operations)
