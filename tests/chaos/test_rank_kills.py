"""A short form of ``make rank-kills``."""

from pathlib import Path

import pytest

from runyard import processes
from tests.chaos.rank_kills import run_trials


@pytest.mark.slow
@pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")
def test_a_rank_killed_at_any_time_leaves_no_process_and_names_itself(tmp_path: Path) -> None:
    trials = run_trials(tmp_path, times=6, seed=1)
    assert [trial.problem for trial in trials] == [""] * 6
