"""A short form of ``make machine-kills``."""

from pathlib import Path

import pytest

from runyard import processes
from tests.chaos.machine_kills import Setup, run_trials


@pytest.mark.slow
@pytest.mark.skipif(not processes.IS_LINUX, reason="machines are killed by /proc")
def test_a_run_of_a_killed_machine_resumes_elsewhere_bit_by_bit(
    tmp_path: Path,
) -> None:
    setup = Setup(training=1, machines=2, steps=400)
    trials, problems = run_trials(tmp_path, times=1, seed=1, setup=setup)
    assert len(trials) == 1 and problems == []
