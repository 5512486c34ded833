"""Batches are prepared ahead only where steps wait for them, and change no result."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.rundir import read_json
from runyard.trainer import prepare as prepare_module
from runyard.trainer.data import workers as workers_module
from runyard.trainer.data.encode import Batch, EncodedSample
from runyard.trainer.data.workers import SamplesAhead, SampleSource
from runyard.trainer.main import train_attempt
from runyard.trainer.steps import loading as loading_module
from runyard.trainer.steps.loading import (
    PROBED_STEPS,
    STEPS_BETWEEN_PROBES,
    WITH_PROCESSES,
    WITH_THREAD,
    WITHOUT,
    BatchLoader,
)
from tests.trainer.test_workers import make_images

EventsOf = Callable[[Path, str], list[dict[str, Any]]]


class FakeSteps:
    """Steps of a loader on a clock of their own."""

    def __init__(self, *, build_s: float, step_s: float, prepared_step_s: float = 0.0):
        self.now_s, self.build_s = 0.0, build_s
        self.step_s, self.prepared_step_s = step_s, prepared_step_s or step_s
        self.loader = BatchLoader(self.build, may_prepare=True, clock=lambda: self.now_s)
        self.built: list[int] = []

    def build(self, indices: Any, epoch: int) -> Batch:
        self.built.append(indices[0])
        if threading.current_thread() is threading.main_thread():
            self.now_s += self.build_s
        return Batch({}, torch.tensor(list(indices)), torch.tensor([epoch]))

    def take(self, count: int) -> list[float]:
        """Take steps, one sample each; return their shares of waiting."""
        shares: list[float] = []
        for _ in range(count):
            step = len(shares)
            self.loader.begin_step()
            batch = self.loader.load([step], 0)
            assert batch.label_positions.tolist() == [step]
            self.loader.prepare([[step + 1]], 0)
            self.loader.settle()
            self.now_s += self.prepared_step_s if self.loader.is_preparing else self.step_s
            shares.append(self.loader.end_step())
        return shares


def test_steps_that_wait_get_their_batches_prepared() -> None:
    steps = FakeSteps(build_s=0.1, step_s=0.3)
    shares = steps.take(30)
    assert shares[0] == pytest.approx(0.25)
    assert shares[-1] == 0
    assert steps.loader.is_preparing
    assert steps.built[:20] == list(range(20))  # each batch once
    steps.loader.close()
    assert not steps.loader.is_preparing


def test_steps_that_hardly_wait_start_no_thread() -> None:
    steps = FakeSteps(build_s=0.001, step_s=0.3)
    steps.take(30)
    assert not steps.loader.is_preparing


def test_a_thread_that_slows_steps_down_is_ended_and_tried_again_much_later() -> None:
    steps = FakeSteps(build_s=0.1, step_s=0.3, prepared_step_s=0.5)
    preparing = []
    for _ in range(3 * PROBED_STEPS):
        steps.take(1)
        preparing.append(steps.loader.is_preparing)
    assert any(preparing)
    assert not preparing[-1]
    steps.prepared_step_s = 0.2
    steps.take(STEPS_BETWEEN_PROBES + 3 * PROBED_STEPS)
    assert steps.loader.is_preparing
    steps.loader.close()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((0.3, 0.29, 0.1), WITH_PROCESSES),
        ((0.3, 0.2, 0.25), WITH_THREAD),
        ((0.3, 0.35, 0.1), WITHOUT),
    ],
)
def test_processes_are_tried_where_a_thread_is_not_enough(
    seconds: tuple[float, ...], expected: int
) -> None:
    probe, way = loading_module._Probe(WITH_PROCESSES), WITHOUT
    for _ in range(40):
        way = probe.note(seconds[way], 0.5)
    assert way == expected
    enough, way = loading_module._Probe(WITH_PROCESSES), WITHOUT
    for _ in range(40):
        way = enough.note(*((0.3, 0.5) if way == WITHOUT else (0.2, 0.0)))
    assert way == WITH_THREAD


def test_an_error_in_the_thread_is_raised_by_the_step_that_needs_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading_module._Probe, "note", lambda *_: WITH_PROCESSES)

    def build(indices: Any, epoch: int) -> Batch:
        if indices == [1]:
            raise OSError("damaged")
        return Batch({}, torch.zeros(0), torch.zeros(0))

    loader = BatchLoader(build, may_prepare=True)
    loader.end_step()
    loader.load([0], 0)
    loader.prepare([[1], [2]], 0)
    loader.settle()
    with pytest.raises(OSError, match="damaged"):
        loader.load([1], 0)
    loader.load([2], 0)
    loader.close()


BLOCKS: dict[str, dict[str, Any]] = {
    "vi-dataset": {
        "datasetId": "shelves",
        "datasetVersion": "0" * 16,
        "projectKind": "vqa",
        "validationFraction": 0.2,
    },
    "vi-model": {
        "hyperparameters": {"maxSteps": 7, "batchSize": 12, "microBatchSize": 4},
        "validation": {"maxSamples": 4, "every": {"steps": 3}},
    },
}


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = (read_json(folder / "result.json") or {})["checkpoint"]
    root = folder / "checkpoints" / str(checkpoint)
    weights: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    weights |= load_file(root / "training_state" / "state.safetensors")
    return weights


@pytest.mark.parametrize(
    ("augmentation", "cache_bytes"),
    [({}, 1 << 30), ({}, 0), ({"shift": 0.1, "noise": 0.1}, 1 << 30)],
)
def test_weights_are_the_same_for_any_number_of_processes_and_with_a_thread(
    augmentation: dict[str, Any],
    cache_bytes: int,
    make_attempt: Callable[..., Path],
    make_version: Callable[..., Path],
    png: Callable[..., bytes],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "MIN_GAIN_S", 0.0)
    version = make_version(make_images(png, 30))
    blocks = {**BLOCKS, "vi-dataset": {**BLOCKS["vi-dataset"], "augmentation": augmentation}}
    started, loaded = list[bool](), list[int]()
    as_ever, prepare = SampleSource._start_if_worthwhile, BatchLoader.prepare

    def start(self: Any, *given: Any) -> None:
        as_ever(self, *given)
        started.append(self._workers is not None)

    def count(self: BatchLoader, *given: Any) -> None:
        prepare(self, *given)
        loaded.append(len(self._pending))

    ahead: list[bool] = []
    read = SamplesAhead.read

    def read_ahead(self: SamplesAhead, *given: int) -> EncodedSample | None:
        found = read(self, *given)
        ahead.append(found is not None)
        return found

    monkeypatch.setattr(SamplesAhead, "read", read_ahead)
    monkeypatch.setattr(SampleSource, "_start_if_worthwhile", start)
    monkeypatch.setattr(BatchLoader, "prepare", count)
    weights = []
    for run, threads in (("one", 1), ("three", 3)):
        folder = make_attempt(blocks, run=run, cache_bytes=cache_bytes)
        config = json.loads((folder / "run.json").read_text()) | {"threads": threads}
        (folder / "run.json").write_text(json.dumps(config))
        document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(document))
        if threads > 1:
            shutil.rmtree(version.parents[2] / "cache", ignore_errors=True)
            monkeypatch.setattr(prepare_module, "may_prepare_batches", lambda *_: True)
            monkeypatch.setattr(loading_module._Probe, "note", lambda *_: WITH_PROCESSES)
        assert train_attempt(folder) == 0
        weights.append(read_weights(folder))
        shares = [event["values"]["dataWaitShare"] for event in events_of(folder, "step")]
        assert len(shares) == 7
        assert all(0 <= share <= 1 for share in shares)
        assert any(started) == (threads > 1)
        assert (max(loaded, default=0) > 0) == (threads > 1)
        is_kept = not augmentation and cache_bytes > 0
        assert any(ahead) == (threads > 1 and not is_kept)
    one, two = weights
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
