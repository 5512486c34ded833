"""Promises of the queue over virtual hours of load."""

from collections import defaultdict
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from runyard.server.scheduling.loads import (
    InvalidTrace,
    SimulatedRun,
    build_machines,
    generate_runs,
    read_trace,
)
from runyard.server.scheduling.simulation import Simulation
from runyard.server.scheduling.view import Action, MachineCapacity, Place, Reserve, Share

HOUR_S = 3600.0


def make_machines(count: int, accelerators: int) -> list[MachineCapacity]:
    return build_machines(count, accelerators=accelerators)


def test_shares_are_within_five_percent_of_the_weights_over_a_day() -> None:
    random = Random(3)  # noqa: S311
    runs = [
        SimulatedRun(
            submit_s=0.0,
            project=random.choice("abc"),
            duration_s=random.uniform(600, 5000),
            accelerators=random.choice((1, 1, 2)),
        )
        for _ in range(1500)
    ]
    # All of them wait until the day has ended.
    runs.append(SimulatedRun(submit_s=24 * HOUR_S, project="a", duration_s=1.0))
    shares = [
        Share(org="simulated", project=name, weight=weight)
        for name, weight in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    simulation = Simulation(make_machines(6, 4), shares)
    result = simulation.run(runs)
    used_s = sum(result.used_s.values())
    assert used_s > 0.9 * 24 * HOUR_S * 24
    for project, weight in result.weights.items():
        assert result.used_s[project] / used_s == pytest.approx(weight / 6, rel=0.05)


def test_large_run_starts_under_an_endless_stream_of_small_ones() -> None:
    small = [
        SimulatedRun(submit_s=number * 20.0, project="small", duration_s=300.0, accelerators=1)
        for number in range(2000)
    ]
    large = SimulatedRun(submit_s=1000.0, project="large", duration_s=60.0, accelerators=8)
    simulation = Simulation(make_machines(2, 8))
    result = simulation.run(sorted([*small, large], key=lambda run: run.submit_s))
    assert result.waits_s["priority 0, 8 accelerators"][0] <= 320


@pytest.mark.parametrize("seed", range(4))
def test_backfill_delays_no_reservation_whose_predictions_hold(seed: int) -> None:
    random = Random(seed)  # noqa: S311
    runs = [
        SimulatedRun(
            submit_s=number * 60.0,
            project="p",
            duration_s=limit_s * random.uniform(0.9, 1.0),
            limit_s=limit_s,
            accelerators=random.choice((1, 2, 4, 8)),
            members=random.choice((1, 1, 1, 2)),
        )
        for number in range(300)
        for limit_s in [random.choice((300.0, 600.0, 3600.0))]
    ]
    promised: dict[str, int] = {}
    started: dict[str, int] = {}

    def record(now_ms: int, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Reserve) and action.from_ms is not None:
                promised.setdefault(action.run.run_id, action.from_ms)
            elif isinstance(action, Place):
                started[action.run.run_id] = now_ms

    Simulation(make_machines(4, 8), on_decisions=record).run(runs)
    assert len(promised) > 20
    late = {run: started[run] - promised[run] for run in promised if started[run] > promised[run]}
    assert max(late.values(), default=0) <= 1000  # the pass of the next whole second


def test_every_run_ends_and_none_is_preempted_twice_in_ten_minutes() -> None:
    stops: dict[str, list[int]] = defaultdict(list)

    def record(now_ms: int, actions: list[Any]) -> None:
        for action in actions:
            if type(action).__name__ == "Preempt":
                stops[action.run.run_id].append(now_ms)

    runs = generate_runs(800, seed=2, capacity=40, accelerators=8, load=1.5)
    result = Simulation(make_machines(5, 8), on_decisions=record).run(runs)
    assert (result.ended, result.never_placed) == (800, 0)
    assert result.preemptions > 5
    gaps = [later - earlier for times in stops.values() for earlier, later in pairwise(times)]
    assert all(gap >= 600_000 for gap in gaps)


def test_equal_seeds_give_equal_results() -> None:
    def simulate(seed: int) -> Any:
        runs = generate_runs(200, seed=seed, capacity=16, accelerators=8, load=1.5)
        return Simulation(make_machines(2, 8)).run(runs).waits_s

    assert simulate(1) == simulate(1) != simulate(2)


def test_run_that_no_machine_fits_is_never_placed_and_blocks_nothing() -> None:
    runs = [
        SimulatedRun(submit_s=0.0, project="p", duration_s=9.0, accelerators=16),
        SimulatedRun(submit_s=0.0, project="p", duration_s=9.0, accelerators=8),
    ]
    result = Simulation(make_machines(1, 8)).run(runs)
    assert (result.ended, result.never_placed, result.virtual_s) == (1, 1, 10.0)


def test_trace_is_read_in_order_of_submission(tmp_path: Any) -> None:
    (tmp_path / "a.csv").write_text(
        "submit_s,project,duration_s,accelerators,limit_s,preemptible\n5,p,60,2,90,true\n1,q,7,,,\n"
    )
    (tmp_path / "a.jsonl").write_text(
        '{"submit_s": 5, "project": "p", "duration_s": 60, "accelerators": 2, "limit_s": 90, '
        '"preemptible": true}\n\n{"submit_s": 1, "project": "q", "duration_s": 7}\n'
    )
    runs = read_trace(tmp_path / "a.csv")
    assert runs == read_trace(tmp_path / "a.jsonl")
    assert runs == [
        SimulatedRun(submit_s=1, project="q", duration_s=7),
        SimulatedRun(
            submit_s=5, project="p", duration_s=60, accelerators=2, limit_s=90, preemptible=True
        ),
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "submit_s,project\n", "line 1: column duration_s is missing"),
        ("a.csv", "submit_s,project,duration_s,gpu\n", "line 1: unknown column 'gpu'"),
        ("a.csv", "submit_s,project,duration_s\n1,p,5\n2,p,long\n", "line 3: duration_s is 'long'"),
        ("a.csv", "submit_s,project,duration_s\n1,p,nan\n", "line 2: duration_s is 'nan'"),
        ("a.csv", "submit_s,project,duration_s\n1,p,5,6\n", "line 2: it has more values"),
        ("a.csv", "submit_s,project,duration_s\n1,,5\n", "line 2: project is None"),
        ("a.csv", "submit_s,project,duration_s\n", "line 1: no run found"),
        ("a.csv", "submit_s,project,duration_s,members\n1,p,5,0\n", "line 2: members is '0'"),
        ("a.jsonl", "\n[1]\n", "line 2: not a JSON object"),
        ("a.jsonl", "{\n", "line 1: not valid JSON"),
        (
            "a.jsonl",
            '{"submit_s": 1, "project": "p", "duration_s": 2, "accelerators": 1.5}',
            "line 1: accelerators is 1.5; try: a whole number",
        ),
    ],
)
def test_invalid_trace_names_line_and_value(
    tmp_path: Any, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidTrace) as caught:
        read_trace(tmp_path / name)
    assert expected in str(caught.value)
