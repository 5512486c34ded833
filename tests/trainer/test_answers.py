"""Answers: written, read back, scored."""

import pytest

from runyard.trainer.answers import (
    PHRASE_GROUNDING,
    VQA,
    Answer,
    Grounding,
    grounding_ious,
    iou,
    read_answer,
    scale_box,
    write_answer,
)
from runyard.trainer.evaluation.metrics import compute_metrics

SEVEN = Grounding("seven", ((0, 0, 512, 512),))


def test_answers_have_the_form_of_the_published_client() -> None:
    assert write_answer(VQA, Answer("7")) == '{"vqa":{"answer":"7"}}'
    assert write_answer(PHRASE_GROUNDING, Answer("seven", (SEVEN,))) == (
        '{"phrase_grounding":{"sentence":"seven",'
        '"groundings":[{"phrase":"seven","grounding":[[0,0,512,512]]}]}}'
    )


@pytest.mark.parametrize("task", [VQA, PHRASE_GROUNDING, "freeform"])
def test_a_formatted_answer_is_parsed_back(task: str) -> None:
    truth = Answer('a "quoted" täxt', (SEVEN,) if task == PHRASE_GROUNDING else ())
    read = read_answer(write_answer(task, truth))
    assert (read.text, read.groundings, read.is_well_formed) == (truth.text, truth.groundings, True)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "seven",
        '{"vqa":{"answer":7}}',
        '{"vqa":',
        "[" * 100_000,
        '{"phrase_grounding":{"sentence":"x"}}',
        "null",
    ],
)
def test_any_other_text_is_kept_and_marked_as_malformed(said: str) -> None:
    read = read_answer(said)
    assert (read.text, read.is_well_formed) == (said.strip(), False)


def test_a_box_with_three_numbers_is_left_out_and_marked() -> None:
    read = read_answer(
        '{"phrase_grounding":{"sentence":"a","groundings":[{"phrase":"a","grounding":[[1,2,3]]},'
        '{"phrase":"b","grounding":[[1,2,3,4]]}]}}'
    )
    assert [item.phrase for item in read.groundings] == ["b"]
    assert not read.is_well_formed


def test_boxes_are_scaled_to_1024_and_clipped_at_the_edge() -> None:
    assert scale_box((-3, 12, 24, 60), width=48, height=48) == (0, 256, 512, 1024)


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ((10, 10, 0, 0), (0, 0, 10, 10), 0.0),
    ],
)
def test_intersection_over_union(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int], overlap: float
) -> None:
    assert iou(a, b) == pytest.approx(overlap)


def test_a_box_for_another_phrase_is_a_missing_and_a_surplus_box() -> None:
    assert grounding_ious([Grounding("eight", SEVEN.boxes)], [SEVEN]) == [0.0, 0.0]
    assert grounding_ious([SEVEN, Grounding("eight", SEVEN.boxes)], [SEVEN]) == [1.0, 0.0]


def test_a_phrase_named_twice_is_matched_as_a_whole() -> None:
    other = Grounding("Seven ", ((600, 600, 700, 700),))
    together = [Grounding("seven", (*SEVEN.boxes, *other.boxes))]
    for answer in ([SEVEN, other], [other, SEVEN], together):
        assert grounding_ious(answer, [SEVEN, other]) == [1.0, 1.0]
        assert grounding_ious(answer, together) == [1.0, 1.0]


def test_each_true_box_takes_its_best_match_and_extra_boxes_count_as_misses() -> None:
    truth = Grounding("seven", ((0, 0, 100, 100), (200, 0, 300, 100)))
    given = Grounding("Seven", ((200, 0, 300, 100), (0, 0, 100, 50), (900, 900, 950, 950)))
    assert grounding_ious([given], [truth]) == [0.5, 1.0, 0.0]


def test_the_right_word_in_the_wrong_format_is_a_wrong_answer() -> None:
    given = [read_answer('{"vqa":{"answer":"7"}}'), read_answer("7")]
    values = compute_metrics(VQA, given, [Answer("7"), Answer("7")]).values
    assert (values["exactMatch"], values["wellFormed"]) == (0.5, 0.5)


def test_grounding_is_scored_by_box() -> None:
    near = Answer("seven", (Grounding("seven", ((0, 0, 512, 256),)),))
    far = Answer("seven", (Grounding("seven", ((0, 0, 512, 200),)),))
    found = compute_metrics(PHRASE_GROUNDING, [near, far], [Answer("seven", (SEVEN,))] * 2).values
    assert found["accuracyAt50"] == 0.5
    assert found["iou"] == pytest.approx((0.5 + 200 / 512) / 2)
