"""The short form of ``make chaos``: a dozen real faults, of as many kinds as possible here."""

import pytest

from tests.chaos.command import run_chaos

FAULTS, KINDS = 12, 6


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.usefixtures("memory_kills")
def test_every_run_survives_a_dozen_real_faults() -> None:
    tally = run_chaos("--short", "--faults", str(FAULTS), "--seed", "1", "--json", timeout_s=600)
    assert tally["problems"] == []
    assert tally["faults"] + len(tally["not_run"]) >= FAULTS
    forbidden = {name.partition(":")[0] for name in tally["not_run"]}  # with the reason why
    assert len(set(tally["kinds"]) | forbidden) >= KINDS
