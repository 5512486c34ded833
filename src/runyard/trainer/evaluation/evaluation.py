"""Evaluation on held-out images: the loss of the true answers, and generated answers scored as
answers.

Answers come from ``generate`` exactly as when the model is used, with the flow's generation
settings, so a metric is the one that a user would measure. They are scored as answers
(``metrics.py``), not as tokens.

Shapes: B samples of a batch, T tokens of the prompt, G generated tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runyard.trainer.answers import PHRASE_GROUNDING, Answer, Grounding, read_answer, write_answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import Encodings
from runyard.trainer.evaluation.metrics import MetricScores, compute_metrics
from runyard.trainer.steps.losses import TokenLosses

BATCH_SIZE = 64


@dataclass(frozen=True)
class EvaluationResult:
    """Metric values (named without ``validation/``), all predictions, some previews."""

    values: dict[str, float]
    predictions: list[dict[str, Any]]
    previews: list[dict[str, Any]]


def evaluate(
    module: Any,
    tokenizer: Any,
    data: Encodings,
    samples: Sequence[Sample],
    *,
    task: str,
    count: int,
    previews: int,
    losses: TokenLosses,
    generation: dict[str, Any],
    seed: int,
    device: torch.device,
    check_cancelled: Callable[[], None],
) -> EvaluationResult:
    """Evaluate the first ``count`` held-out samples; restores the module's mode and the random
    state.

    ``check_cancelled`` is called before each batch and each generated token, and raises to abort
    the evaluation.
    """
    was_training = module.training
    module.eval()
    try:
        with (
            torch.inference_mode(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            if seed >= 0:
                torch.manual_seed(seed)
            values = {"loss": mean_loss(data, count, losses, device, check_cancelled)}
            with losses.autocast():
                texts = generate_answers(
                    module,
                    tokenizer,
                    data,
                    count,
                    generation=generation,
                    device=device,
                    check_cancelled=check_cancelled,
                )
    finally:
        module.train(was_training)
    answers, evaluated = [read_answer(text) for text in texts], list(samples[:count])
    scores = _score_by_task(task, answers, evaluated)
    items = list(zip(range(count), answers, evaluated, strict=True))
    return EvaluationResult(
        values | scores.values,
        [
            _make_prediction(task, *item, scores=each)
            for item, each in zip(items, scores.samples, strict=True)
        ],
        [_make_preview(task, *item) for item in items[:previews]],
    )


def _score_by_task(task: str, answers: Sequence[Answer], samples: Sequence[Sample]) -> MetricScores:
    """Score each sample by its own task.

    A metric of several tasks averages over the samples of all of them.
    """
    indices_by_task: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        indices_by_task.setdefault(sample.task or task, []).append(index)
    sums: dict[str, float] = defaultdict(float)
    counts = Counter[str]()
    scores: list[dict[str, float]] = [{} for _ in samples]
    for own, indices in indices_by_task.items():
        some = [samples[index] for index in indices]
        found = compute_metrics(
            own,
            [answers[index] for index in indices],
            [sample.truth for sample in some],
            [
                (sample.image_sha256, sample.question) if sample.image_sha256 else None
                for sample in some
            ],
        )
        for name, value in found.values.items():
            sums[name] += value * len(some)
            counts[name] += len(some)
        for index, score in zip(indices, found.samples, strict=True):
            scores[index] = score
    return MetricScores({name: sums[name] / counts[name] for name in sums}, scores)


def mean_loss(
    data: Encodings,
    count: int,
    losses: TokenLosses,
    device: torch.device,
    check_cancelled: Callable[[], None],
) -> float:
    """Return the mean loss over all label tokens of the first ``count`` samples."""
    total, tokens = 0.0, 0
    for start in range(0, count, BATCH_SIZE):
        check_cancelled()
        batch = data.make_batch(list(range(start, min(start + BATCH_SIZE, count)))).to(device)
        total += float(losses(batch))
        tokens += batch.label_count
    return total / max(1, tokens)


def generate_answers(
    module: Any,
    tokenizer: Any,
    data: Encodings,
    count: int,
    *,
    generation: dict[str, Any],
    device: torch.device,
    check_cancelled: Callable[[], None] = lambda: None,
    on_answered: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """Return the texts generated for the first ``count`` prompts, in their order.

    ``on_answered`` is called with the number of answers so far.
    """

    def never_stop(tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Check for cancellation after each token; a stopping criterion that stops no row."""
        check_cancelled()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)  # (B,)

    answers = [""] * count
    answered = 0
    for group in data.group_by_prompt_length(count, BATCH_SIZE):
        # Tokens (B, T).
        inputs = {name: value.to(device) for name, value in data.make_prompts(group).items()}
        # Where the answer starts: the decoder of an encoder-decoder model does not repeat the
        # prompt.
        width = 1 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        check_cancelled()
        # (B, T + G).
        tokens = module.generate(**inputs, **generation, stopping_criteria=[never_stop])
        texts = tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)
        for index, text in zip(group, texts, strict=True):
            answers[index] = text
        answered += len(group)
        on_answered(answered)
    return answers


def _make_prediction(
    task: str, index: int, answer: Answer, sample: Sample, *, scores: dict[str, float]
) -> dict[str, Any]:
    """Return a line of ``predictions.jsonl``."""
    return {
        "index": index,
        **({"filename": sample.filename} if sample.filename else {}),
        "question": sample.question,
        "truth": sample.truth.text,
        "answer": answer.text,
        "raw": answer.raw,
        **_make_boxes(task, answer, sample),
        "scores": {name: round(score, 6) for name, score in scores.items()},
    }


def _make_preview(task: str, index: int, answer: Answer, sample: Sample) -> dict[str, Any]:
    return {
        "index": index,
        "question": sample.question,
        "truth": write_answer(sample.task or task, sample.truth),
        "answer": answer.raw,
        **_make_boxes(task, answer, sample),
    }


def _make_boxes(task: str, answer: Answer, sample: Sample) -> dict[str, Any]:
    """Return the true and predicted boxes of phrase grounding, from 0 to 1024."""
    if (sample.task or task) != PHRASE_GROUNDING:
        return {}
    return {"truthBoxes": _flatten(sample.truth.groundings), "boxes": _flatten(answer.groundings)}


def _flatten(groundings: Sequence[Grounding]) -> list[dict[str, Any]]:
    return [{"phrase": item.phrase, "box": list(box)} for item in groundings for box in item.boxes]
