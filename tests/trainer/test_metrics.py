"""Metrics equal the field's reference programs and values calculated by hand."""

import math
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runyard.trainer.answers import (
    FREEFORM,
    METRICS,
    PHRASE_GROUNDING,
    VQA,
    Answer,
    Box,
    Grounding,
    read_answer,
)
from runyard.trainer.evaluation.metrics import (
    anls,
    bleu,
    cider_d,
    compute_metrics,
    count_boxes,
    mean_average_precision,
    meteor,
    normalize,
    rouge_l,
    split_words,
)

exactly = partial(pytest.approx, abs=1e-9)

WORDS = [
    "the",
    "a",
    "cat",
    "cats",
    "Run",
    "running",
    "runs",
    "dog,",
    "dog.",
    "3.5",
    "1,000",
    "5-6",
    "x-ray",
    "don't",
    "&amp;",
    "<skipped>",
    "café",
    "日本",
    "हिन्दी",
    "🐈",
    '"so"',
    "-\n",
    "U.S.",
]
TEXTS = some.one_of(
    some.lists(some.sampled_from(WORDS), max_size=14).map(" ".join), some.text(max_size=30)
)
CORPORA = some.lists(
    some.tuples(TEXTS, some.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=5
)
quick = settings(max_examples=50, deadline=None)
FIXED = [
    ("the cat sat on the mat .", ["the cat is on the mat .", "there is a cat on the mat ."]),
    ("Prices rose by 1,000.5 per-cent, they say", ["Prices rose 1,000.5 percent, they said."]),
    ("", ["nothing was said"]),
    ("said to nobody", [""]),
    ("日本の猫 sits", ["日本の猫 sits here"]),
]


def columns(corpus: list[tuple[str, list[str]]]) -> tuple[list[str], list[list[str]]]:
    return [answer for answer, _ in corpus], [references for _, references in corpus]


def as_sacrebleu(answers: list[str], references: list[list[str]]) -> float:
    import sacrebleu

    streams: list[list[Any]] = [  # None where an answer has fewer references
        [each[number] if number < len(each) else None for each in references]
        for number in range(max(map(len, references)))
    ]
    return float(sacrebleu.corpus_bleu(answers, streams).score / 100)


@given(CORPORA)
@quick
def test_bleu_matches_sacrebleu(corpus: list[tuple[str, list[str]]]) -> None:
    for each in (corpus, FIXED):
        answers, references = columns(each)
        assert bleu(answers, references) == exactly(as_sacrebleu(answers, references))


def test_bleu_ranges_from_0_to_1() -> None:
    assert bleu(["a b c d e"], [["a b c d e"]]) == exactly(1)
    assert bleu(["7"], [["7"]]) == as_sacrebleu(["7"], [["7"]]) == 0  # no answer has four words
    assert bleu([""], [[""]]) == 0


@given(TEXTS, some.lists(TEXTS, min_size=1, max_size=3))
@quick
def test_rouge_l_matches_rouge_score(answer: str, references: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for candidate, true in [(answer, references), *FIXED]:
        assert rouge_l(candidate, true) == exactly(
            scorer.score_multi(true, candidate)["rougeL"].fmeasure
        )


class NoSynonyms:
    def synsets(self, _word: str) -> list[Any]:
        return []


@given(TEXTS, some.lists(TEXTS, min_size=1, max_size=3))
@quick
def test_meteor_matches_nltk_without_wordnet(answer: str, references: list[str]) -> None:
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score

    stemmer = PorterStemmer(PorterStemmer.ORIGINAL_ALGORITHM)
    for candidate, true in [(answer, references), *FIXED]:
        if any(split_words(text) for text in (candidate, *true)):
            theirs = meteor_score(
                [split_words(text) for text in true],
                split_words(candidate),
                stemmer=stemmer,
                wordnet=NoSynonyms(),
            )
            assert meteor(candidate, true) == exactly(theirs)


def test_meteor_matches_hand_computed_values() -> None:
    """Three of four words each are found, one of them by its stem, in two chunks: P = R = 3/4."""
    assert meteor("dogs run very fast", ["the dog run fast"]) == exactly(
        0.75 * (1 - 0.5 * (2 / 3) ** 3)
    )
    # P = 2/2, R = 2/4, one chunk.
    assert meteor("red car", ["a Red, car parked"]) == exactly(
        10 * 0.5 / (0.5 + 9) * (1 - 0.5 * (1 / 2) ** 3)
    )
    assert meteor("", [""]) == meteor("cat", ["dog"]) == 0


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("Hello  World", "hello world", 1),
        ("cat", "cats", 1 - 1 / 4),
        ("kitten", "sitting", 1 - 3 / 7),
        ("ab", "ac", 0),  # a distance of exactly one half still counts
        ("abc", "abd", 1 - 1 / 3),
        ("", "x", 0),
        ("", "", 1),
        ("日本", "日本国", 1 - 1 / 3),
    ],
)
def test_anls_matches_hand_computed_values(answer: str, truth: str, score: float) -> None:
    assert anls(answer, [truth]) == exactly(score)


@given(TEXTS, TEXTS)
@quick
def test_anls_matches_its_definition(answer: str, truth: str) -> None:
    a, b = (" ".join(text.lower().split()) for text in (answer, truth))
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    distance = row[-1] / max(1, len(a), len(b))
    assert anls(answer, [truth]) == exactly(1 - distance if distance < 0.5 else 0)


def test_anls_takes_the_nearest_truth() -> None:
    assert anls("cat", ["a dog", "cats"]) == exactly(0.75)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat's, a toy!", "cats toy"),
        ("an anthem", "anthem"),
        ("A", "a"),
        ("the", "the"),
        (" - ", "-"),
        ("", ""),
        ("«Ünï»", "«ünï»"),
    ],
)
def test_text_is_normalized_before_comparison(text: str, normal: str) -> None:
    assert normalize(text) == normal


def by_definition(answer: str, references: list[str], documents: list[list[str]]) -> float:
    """Compute CIDEr equation by equation; slow."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        words = split_words(text)
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for n in range(1, 5):
        in_documents = [{gram for text in texts for gram in grams(text, n)} for texts in documents]

        def vector(
            text: str, n: int = n, seen: list[set[tuple[str, ...]]] = in_documents
        ) -> dict[Any, float]:
            counts = Counter(grams(text, n))
            return {
                g: c * math.log(len(seen) / max(1, sum(g in each for each in seen)))
                for g, c in counts.items()
            }

        for reference in references:
            candidate, true = vector(answer), vector(reference)
            lengths = math.sqrt(sum(v**2 for v in candidate.values())) * math.sqrt(
                sum(v**2 for v in true.values())
            )
            if lengths:
                shared = sum(
                    min(candidate[gram], true[gram]) * true[gram]
                    for gram in candidate.keys() & true.keys()
                )
                apart = len(grams(answer, 2)) - len(grams(reference, 2))
                total += math.exp(-(apart**2) / (2 * 6**2)) * shared / lengths / len(references)
    return 10 * total / 4


@given(CORPORA)
@quick
def test_cider_matches_its_definition(corpus: list[tuple[str, list[str]]]) -> None:
    for each in (corpus, FIXED):
        answers, references = columns(each)
        expected = [by_definition(answer, true, references) for answer, true in each]
        assert cider_d(answers, references) == exactly(expected)


def test_cider_matches_hand_computed_values() -> None:
    """Two images, so each word of one alone weighs log 2, and "a", in both, weighs nothing.

    "a cat" against "a cat sits". One word: (0, 1) and (0, 1, 1), cosine 1/sqrt(2). Two words: "a
    cat" of "a cat" and "cat sits", 1/sqrt(2). Longer: nothing. The truth has one more bigram.
    """
    (score, perfect) = cider_d(
        ["a cat", "a small dog runs"], [["a cat sits"], ["a small dog runs"]]
    )
    assert score == exactly(10 / 4 * 2 / math.sqrt(2) * math.exp(-1 / 72))
    assert perfect == exactly(10)
    assert cider_d(["a cat"], [["a cat"]]) == [0]  # an n-gram of every image has no weight
    assert cider_d(["", "dog"], [["a cat"], [""]]) == [0, 0]
    # Repetition gains nothing: counts are clipped, and the answer is longer than the truth.
    again = cider_d(["cat sits cat sits"], [["cat sits"]], [["cat sits"], ["dog"]])
    assert 0 < again[0] < cider_d(["cat sits"], [["cat sits"]], [["cat sits"], ["dog"]])[0]


def test_several_truths_of_one_question_are_all_references() -> None:
    candidate = [Answer("a red car"), Answer("a red car"), Answer("dog")]
    truth = [Answer("a red car"), Answer("one crimson automobile"), Answer("dog")]
    alone, together = (
        compute_metrics(VQA, candidate, truth),
        compute_metrics(VQA, candidate, truth, [("p", "q"), ("p", "q"), None]),
    )
    for name in ("normalizedMatch", "anls"):
        assert alone.values[name] == exactly(2 / 3)
        assert together.values[name] == 1
    # Its own truth alone.
    assert alone.values["exactMatch"] == together.values["exactMatch"] == exactly(2 / 3)
    # CIDEr counts an image once, no matter how many truths it has: with two images, the words of
    # one weigh log 2.
    captions = compute_metrics(FREEFORM, candidate, truth, [("p", "q"), ("p", "q"), None])
    assert captions.values["cider"] == exactly(
        sum(
            cider_d(["a red car", "dog"], [["a red car", "one crimson automobile"], ["dog"]])[i]
            for i in (0, 0, 1)
        )
        / 3
    )


def test_an_answer_in_the_wrong_format_scores_zero() -> None:
    given = [
        read_answer('{"vqa":{"answer":"the red car is here"}}'),
        read_answer("the red car is here"),
    ]
    measured = compute_metrics(VQA, given, [Answer("the red car is here")] * 2)
    assert set(measured.samples[1].values()) == {0}
    assert {name: value for name, value in measured.values.items() if value != 0.5} == {
        "bleu": exactly(math.exp(-1)),  # half as long as the truths together
        "meteor": exactly((1 - 0.5 / 5**3) / 2),
    }


def test_empty_answers_and_empty_truths_are_scored() -> None:
    for task in METRICS:
        assert compute_metrics(task, [], []) == compute_metrics(task, [], [], [])
        empty = compute_metrics(task, [Answer("")], [Answer("")])
        assert tuple(empty.values) == METRICS[task]
        assert all(math.isfinite(value) for value in empty.values.values())


# Left, top, width, height; some are inverted.
PLACES = some.tuples(*[some.integers(0, 20)] * 2, *[some.integers(-2, 20)] * 2)
BOXES = some.lists(
    some.tuples(some.sampled_from(["cat", "Cat ", "dog", "a"]), PLACES), max_size=6
).map(
    lambda items: [
        Grounding(phrase, ((x, y, x + width, y + height),))
        for phrase, (x, y, width, height) in items
    ]
)


def as_pycocotools(
    given: list[list[Grounding]], truth: list[list[Grounding]], capsys: pytest.CaptureFixture[str]
) -> tuple[float, float]:
    """Compute every phrase in every image with the reference, which prints its progress."""
    import numpy as np
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    phrases = sorted({item.phrase.strip().lower() for image in (*given, *truth) for item in image})

    def flat(images: list[list[Grounding]]) -> list[dict[str, Any]]:
        return [
            {
                "image_id": number,
                "category_id": phrases.index(item.phrase.strip().lower()),
                "bbox": [x1, y1, max(0, x2 - x1), max(0, y2 - y1)],
                "area": max(0, x2 - x1) * max(0, y2 - y1),
                "score": 1.0,
                "iscrowd": 0,
            }
            for number, groundings in enumerate(images)
            for item in groundings
            for x1, y1, x2, y2 in item.boxes
        ]

    true, candidate = flat(truth), flat(given)
    if not true or not candidate:
        return 0, 0
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(len(truth))],
        "categories": [{"id": number} for number in range(len(phrases))],
        "annotations": [{**box, "id": number} for number, box in enumerate(true, start=1)],
    }
    coco.createIndex()
    evaluator = COCOeval(coco, coco.loadRes(candidate), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    return tuple(np.maximum(evaluator.stats[:2], 0).tolist())


def test_average_precision_matches_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    @given(some.lists(some.tuples(BOXES, BOXES), min_size=1, max_size=6))
    @quick
    def holds(images: list[tuple[list[Grounding], list[Grounding]]]) -> None:
        candidate, true = (
            [candidate for candidate, _ in images],
            [true for _, true in images],
        )
        assert mean_average_precision(candidate, true) == exactly(
            as_pycocotools(candidate, true, capsys)
        )

    holds()


def test_average_precision_of_phrases_that_are_rare_and_frequent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seventy images with unique phrases and two shared ones; boxes deviate increasingly."""
    candidate, true = [], []
    for number in range(70):
        box = (number, 10, number + 100, 110)
        off: Box = (number + number // 2, 10, number + 100 + number // 2, 110)
        true.append(
            [Grounding("cat", (box, (300, 300, 400, 400))), Grounding(f"thing {number}", (box,))]
        )
        candidate.append(
            [
                Grounding("Cat", (off,)),
                Grounding(f"thing {number}", (off,)),
                Grounding("dog", (off,)),
            ]
        )
    found = mean_average_precision(candidate, true)
    assert found == exactly(as_pycocotools(candidate, true, capsys))
    assert 0.3 < found[0] < found[1] < 1


def test_box_metrics_match_hand_computed_values() -> None:
    half: Box = (0, 0, 100, 50)
    truth = [
        Grounding("cat", ((0, 0, 100, 100), (200, 0, 300, 100))),
        Grounding("dog", ((5, 5, 9, 9),)),
    ]
    given = [
        Grounding("CAT ", (half, half)),
        Grounding("dog", ((50, 50, 60, 60),)),
        Grounding("cow", (half,)),
    ]
    counts = count_boxes(given, truth)  # one of the halves has exactly the overlap it needs
    assert (counts.correct, counts.predicted, counts.true) == (1, 4, 3)
    assert counts.precision == 0.25
    assert counts.recall == exactly(1 / 3)
    assert counts.f1 == exactly(2 / 7)
    values = compute_metrics(
        PHRASE_GROUNDING, [Answer("", tuple(given))], [Answer("", tuple(truth))]
    ).values
    assert values["precisionAt50"] == 0.25
    assert values["f1At50"] == exactly(2 / 7)
    assert values["map50"] == exactly(51 / 101 / 2)


def test_a_repeated_phrase_does_not_use_its_boxes_twice() -> None:
    box: Box = (0, 0, 10, 10)
    truth = [Grounding("cat", (box,)), Grounding("cat", ((20, 20, 30, 30),))]
    assert count_boxes([Grounding("cat", (box,))], truth).correct == 1


def test_box_metrics_accept_no_boxes_and_any_number() -> None:
    truth = [[Grounding("cat", ((0, 0, 10, 10),))]]
    assert mean_average_precision([[]], truth) == mean_average_precision(truth, [[]]) == (0, 0)
    assert count_boxes([], truth[0]).precision == count_boxes(truth[0], []).recall == 0
    assert count_boxes([], []).f1 == count_boxes([], []).precision == 1
    far = (-(10**400), 0, 10**400, 10**400)
    assert mean_average_precision([[Grounding("cat", (far, (0, 0, 10, 10)))]], truth)[1] == exactly(
        0.5
    )
    # As in COCO, only the first hundred of a phrase count.
    many = Grounding("cat", tuple((500, 500, 501 + i, 501) for i in range(100)))
    assert mean_average_precision([[many, *truth[0]]], truth) == (0, 0)


PHRASES = some.sampled_from(["cat", "Cat", "dog", "a red car"])
AREAS = some.tuples(*[some.integers(0, 1000)] * 2, some.integers(1, 24), some.integers(1, 24)).map(
    lambda at: (at[0], at[1], at[0] + at[2], at[1] + at[3])
)
TRUTHS = some.lists(
    some.builds(Grounding, PHRASES, some.lists(AREAS, max_size=4).map(tuple)), max_size=5
).map(lambda items: Answer("a sentence", tuple(items)))


@given(some.lists(TRUTHS, min_size=4, max_size=6))
@settings(max_examples=250, deadline=None)  # a thousand truths
def test_a_perfect_grounding_scores_1_in_every_metric(truth: list[Answer]) -> None:
    found = compute_metrics(PHRASE_GROUNDING, truth, truth)
    assert found.values == exactly(dict.fromkeys(METRICS[PHRASE_GROUNDING], 1.0))
    assert all(score == 1 for sample in found.samples for score in sample.values())


@given(some.lists(TRUTHS, min_size=1, max_size=4), AREAS, some.data())
@settings(max_examples=100, deadline=None)
def test_a_box_for_an_absent_phrase_lowers_the_score(
    truth: list[Answer], box: Box, data: some.DataObject
) -> None:
    at = data.draw(some.integers(0, len(truth) - 1))
    given = list(truth)
    extra = Grounding("unicorn", (box,))
    given[at] = Answer("a sentence", (*truth[at].groundings, extra))
    found = compute_metrics(PHRASE_GROUNDING, given, truth)
    for name in ("iou", "accuracyAt50", "precisionAt50", "f1At50"):
        assert found.values[name] < 1
        assert found.samples[at][name] < 1


# Texts that every metric of the field can score fully: four words and more, of ASCII letters.
SENTENCES = some.lists(
    some.sampled_from(["red", "car", "dog", "Runs", "seven", "x1"]), min_size=4, max_size=9
).map(" ".join)


@given(some.lists(SENTENCES, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_perfect_text_scores_the_maximum_of_its_metrics(texts: list[str]) -> None:
    truth = [Answer(text) for text in texts]
    for task, below in ((VQA, {"meteor"}), (FREEFORM, {"meteor", "cider"})):
        values = compute_metrics(task, truth, truth).values
        whole = {name: value for name, value in values.items() if name not in below}
        assert whole == exactly(dict.fromkeys(whole, 1.0))
        # METEOR's penalty counts a single chunk too.
        assert values["meteor"] >= 1 - 0.5 / 4**3


@pytest.mark.parametrize("true", [(), (Grounding("cat", ()),)])
def test_an_unreadable_answer_scores_0_where_there_are_no_boxes(
    true: tuple[Grounding, ...],
) -> None:
    found = compute_metrics(PHRASE_GROUNDING, [read_answer("nothing")], [Answer("a", true)])
    assert set(found.samples[0].values()) == {0}
    assert set(found.values.values()) == {0}


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert read_answer('{"vqa":{"answer":"\\ud83d!"}}').text == "?!"
    candidate = (
        '{"phrase_grounding":{"sentence":"\\ud83d",'
        '"groundings":[{"phrase":"\\udc00","grounding":[[1,2,3,4]]}]}}'
    )
    read = read_answer(candidate)
    assert (read.text, read.groundings) == ("?", (Grounding("?", ((1, 2, 3, 4),)),))


def test_no_library_is_loaded_before_something_is_measured() -> None:
    """The warm parent imports the trainer; the first step must not wait for unneeded libraries."""
    program = """
import sys
from runyard.trainer import plan
from runyard.trainer.evaluation import metrics
from runyard.trainer.answers import Answer
libraries = {"rapidfuzz", "snowballstemmer", "faster_coco_eval", "sacrebleu", "rouge_score", "nltk",
             "pycocotools"}
print(sorted(libraries & set(sys.modules)))
metrics.compute_metrics("vqa", [Answer("runs")], [Answer("running")])
print(sorted(libraries & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "['rapidfuzz', 'snowballstemmer']"]


@pytest.mark.parametrize("name", sorted({name for names in METRICS.values() for name in names}))
def test_every_metric_is_documented(name: str) -> None:
    assert f"`{name}`" in (Path(__file__).parents[2] / "docs/metrics.md").read_text()
