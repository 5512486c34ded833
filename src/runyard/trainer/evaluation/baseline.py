"""The answers of a predictor that never looks at the image, and their metrics: the baseline.

A metric alone does not say whether a model has learned to see. Where nine of ten images show a
seven, always answering seven scores 0.9. So the most frequent answers of the training samples are
given to the held-out samples, and scored like the model's own.

A question gets the most frequent answer to the same question in training; one that does not occur
there gets the most frequent answer of all. Boxes are the median box of each phrase.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from runyard.trainer.answers import (
    FREEFORM,
    PHRASE_GROUNDING,
    Answer,
    Box,
    Grounding,
    fold_case,
)
from runyard.trainer.data.datasets import Sample
from runyard.trainer.evaluation.evaluation import score_by_task
from runyard.trainer.evaluation.metrics import rouge_l

PREFIX = "baseline/"
MOST_SAMPLES = 20_000  # of the training data, evenly spaced
MOST_COMPARED = 24  # texts of which none occurs twice
SAMPLES_BETWEEN_CHECKS = 256
ALWAYS_1 = "wellFormed"  # says nothing about an answer that is never generated
_WORD = re.compile(r"\w+")


def score_baseline(
    task: str,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    check_cancelled: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the metrics of the baseline on held-out samples, such as ``baseline/exactMatch``.

    ``check_cancelled`` raises to abort it.
    """
    constants = find_constants(task, train, check_cancelled)
    answers = [
        constants[sample.task or task].answer(sample.question)
        if (sample.task or task) in constants
        else Answer("")
        for sample in held_out
    ]
    check_cancelled()
    scores = score_by_task(task, answers, held_out)
    return {
        f"{PREFIX}{name}": round(value, 6)
        for name, value in scores.values.items()
        if name != ALWAYS_1
    }


def find_constants(
    task: str, train: Sequence[Sample], check_cancelled: Callable[[], None] = lambda: None
) -> "dict[str, ConstantTexts | ConstantBoxes]":
    """Return the constant answers of each task in the training samples."""
    stride = -(-len(train) // MOST_SAMPLES)
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for number, index in enumerate(range(0, len(train), max(1, stride))):
        if number % SAMPLES_BETWEEN_CHECKS == 0:
            check_cancelled()
        sample = train[index]
        by_task[sample.task or task].append(sample)
    return {
        own: ConstantBoxes(samples) if own == PHRASE_GROUNDING else ConstantTexts(own, samples)
        for own, samples in by_task.items()
    }


class ConstantTexts:
    """The most frequent text for each question."""

    def __init__(self, task: str, samples: Sequence[Sample]):
        self._task = task
        self._by_question: dict[str, list[str]] = defaultdict(list)
        self._chosen: dict[str, str] = {}
        for sample in samples:
            self._by_question[fold_case(sample.question)].append(sample.truth.text)
        self._default = self._choose([sample.truth.text for sample in samples])

    def answer(self, question: str) -> Answer:
        key = fold_case(question)
        if key not in self._by_question:
            return Answer(self._default)
        if key not in self._chosen:
            self._chosen[key] = self._choose(self._by_question[key])
        return Answer(self._chosen[key])

    def _choose(self, texts: Sequence[str]) -> str:
        return (
            join_frequent_fields(texts)
            or choose_frequent(texts, is_long=self._task == FREEFORM)
            or ""
        )


class ConstantBoxes:
    """The median box of each phrase. A question gets those of the phrases in its words.

    One without such a phrase gets the most frequent phrase of all.
    """

    def __init__(self, samples: Sequence[Sample]):
        boxes: dict[tuple[str, ...], list[Box]] = defaultdict(list)
        spellings: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for sample in samples:
            for item in sample.truth.groundings:
                words = _split(item.phrase)
                boxes[words] += item.boxes
                spellings[words][item.phrase] += 1
        self._found = {
            words: Grounding(spellings[words].most_common(1)[0][0], (_find_median(found),))
            for words, found in boxes.items()
            if words and found
        }
        self._longest = max(map(len, self._found), default=0)
        frequent = max(self._found, key=lambda words: spellings[words].total(), default=None)
        self._default = () if frequent is None else (self._found[frequent],)

    def answer(self, question: str) -> Answer:
        found = dict.fromkeys(self._list_phrases(question))
        return Answer(question, tuple(found) or self._default)

    def _list_phrases(self, question: str) -> Iterable[Grounding]:
        """Return the known phrases of a text, from left to right, the longest at each place."""
        words, at = _split(question), 0
        while at < len(words):
            sizes = range(min(self._longest, len(words) - at), 0, -1)
            size = next((n for n in sizes if words[at : at + n] in self._found), 0)
            if size:
                yield self._found[words[at : at + size]]
            at += size or 1


def choose_frequent(texts: Sequence[str], *, is_long: bool) -> str | None:
    """Return the most frequent text, ignoring case; the first one of several.

    Of long texts of which none occurs twice, it is the one most similar to the others.
    """
    counts = Counter(map(fold_case, texts))
    if not counts:
        return None
    key, count = counts.most_common(1)[0]
    if is_long and count == 1 and len(texts) > 1:
        some = texts[:: -(-len(texts) // MOST_COMPARED)]
        return max(some, key=lambda text: sum(rouge_l(text, [other]) for other in some))
    return next(text for text in texts if fold_case(text) == key)


def join_frequent_fields(texts: Sequence[str]) -> str | None:
    """Return a JSON object with the most frequent value of each field that most texts have.

    None unless all texts are flat JSON objects.
    """
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        fields = _read_flat_object(text)
        if fields is None:
            return None
        for name, value in fields.items():
            values[name][json.dumps(value, ensure_ascii=False)] += 1
    if not values:
        return None
    frequent = {
        name: json.loads(counts.most_common(1)[0][0])
        for name, counts in values.items()
        if 2 * counts.total() >= len(texts)
    }
    separators = (", ", ": ") if '": ' in texts[0] else (",", ":")
    return json.dumps(frequent, ensure_ascii=False, separators=separators)


def _read_flat_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(found, dict) and not any(
        isinstance(value, dict | list) for value in found.values()
    )
    return found if is_flat else None


def _split(phrase: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(fold_case(phrase)))


def _find_median(boxes: Sequence[Box]) -> Box:
    left, top, right, bottom = (round(median(side)) for side in zip(*boxes, strict=True))
    return left, top, right, bottom
