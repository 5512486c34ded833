"""How good answers are beside the truth: pure functions over texts and boxes, equal to the field's reference programs.

Texts are compared with all true answers that the same question about the same picture has (``references``). Everything
lies between 0 and 1, but for CIDEr-D, which by its definition goes up to 10. An answer that is not in the agreed form
counts nothing, even if the right words are in it: nobody's reader would find them. docs/decisions/training-metrics.md
says which part is a library's work and which is ours. Libraries are imported where they are used: a run that never
evaluates does not wait for them.
"""

import functools
import itertools
import math
import re
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
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
    folded,
    grounding_ious,
    is_same_text,
    pair_boxes,
)

GOOD_OVERLAP = 0.5
ANLS_THRESHOLD = 0.5
LONGEST_NGRAM = 4
CIDER_SIGMA = 6.0
FARTHEST = 1 << 20  # boxes are cut here before they become floats: a model may say any number


@dataclass(frozen=True)
class Measured:
    """``values`` over all samples by metric; ``samples`` holds those that one sample has by itself, in their order."""

    values: dict[str, float]
    samples: list[dict[str, float]]


@dataclass(frozen=True)
class BoxCounts:
    """How many boxes are right, how many were given, and how many there are."""

    right: int
    given: int
    true: int

    @property
    def precision(self) -> float:
        return self.right / max(1, self.given)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.true)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.given + self.true)


def measure(
    task: str, given: Sequence[Answer], truth: Sequence[Answer], same: Sequence[Hashable] | None = None
) -> Measured:
    """The metrics of ``METRICS[task]``; nothing when there are no samples.

    Samples that have an equal entry in ``same`` ask the same of the same picture, and each one's truth is a reference
    for all of them; None stands for a sample without any like it.
    """
    if not truth:
        return Measured({}, [])
    if task == PHRASE_GROUNDING:
        return _measure_boxes(given, truth)
    return _measure_texts(task, given, truth, same or [None] * len(truth))


def normalize(text: str) -> str:
    """As SQuAD's evaluation does (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no articles, single spaces.

    What would vanish by that is kept: the answer ``A`` of a choice is no article, and ``-`` no punctuation.
    """
    lower = text.lower()
    bare = "".join(letter for letter in lower if letter not in string.punctuation)
    without_articles = re.sub(r"\b(a|an|the)\b", " ", bare)
    return next((joined for each in (without_articles, bare, lower) if (joined := " ".join(each.split()))), "")


def words(text: str) -> list[str]:
    """What METEOR and CIDEr-D count: lower case, parted by space, punctuation and symbols of any script."""
    return "".join(" " if unicodedata.category(letter)[0] in "PS" else letter for letter in text.lower()).split()


def anls(answer: str, references: Sequence[str]) -> float:
    """Normalised Levenshtein similarity with the nearest reference, 0 below one half (Biten et al. 2019).

    Case and runs of space do not count. The average over samples is the ANLS of the paper.
    """
    from rapidfuzz.distance import Levenshtein

    def joined(text: str) -> str:
        return " ".join(text.lower().split())

    distance = min(Levenshtein.normalized_distance(joined(answer), joined(reference)) for reference in references)
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of the whole corpus as sacrebleu measures it by default (``tok:13a|smooth:exp``, case counts), from 0 to 1.

    Up to four words long; 0 where no answer has four words, as in sacrebleu.
    """
    right, total = [0] * LONGEST_NGRAM, [0] * LONGEST_NGRAM
    answers_length = references_length = 0
    for answer, true in zip(answers, references, strict=True):
        said, wanted = tokens_13a(answer), [tokens_13a(text) for text in true]
        answers_length += len(said)
        references_length += min((len(each) for each in wanted), key=lambda size: (abs(size - len(said)), size))
        for n in range(1, LONGEST_NGRAM + 1):
            counts, most = _ngrams(said, n), Counter[tuple[str, ...]]()
            for each in wanted:
                most |= _ngrams(each, n)
            right[n - 1] += (counts & most).total()
            total[n - 1] += counts.total()
    if not any(right) or not all(total):
        return 0.0
    halves, logarithms = 0, 0.0
    for matches, possible in zip(right, total, strict=True):
        halves += not matches  # an order without a match counts as half a match, the next one as a quarter ...
        logarithms += math.log((matches or 0.5**halves) / possible)
    brevity = min(0.0, 1 - references_length / answers_length)
    return math.exp(brevity + logarithms / LONGEST_NGRAM)


def tokens_13a(text: str) -> list[str]:
    """The tokens of NIST's ``mteval-v13a``: signs apart, full stop and comma too but for those between digits."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(name, sign)
    text = _SIGNS.sub(r" \g<0> ", f" {text} ")
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])-", r"\1 - ", text).split()


_SIGNS = re.compile(r"""[!"#$%&()*+/:;<=>?@\[\\\]^_`{|}~]""")


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence with the best reference, as rouge-score's ``rougeL``, not stemmed.

    Its tokens are runs of ASCII letters and digits, so what is written in other scripts counts 0 (Lin 2004).
    """
    from rapidfuzz.distance import LCSseq

    def tokens(text: str) -> list[str]:
        return re.findall("[a-z0-9]+", text.lower())

    said, best = tokens(answer), 0.0
    for reference in references:
        true = tokens(reference)
        if shared := LCSseq.similarity(said, true):
            best = max(best, 2 * shared / (len(said) + len(true)))
    return best


def meteor(answer: str, references: Sequence[str]) -> float:
    """METEOR with the best reference (Banerjee & Lavie 2005), stages exact and Porter stem; no synonyms of WordNet.

    With P and R the shares of matched words in answer and reference: 10 P R / (R + 9 P), less the penalty
    0.5 (chunks / matches)^3. The alignment is NLTK's: from the last word to the first, each takes the last free one
    like it. Where words repeat it may have more chunks than the fewest possible, which the paper asks for.
    """
    said = words(answer)
    return max(_meteor(said, words(reference)) for reference in references)


def _meteor(given: list[str], true: list[str]) -> float:
    pairs = _aligned(given, true)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(given), len(pairs) / len(true)
    pairs_apart = sum((i + 1, j + 1) != after for (i, j), after in itertools.pairwise(pairs))
    penalty = 0.5 * ((pairs_apart + 1) / len(pairs)) ** 3
    return 10 * precision * recall / (recall + 9 * precision) * (1 - penalty)


def _aligned(given: Sequence[str], true: Sequence[str]) -> list[tuple[int, int]]:
    """Places of like words, in the order of ``given``: the same words first, then those left that have one stem."""
    pairs: dict[int, int] = {}
    for form in (str, _stem):
        taken, free = set(pairs.values()), defaultdict[str, list[int]](list)
        for place, word in enumerate(true):
            if place not in taken:
                free[form(word)].append(place)
        for place in reversed(range(len(given))):
            if place not in pairs and (places := free.get(form(given[place]))):
                pairs[place] = places.pop()
    return sorted(pairs.items())


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return str(_porter().stemWord(word))


@functools.cache
def _porter() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("porter")


def cider_d(
    answers: Sequence[str], references: Sequence[Sequence[str]], documents: Sequence[Sequence[str]] | None = None
) -> list[float]:
    """CIDEr-D of each answer (Vedantam et al. 2015), 0 to 10: n-grams of 1 to 4 words, sigma 6.

    How often an n-gram occurs is counted in ``documents``, the references of each picture once; by default those
    given. So a lone picture gets 0: what every picture says tells nothing.
    """
    documents = references if documents is None else documents
    frequencies = Counter(
        gram
        for texts in documents
        for gram in {gram for text in texts for n in range(1, LONGEST_NGRAM + 1) for gram in _ngrams(words(text), n)}
    )
    pictures = math.log(max(1, len(documents)))

    def weighed(text: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        """The weights of the n-grams by their length, and how many there are of two words."""
        told = words(text)
        weights = [
            {gram: count * (pictures - math.log(max(1, frequencies[gram]))) for gram, count in _ngrams(told, n).items()}
            for n in range(1, LONGEST_NGRAM + 1)
        ]
        return weights, max(0, len(told) - 1)

    scores = []
    for answer, texts in zip(answers, references, strict=True):
        said, length = weighed(answer)
        similarities = [
            math.exp(-((length - true_length) ** 2) / (2 * CIDER_SIGMA**2))
            * sum(_clipped_cosine(a, b) for a, b in zip(said, true, strict=True))
            for true, true_length in map(weighed, texts)
        ]
        scores.append(10 * sum(similarities) / LONGEST_NGRAM / len(texts))
    return scores


def _clipped_cosine(said: Mapping[tuple[str, ...], float], true: Mapping[tuple[str, ...], float]) -> float:
    """Saying a word more often than the truth does gains nothing."""
    norms = math.sqrt(sum(w * w for w in said.values())) * math.sqrt(sum(w * w for w in true.values()))
    shared = sum(min(weight, true[gram]) * true[gram] for gram, weight in said.items() if gram in true)
    return shared / norms if norms else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def count_boxes(given: Sequence[Grounding], truth: Sequence[Grounding]) -> BoxCounts:
    """A box is right if it is matched with a true one of its phrase and their overlap is one half or more.

    Matched greedily, best overlap first, each box once. A phrase may occur several times; its case does not count.
    """
    offered, wanted = _by_phrase(given), _by_phrase(truth)
    right = sum(
        overlap >= GOOD_OVERLAP
        for phrase, boxes in wanted.items()
        for overlap in pair_boxes(offered.get(phrase, []), boxes)
    )
    return BoxCounts(right, sum(map(len, offered.values())), sum(map(len, wanted.values())))


def mean_average_precision(
    given: Sequence[Sequence[Grounding]], truth: Sequence[Sequence[Grounding]]
) -> tuple[float, float]:
    """COCO's mean average precision with overlaps from 0.50 to 0.95, and with 0.50 alone; phrases are the categories.

    Models give no confidence, so every box has score 1 and the boxes of a phrase rank in the order of samples and
    answers: numbers compare between our runs, and with detectors that rank their boxes only roughly. As in COCO, at
    most 100 boxes of a phrase count in a picture, and phrases that are true nowhere do not count. 0 without true boxes.
    """
    places: dict[str, dict[int, tuple[list[Box], list[Box]]]] = defaultdict(dict)
    for picture, groundings in enumerate(zip(given, truth, strict=True)):
        for side in (0, 1):
            for phrase, boxes in _by_phrase(groundings[side]).items():
                places[phrase].setdefault(picture, ([], []))[side].extend(boxes)
    # The evaluator visits every category in every picture. With phrases that hardly occur that is nearly all in vain,
    # so categories go together that occur in about as many pictures, and those are numbered anew for each category.
    # Average precision is a matter of one category, so it stays the same.
    alike: dict[int, list[list[tuple[list[Box], list[Box]]]]] = defaultdict(list)
    for found in places.values():
        if any(true for _, true in found.values()):
            alike[len(found).bit_length()].append([found[picture] for picture in sorted(found)])
    averages = [pair for categories in alike.values() for pair in _average_precisions(categories)]
    count = max(1, len(averages))
    return sum(whole for whole, _ in averages) / count, sum(at_50 for _, at_50 in averages) / count


def _average_precisions(categories: Sequence[Sequence[tuple[list[Box], list[Box]]]]) -> list[tuple[float, float]]:
    """Of each category, from the boxes given and true in its pictures: the average over overlaps, and that at 0.50."""
    from faster_coco_eval import COCO, COCOeval_faster

    true: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for category, pictures in enumerate(categories, start=1):
        for picture, pair in enumerate(pictures, start=1):
            for boxes, kept in zip(pair, (said, true), strict=True):
                kept += [{"image_id": picture, "category_id": category, **_as_coco(box)} for box in boxes]
    dataset = {
        "images": [{"id": number} for number in range(1, max(map(len, categories)) + 1)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, len(categories) + 1)],
        "annotations": [{"id": number, "iscrowd": 0, **box} for number, box in enumerate(true, start=1)],
    }
    if not said:
        return [(0.0, 0.0)] * len(categories)
    truth = COCO(dataset)
    evaluator = COCOeval_faster(truth, truth.loadRes([{"score": 1.0, **box} for box in said]), "bbox")
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, float("inf")]], ["all"]
    evaluator.params.maxDets = [100]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 0]  # by overlap, recall, category
    return list(zip(precision.mean(axis=(0, 1)).tolist(), precision[0].mean(axis=0).tolist(), strict=True))


def _as_coco(box: Box) -> dict[str, Any]:
    left, top, right, bottom = (float(max(-FARTHEST, min(FARTHEST, side))) for side in box)
    width, height = max(0.0, right - left), max(0.0, bottom - top)
    return {"bbox": [left, top, width, height], "area": width * height}


def _by_phrase(groundings: Iterable[Grounding]) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = {}
    for item in groundings:
        found.setdefault(folded(item.phrase), []).extend(item.boxes)
    return found


def _measure_texts(task: str, given: Sequence[Answer], truth: Sequence[Answer], same: Sequence[Hashable]) -> Measured:
    by_question: dict[Hashable, list[str]] = {}
    keys = [(number,) if key is None else key for number, key in enumerate(same)]
    for key, true in zip(keys, truth, strict=True):
        by_question.setdefault(key, []).append(true.text)
    references = [by_question[key] for key in keys]
    texts = [said.text if said.is_well_formed else "" for said in given]
    samples = []
    for said, true, wanted in zip(given, truth, references, strict=True):
        scores = {
            "rougeL": rouge_l(said.text, wanted),
            "meteor": meteor(said.text, wanted),
        }
        if task == VQA:
            scores |= {
                "exactMatch": float(is_same_text(said.text, true.text)),
                "normalizedMatch": float(normalize(said.text) in map(normalize, wanted)),
                "anls": anls(said.text, wanted),
            }
        counts = float(said.is_well_formed)
        samples.append({name: score * counts for name, score in scores.items()} | {"wellFormed": counts})
    if task == FREEFORM:
        for scores, score in zip(samples, cider_d(texts, references, list(by_question.values())), strict=True):
            scores["cider"] = score
    values = {name: sum(scores[name] for scores in samples) / len(samples) for name in samples[0]}
    values["bleu"] = bleu(texts, references)
    return Measured({name: values[name] for name in METRICS[task]}, samples)


def _measure_boxes(given: Sequence[Answer], truth: Sequence[Answer]) -> Measured:
    pairs = [(said.groundings, true.groundings) for said, true in zip(given, truth, strict=True)]
    overlaps = [grounding_ious(*pair) for pair in pairs]
    counts = [count_boxes(*pair) for pair in pairs]
    samples = [
        _of_boxes(each, count) | {"wellFormed": float(said.is_well_formed)}
        for each, count, said in zip(overlaps, counts, given, strict=True)
    ]
    values = _of_boxes(
        [overlap for each in overlaps for overlap in each],
        BoxCounts(
            sum(count.right for count in counts),
            sum(count.given for count in counts),
            sum(count.true for count in counts),
        ),
    )
    values["map"], values["map50"] = mean_average_precision([said for said, _ in pairs], [true for _, true in pairs])
    values["wellFormed"] = sum(said.is_well_formed for said in given) / len(given)
    return Measured(values, samples)


def _of_boxes(overlaps: Sequence[float], counts: BoxCounts) -> dict[str, float]:
    total = max(1, len(overlaps))
    return {
        "iou": sum(overlaps) / total,
        "accuracyAt50": sum(overlap >= GOOD_OVERLAP for overlap in overlaps) / total,
        "precisionAt50": counts.precision,
        "recallAt50": counts.recall,
        "f1At50": counts.f1,
    }
