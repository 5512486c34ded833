"""Evaluation on held-out images: the loss of the true answers, and generated answers scored as
answers.

Answers come from ``generate`` exactly as when the model is used, with the flow's generation
settings, so a metric is the one that a user would measure. They are scored as answers
(``metrics.py``), not as tokens.

Shapes: B samples of a batch, T tokens of the prompt, G generated tokens.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runyard.trainer.answer_forms import JSON_FORM, AnswerForm, Size
from runyard.trainer.answers import PHRASE_GROUNDING, Answer, Grounding
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import Encodings
from runyard.trainer.devices import keep_random_states
from runyard.trainer.errors import StopRequested
from runyard.trainer.evaluation.batches import BatchLimit, measure_peak, run_in_batches
from runyard.trainer.evaluation.metrics import MetricScores, compute_metrics
from runyard.trainer.ranks import World
from runyard.trainer.steps.losses import TokenLosses
from runyard.trainer.steps.memory import is_out_of_memory

MAX_PADDING = 0.5  # of a row, when prompts form a batch


class EvaluationOutOfMemory(Exception):
    """There is too little memory to evaluate a single sample."""


@dataclass(frozen=True)
class EvaluationResult:
    """Metric values (named without ``validation/``), all predictions, some previews, and how many
    samples every rank could measure at once.
    """

    values: dict[str, float]
    predictions: list[dict[str, Any]]
    previews: list[dict[str, Any]]
    batch_limit: int


@dataclass(frozen=True)
class EvaluationOutputs:
    """The mean loss of the true answers, the generated texts in the order of the samples, and how
    many samples every rank could measure at once.
    """

    loss: float
    texts: list[str]
    batch_limit: int


def evaluate(
    module: Any,
    tokenizer: Any,
    data: Encodings,
    samples: Sequence[Sample],
    *,
    task: str,
    previews: int,
    count: int,
    form: AnswerForm = JSON_FORM,
    **settings: Any,
) -> EvaluationResult:
    """Evaluate the first ``count`` held-out samples, whose answers have this form; ``settings`` are
    those of ``measure``.

    Raises:
        EvaluationOutOfMemory: there is too little memory for a single sample.
    """
    found = measure(module, tokenizer, data, count=count, form=form, **settings)
    evaluated = list(samples[:count])
    tasks = [sample.task or task for sample in evaluated]
    sizes = [
        form.read_size(data.read_processed(index)) if form.needs_size(own) else None
        for index, own in enumerate(tasks)
    ]
    answers = [read_prediction(form, *item) for item in zip(tasks, found.texts, sizes, strict=True)]
    scores = score_by_task(task, answers, evaluated)
    items = list(zip(range(count), answers, evaluated, strict=True))
    return EvaluationResult(
        {"loss": found.loss} | scores.values,
        [
            _make_prediction(task, *item, scores=each)
            for item, each in zip(items, scores.samples, strict=True)
        ],
        [_make_preview(task, *item, form, sizes[item[0]]) for item in items[:previews]],
        found.batch_limit,
    )


def read_prediction(form: AnswerForm, task: str, raw: str, size: Size | None) -> Answer:
    """Return the answer in a generated text."""
    return form.read(task, raw, size)


def measure(
    module: Any,
    tokenizer: Any,
    data: Encodings,
    *,
    count: int,
    losses: TokenLosses,
    generation: dict[str, Any],
    seed: int,
    device: torch.device,
    check_cancelled: Callable[[], None],
    limit: BatchLimit,
    measures_memory: bool = False,
    world: World = World(),
    form: AnswerForm = JSON_FORM,
) -> EvaluationOutputs:
    """Measure the first ``count`` held-out samples; restores the module's mode and the random
    state. Each rank measures a share of them, and all ranks return the whole.

    ``check_cancelled`` is called before each batch and each generated token, and raises to abort
    the evaluation. ``limit`` is lowered when memory runs out, and before, with
    ``measures_memory``, to what is measured to fit.

    Raises:
        EvaluationOutOfMemory: there is too little memory for a single sample.
        StopRequested: ``check_cancelled`` raised it on rank 0.
    """
    order = data.sort_by_prompt_length(count)

    def measure_share() -> dict[str, Any]:
        if measures_memory and count > 1:
            check_cancelled()
            fit_to_memory(limit, module, data, count, losses, generation, device, world)
        if seed >= 0:
            torch.manual_seed(seed)
        own = world.select(list(range(count)))
        loss, tokens = sum_losses(data, own, losses, device, check_cancelled, limit)
        with losses.autocast():
            texts = generate_answers(
                module,
                tokenizer,
                data,
                count,
                generation=generation,
                device=device,
                check_cancelled=check_cancelled,
                limit=limit,
                order=world.select(order),
                replace_features=losses.replace_features,
                decode=form.decode,
            )
        answers = {index: texts[index] for index in world.select(order)}
        return {
            "loss": loss,
            "tokens": tokens,
            "answers": list(answers.items()),
            "batchLimit": limit.size,
        }

    was_training = module.training
    module.eval()
    try:
        with (
            torch.inference_mode(),
            keep_random_states(device),
        ):
            shares = _measure_together(measure_share, world)
    finally:
        module.train(was_training)
    answers = {index: text for share in shares for index, text in share["answers"]}
    tokens = sum(share["tokens"] for share in shares)
    return EvaluationOutputs(
        sum(share["loss"] for share in shares) / max(1, tokens),
        [answers[index] for index in range(count)],
        min(share["batchLimit"] for share in shares),
    )


def _measure_together(
    measure_share: Callable[[], dict[str, Any]], world: World
) -> list[dict[str, Any]]:
    """Return the shares of all ranks, once each has measured its own.

    When rank 0 is canceled or fails, the others end early.
    """
    error: Exception | None = None
    share: dict[str, Any] = {}
    try:
        with _explain_out_of_memory():
            share = measure_share()
    except Exception as problem:
        is_expected = isinstance(problem, EvaluationOutOfMemory | StopRequested)
        if world.is_single or not (is_expected or world.is_leader):
            raise
        error, share = problem, {"problem": f"rank {world.rank}: {problem}"}
        if world.is_leader:
            world.cancel()
    shares = world.gather(share)
    world.clear_cancel()
    if error is not None:
        raise error
    for other in shares:
        if "problem" in other:
            raise EvaluationOutOfMemory(other["problem"])
    return shares


def score_by_task(task: str, answers: Sequence[Answer], samples: Sequence[Sample]) -> MetricScores:
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
                # The answer to the last question depends on the turns before it.
                (sample.image_sha256, sample.question)
                if sample.image_sha256 and not sample.turns
                else None
                for sample in some
            ],
        )
        for name, value in found.values.items():
            sums[name] += value * len(some)
            counts[name] += len(some)
        for index, score in zip(indices, found.samples, strict=True):
            scores[index] = score
    return MetricScores({name: sums[name] / counts[name] for name in sums}, scores)


@contextlib.contextmanager
def _explain_out_of_memory() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise EvaluationOutOfMemory(first) from error


def fit_to_memory(
    limit: BatchLimit,
    module: Any,
    data: Encodings,
    count: int,
    losses: TokenLosses,
    generation: dict[str, Any],
    device: torch.device,
    world: World = World(),
) -> None:
    """Lower ``limit`` to the number of samples that are measured to fit into the free memory.

    The longest sample is measured once per attempt: the loss of its answer, and the first two
    tokens after its prompt. The cache of the tokens after them is added in proportion, and so are
    the inputs, which exist twice while they are joined to a batch.
    """
    if limit.estimate_peak is None:
        first_tokens = {
            name: value for name, value in generation.items() if not name.startswith("min_")
        } | {"max_new_tokens": 2}
        prompts, rows = data.prompt_lengths[:count], data.lengths[:count]

        def answer(indices: list[int]) -> None:
            inputs = make_inputs(module, data, indices, device)
            with losses.autocast():
                module.generate(**losses.replace_features(inputs), **first_tokens)

        sizes: list[int] = []

        def compute_loss(indices: list[int]) -> None:
            batch = data.make_batch(indices)
            sizes.append(sum(value.nbytes for value in batch.inputs.values()) // len(indices))
            losses(batch.to(device))

        longest_row, longest_prompt = int(rows.argmax()), int(prompts.argmax())
        # Features are computed one sample at a time, and before the peaks are measured.
        data.read_images(sorted({longest_row, longest_prompt}))
        loss_peak = measure_peak(compute_loss, longest_row)
        answer_peak = measure_peak(answer, longest_prompt)
        longest = int(prompts.max())
        growth = (longest + int(generation.get("max_new_tokens", 0))) / longest

        def estimate_peak(size: int) -> int:
            in_use = max(loss_peak(size), int(growth * answer_peak(size)))
            return in_use + 2 * size * max(sizes) + data.cache_growth_bytes

        limit.estimate_peak = estimate_peak
    limit.fit(world.read_memory(device))


def sum_losses(
    data: Encodings,
    indices: Sequence[int],
    losses: TokenLosses,
    device: torch.device,
    check_cancelled: Callable[[], None],
    limit: BatchLimit,
) -> tuple[float, int]:
    """Return the sum of the losses of all label tokens of these samples, and their number."""

    def sum_batch(batch_indices: list[int]) -> tuple[float, int]:
        check_cancelled()
        batch = data.make_batch(batch_indices).to(device)
        return float(losses(batch)), batch.label_count

    total, tokens = 0.0, 0
    for _, (loss, labels) in run_in_batches(indices, limit, sum_batch):
        total += loss
        tokens += labels
    return total, tokens


def make_inputs(
    module: Any, data: Encodings, indices: Sequence[int], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the prompts of these samples as ``generate`` takes them, (B, T)."""
    inputs = data.make_prompts(indices, pad_left=not module.config.is_encoder_decoder)
    return {name: value.to(device) for name, value in inputs.items()}


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
    limit: BatchLimit | None = None,
    order: Sequence[int] | None = None,
    replace_features: Callable[[dict[str, Any]], dict[str, Any]] = lambda inputs: inputs,
    decode: Callable[[Any, Any], list[str]] = JSON_FORM.decode,
) -> list[str]:
    """Return the texts generated for the first ``count`` prompts, in their order.

    With ``order``, only those prompts are answered, in that order. By default, the longest come
    first, so that memory runs out at the start or never. No row of a batch has more padding than
    prompt. ``on_answered`` is called with the number of answers so far. ``replace_features``
    replaces the stored features of images by the arguments that the model takes. ``decode`` takes
    the tokenizer and tokens.
    """

    def never_stop(tokens: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Check for cancellation after each token; a stopping criterion that stops no row."""
        check_cancelled()
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)  # (B,)

    def answer(indices: list[int]) -> list[str]:
        check_cancelled()
        inputs = make_inputs(module, data, indices, device)
        # Where the answer starts: the decoder of an encoder-decoder model does not repeat the
        # prompt.
        width = 1 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        # (B, T + G).
        tokens = module.generate(
            **replace_features(inputs), **generation, stopping_criteria=[never_stop]
        )
        return decode(tokenizer, tokens[:, width:])

    def is_similar(first: int, other: int) -> bool:
        lengths = data.prompt_lengths
        return bool(lengths[other] >= (1 - MAX_PADDING) * lengths[first])

    answers = [""] * count
    answered = 0
    order = data.sort_by_prompt_length(count) if order is None else order
    for indices, texts in run_in_batches(
        order, limit or BatchLimit(), answer, fits_with=is_similar
    ):
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        answered += len(indices)
        on_answered(answered)
    return answers


def _make_prediction(
    task: str, index: int, answer: Answer, sample: Sample, *, scores: dict[str, float]
) -> dict[str, Any]:
    """Return a line of ``predictions.jsonl``."""
    return {
        "index": index,
        **({"filename": sample.filename} if sample.filename else {}),
        **({"dataset": sample.dataset} if sample.dataset else {}),
        "question": sample.question,
        **_describe_conversation(sample),
        "truth": sample.truth.text,
        "answer": answer.text,
        "raw": answer.raw,
        **_make_boxes(task, answer, sample),
        "scores": {name: round(score, 6) for name, score in scores.items()},
    }


def _describe_conversation(sample: Sample) -> dict[str, Any]:
    """Return the turns before the answer, and the file names of all images, if there are turns."""
    if not sample.turns:
        return {}
    shown = [] if sample.is_text_only else [sample.filename, *sample.further_filenames]
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.turns[:-1]]
    return {"images": shown, "turns": turns}


def _make_preview(
    task: str, index: int, answer: Answer, sample: Sample, form: AnswerForm, size: Size | None
) -> dict[str, Any]:
    return {
        "index": index,
        "question": sample.question,
        "truth": form.write(sample.task or task, sample.truth, size),
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
