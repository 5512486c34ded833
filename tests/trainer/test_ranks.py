"""Several ranks: what they exchange, with real processes connected over loopback."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.trainer import ranks
from runyard.trainer.errors import PeerLost
from runyard.trainer.ranks import World

GRADIENTS = ([1.0, 2.0], [5.0, -4.0])  # of the mean loss over each rank's tokens
TOKENS = (3, 1)
WAIT_S = 60.0

Fork = Callable[..., Any]
Work = Callable[[World, list[torch.nn.Parameter]], Any]


def make_parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]


def start_ranks(fork: Fork, folder: Path, work: Work, size: int = 2) -> list[Any]:
    """Start ranks that write what ``work`` returns, or the name of its error, to a file."""

    def begin(rank: int) -> int:
        world, parameters = World(rank, size), make_parameters()
        ranks.join(world, folder, has_cuda=False)
        try:
            answer = work(world, parameters)
        except (MemoryError, PeerLost) as error:
            answer = type(error).__name__
        gradients = [p.grad.tolist() if p.grad is not None else None for p in parameters]
        (folder / f"{rank}.json").write_text(json.dumps([answer, gradients]))
        return 0

    return [
        fork(lambda rank=rank: begin(rank), output=folder / f"output.{rank}")
        for rank in range(size)
    ]


def run_ranks(fork: Fork, folder: Path, work: Work, size: int = 2) -> list[Any]:
    """Return the answer and the gradients of every rank."""
    for rank, process in enumerate(start_ranks(fork, folder, work, size)):
        assert process.wait(WAIT_S) == 0, (folder / f"output.{rank}").read_text()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def test_ranks_sum_their_gradients_by_the_tokens_of_each(fork: Fork, tmp_path: Path) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> float:
        def accumulate() -> tuple[float, int]:
            parameters[0].grad = torch.tensor(GRADIENTS[world.rank])
            if world.rank == 1:
                parameters[2].grad = torch.ones(2)
            return float(world.rank + 1), TOKENS[world.rank]

        return world.combine(accumulate, parameters)

    # Losses 1 and 2, of 3 tokens and 1; only rank 1 has a gradient of the last parameter.
    expected = [1.25, [[2.0, 0.5], None, [0.25, 0.25]]]
    assert run_ranks(fork, tmp_path, work) == [expected, expected]


def test_a_rank_without_samples_takes_the_same_step(fork: Fork, tmp_path: Path) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> float:
        def accumulate() -> tuple[float, int]:
            if not world.select([7]):
                return 0.0, 0
            parameters[0].grad = torch.tensor(GRADIENTS[0])
            return 2.0, 5

        return world.combine(accumulate, parameters)

    expected = [2.0, [GRADIENTS[0], None, None]]
    assert run_ranks(fork, tmp_path, work, size=3) == [expected] * 3


def test_no_rank_takes_a_step_that_one_had_no_memory_for(fork: Fork, tmp_path: Path) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> float:
        def accumulate() -> tuple[float, int]:
            if world.rank == 1:
                raise MemoryError("8 GiB")
            return 1.0, 1

        return world.combine(accumulate, parameters)

    assert [answer for answer, _ in run_ranks(fork, tmp_path, work)] == ["MemoryError"] * 2


def test_rank_0_announces_what_the_others_do(fork: Fork, tmp_path: Path) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> list[str]:
        if not world.is_leader:
            return [world.receive() for _ in range(3)]
        for turn in ("step", "evaluate", "end"):
            world.announce(turn)
        return []

    answers = [answer for answer, _ in run_ranks(fork, tmp_path, work)]
    assert answers == [[], ["step", "evaluate", "end"]]


def test_documents_of_any_length_are_gathered_in_the_order_of_ranks(
    fork: Fork, tmp_path: Path
) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> Any:
        return world.gather(["ä" * world.rank, world.rank])

    answers = [answer for answer, _ in run_ranks(fork, tmp_path, work, size=3)]
    assert answers == [[["", 0], ["ä", 1], ["ää", 2]]] * 3


def test_every_rank_gets_the_documents_and_weights_of_rank_0(fork: Fork, tmp_path: Path) -> None:
    def work(world: World, parameters: list[torch.nn.Parameter]) -> list[Any]:
        with torch.no_grad():
            parameters[1].fill_(world.rank + 1)
        world.share_weights(parameters)
        shared = [world.share({"rank": world.rank}), world.share(None if world.rank else [])]
        return [*shared, parameters[1].tolist()]

    answers = [answer for answer, _ in run_ranks(fork, tmp_path, work, size=3)]
    assert answers == [[{"rank": 0}, [], [1.0, 1.0]]] * 3


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_noticed_by_its_peer(fork: Fork, tmp_path: Path, killed: int) -> None:
    ready = tmp_path / "ready"

    def work(world: World, parameters: list[torch.nn.Parameter]) -> float:
        if world.rank == killed:
            ready.touch()
            signal.pause()
        return world.combine(lambda: (1.0, 1), parameters)

    processes = start_ranks(fork, tmp_path, work)
    while not ready.exists():
        assert all(process.wait(0.02) is None for process in processes)
    processes[killed].end()
    assert processes[1 - killed].wait(WAIT_S) == 0
    assert json.loads((tmp_path / f"{1 - killed}.json").read_text())[0] == "PeerLost"


def test_gradients_of_many_parameters_are_summed_in_buckets(
    fork: Fork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "BUCKET_NUMBERS", 3)

    def work(world: World, parameters: list[torch.nn.Parameter]) -> float:
        def accumulate() -> tuple[float, int]:
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.full((2,), float(number + world.rank))
            return 0.0, 1

        return world.combine(accumulate, parameters)

    expected = [0.0, [[0.5, 0.5], [1.5, 1.5], [2.5, 2.5]]]
    assert run_ranks(fork, tmp_path, work) == [expected, expected]


def test_a_single_rank_keeps_its_batch_and_random_state() -> None:
    world, parameters, batch = World(), make_parameters(), [3, 1, 2]
    assert world.select(batch) is batch
    before = torch.get_rng_state()
    world.seed(7, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert world.combine(lambda: (0.5, 3), parameters) == 0.5
    world.announce("end")
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.share({"a": 1}) == {"a": 1}


def test_dropout_differs_by_step_and_rank_but_not_by_process() -> None:
    def draw(rank: int, step: int) -> list[float]:
        World(rank, 2).seed(7, step)
        drawn: list[float] = torch.rand(2).tolist()
        return drawn

    with torch.random.fork_rng():
        drawn = [draw(0, 1), draw(1, 1), draw(0, 2)]
        assert draw(1, 1) == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 3
