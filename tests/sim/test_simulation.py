"""Whole histories of a simulated deployment, drawn from seeds; ``make sim`` runs more of them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.sim.simulation.server import ORGS
from tests.sim.simulation.simulation import FAULTS, RULES, Deployment, simulate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIRST_SEED = 10_000
# In parts, so that several test processes can share them.
PARTS, EVENTS_A_PART, FEW_EVENTS = 4, 50_000, 12_000
# Events on PostgreSQL, and how long faults are injected.
FEW_ON_POSTGRESQL, MANY_ON_POSTGRESQL = (1, 5_000), (4_000, 60_000)
STEPS_A_HISTORY, SHORT_CHAOS_MS = 50, 30_000
# Histories, and the number of steps that they have at least.
FEW, MANY = (24, 700), (112, 5_000)
KEPT_SEEDS = [
    int(line.split()[0])
    for line in (HERE / "seeds.txt").read_text().splitlines()
    if line and line[0] != "#"
]
# For each rule a seed that soon detects its absence; measured by simulate.py --without, see
# docs/run-safety.md.
DETECTING_SEED = {
    "R3": 3,
    "R4": 0,
    "R5": 0,
    "R6": 0,
    "R9": 0,
    "removed": 6,
    "out of service": 1,
}


def simulate_events(first: int, *, events: int, **world: Any) -> None:
    """Simulate seed after seed until this many events have happened."""
    happened, seeds = 0, itertools.count(first)
    while happened < events:
        outcome = simulate(next(seeds), **world)
        assert outcome.violation is None, f"seed {outcome.seed}: {outcome.violation}"
        happened += outcome.events
    assert happened >= events


def test_every_invariant_holds_under_all_faults() -> None:
    simulate_events(FIRST_SEED, events=FEW_EVENTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds_under_all_faults_for_long(part: int) -> None:
    simulate_events(FIRST_SEED + 1_000 * part, events=EVENTS_A_PART)


@pytest.mark.parametrize(
    ("events", "chaos_ms"),
    [FEW_ON_POSTGRESQL, pytest.param(*MANY_ON_POSTGRESQL, marks=pytest.mark.slow)],
)
def test_every_invariant_holds_on_postgresql(postgresql: Any, events: int, chaos_ms: int) -> None:
    url = postgresql.new_database()
    simulate_events(FIRST_SEED, events=events, postgresql=url, chaos_ms=chaos_ms)


@pytest.mark.skipif(
    not os.environ.get("RUNYARD_KEPT_SEEDS"), reason="make sim-kept runs them, on every submission"
)
@pytest.mark.parametrize("seed", KEPT_SEEDS)
def test_seeds_that_once_found_a_bug_pass(seed: int) -> None:
    assert simulate(seed).violation is None


def test_every_run_ends_without_error_when_there_are_no_faults() -> None:
    outcome = simulate(1, faults=False)
    assert outcome.violation is None
    assert outcome.counts["Succeeded"] > 5


def test_the_same_seed_is_the_same_history_in_another_process() -> None:
    code = (
        "from tests.sim.simulation.simulation import simulate; "
        f"print(simulate(5, chaos_ms={SHORT_CHAOS_MS}).trace)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == simulate(5, chaos_ms=SHORT_CHAOS_MS).trace


@pytest.mark.parametrize("rule", sorted(DETECTING_SEED))
def test_a_disabled_rule_is_detected(rule: str) -> None:
    assert rule in RULES
    assert simulate(DETECTING_SEED[rule], without=rule).violation is not None


class GeneratedHistory(RuleBasedStateMachine):
    """The same deployment with generated steps, so that Hypothesis can shrink a failure."""

    steps: ClassVar[int] = 0  # of all histories

    @initialize(seed=some.integers(0, 1000), machines=some.sampled_from([1, 1, 3]))
    def begin(self, seed: int, machines: int) -> None:
        self.deployment = Deployment(seed, machines=machines, faults=False)
        for client in self.deployment.clients:
            client.is_quiet = True

    @rule(
        organization=some.integers(0, len(ORGS) - 1),
        what=some.sampled_from(["create", "create_again", "list"]),
    )
    def send_request(self, organization: int, what: str) -> None:
        GeneratedHistory.steps += 1
        client = self.deployment.clients[organization]
        if what == "list":
            client.list_runs()
        else:
            client.run_count += what == "create"
            client.create(max(client.run_count, 1))

    @rule(
        organization=some.integers(0, len(ORGS) - 1),
        number=some.integers(1, 4),
        deletes=some.booleans(),
    )
    def end_run(self, organization: int, number: int, deletes: bool) -> None:
        GeneratedHistory.steps += 1
        client = self.deployment.clients[organization]
        (client.delete if deletes else client.kill_run)(number)

    @rule(fault=some.sampled_from([name for name in FAULTS if name != "loss"]))
    def inject_fault(self, fault: str) -> None:
        GeneratedHistory.steps += 1
        self.deployment.inject_fault(fault)

    @rule(loss=some.sampled_from([0.0, 0.05, 0.3]))
    def lose_messages(self, loss: float) -> None:
        GeneratedHistory.steps += 1
        self.deployment.world.loss = loss

    @rule(seconds=some.sampled_from([0.1, 1, 4, 20, 70]))
    def let_time_pass(self, seconds: float) -> None:
        GeneratedHistory.steps += 1
        world = self.deployment.world
        world.run(until_ms=world.now_ms + round(seconds * 1000))

    def teardown(self) -> None:
        if hasattr(self, "deployment"):
            try:
                self.deployment.settle()
            finally:
                self.deployment.close()


@pytest.mark.parametrize(("histories", "steps"), [FEW, pytest.param(*MANY, marks=pytest.mark.slow)])
def test_no_generated_history_violates_an_invariant(histories: int, steps: int) -> None:
    GeneratedHistory.steps = 0
    chosen = settings(
        max_examples=histories,
        stateful_step_count=STEPS_A_HISTORY,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(GeneratedHistory, settings=chosen)
    assert GeneratedHistory.steps >= steps
