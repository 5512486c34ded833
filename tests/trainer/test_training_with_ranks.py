"""Complete attempts with two ranks, compared with those of one process."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import runyard.trainer.evaluation.evaluation as evaluation_module
import runyard.trainer.prepare as prepare_module
import runyard.trainer.train as train_module
from runyard.rundir import EXIT_CANNOT_RUN, EXIT_DONE, EXIT_PEER_LOST, EXIT_STOPPED, read_json
from runyard.trainer.checkpoints.checkpoint import read_progress
from runyard.trainer.main import train_attempt
from runyard.trainer.ranks import CANCEL

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
WAIT_S = 120.0


def blocks(*, steps: int, rate: float = 1e-4, **model: Any) -> dict[str, Any]:
    """Return a flow of the tiny model; the last batch of an epoch has a single sample.

    With high learning rates, differences in the last bits grow from step to step, as they do when
    one process divides its batches differently.
    """
    numbers = {"maxSteps": steps, "epochs": 100, "batchSize": 4, "microBatchSize": 2}
    numbers |= {"learningRate": rate} | model.pop("hyperparameters", {})
    settings = {
        "validation": {"maxSamples": 4, "every": {"steps": 1000}},
        "checkpoint": {"every": {"steps": 1000}},
        "hyperparameters": numbers,
    }
    return {"vi-dataset": {"maxSamples": 41}, "vi-model": settings | model}


def start_trainers(
    fork: Callable[..., Any], folder: Path, patch: Callable[[int], None]
) -> list[Any]:
    """Start a trainer for every rank of the attempt."""
    run = json.loads((folder / "run.json").read_text())["run"]
    size = run["spec"]["flow"]["settings"].get("resources", {}).get("workers", 1)

    def begin(rank: int) -> int:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
        patch(rank)
        return train_attempt(folder)

    return [
        fork(lambda rank=rank: begin(rank), output=folder / f"output.{rank}")
        for rank in range(size)
    ]


@pytest.fixture
def train(
    fork: Callable[..., Any], make_attempt: Callable[..., Path]
) -> Callable[..., tuple[Path, list[int]]]:
    """Return a function that trains with a number of workers.

    Returns the attempt's folder and the exit code of every rank.
    """

    def complete(
        flow: dict[str, Any],
        *,
        workers: int,
        patch: Callable[[int], None] = lambda rank: None,
        resources: dict[str, Any] | None = None,
        **attempt: Any,
    ) -> tuple[Path, list[int]]:
        settings = {"resources": {"workers": workers, **(resources or {})}} if workers > 1 else {}
        folder = make_attempt(flow, settings=settings, **attempt)
        codes = [process.wait(WAIT_S) for process in start_trainers(fork, folder, patch)]
        return folder, codes

    return complete


def read_losses(events_of: EventsOf, folder: Path) -> list[float]:
    return [event["values"]["loss"] for event in events_of(folder, "step")]


def read_result(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    assert result is not None
    return result


def read_weights(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / checkpoint / "model_full" / "model.safetensors"
    weights: dict[str, torch.Tensor] = load_file(path)
    return weights


@pytest.mark.parametrize("steps", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_two_ranks_train_like_one(
    train: Callable[..., Any], events_of: EventsOf, steps: int
) -> None:
    flow = blocks(steps=steps)
    (one, codes_of_one), (two, codes_of_two) = (
        train(flow, workers=1, run="one"),
        train(flow, workers=2, run="two"),
    )
    assert (codes_of_one, codes_of_two) == ([EXIT_DONE], [EXIT_DONE, EXIT_DONE])
    losses, expected = read_losses(events_of, two), read_losses(events_of, one)
    assert len(losses) == steps
    assert losses == pytest.approx(expected, abs=1e-5)


def test_adapters_train_like_with_one_rank(train: Callable[..., Any], events_of: EventsOf) -> None:
    flow = blocks(steps=3, training={"mode": "lora", "lora": {"dropout": 0}})
    losses = [
        read_losses(events_of, train(flow, workers=workers, run=str(workers))[0])
        for workers in (1, 2)
    ]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.slow
def test_bfloat16_weights_train_like_with_one_rank(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    """Every rank rounds alike. The gradients are summed in another order, so they differ a bit."""
    flow = blocks(steps=4, training={"mode": "full", "weightsPrecision": "bfloat16"})
    losses = [
        read_losses(events_of, train(flow, workers=workers, run=str(workers))[0])
        for workers in (1, 2)
    ]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


def test_a_run_resumes_on_any_number_of_ranks(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    flow = blocks(steps=14, checkpoint={"every": {"steps": 7}, "keep": 3})
    whole = {workers: train(flow, workers=workers, run=f"on-{workers}")[0] for workers in (1, 2)}
    for before, after in ((2, 2), (2, 1), (1, 2)):
        offered = whole[before] / "checkpoints" / "step-7"
        resumed, codes = train(flow, workers=after, run=f"{before}-to-{after}", resume=offered)
        assert codes == [EXIT_DONE] * after
        expected = read_losses(events_of, whole[before])[7:]
        assert read_losses(events_of, resumed) == pytest.approx(expected, abs=1e-5)
        if before == after:
            weights, same = read_weights(resumed, "step-14"), read_weights(whole[2], "step-14")
            assert weights.keys() == same.keys()
            assert all(torch.equal(weights[name], same[name]) for name in same)


def test_all_ranks_skip_a_step_whose_scaled_loss_is_not_finite(
    train: Callable[..., Any], events_of: EventsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "choose_precision", lambda *_: ("float16", "test"))

    def break_a_loss(rank: int) -> None:
        run = train_module.run_micro_batches

        def run_broken(state: Any, *arguments: Any) -> Any:
            loss, tokens = run(state, *arguments)
            weights = torch.cat([parameter.detach().flatten() for parameter in state.parameters])
            step = state.progress.step
            save_file({"weights": weights}, tmp_path / f"rank-{rank}-step-{step}.safetensors")
            return (
                math.inf if (rank, step) == (1, 1) else loss
            ), tokens  # the gradients are finite

        train_module.run_micro_batches = run_broken  # type: ignore[assignment]

    def read(rank: int, step: int) -> torch.Tensor:
        return load_file(tmp_path / f"rank-{rank}-step-{step}.safetensors")["weights"]

    folder, codes = train(blocks(steps=4), workers=2, patch=break_a_loss)
    assert codes == [EXIT_DONE, EXIT_DONE]
    (warning,) = events_of(folder, "warning")
    assert warning["message"].startswith("step 2 was skipped: the loss is inf in float16")
    for step in range(4):
        assert torch.equal(read(0, step), read(1, step)), step
    assert torch.equal(read(1, 1), read(1, 2))
    assert not torch.equal(read(1, 2), read(1, 3))


FSDP = {"strategy": "fsdp"}


def check_alike(events_of: EventsOf, folder: Path, other: Path) -> None:
    """Check that two attempts have the same losses, norms and metrics, up to rounding."""
    for kind in ("step", "evaluation"):
        found, expected = events_of(folder, kind), events_of(other, kind)
        assert len(found) == len(expected) > 0
        for event, same in zip(found, expected, strict=True):
            names = set(same["values"]) - {"samplesPerSecond", "dataWaitShare"}
            values = {name: event["values"][name] for name in names}
            expected_values = {name: same["values"][name] for name in names}
            assert values == pytest.approx(expected_values, abs=1e-5, rel=1e-4)


@pytest.mark.parametrize("steps", [11, pytest.param(60, marks=pytest.mark.slow)])
def test_sharded_weights_train_like_whole_ones(
    train: Callable[..., Any], events_of: EventsOf, steps: int
) -> None:
    every = {"steps": steps - 3}  # the 11th batch has a single sample
    flow = blocks(steps=steps, checkpoint={"every": every, "keep": 3})
    flow["vi-model"]["validation"] = {"maxSamples": 5, "every": every}
    whole, _ = train(flow, workers=2, run="whole", resources={"strategy": "ddp"})
    sharded, codes = train(flow, workers=2, run="sharded", resources=FSDP)
    assert codes == [EXIT_DONE, EXIT_DONE], (sharded / "output.0").read_text()
    check_alike(events_of, sharded, whole)
    assert events_of(sharded, "plan")[0]["plan"]["strategy"] == {"value": "fsdp", "reason": "flow"}
    name = f"step-{steps - 3}"
    saved, expected = read_weights(sharded, name), read_weights(whole, name)
    assert saved.keys() == expected.keys()
    assert all(torch.allclose(saved[key], expected[key], atol=1e-5) for key in saved)


@pytest.mark.slow
def test_a_sharded_run_resumes_bit_for_bit_and_from_and_on_one_rank(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    flow = blocks(steps=8, checkpoint={"every": {"steps": 4}, "keep": 3})
    sharded, _ = train(flow, workers=2, run="sharded", resources=FSDP)
    one, _ = train(flow, workers=1, run="one")
    for before in (sharded, one):
        offered = before / "checkpoints" / "step-4"
        run = f"from-{before.parents[1].name}"
        resumed, codes = train(flow, workers=2, run=run, resume=offered, resources=FSDP)
        assert codes == [EXIT_DONE, EXIT_DONE]
        expected = read_losses(events_of, before)[4:]
        assert read_losses(events_of, resumed) == pytest.approx(expected, abs=1e-5)
        if before == sharded:
            weights, same = read_weights(resumed, "step-8"), read_weights(sharded, "step-8")
            assert all(torch.equal(weights[name], same[name]) for name in same)
    offered = sharded / "checkpoints" / "step-4"
    resumed, codes = train(flow, workers=1, run="on-one", resume=offered)
    assert codes == [EXIT_DONE]
    expected = read_losses(events_of, sharded)[4:]
    assert read_losses(events_of, resumed) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_adapters_on_sharded_weights_train_like_on_whole_ones(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    flow = blocks(steps=3, training={"mode": "lora", "lora": {"dropout": 0}})
    whole, _ = train(flow, workers=2, run="whole")
    sharded, codes = train(flow, workers=2, run="sharded", resources=FSDP)
    assert codes == [EXIT_DONE, EXIT_DONE], (sharded / "output.0").read_text()
    check_alike(events_of, sharded, whole)
    (plan,) = events_of(whole, "plan")
    assert plan["plan"]["strategy"] == {
        "value": "ddp",
        "reason": "the whole model fits into the memory of each process",
    }


@pytest.mark.slow
def test_a_rank_without_memory_for_sharded_weights_fails_the_run(
    train: Callable[..., Any],
) -> None:
    def limit_memory(rank: int) -> None:
        run = train_module.run_sharded_micro_batches

        def run_if_it_fits(state: Any, *arguments: Any) -> Any:
            if rank == 1 and state.progress.step == 1:
                raise MemoryError("no memory")
            return run(state, *arguments)

        train_module.run_sharded_micro_batches = run_if_it_fits  # type: ignore[assignment]

    folder, codes = train(blocks(steps=5), workers=2, patch=limit_memory, resources=FSDP)
    assert codes == [EXIT_CANNOT_RUN, EXIT_CANNOT_RUN]
    result = read_result(folder)
    assert result["reason"] == "OutOfMemory"
    assert result["message"].startswith("rank 1: out of memory while training")


def test_a_strategy_that_is_not_possible_is_rejected(train: Callable[..., Any]) -> None:
    flow = blocks(steps=2, hyperparameters={"optimizer": {"name": "muon"}})
    folder, codes = train(flow, workers=2, resources=FSDP)
    assert codes == [EXIT_CANNOT_RUN, EXIT_CANNOT_RUN]
    assert (
        "resources.strategy 'fsdp' is not possible: optimizer 'muon'"
        in (read_result(folder)["message"])
    )


def test_ranks_share_an_evaluation_and_agree_with_one(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    def run_out_of_memory(rank: int) -> None:
        measure = evaluation_module.sum_losses

        def measure_if_it_fits(data: Any, indices: Any, losses: Any, *others: Any) -> Any:
            def check(batch: Any) -> Any:
                if rank == 1 and len(batch.inputs["input_ids"]) > 1:
                    raise MemoryError("no memory for two samples")
                return losses(batch)

            return measure(data, indices, check, *others)  # type: ignore[arg-type]

        evaluation_module.sum_losses = measure_if_it_fits  # type: ignore[assignment]

    flow = blocks(steps=2, validation={"maxSamples": 7, "every": {"steps": 1}})
    one, _ = train(flow, workers=1, run="one")
    two, codes = train(flow, workers=2, run="two", patch=run_out_of_memory)
    assert codes == [EXIT_DONE, EXIT_DONE]
    expected, found = events_of(one, "evaluation"), events_of(two, "evaluation")
    assert [event["step"] for event in found] == [event["step"] for event in expected]
    assert [event["previews"] for event in found] == [event["previews"] for event in expected]
    for event, same in zip(found, expected, strict=True):
        assert event["values"] == pytest.approx(same["values"], abs=1e-5)
    predictions = [folder / "predictions" / "step-2.jsonl" for folder in (one, two)]
    assert predictions[0].read_text() == predictions[1].read_text()
    assert read_progress(one / "checkpoints" / "step-2").evaluation_batch_limit == 64
    limit = read_progress(two / "checkpoints" / "step-2").evaluation_batch_limit
    assert limit == 1
    assert events_of(two, "warning") == []
    assert events_of(two / "ranks" / "1", "warning") != []


def test_a_stop_ends_an_evaluation_on_all_ranks(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    def stop_on_rank_0_and_never_end_on_others(rank: int) -> None:
        measure = evaluation_module.sum_losses

        def measure_and_stop(*arguments: Any) -> Any:
            check_cancelled = arguments[4]
            if rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            while rank:
                time.sleep(0.01)
                check_cancelled()
            return measure(*arguments)

        evaluation_module.sum_losses = measure_and_stop  # type: ignore[assignment]

    flow = blocks(steps=9, validation={"maxSamples": 4, "every": {"steps": 2}})
    folder, codes = train(flow, workers=2, patch=stop_on_rank_0_and_never_end_on_others)
    assert codes == [EXIT_STOPPED, EXIT_DONE]
    assert events_of(folder, "evaluation") == []
    assert read_progress(folder / "checkpoints" / "step-2").owes_evaluation
    assert not (folder / CANCEL).exists()


def test_all_ranks_train_although_the_first_evaluation_fails_on_rank_0(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    def fail_once_on_rank_0(rank: int) -> None:
        measure = evaluation_module.sum_losses

        def fail(*arguments: Any) -> Any:
            evaluation_module.sum_losses = measure
            raise RuntimeError("a bug")

        if rank == 0:
            evaluation_module.sum_losses = fail  # type: ignore[assignment]

    flow = blocks(steps=3, validation={"maxSamples": 4, "beforeTraining": True})
    folder, codes = train(flow, workers=2, patch=fail_once_on_rank_0)
    assert codes == [EXIT_DONE, EXIT_DONE]
    assert "failed: a bug; training begins" in events_of(folder, "warning")[0]["message"]
    assert len(events_of(folder, "step")) == 3


def test_all_ranks_shrink_when_one_runs_out_of_memory(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    def limit_memory(rank: int) -> None:
        run = train_module.run_micro_batches

        def run_if_it_fits(state: Any, indices: list[int], epoch: int, size: int) -> Any:
            if rank == 1 and size > 1 and state.progress.step == 2:
                raise MemoryError("no memory for two samples")
            return run(state, indices, epoch, size)

        train_module.run_micro_batches = run_if_it_fits  # type: ignore[assignment]

    flow = blocks(steps=5, onOutOfMemory="shrink")
    whole, _ = train(flow, workers=2, run="whole")
    shrunk, codes = train(flow, workers=2, run="shrunk", patch=limit_memory)
    assert codes == [EXIT_DONE, EXIT_DONE]
    (warning,) = events_of(shrunk, "warning")
    assert warning["message"].startswith("out of memory with microBatchSize 2 at step 3")
    expected = read_losses(events_of, whole)
    assert read_losses(events_of, shrunk) == pytest.approx(expected, abs=1e-5)


def test_a_stop_request_ends_all_ranks_after_the_same_step(
    train: Callable[..., Any], events_of: EventsOf
) -> None:
    def stop_at_step_3(rank: int) -> None:
        take_step, taken = train_module.optimizer_step, []

        def step_and_stop(state: Any, limit: float | None) -> float:
            taken.append(limit)
            if rank == 0 and len(taken) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return take_step(state, limit)

        train_module.optimizer_step = step_and_stop  # type: ignore[assignment]

    folder, codes = train(blocks(steps=9), workers=2, patch=stop_at_step_3)
    assert codes == [EXIT_STOPPED, EXIT_DONE]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == ["step-3"]
    assert read_result(folder)["outcome"] == "Stopped"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_peer_is_killed_exits_without_a_result(
    train: Callable[..., Any], killed: int
) -> None:
    def die_at_step_3(rank: int) -> None:
        run, calls = train_module.run_micro_batches, []

        def run_or_die(*arguments: Any) -> Any:
            calls.append(1)
            if rank == killed and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(*arguments)

        train_module.run_micro_batches = run_or_die  # type: ignore[assignment]

    folder, codes = train(blocks(steps=9), workers=2, patch=die_at_step_3)
    assert (codes[killed], codes[1 - killed]) == (-signal.SIGKILL, EXIT_PEER_LOST)
    assert not (folder / "result.json").exists()


def test_a_loss_that_is_not_finite_on_one_rank_fails_the_run(train: Callable[..., Any]) -> None:
    def diverge(rank: int) -> None:
        run = train_module.run_micro_batches

        def run_or_diverge(state: Any, *arguments: Any) -> tuple[float, int]:
            loss, tokens = run(state, *arguments)
            is_time = rank == 1 and state.progress.step == 2
            return (float("nan") if is_time else loss), tokens

        train_module.run_micro_batches = run_or_diverge  # type: ignore[assignment]

    folder, _ = train(blocks(steps=9), workers=2, patch=diverge)
    assert read_result(folder)["reason"] == "Diverged"


def test_one_trainer_alone_rejects_a_flow_of_two_workers(make_attempt: Callable[..., Path]) -> None:
    folder = make_attempt(blocks(steps=2), settings={"resources": {"workers": 2}})
    assert train_attempt(folder) == EXIT_CANNOT_RUN
    assert "1 trainers were started" in read_result(folder)["message"]
