"""Batches of an evaluation: prompts of different lengths, and too little memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import runyard.trainer.evaluation.evaluation as evaluation_module
import runyard.trainer.ranks as ranks_module
from runyard.trainer.checkpoints.checkpoint import read_progress
from runyard.trainer.data.encode import Encoder, InMemoryEncodings, Layout
from runyard.trainer.evaluation.batches import BatchLimit, measure_peak, run_in_batches
from runyard.trainer.evaluation.evaluation import fit_to_memory, generate_answers
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import get_pad_id, load_model
from runyard.trainer.steps.losses import TokenLosses
from runyard.trainer.steps.memory import AvailableMemory
from tests.trainer import miniatures

EventsOf = Callable[[Path, str], list[dict[str, Any]]]
QUESTIONS = (
    "which digit is this",
    "what",
    "locate the seven with one json object",
    "answer",
    "x y z",
)
SIZES = ((32, 32), (48, 32), (24, 40), (64, 32), (32, 20), (30, 31), (100, 40))
CPU = torch.device("cpu")


def make_blocks(**model: Any) -> dict[str, dict[str, Any]]:
    model = {"validation": {"maxSamples": 8}, "hyperparameters": {"maxSteps": 2}} | model
    return {"vi-dataset": {"maxSamples": 64}, "vi-model": model}


class CountedCalls:
    """A module that counts its calls of ``generate``, and fails for batches above ``fits``."""

    def __init__(self, module: Any, fits: int = 1 << 30):
        self.config, self.sizes = module.config, list[int]()
        self._module, self._fits = module, fits

    def generate(self, *, input_ids: torch.Tensor, **named: Any) -> Any:
        self.sizes.append(len(input_ids))
        if len(input_ids) > self._fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._module.generate(input_ids=input_ids, **named)


def load_prompts(folder: Path, count: int, sizes: list[tuple[int, int]]) -> tuple[Any, Any, Any]:
    """Return a model, its tokenizer, and prompts about random images of these sizes in turn."""
    model = load_model(folder, dtype=torch.float32)
    encoder = Encoder(
        model.processor, model.parts, system_prompt="", task="vqa", renderer=model.renderer
    )
    random = np.random.default_rng(7)
    rows = []
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        question = QUESTIONS[number % len(QUESTIONS)]
        rows.append(encoder.encode_with_answer(Image.fromarray(pixels), question, "seven"))
    tokenizer = model.processor.tokenizer
    return model.module.eval(), tokenizer, InMemoryEncodings(rows, Layout(get_pad_id(tokenizer)))


def answer_all(
    module: Any, tokenizer: Any, data: Any, size: int, *, count: int = 9, tokens: int = 8
) -> list[str]:
    with torch.inference_mode():
        return generate_answers(
            module,
            tokenizer,
            data,
            count,
            generation={"max_new_tokens": tokens, "do_sample": False},
            device=CPU,
            limit=BatchLimit(size),
        )


@pytest.mark.parametrize("model_type", miniatures.MINIATURES)
def test_answers_in_padded_batches_equal_those_of_single_prompts(
    model_type: str, miniature: Any
) -> None:
    module, tokenizer, data = load_prompts(miniature(model_type), 9, list(SIZES))
    assert len(set(data.prompt_lengths.tolist())) > 3
    make_answers_differ(module)
    counted = CountedCalls(module)

    together = answer_all(counted, tokenizer, data, 64)

    assert len(counted.sizes) <= 3
    assert together == answer_all(module, tokenizer, data, 1)
    assert len(set(together)) >= 3


def make_answers_differ(module: Any) -> None:
    """Give a model weights with which its answers depend on image and question."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)


def test_500_samples_of_30_image_sizes_take_at_most_40_calls(miniature: Any) -> None:
    sizes = [(28 + 8 * (number % 6), 28 + 12 * (number // 6)) for number in range(30)]
    module, tokenizer, data = load_prompts(miniature("qwen2_5_vl"), 500, sizes)
    make_answers_differ(module)
    counted = CountedCalls(module)

    together = answer_all(counted, tokenizer, data, 64, count=500, tokens=2)

    assert len(counted.sizes) <= 40
    assert sum(counted.sizes) == 500
    assert together[:90] == answer_all(module, tokenizer, data, 1, count=90, tokens=2)


def test_a_batch_that_runs_out_of_memory_is_repeated_in_halves(miniature: Any) -> None:
    module, tokenizer, data = load_prompts(miniature("smolvlm"), 9, [(32, 32)])
    counted = CountedCalls(module, fits=2)

    answers = answer_all(counted, tokenizer, data, 8)

    assert max(counted.sizes[2:]) == 2
    assert answers == answer_all(module, tokenizer, data, 1)


def test_prompts_of_which_more_than_half_would_be_padding_get_their_own_batch() -> None:
    lengths = [100, 60, 50, 49, 30, 24]
    batches = run_in_batches(
        range(6), BatchLimit(), sum, fits_with=lambda a, b: lengths[b] >= lengths[a] / 2
    )
    assert [batch for batch, _ in batches] == [[0, 1, 2], [3, 4], [5]]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(_: list[int]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(run_in_batches(range(4), BatchLimit(), fail))


def test_the_batch_is_what_fits_into_the_free_memory() -> None:
    square = 1000
    peak = measure_peak(lambda indices: torch.ones(len(indices), square, square) + 1, 0)
    each = 2 * 4 * square**2
    assert each * 10 <= peak(10) <= each * 10 + 1000
    limit = BatchLimit(64, estimate_peak=peak)
    for free, size in ((1 << 40, 64), (each * 40, 32), (each * 10, 8), (0, 1)):
        limit.fit(AvailableMemory(used=0, free=free, total=1 << 40))
        assert limit.size == size


def test_an_evaluation_measures_how_many_samples_fit(
    miniature: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, data = load_prompts(miniature("smolvlm"), 4, [(32, 32)])
    losses = TokenLosses(module, precision="float32", device=CPU, label_smoothing=0.0)
    generation, limit = {"max_new_tokens": 8, "do_sample": False}, BatchLimit()

    def fit(free: int) -> int:
        available = AvailableMemory(used=0, free=free, total=1 << 40)
        monkeypatch.setattr(ranks_module, "read_available_memory", lambda _: available)
        with torch.inference_mode():
            fit_to_memory(limit, module, data, 4, losses, generation, CPU)
        return limit.size

    assert fit(1 << 34) == 64
    assert limit.estimate_peak is not None
    each = limit.estimate_peak(2) - limit.estimate_peak(1)
    assert 20_000 < each < 2_000_000
    assert fit(20 * each) == 16
    assert fit(0) == 1


def let_losses_fail(monkeypatch: pytest.MonkeyPatch, *, fits: int) -> list[int]:
    """Let losses of more than ``fits`` samples run out of memory; return the sizes tried."""
    tried = []

    def run_if_it_fits(order: Any, limit: Any, work: Any, **named: Any) -> Any:
        def work_if_it_fits(indices: list[int]) -> Any:
            tried.append(len(indices))
            if len(indices) > fits:
                raise RuntimeError("[enforce fail] can't allocate memory: you tried to ...")
            return work(indices)

        return run_in_batches(order, limit, work_if_it_fits, **named)

    monkeypatch.setattr(evaluation_module, "run_in_batches", run_if_it_fits)
    return tried


def test_an_evaluation_out_of_memory_goes_on_with_half_and_resumed_attempts_as_well(
    make_attempt: Any, events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_attempt(make_blocks(), run="whole")
    assert train_attempt(whole) == 0
    tried = let_losses_fail(monkeypatch, fits=2)
    folder = make_attempt(make_blocks())

    assert train_attempt(folder) == 0

    assert tried == [8, 4, *[2] * 8]
    assert [event["message"] for event in events_of(folder, "warning")][-2:] == [
        "out of memory while evaluating 8 samples at once; continuing with 4",
        "out of memory while evaluating 4 samples at once; continuing with 2",
    ]
    assert read_progress(folder / "checkpoints" / "epoch-1").evaluation_batch_limit == 2
    ((values,), (expected,)) = (
        [event["values"] for event in events_of(each, "evaluation")] for each in (folder, whole)
    )
    assert values == pytest.approx(expected, abs=1e-5)
    tried.clear()
    blocks = make_blocks(hyperparameters={"maxSteps": 3})
    again = make_attempt(blocks, attempt=2, resume=folder / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    assert max(tried) == 2


def test_an_evaluation_without_memory_for_one_sample_is_skipped_and_the_run_succeeds(
    make_attempt: Any, events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_losses_fail(monkeypatch, fits=0)
    folder = make_attempt(make_blocks(validation={"maxSamples": 8, "earlyStopping": {}}))

    assert train_attempt(folder) == 0

    assert events_of(folder, "evaluation") == []
    message = events_of(folder, "warning")[-1]["message"]
    assert message.startswith("the evaluation of step 2 is skipped, because a single sample ran")
    assert message.endswith("can't allocate memory: you tried to ...")
    (saved,) = events_of(folder, "checkpoint")
    assert (saved["checkpoint"], saved["metrics"], saved["isBest"]) == ("epoch-1", {}, False)
    assert not read_progress(folder / "checkpoints" / "epoch-1").owes_evaluation
