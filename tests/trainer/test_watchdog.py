"""A loss that grows and a step that does not end are told; a loss that is no number ends the run by name."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.trainer.main import train_attempt
from runyard.trainer.watchdog import LossWatch, StepWatch, listed


def test_a_loss_that_grows_is_told_once_with_where_it_was_good() -> None:
    watch = LossWatch()
    falling = [watch.see(step, 5.0 * 0.95**step) for step in range(1, 60)]
    growing = [watch.see(step, 4.0) for step in range(60, 200)]
    assert falling == [None] * 59
    (told,) = (words for words in growing if words)
    assert "diverges" in told
    assert f"about step {watch.least_step}" in told
    assert watch.least_step <= 60


def test_a_loss_that_is_noisy_or_rises_at_first_is_not_told() -> None:
    watch = LossWatch()
    losses = [1.0, 3.0, 8.0, *(2.0 + step % 3 for step in range(200))]
    assert not any(watch.see(step, loss) for step, loss in enumerate(losses))


def test_a_step_that_does_not_end_is_told_while_it_runs_and_once() -> None:
    told: list[str] = []
    is_told = threading.Event()

    def warn(message: str) -> None:
        told.append(message)
        is_told.set()

    watch = StepWatch(warn, after_s=0.2)
    with watch.over(6, lambda: ["quick.png"]):
        pass
    with watch.over(7, lambda: ["a.png", "b.png"]):
        assert is_told.wait(30)
        is_told.clear()
        assert not is_told.wait(0.5)
    assert told == ["step 7 has been running for 0 s; its samples are a.png, b.png"]


def test_many_names_are_cut() -> None:
    assert listed([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_names_step_samples_and_the_last_good_checkpoint(
    what: str, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.trainer import train

    as_ever, steps = train._accumulate, 0

    def spoilt(made: Any, *arguments: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 4 and what == "loss":
            next(iter(made.model.trainable_parameters()))[1].data.fill_(float("nan"))
        loss = as_ever(made, *arguments)
        if steps == 4:
            next(p for _, p in made.model.trainable_parameters() if p.grad is not None).grad[0] = torch.nan
        return loss

    monkeypatch.setattr(train, "_accumulate", spoilt)
    recipe = {
        "vi-dataset": {"maxSamples": 40},
        "vi-model": {
            "hyperparameters": {"maxSteps": 6, "batchSize": 4},
            "checkpoint": {"every": {"steps": 2}},
            "validation": {"maxSamples": 4},
        },
    }
    folder = make_attempt(recipe)
    assert train_attempt(folder) == 64
    result = json.loads((folder / "result.json").read_text())
    message = result["message"]
    assert result["reason"] == "Diverged"
    assert message.startswith(f"the {what} is nan at step 4, with samples #")
    assert "the last good checkpoint is step-2" in message
