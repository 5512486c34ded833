"""Promises of the queue under random events, judged by an oracle after each pass."""

import os
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduling.world import Event, World, make_event

EVENTS = int(os.environ.get("RUNYARD_QUEUE_EVENTS", "400"))
EVENTS_PER_WORLD = 200

numbers = st.integers(0, 11)
events = st.lists(st.tuples(st.integers(0, 19), numbers, numbers, numbers), max_size=25)


def open_world(random: Random) -> World:
    world = World()
    for _ in range(3):
        world.put_machine(random.randrange(12), random.randrange(12), random.randrange(12))
    return world


@settings(max_examples=25, deadline=None, derandomize=True)
@given(events=events, seed=st.integers(0, 9))
def test_every_pass_keeps_the_promises(events: list[Event], seed: int) -> None:
    random = Random(seed)  # noqa: S311
    world = open_world(random)
    for event in events:
        world.apply(event)
        world.decide(shuffle=random)


def test_long_histories_keep_the_promises_and_reach_every_decision() -> None:
    counts: dict[str, int] = {}
    for seed in range(max(1, EVENTS // EVENTS_PER_WORLD)):
        random = Random(seed)  # noqa: S311
        world = open_world(random)
        for number in range(EVENTS_PER_WORLD):
            event = make_event(random)
            try:
                world.apply(event)
                world.decide(shuffle=random)
            except AssertionError as error:
                error.add_note(f"seed {seed}, event {number}: {event}")
                raise
        for name, count in world.counts.items():
            counts[name] = counts.get(name, 0) + count
    assert all(counts.get(name, 0) > 0 for name in ("Place", "Preempt", "Reserve", "Unreserve"))
