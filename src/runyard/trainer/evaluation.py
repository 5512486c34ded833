"""How good the model is on pictures it never saw: the loss with the truth given, and answers it has to find itself.

Answers come from ``generate`` exactly as they will when the model is used, with the recipe's generation settings, so
the metric is the one a user would measure. They are scored as answers (``answers.py``), not as tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runyard.trainer.answers import (
    PHRASE_GROUNDING,
    VQA,
    Answer,
    grounding_ious,
    is_same_text,
    read_answer,
    write_answer,
)
from runyard.trainer.datasets import Sample
from runyard.trainer.encode import Encodings
from runyard.trainer.losses import TokenLosses

BATCH_SIZE = 64
GOOD_OVERLAP = 0.5


@dataclass(frozen=True)
class Evaluation:
    """What was measured: names without ``validation/``, and some answers beside the truth."""

    values: dict[str, float]
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
    read = [read_answer(text) for text in said]
    values |= score(task, read, [sample.truth for sample in samples[:count]])
    return Evaluation(values, [_preview(task, i, read[i], samples[i]) for i in range(min(previews, count))])


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
) -> list[str]:
    """What the model says to the first ``count`` prompts, in their order."""

    def never_done(tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Asked by ``generate`` after each token which answers are complete; it knows that better."""
        look()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    said = [""] * count
    for group in data.groups_by_prompt_length(count, BATCH_SIZE):
        inputs = {name: value.to(device) for name, value in data.prompts(group).items()}
        # Where the answer begins: a decoder beside an encoder does not repeat the prompt.
        width = 1 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        look()
        tokens = module.generate(**inputs, **generation, stopping_criteria=[never_done])
        texts = tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)
        for index, text in zip(group, texts, strict=True):
            said[index] = text
    return said


def score(task: str, given: Sequence[Answer], truth: Sequence[Answer]) -> dict[str, float]:
    """The task's metrics. Text counts when it is the same but for case and outer space; boxes by their overlap."""
    if not truth:
        return {}
    well_formed = sum(answer.is_well_formed for answer in given) / len(truth)
    if task == PHRASE_GROUNDING:
        overlaps = [
            overlap
            for said, true in zip(given, truth, strict=True)
            for overlap in grounding_ious(said.groundings, true.groundings)
        ]
        count = max(1, len(overlaps))
        return {
            "iou": sum(overlaps) / count,
            "accuracyAt50": sum(overlap >= GOOD_OVERLAP for overlap in overlaps) / count,
            "wellFormed": well_formed,
        }
    if task == VQA:
        # An answer that is not in the agreed form is wrong, even if the word is in it: nobody's reader would find it.
        right = sum(
            said.is_well_formed and is_same_text(said.text, true.text) for said, true in zip(given, truth, strict=True)
        )
        return {"exactMatch": right / len(truth), "wellFormed": well_formed}
    return {"wellFormed": well_formed}


def _preview(task: str, index: int, said: Answer, sample: Sample) -> dict[str, Any]:
    return {
        "index": index,
        "question": sample.question,
        "truth": write_answer(task, sample.truth),
        "answer": said.raw,
    }
