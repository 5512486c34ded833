"""Whole histories of a simulated deployment, drawn from seeds; ``make sim`` runs as many more as it is told to."""

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
from simulation.simulation import FAULTS, ORGS, RULES, Deployment, simulate

HERE = Path(__file__).parent
FIRST_SEED = 10_000
# In parts, so that two processes may share them.
PARTS, EVENTS_A_PART = 4, 50_000
EVENTS_ON_POSTGRESQL, CHAOS_ON_POSTGRESQL_MS = 4_000, 60_000
STORIES, STEPS_A_STORY, LEAST_STEPS = 112, 50, 5_000
KEPT = [int(line.split()[0]) for line in (HERE / "seeds.txt").read_text().splitlines() if line and line[0] != "#"]
# A seed that finds each rule's absence soon; measured by simulate.py --without, see docs/run-safety.md.
FOUND_BY = {"R3": 1, "R4": 0, "R5": 0, "R6": 0, "R9": 0}


def run_through(first: int, *, events: int, **world: Any) -> None:
    """Seed after seed, until so many events have happened."""
    happened, seeds = 0, itertools.count(first)
    while happened < events:
        outcome = simulate(next(seeds), **world)
        assert outcome.broken is None, f"seed {outcome.seed}: {outcome.broken}"
        happened += outcome.events
    assert happened >= events


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_through_all_faults(part: int) -> None:
    run_through(FIRST_SEED + 1_000 * part, events=EVENTS_A_PART)


def test_every_promise_holds_on_postgresql(postgresql: Any) -> None:
    url = postgresql.new_database()
    run_through(FIRST_SEED, events=EVENTS_ON_POSTGRESQL, postgresql=url, chaos_ms=CHAOS_ON_POSTGRESQL_MS)


@pytest.mark.skipif(not os.environ.get("RUNYARD_KEPT_SEEDS"), reason="make sim-kept runs them, on every submission")
@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_once_found_something_stays_good(seed: int) -> None:
    assert simulate(seed).broken is None


def test_without_faults_every_run_ends_and_none_in_error() -> None:
    outcome = simulate(1, faults=False)
    assert outcome.broken is None
    assert outcome.counts["Succeeded"] > 5


def test_the_same_seed_is_the_same_history_in_another_process() -> None:
    code = "from simulation.simulation import simulate; print(simulate(5).trace)"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONHASHSEED": "77"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == simulate(5).trace


@pytest.mark.parametrize("rule", sorted(FOUND_BY))
def test_a_rule_that_is_left_out_is_missed(rule: str) -> None:
    assert rule in RULES
    assert simulate(FOUND_BY[rule], without=rule).broken is not None


class ChosenStory(RuleBasedStateMachine):
    """The same deployment, but what happens next is chosen, so that a story that breaks a promise is made shorter."""

    steps: ClassVar[int] = 0  # of all stories

    @initialize(seed=some.integers(0, 1000), machines=some.sampled_from([1, 1, 3]))
    def begin(self, seed: int, machines: int) -> None:
        self.deployment = Deployment(seed, machines=machines, faults=False)
        for client in self.deployment.clients:
            client.is_quiet = True

    @rule(organization=some.integers(0, len(ORGS) - 1), what=some.sampled_from(["create", "create_again", "list"]))
    def ask(self, organization: int, what: str) -> None:
        ChosenStory.steps += 1
        client = self.deployment.clients[organization]
        if what == "list":
            client.list_runs()
        else:
            client.made += what == "create"
            client.create(max(client.made, 1))

    @rule(organization=some.integers(0, len(ORGS) - 1), number=some.integers(1, 4), deletes=some.booleans())
    def end_a_run(self, organization: int, number: int, deletes: bool) -> None:
        ChosenStory.steps += 1
        client = self.deployment.clients[organization]
        (client.delete if deletes else client.kill_run)(number)

    @rule(fault=some.sampled_from([name for name in FAULTS if name != "loss"]))
    def break_something(self, fault: str) -> None:
        ChosenStory.steps += 1
        self.deployment.break_something(fault)

    @rule(loss=some.sampled_from([0.0, 0.05, 0.3]))
    def lose_messages(self, loss: float) -> None:
        ChosenStory.steps += 1
        self.deployment.world.loss = loss

    @rule(seconds=some.sampled_from([0.1, 1, 4, 20, 70]))
    def let_time_pass(self, seconds: float) -> None:
        ChosenStory.steps += 1
        world = self.deployment.world
        world.run(until_ms=world.now_ms + round(seconds * 1000))

    def teardown(self) -> None:
        if hasattr(self, "deployment"):
            try:
                self.deployment.settle()
            finally:
                self.deployment.close()


def test_no_chosen_story_breaks_a_promise() -> None:
    chosen = settings(
        max_examples=STORIES,
        stateful_step_count=STEPS_A_STORY,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ChosenStory, settings=chosen)
    assert ChosenStory.steps >= LEAST_STEPS
