"""Warnings about rising losses and hanging steps; a loss that is not finite ends the run."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.trainer.main import train_attempt
from runyard.trainer.watchdog import LossSpikeDetector, SlowStepDetector, format_names


def test_a_rising_loss_is_reported_once_with_its_best_step() -> None:
    detector = LossSpikeDetector()
    falling = [detector.update(step, 5.0 * 0.95**step) for step in range(1, 60)]
    growing = [detector.update(step, 4.0) for step in range(60, 200)]
    assert falling == [None] * 59
    (warning,) = (words for words in growing if words)
    assert "diverges" in warning
    assert f"near step {detector.least_step}" in warning
    assert detector.least_step <= 60


def test_a_noisy_or_initially_rising_loss_is_not_reported() -> None:
    detector = LossSpikeDetector()
    losses = [1.0, 3.0, 8.0, *(2.0 + step % 3 for step in range(200))]
    assert not any(detector.update(step, loss) for step, loss in enumerate(losses))


def test_a_slow_step_is_reported_once_while_it_runs() -> None:
    warnings: list[str] = []
    is_reported = threading.Event()

    def warn(message: str) -> None:
        warnings.append(message)
        is_reported.set()

    detector = SlowStepDetector(warn, after_s=0.2)
    with detector.watch(6, lambda: ["quick.png"]):
        pass
    with detector.watch(7, lambda: ["a.png", "b.png"]):
        assert is_reported.wait(30)
        is_reported.clear()
        assert not is_reported.wait(0.5)
    assert warnings == ["step 7 has been running for 0 s; its samples are a.png, b.png"]


def test_long_lists_of_names_are_shortened() -> None:
    assert (
        format_names([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    )


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_names_step_samples_and_the_last_good_checkpoint(
    what: str, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.trainer import train

    accumulate, steps = train.accumulate_gradients, 0

    def accumulate_nan(state: Any, *arguments: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 4 and what == "loss":
            next(iter(state.model.trainable_parameters()))[1].data.fill_(float("nan"))
        loss = accumulate(state, *arguments)
        if steps == 4:
            next(p for _, p in state.model.trainable_parameters() if p.grad is not None).grad[0] = (
                torch.nan
            )
        return loss

    monkeypatch.setattr(train, "accumulate_gradients", accumulate_nan)
    blocks = {
        "vi-dataset": {"maxSamples": 40},
        "vi-model": {
            "hyperparameters": {"maxSteps": 6, "batchSize": 4},
            "checkpoint": {"every": {"steps": 2}},
            "validation": {"maxSamples": 4},
        },
    }
    folder = make_attempt(blocks)
    assert train_attempt(folder) == 64
    result = json.loads((folder / "result.json").read_text())
    message = result["message"]
    assert result["reason"] == "Diverged"
    assert message.startswith(f"the {what} is nan at step 4, with samples #")
    assert "the last good checkpoint is step-2" in message
