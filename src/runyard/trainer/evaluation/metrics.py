"""Metrics of answers against the truth: pure functions over texts and boxes, equal to the field's
reference programs.

Texts are compared with all true answers to the same question about the same image (the references).
All values are between 0 and 1, except CIDEr-D, which by definition goes up to 10. An answer that is
not well-formed scores 0 even if it contains the right words: no parser would find them.
docs/decisions/training-metrics.md says which part is a library's work and which is ours. Libraries
are imported where they are used: a run without evaluation does not wait for them.
"""

import functools
import itertools
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runyard.trainer.answers import (
    FREEFORM,
    METRICS,
    PHRASE_GROUNDING,
    VQA,
    Answer,
    Box,
    Grounding,
    grounding_ious,
    group_by_phrase,
    is_same_text,
    match_boxes,
)

MIN_IOU = 0.5  # of a correct box
ANLS_THRESHOLD = 0.5
MAX_NGRAM = 4
CIDER_SIGMA = 6.0
# Boxes are clipped before they become floats: a model may write any number.
MAX_COORDINATE = 1 << 20


@dataclass(frozen=True)
class MetricScores:
    """Metric ``values`` over all samples.

    ``samples`` are the metrics that a single sample has, in order.
    """

    values: dict[str, float]
    samples: list[dict[str, float]]


@dataclass(frozen=True)
class BoxCounts:
    """The number of correct, predicted and true boxes.

    No box predicted where there is none is right: it scores 1.
    """

    correct: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else float(not self.true)

    @property
    def recall(self) -> float:
        return self.correct / self.true if self.true else float(not self.predicted)

    @property
    def f1(self) -> float:
        total = self.predicted + self.true
        return 2 * self.correct / total if total else 1.0


def compute_metrics(
    task: str,
    answers: Sequence[Answer],
    truth: Sequence[Answer],
    question_keys: Sequence[Hashable] | None = None,
) -> MetricScores:
    """Return the metrics of ``METRICS[task]``; none without samples.

    Samples with equal ``question_keys`` ask the same question about the same image, and each one's
    truth is a reference for all of them. None marks a sample of its own.
    """
    if not truth:
        return MetricScores({}, [])
    if task == PHRASE_GROUNDING:
        return _score_boxes(answers, truth)
    return _score_texts(task, answers, truth, question_keys or [None] * len(truth))


def normalize(text: str) -> str:
    """Normalize as SQuAD's evaluation (Rajpurkar et al. 2016): lower case, no ASCII punctuation or
    articles, one space.

    A step that would leave nothing is skipped: the answer ``A`` of a choice is kept, and so is
    ``-``.
    """
    lower = text.lower()
    bare = "".join(letter for letter in lower if letter not in string.punctuation)
    without_articles = re.sub(r"\b(a|an|the)\b", " ", bare)
    return next(
        (joined for each in (without_articles, bare, lower) if (joined := " ".join(each.split()))),
        "",
    )


def split_words(text: str) -> list[str]:
    """Return the lower-case words between spaces, punctuation and symbols of any script."""
    return "".join(
        " " if unicodedata.category(letter)[0] in "PS" else letter for letter in text.lower()
    ).split()


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the normalized Levenshtein similarity with the nearest reference, 0 below 0.5 (Biten
    et al. 2019).

    Case and runs of spaces are ignored. The mean over samples is the paper's ANLS.
    """
    from rapidfuzz.distance import Levenshtein

    def fold(text: str) -> str:
        return " ".join(text.lower().split())

    distance = min(
        Levenshtein.normalized_distance(fold(answer), fold(reference)) for reference in references
    )
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus BLEU from 0 to 1 (Papineni et al. 2002), as sacrebleu's default (Post
    2018).

    That is ``tok:13a|smooth:exp``, case-sensitive, n-grams up to 4; 0 where no answer has four
    tokens, as in sacrebleu.
    """
    matched, total = [0] * MAX_NGRAM, [0] * MAX_NGRAM
    answers_length = references_length = 0
    for answer, texts in zip(answers, references, strict=True):
        tokens, tokenized = tokens_13a(answer), [tokens_13a(text) for text in texts]
        answers_length += len(tokens)
        # The length of the closest reference; of two equally close, the shorter.
        references_length += min(
            (len(each) for each in tokenized), key=lambda size: (abs(size - len(tokens)), size)
        )
        for n in range(1, MAX_NGRAM + 1):
            counts, max_counts = _count_ngrams(tokens, n), Counter[tuple[str, ...]]()
            for each in tokenized:
                max_counts |= _count_ngrams(each, n)
            matched[n - 1] += (counts & max_counts).total()
            total[n - 1] += counts.total()
    if not any(matched) or not all(total):
        return 0.0
    halves, logarithms = 0, 0.0
    for matches, possible in zip(matched, total, strict=True):
        # Exponential smoothing: the first order without a match counts 1/2, the next 1/4 ...
        halves += not matches
        logarithms += math.log((matches or 0.5**halves) / possible)
    brevity = min(0.0, 1 - references_length / answers_length)
    return math.exp(brevity + logarithms / MAX_NGRAM)


def tokens_13a(text: str) -> list[str]:
    """Return the tokens of NIST's ``mteval-v13a``, the default of sacrebleu."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, symbol in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, symbol)
    text = _SYMBOLS.sub(r" \g<0> ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])-", r"\1 - ", text).split()


_SYMBOLS = re.compile(r"""[!"#$%&()*+/:;<=>?@\[\\\]^_`{|}~]""")


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Return ROUGE-L with the best reference (Lin 2004): the F1 of the longest common subsequence.

    As rouge-score's ``rougeL`` without stemming. Tokens are runs of ASCII letters and digits, so
    text in other scripts scores 0.
    """
    from rapidfuzz.distance import LCSseq

    def tokens(text: str) -> list[str]:
        return re.findall("[a-z0-9]+", text.lower())

    answer_tokens, best = tokens(answer), 0.0
    for reference in references:
        true = tokens(reference)
        if shared := LCSseq.similarity(answer_tokens, true):
            best = max(best, 2 * shared / (len(answer_tokens) + len(true)))
    return best


def meteor(answer: str, references: Sequence[str]) -> float:
    """Return METEOR with the best reference (Banerjee & Lavie 2005), with exact and Porter-stem
    matches, no synonyms.

    With P and R the shares of matched words in answer and reference, it is 10 P R / (R + 9 P) times
    1 - 0.5 (chunks / matches)^3. The alignment is NLTK's: from the last word to the first, each
    takes the last free match. With repeated words it may have more chunks than the minimum that the
    paper asks for.
    """
    words = split_words(answer)
    return max(_compute_meteor(words, split_words(reference)) for reference in references)


def _compute_meteor(words: list[str], true: list[str]) -> float:
    pairs = _align_words(words, true)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(words), len(pairs) / len(true)
    breaks = sum((i + 1, j + 1) != after for (i, j), after in itertools.pairwise(pairs))
    penalty = 0.5 * ((breaks + 1) / len(pairs)) ** 3  # chunks = breaks + 1
    return 10 * precision * recall / (recall + 9 * precision) * (1 - penalty)


def _align_words(words: Sequence[str], true: Sequence[str]) -> list[tuple[int, int]]:
    """Return index pairs of matching words: equal words first, then equal stems."""
    pairs: dict[int, int] = {}
    for form in (str, _stem):
        taken, free = set(pairs.values()), defaultdict[str, list[int]](list)
        for index, word in enumerate(true):
            if index not in taken:
                free[form(word)].append(index)
        for index in reversed(range(len(words))):
            if index not in pairs and (candidates := free.get(form(words[index]))):
                pairs[index] = candidates.pop()
    return sorted(pairs.items())


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return str(_porter().stemWord(word))


@functools.cache
def _porter() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("porter")


def cider_d(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    documents: Sequence[Sequence[str]] | None = None,
) -> list[float]:
    """Return CIDEr-D of each answer (Vedantam et al. 2015), from 0 to 10: n-grams of 1 to 4 words,
    sigma 6.

    Document frequencies are counted in ``documents``, the references of each image; by default
    ``references``. So a single image scores 0: an n-gram of every image has the weight log(1) = 0.
    """
    documents = references if documents is None else documents
    frequencies = Counter(
        gram
        for texts in documents
        for gram in {
            gram
            for text in texts
            for n in range(1, MAX_NGRAM + 1)
            for gram in _count_ngrams(split_words(text), n)
        }
    )
    log_documents = math.log(max(1, len(documents)))

    def compute_weights(text: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        """Return the TF-IDF weights of the n-grams by length, and the number of bigrams."""
        words = split_words(text)
        weights = [
            {
                gram: count * (log_documents - math.log(max(1, frequencies[gram])))
                for gram, count in _count_ngrams(words, n).items()
            }
            for n in range(1, MAX_NGRAM + 1)
        ]
        return weights, max(0, len(words) - 1)

    scores = []
    for answer, texts in zip(answers, references, strict=True):
        weights, length = compute_weights(answer)
        similarities = [
            math.exp(-((length - true_length) ** 2) / (2 * CIDER_SIGMA**2))
            * sum(_clipped_cosine(a, b) for a, b in zip(weights, true, strict=True))
            for true, true_length in map(compute_weights, texts)
        ]
        scores.append(10 * sum(similarities) / MAX_NGRAM / len(texts))
    return scores


def _clipped_cosine(
    weights: Mapping[tuple[str, ...], float], true: Mapping[tuple[str, ...], float]
) -> float:
    """Return the cosine similarity with clipped weights: repeating a word gains nothing."""
    norms = math.sqrt(sum(w * w for w in weights.values())) * math.sqrt(
        sum(w * w for w in true.values())
    )
    shared = sum(
        min(weight, true[gram]) * true[gram] for gram, weight in weights.items() if gram in true
    )
    return shared / norms if norms else 0.0


def _count_ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def count_boxes(predicted: Sequence[Grounding], truth: Sequence[Grounding]) -> BoxCounts:
    """Count boxes; one is correct if it is matched with a true box of its phrase and their IoU is
    at least 0.5.

    Matching is greedy, highest IoU first, each box once. A phrase may occur several times; its case
    is ignored.
    """
    by_phrase, true_by_phrase = group_by_phrase(predicted), group_by_phrase(truth)
    correct = sum(
        overlap >= MIN_IOU
        for phrase, boxes in true_by_phrase.items()
        for overlap in match_boxes(by_phrase.get(phrase, []), boxes)
    )
    return BoxCounts(
        correct, sum(map(len, by_phrase.values())), sum(map(len, true_by_phrase.values()))
    )


def mean_average_precision(
    predicted: Sequence[Sequence[Grounding]], truth: Sequence[Sequence[Grounding]]
) -> tuple[float, float]:
    """Return COCO's mean average precision over IoU 0.50 to 0.95, and at 0.50 (Lin et al. 2014);
    phrases are categories.

    Models give no confidence, so every box has score 1, and the boxes of a phrase rank in the order
    of samples and answers. Values are comparable between our runs, and only roughly with detectors
    that rank their boxes. As in COCO, at most 100 boxes of a phrase count per image, and phrases
    without true boxes do not count. 0 without true boxes.
    """
    by_phrase: dict[str, dict[int, tuple[list[Box], list[Box]]]] = defaultdict(dict)
    for image, groundings in enumerate(zip(predicted, truth, strict=True)):
        for side in (0, 1):
            for phrase, boxes in group_by_phrase(groundings[side]).items():
                by_phrase[phrase].setdefault(image, ([], []))[side].extend(boxes)
    # The evaluator visits every category in every image, nearly always in vain with rare phrases.
    # So categories that occur in about the same number of images are evaluated together, with
    # images renumbered for each category. Average precision depends on one category alone, so it
    # stays the same.
    by_size: dict[int, list[list[tuple[list[Box], list[Box]]]]] = defaultdict(list)
    for images in by_phrase.values():
        if any(true for _, true in images.values()):
            by_size[len(images).bit_length()].append([images[image] for image in sorted(images)])
    averages = [pair for categories in by_size.values() for pair in _average_precisions(categories)]
    count = max(1, len(averages))
    return sum(mean for mean, _ in averages) / count, sum(at_50 for _, at_50 in averages) / count


def _average_precisions(
    categories: Sequence[Sequence[tuple[list[Box], list[Box]]]],
) -> list[tuple[float, float]]:
    """Return the average precision of each category, over all IoU thresholds and at 0.50.

    A category is a list of its images' predicted and true boxes.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    true: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for category, images in enumerate(categories, start=1):
        for image, pair in enumerate(images, start=1):
            for boxes, annotations in zip(pair, (predicted, true), strict=True):
                annotations += [
                    {"image_id": image, "category_id": category, **_to_coco(box)} for box in boxes
                ]
    dataset = {
        "images": [{"id": number} for number in range(1, max(map(len, categories)) + 1)],
        "categories": [
            {"id": number, "name": str(number)} for number in range(1, len(categories) + 1)
        ],
        "annotations": [
            {"id": number, "iscrowd": 0, **box} for number, box in enumerate(true, start=1)
        ],
    }
    if not predicted:
        return [(0.0, 0.0)] * len(categories)
    truth = COCO(dataset)
    evaluator = COCOeval_faster(
        truth, truth.loadRes([{"score": 1.0, **box} for box in predicted]), "bbox"
    )
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, float("inf")]], ["all"]
    evaluator.params.maxDets = [100]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 0]  # (IoU thresholds, recalls, categories)
    return list(
        zip(precision.mean(axis=(0, 1)).tolist(), precision[0].mean(axis=0).tolist(), strict=True)
    )


def _to_coco(box: Box) -> dict[str, Any]:
    left, top, right, bottom = (
        float(max(-MAX_COORDINATE, min(MAX_COORDINATE, side))) for side in box
    )
    width, height = max(0.0, right - left), max(0.0, bottom - top)
    return {"bbox": [left, top, width, height], "area": width * height}


def _score_texts(
    task: str, answers: Sequence[Answer], truth: Sequence[Answer], question_keys: Sequence[Hashable]
) -> MetricScores:
    by_question: dict[Hashable, list[str]] = {}
    keys = [(number,) if key is None else key for number, key in enumerate(question_keys)]
    for key, true in zip(keys, truth, strict=True):
        by_question.setdefault(key, []).append(true.text)
    references = [by_question[key] for key in keys]
    texts = [answer.text if answer.is_well_formed else "" for answer in answers]
    samples = []
    for answer, true, refs in zip(answers, truth, references, strict=True):
        scores = {
            "rougeL": rouge_l(answer.text, refs),
            "meteor": meteor(answer.text, refs),
        }
        if task == VQA:
            scores |= {
                "exactMatch": float(is_same_text(answer.text, true.text)),
                "normalizedMatch": float(normalize(answer.text) in map(normalize, refs)),
                "anls": anls(answer.text, refs),
            }
        well_formed = float(answer.is_well_formed)
        samples.append(
            {name: score * well_formed for name, score in scores.items()}
            | {"wellFormed": well_formed}
        )
    if task == FREEFORM:
        for scores, score in zip(
            samples, cider_d(texts, references, list(by_question.values())), strict=True
        ):
            scores["cider"] = score
    values = {name: sum(scores[name] for scores in samples) / len(samples) for name in samples[0]}
    values["bleu"] = bleu(texts, references)
    return MetricScores({name: values[name] for name in METRICS[task]}, samples)


def _score_boxes(answers: Sequence[Answer], truth: Sequence[Answer]) -> MetricScores:
    pairs = [
        (answer.groundings, true.groundings) for answer, true in zip(answers, truth, strict=True)
    ]
    overlaps = [grounding_ious(*pair) for pair in pairs]
    counts = [count_boxes(*pair) for pair in pairs]
    for index, answer in enumerate(answers):
        # An answer that cannot be read must not pass for one that rightly has no boxes.
        if not answer.is_well_formed and not overlaps[index]:
            overlaps[index], counts[index] = [0.0], BoxCounts(0, 1, 0)
    samples = [
        _summarize_boxes(each, count) | {"wellFormed": float(answer.is_well_formed)}
        for each, count, answer in zip(overlaps, counts, answers, strict=True)
    ]
    total = BoxCounts(
        sum(count.correct for count in counts),
        sum(count.predicted for count in counts),
        sum(count.true for count in counts),
    )
    values = _summarize_boxes([overlap for each in overlaps for overlap in each], total)
    if total.predicted or total.true:
        values["map"], values["map50"] = mean_average_precision(
            [found for found, _ in pairs], [true for _, true in pairs]
        )
    else:
        values["map"] = values["map50"] = 1.0
    values["wellFormed"] = sum(answer.is_well_formed for answer in answers) / len(answers)
    return MetricScores(values, samples)


def _summarize_boxes(overlaps: Sequence[float], counts: BoxCounts) -> dict[str, float]:
    # Without any box, neither true nor predicted, everything is right.
    scores = overlaps or [1.0]
    return {
        "iou": sum(scores) / len(scores),
        "accuracyAt50": sum(score >= MIN_IOU for score in scores) / len(scores),
        "precisionAt50": counts.precision,
        "recallAt50": counts.recall,
        "f1At50": counts.f1,
    }
