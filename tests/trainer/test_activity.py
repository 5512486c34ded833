"""Reports before the first step: one every few seconds, also while a single call blocks."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer import activity as activity_module
from runyard.trainer import prepare as prepare_module
from runyard.trainer import train as train_module
from runyard.trainer.activity import REPEAT_AFTER_S, TICK_S
from runyard.trainer.main import train_attempt

EventsOf = Callable[..., list[dict[str, Any]]]
DEADLINE_S = 60.0
SHORT = {
    "vi-dataset": {"maxSamples": 20},
    "vi-model": {
        "hyperparameters": {"maxSteps": 2, "batchSize": 8},
        "validation": {"maxSamples": 1},
        "evaluation": {"max_new_tokens": 1},
    },
}


def wait_for(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "nothing was reported"
        time.sleep(0.005)


def count_activity_threads() -> int:
    return sum(thread.name == "activity" for thread in threading.enumerate())


def test_two_reports_are_at_most_five_seconds_apart() -> None:
    assert REPEAT_AFTER_S + TICK_S < 5


@pytest.mark.parametrize(
    ("module", "name", "phase", "activity"),
    [
        (prepare_module, "load_data", "Preparing", "Reading the dataset"),
        (prepare_module, "build_model", "Preparing", "Loading weights"),
        (train_module, "accumulate_gradients", "Training", "step 1 of 2"),
    ],
)
def test_a_blocking_call_before_the_first_step_is_reported_again_and_again(
    module: Any,
    name: str,
    phase: str,
    activity: str,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, original = make_attempt(SHORT), getattr(module, name)
    monkeypatch.setattr(activity_module, "REPEAT_AFTER_S", 0.01)
    monkeypatch.setattr(activity_module, "TICK_S", 0.005)
    blocked: list[bool] = []

    def count_reports() -> int:
        return sum(
            event["phase"] == phase and event["message"].startswith(f"{activity} (")
            for event in events_of(folder, "phase")
        )

    def block_once(*args: Any, **kwargs: Any) -> Any:
        if not blocked:
            blocked.append(True)
            wait_for(lambda: count_reports() >= 3)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, block_once)
    assert train_attempt(folder) == 0
    assert count_reports() >= 3
    assert count_activity_threads() == 0


def test_a_quick_start_reports_no_activity_and_leaves_no_thread(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity_module, "REPEAT_AFTER_S", DEADLINE_S)
    folder = make_attempt(SHORT)
    assert train_attempt(folder) == 0
    preparing = [e["message"] for e in events_of(folder, "phase") if e["phase"] == "Preparing"]
    assert preparing == ["Reading data and model"]
    assert count_activity_threads() == 0


def test_the_thread_ends_with_a_flow_that_cannot_be_trained(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare_module, "load_data", fail)
    assert train_attempt(make_attempt(SHORT)) == 64
    assert count_activity_threads() == 0
