"""The short form of ``chaos --replays 1000``: repeats of one create, over a link that loses half of
all answers.
"""

from tests.chaos.command import run_chaos


def test_repeating_a_create_whose_answers_are_lost_creates_one_run() -> None:
    numbers = run_chaos("--replays", "30", "--threads", "10", timeout_s=120)
    assert numbers["problems"] == []
    assert numbers["lostAnswers"] > 0
