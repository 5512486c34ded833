"""Recent use of a project."""

import pytest

from runyard.server.scheduling.usage import HALF_LIFE_MS, PREPAID_MS, ProjectUse
from runyard.server.scheduling.view import RunKey, Share

RUN, MINUTE_MS = RunKey("o", "r"), 60_000


def test_use_halves_in_a_day() -> None:
    use = ProjectUse(Share(org="o", project="p", weight=2.0, used_s=800.0, at_ms=0))
    assert HALF_LIFE_MS == 24 * 60 * MINUTE_MS
    assert use.compute_used_s(HALF_LIFE_MS) == pytest.approx(400.0)
    assert use.compute_weighted_use(2 * HALF_LIFE_MS) == pytest.approx(100.0)


def test_an_attempt_counts_for_ten_minutes_at_once_and_for_its_own_time_when_it_ends() -> None:
    use = ProjectUse(Share(org="o", project="p"))
    use.start(RUN, 4, started_ms=0, now_ms=0)
    assert PREPAID_MS == 10 * MINUTE_MS
    for minute in (0, 5, 10):
        used_s = use.compute_weighted_use(minute * MINUTE_MS)
        assert used_s == pytest.approx(4 * 600, rel=0.005)
    assert use.compute_weighted_use(20 * MINUTE_MS) == pytest.approx(4 * 1200, rel=0.01)
    use.end(RUN, 4, now_ms=20 * MINUTE_MS)
    assert use.compute_weighted_use(25 * MINUTE_MS) == pytest.approx(4 * 1200, rel=0.01)


def test_a_run_that_starts_again_within_ten_minutes_counts_once_more() -> None:
    use = ProjectUse(Share(org="o", project="p"))
    use.start(RUN, 1, started_ms=0, now_ms=0)
    use.end(RUN, 1, now_ms=MINUTE_MS)
    assert use.compute_weighted_use(MINUTE_MS) == pytest.approx(60, rel=0.01)
    use.start(RUN, 1, started_ms=5 * MINUTE_MS, now_ms=5 * MINUTE_MS)
    assert use.compute_weighted_use(10 * MINUTE_MS) == pytest.approx(660, rel=0.01)


def test_a_project_of_weight_zero_comes_last() -> None:
    assert ProjectUse(Share(org="o", weight=0.0)).compute_weighted_use(0) == float("inf")
