"""How good the model is on pictures it never saw: the loss with the truth given, and answers it has to find itself.

Answers come from ``generate`` exactly as they will when the model is used, with the recipe's generation settings, so
the metric is the one a user would measure. They are scored as answers (``metrics.py``), not as tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runyard.trainer.answers import PHRASE_GROUNDING, Answer, Grounding, read_answer, write_answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import Encodings
from runyard.trainer.evaluation.metrics import Measured, measure
from runyard.trainer.steps.losses import TokenLosses

BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """What was measured: names without ``validation/``, all answers beside the truth, and some of them to look at."""

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
    look: Callable[[], None],
) -> Evaluation:
    """Measure the first ``count`` held-out samples; leaves the module's mode and the random state as they were.

    ``look`` is called before each batch and each token of an answer, and raises to break all this off.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if seed >= 0:
                torch.manual_seed(seed)
            values = {"loss": mean_loss(data, count, losses, device, look)}
            with losses.arithmetic():
                said = generate_answers(module, tokenizer, data, count, generation=generation, device=device, look=look)
    finally:
        module.train(was_training)
    read, asked = [read_answer(text) for text in said], list(samples[:count])
    measured = _measure(task, read, asked)
    together = list(zip(range(count), read, asked, strict=True))
    return Evaluation(
        values | measured.values,
        [_prediction(task, *item, scores=scores) for item, scores in zip(together, measured.samples, strict=True)],
        [_preview(task, *item) for item in together[:previews]],
    )


def _measure(task: str, read: Sequence[Answer], asked: Sequence[Sample]) -> Measured:
    """Each sample measured by its own task. A metric that several tasks have counts the samples of all of them."""
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(asked):
        places.setdefault(sample.task or task, []).append(place)
    sums: dict[str, float] = defaultdict(float)
    counts = Counter[str]()
    scores: list[dict[str, float]] = [{} for _ in asked]
    for own, numbers in places.items():
        some = [asked[place] for place in numbers]
        found = measure(
            own,
            [read[place] for place in numbers],
            [sample.truth for sample in some],
            [(sample.picture, sample.question) if sample.picture else None for sample in some],
        )
        for name, value in found.values.items():
            sums[name] += value * len(some)
            counts[name] += len(some)
        for place, score in zip(numbers, found.samples, strict=True):
            scores[place] = score
    return Measured({name: sums[name] / counts[name] for name in sums}, scores)


def mean_loss(
    data: Encodings, count: int, losses: TokenLosses, device: torch.device, look: Callable[[], None]
) -> float:
    """Mean loss of the answers' tokens."""
    total, tokens = 0.0, 0
    for start in range(0, count, BATCH_SIZE):
        look()
        batch = data.batch(list(range(start, min(start + BATCH_SIZE, count)))).to(device)
        total += float(losses(batch))
        tokens += batch.learnt_tokens
    return total / max(1, tokens)


def generate_answers(
    module: Any,
    tokenizer: Any,
    data: Encodings,
    count: int,
    *,
    generation: dict[str, Any],
    device: torch.device,
    look: Callable[[], None] = lambda: None,
    told: Callable[[int], None] = lambda answered: None,
) -> list[str]:
    """What the model says to the first ``count`` prompts, in their order; ``told`` hears how many are answered."""

    def never_done(tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Asked by ``generate`` after each token which answers are complete; it knows that better."""
        look()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    said = [""] * count
    answered = 0
    for group in data.groups_by_prompt_length(count, BATCH_SIZE):
        inputs = {name: value.to(device) for name, value in data.prompts(group).items()}
        # Where the answer begins: a decoder beside an encoder does not repeat the prompt.
        width = 1 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        look()
        tokens = module.generate(**inputs, **generation, stopping_criteria=[never_done])
        texts = tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)
        for index, text in zip(group, texts, strict=True):
            said[index] = text
        answered += len(group)
        told(answered)
    return said


def _prediction(task: str, index: int, said: Answer, sample: Sample, *, scores: dict[str, float]) -> dict[str, Any]:
    """A line of ``predictions.jsonl``."""
    return {
        "index": index,
        **({"filename": sample.filename} if sample.filename else {}),
        "question": sample.question,
        "truth": sample.truth.text,
        "answer": said.text,
        "raw": said.raw,
        **_boxes(task, said, sample),
        "scores": {name: round(score, 6) for name, score in scores.items()},
    }


def _preview(task: str, index: int, said: Answer, sample: Sample) -> dict[str, Any]:
    return {
        "index": index,
        "question": sample.question,
        "truth": write_answer(sample.task or task, sample.truth),
        "answer": said.raw,
        **_boxes(task, said, sample),
    }


def _boxes(task: str, said: Answer, sample: Sample) -> dict[str, Any]:
    """Of phrase grounding, the true boxes and those given: whole numbers from 0 to 1024, left, top, right, bottom."""
    if (sample.task or task) != PHRASE_GROUNDING:
        return {}
    return {"truthBoxes": _flat(sample.truth.groundings), "boxes": _flat(said.groundings)}


def _flat(groundings: Sequence[Grounding]) -> list[dict[str, Any]]:
    return [{"phrase": item.phrase, "box": list(box)} for item in groundings for box in item.boxes]
