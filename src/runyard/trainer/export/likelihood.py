"""Comparison of merged weights with the adapter that they replace, by likelihood.

Merging rounds. A greedy answer is the top of a ranking at every token, so the smallest rounding can
change an answer where two tokens were nearly equal, and the rest of the text with it. Equal texts
are therefore no measure of a correct merge. Likelihoods are: both models score the tokens of the
same recorded answers, and rounding moves these scores by little, while a wrong matrix moves them by
much. Answers that flip are listed with their margin, which shows whether they were nearly tied.

Shapes: P tokens of an answer, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from runyard.trainer.data.encode import Encoder, Encodings
from runyard.trainer.export.replay import (
    Line,
    OnProgress,
    Replay,
    ReplayContext,
    find_replay_device,
    use_threads,
)
from runyard.trainer.models.model import LoadedModel
from runyard.trainer.steps.losses import TokenLosses

STANDARD_DEVIATIONS = 4.0


@dataclass(frozen=True)
class AnswerScore:
    """How a model scores a recorded answer.

    ``margin`` is the score of the recorded token less that of the best other one, where another
    model's answer differs first; None for answers that are equal. ``logit_variance`` is the mean of
    the variances of the logits over the vocabulary.
    """

    log_likelihood: float
    token_count: int
    logit_variance: float
    margin: float | None = None


@dataclass(frozen=True)
class ComparedAnswer:
    """The log-likelihood of a recorded answer under both models, in nats.

    ``tolerance`` is how far rounding may move it.
    """

    index: int
    question: str
    token_count: int
    log_likelihood: float
    merged_log_likelihood: float
    tolerance: float

    @property
    def difference(self) -> float:
        return self.merged_log_likelihood - self.log_likelihood


@dataclass(frozen=True)
class Flip:
    """An answer of the merged model that differs from the recorded one.

    ``token`` counts from 0. The margins are those of ``AnswerScore`` at this token: of the adapter,
    and of the merged model, where it is negative.
    """

    index: int
    question: str
    recorded: str
    merged: str
    token: int
    margin: float
    merged_margin: float


@dataclass(frozen=True)
class ModelShape:
    """What determines how rounding errors add up; see ``derive_tolerance``."""

    layer_count: int
    longest_sum: int


@dataclass(frozen=True)
class Tolerance:
    """How far rounding may move the score of a token, ``value``; see ``derive_tolerance``."""

    value: float
    unit_roundoff: float
    layer_count: int
    logit_spread: float

    def for_answer(self, token_count: int) -> float:
        """Return the tolerance of the log-likelihood of an answer, a sum over its tokens."""
        return self.value * math.sqrt(token_count)


@dataclass(frozen=True)
class Comparison:
    """The result for all recorded answers. ``outside`` has the indices of those that differ by more
    than the tolerance.
    """

    tolerance: Tolerance
    answers: tuple[ComparedAnswer, ...]
    flips: tuple[Flip, ...]
    outside: tuple[int, ...]

    @property
    def largest_share(self) -> float:
        """The largest difference of log-likelihoods, as a share of its tolerance."""
        return max(abs(answer.difference) / answer.tolerance for answer in self.answers)


def derive_tolerance(
    dtypes: Sequence[torch.dtype], shape: ModelShape, *, logit_spread: float
) -> Tolerance:
    """Return how far rounding may move a logit, and so the log-likelihood of a token, in nats.

    A number that is stored in a format with machine epsilon ``eps`` has a relative error of at most
    the unit roundoff, ``u = eps / 2`` (2^-8 in bfloat16, 2^-11 in float16, 2^-24 in float32). Here
    it is the coarser of the format of the merged weights and that of the computation. The output of
    a layer is a sum of up to ``k`` products. The errors of its weights have random signs, so they
    leave a relative error of about ``u``. Sums are computed in float32 whatever the format, which
    adds ``2^-24 * sqrt(k)``. The errors of ``n`` layers add up as a random walk as well (Higham and
    Mary 2019), to ``sqrt(n)`` times that of one. At the end the error is relative to the spread
    ``s`` of the logits, their standard deviation over the vocabulary, because a shift of all of
    them changes nothing. ``(u + 2^-24 * sqrt(k)) * sqrt(n) * s`` thus estimates the standard
    deviation of a logit; the tolerance is four of them.
    """
    unit_roundoff = max(torch.finfo(dtype).eps for dtype in dtypes) / 2
    sums = torch.finfo(torch.float32).eps / 2 * math.sqrt(shape.longest_sum)
    deviation = (unit_roundoff + sums) * math.sqrt(shape.layer_count) * logit_spread
    return Tolerance(
        STANDARD_DEVIATIONS * deviation, unit_roundoff, shape.layer_count, logit_spread
    )


def measure_shape(module: Any) -> ModelShape:
    """Return the number of linear layers of a model, and the largest number of their inputs."""
    inputs = [item.in_features for item in module.modules() if isinstance(item, torch.nn.Linear)]
    return ModelShape(len(inputs), max(inputs))


def find_first_differences(
    model: LoadedModel, context: ReplayContext, data: Encodings, result: Replay
) -> dict[int, int]:
    """Return the first token that differs, by the row of each answer that does."""
    encoder = Encoder(
        model.processor,
        model.parts,
        system_prompt=context.system_prompt,
        task=context.task,
        renderer=model.renderer,
    )
    first: dict[int, int] = {}
    for difference in result.differences:
        recorded = data.read_row(difference.row).answer
        answer = encoder.tokenize_answer(difference.answer)[: context.answer_tokens]
        length = min(len(recorded), len(answer))
        unequal = [at for at in range(length) if recorded[at] != answer[at]]
        first[difference.row] = min([*unequal, len(recorded) - 1])
    return first


def score_answers(
    model: LoadedModel,
    context: ReplayContext,
    data: Encodings,
    first_differences: Mapping[int, int],
    *,
    on_progress: OnProgress,
) -> list[AnswerScore]:
    """Return how the model scores each recorded answer, computed as in the evaluation.

    Each is a row of its own, so that no padding changes the last bits.
    """
    device = find_replay_device(context)
    module = model.module.to(device).eval()
    losses = TokenLosses(module, precision=context.precision, device=device, label_smoothing=0.0)
    scores = []
    with torch.inference_mode(), use_threads(context.plan.get("threads")):
        for row in range(len(data)):
            on_progress("Comparing likelihoods", row, len(data))
            batch = data.make_batch([row]).to(device)
            # In float64, so that only the model's own rounding counts.
            logits = losses.compute_logits(batch).double()  # (P, V)
            chosen = logits.log_softmax(-1).gather(1, batch.labels[:, None])
            scores.append(
                AnswerScore(
                    log_likelihood=float(chosen.sum()),
                    token_count=batch.label_count,
                    logit_variance=float(logits.var(-1).mean()),
                    margin=_measure_margin(model, context, data, row, first_differences, logits),
                )
            )
    return scores


def _measure_margin(
    model: LoadedModel,
    context: ReplayContext,
    data: Encodings,
    row: int,
    first_differences: Mapping[int, int],
    logits: torch.Tensor,
) -> float | None:
    """Return the margin of a row's token as ``generate`` ranks them, with repetitions penalized."""
    if row not in first_differences:
        return None
    from transformers import RepetitionPenaltyLogitsProcessor

    at, encoded = first_differences[row], data.read_row(row)
    before = [*encoded.prompt, *encoded.answer[:at]]
    if model.decoder_start_id is not None:
        before = [model.decoder_start_id, *encoded.answer[:at]]
    penalize = RepetitionPenaltyLogitsProcessor(penalty=context.repetition_penalty)
    ids = torch.tensor([before], device=logits.device)
    scores = penalize(ids, logits[at][None].clone())[0]  # (V,)
    recorded = int(encoded.answer[at])
    others = scores.clone()
    others[recorded] = -math.inf
    return float(scores[recorded] - others.max())


def compare(
    context: ReplayContext,
    lines: Sequence[Line],
    result: Replay,
    first_differences: Mapping[int, int],
    scores: tuple[Sequence[AnswerScore], Sequence[AnswerScore]],
    *,
    dtypes: Sequence[torch.dtype],
    shape: ModelShape,
) -> Comparison:
    """Compare the scores of the adapter and of the merged model, in this order.

    An answer is outside the tolerance if its log-likelihood differs by more, or if it flips
    although its margin under the adapter is larger. If its margin is far below 0, the recorded
    answer is not the adapter's. Sampled answers have no margin, so each flip counts.
    """
    by_adapter, by_merged = scores
    spread = math.sqrt(sum(score.logit_variance for score in by_adapter) / len(by_adapter))
    tolerance = derive_tolerance(dtypes, shape, logit_spread=spread)
    answers = [
        ComparedAnswer(
            int(line["index"]),
            str(line["question"]),
            own.token_count,
            own.log_likelihood,
            other.log_likelihood,
            tolerance.for_answer(own.token_count),
        )
        for line, own, other in zip(lines, by_adapter, by_merged, strict=True)
    ]
    flips = {
        item.row: Flip(
            item.index,
            item.question,
            item.stored,
            item.answer,
            first_differences[item.row],
            by_adapter[item.row].margin or 0.0,
            by_merged[item.row].margin or 0.0,
        )
        for item in result.differences
    }
    outside = [
        answer.index
        for row, answer in enumerate(answers)
        # Written so that a likelihood that is not a number is outside.
        if not abs(answer.difference) <= answer.tolerance
        or (row in flips and (context.is_sampled or abs(flips[row].margin) > tolerance.value))
    ]
    return Comparison(tolerance, tuple(answers), tuple(flips.values()), tuple(outside))


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as it is stored in ``export.json``."""
    tolerance = comparison.tolerance
    return {
        "tolerance": tolerance.value,
        "unitRoundoff": tolerance.unit_roundoff,
        "layers": tolerance.layer_count,
        "logitSpread": tolerance.logit_spread,
        "largestShare": comparison.largest_share,
        "outside": list(comparison.outside),
        "flips": [_use_wire_names(asdict(flip)) for flip in comparison.flips],
        "answers": [_use_wire_names(asdict(answer)) for answer in comparison.answers],
    }


def _use_wire_names(fields: dict[str, Any]) -> dict[str, Any]:
    names = {name: name.split("_") for name in fields}
    return {
        words[0] + "".join(word.title() for word in words[1:]): fields[name]
        for name, words in names.items()
    }
