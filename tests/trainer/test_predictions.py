"""Stored predictions: complete files, those of kept checkpoints and the newest, with scores."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import runyard.trainer.evaluation.evaluation as evaluation_module
import runyard.trainer.train as train_module
from runyard import rundir
from runyard.datasets.records import GroundedPhrase, Interaction, PhraseGrounding, Vqa
from runyard.trainer.answers import METRICS
from runyard.trainer.evaluation.predictions import write_predictions
from runyard.trainer.main import train_attempt

EventsOf = Callable[[Path, str], list[dict[str, Any]]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "predictions").iterdir()}


def test_the_newest_predictions_and_those_of_kept_steps_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        path = write_predictions(tmp_path, step, [{"answer": "ü\n"}, {"answer": ""}], keep=[2])
    assert path == tmp_path / "predictions" / "step-6.jsonl"
    assert names(tmp_path) == {"step-2.jsonl", "step-6.jsonl"}
    assert lines_of(path) == [{"answer": "ü\n"}, {"answer": ""}]


def test_a_disk_error_loses_no_stored_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_predictions(tmp_path, 2, [{"answer": "one"}])

    def refuse(_descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk fails")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="the disk fails"):
        write_predictions(tmp_path, 4, [{"answer": "two"}], keep=[2])
    assert names(tmp_path) == {"step-2.jsonl"}
    assert lines_of(tmp_path / "predictions" / "step-2.jsonl") == [{"answer": "one"}]


@pytest.fixture
def attempt_on(
    make_attempt: Callable[..., Path], make_version: Callable[..., Path], png: Callable[..., bytes]
) -> Callable[..., Path]:
    """Return an attempt of three one-step epochs on images whose answer is ``contents``."""

    def make(task: str, contents: Any, **model: Any) -> Path:
        images = {f"{number:02}.png": (png(number), [contents]) for number in range(24)}
        dataset = {"datasetId": "shelves", "projectKind": task, "validationFraction": 0.3}
        folder = make_attempt(
            {
                "vi-dataset": dataset,
                "vi-model": {
                    "hyperparameters": {"batchSize": 32, "epochs": 3},
                    "compute": {"compile": False},
                }
                | model,
            }
        )
        brought = {"folder": str(make_version(images)), "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(brought))
        return folder

    return make


def answers_by_evaluation(monkeypatch: pytest.MonkeyPatch, *answers: Callable[[int], str]) -> None:
    """Replace the model's answers by given ones, for each evaluation and sample."""
    left = list(answers)

    def say(_module: Any, _tokenizer: Any, _data: Any, count: int, **_: Any) -> Sequence[str]:
        answer = left.pop(0)
        return [answer(number) for number in range(count)]

    monkeypatch.setattr(evaluation_module, "generate_answers", say)


def test_another_metric_selects_the_best_checkpoint_and_its_predictions(
    attempt_on: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First all answers are a letter off, then half are right, then none is valid."""
    answers_by_evaluation(
        monkeypatch,
        lambda _: '{"vqa":{"answer":"seventen"}}',
        lambda number: '{"vqa":{"answer":"%s"}}' % ("Seventeen" if number % 2 else "no"),
        lambda _: "seventeen",
    )
    contents = Vqa(interactions=[Interaction(order=1, question="How many?", answer="seventeen")])
    folder = attempt_on(
        "vqa", contents, checkpoint={"metric": "anls", "keep": 1}, validation={"previews": 1}
    )
    assert train_attempt(folder) == 0

    evaluations = events_of(folder, "evaluation")
    assert [event["metricName"] for event in evaluations] == ["anls"] * 3
    assert set(evaluations[0]["values"]) == {
        f"validation/{name}" for name in ("loss", *METRICS["vqa"])
    }
    assert [event["values"]["validation/anls"] for event in evaluations] == [
        round(8 / 9, 6), evaluations[1]["values"]["validation/exactMatch"], 0,
    ]  # fmt: skip
    assert [event["isBest"] for event in events_of(folder, "checkpoint")] == [True, False, False]
    assert "truthBoxes" not in evaluations[0]["previews"][0]

    # The best and the newest checkpoint are kept, and their predictions with them.
    assert names(folder) == {"step-1.jsonl", "step-3.jsonl"}
    best = folder / "checkpoints" / "epoch-1" / "predictions.jsonl"
    assert best.read_bytes() == (folder / "predictions" / "step-1.jsonl").read_bytes()
    assert "predictions.jsonl" in [
        file["path"] for file in (rundir.read_json(best.parent / "manifest.json") or {})["files"]
    ]
    lines = lines_of(best)
    assert [line["index"] for line in lines] == list(range(len(lines)))
    scores = lines[0].pop("scores")
    assert lines[0].pop("filename").endswith(".png")
    assert lines[0] == {
        "index": 0,
        "question": "How many?",
        "truth": "seventeen",
        "answer": "seventen",
        "raw": '{"vqa":{"answer":"seventen"}}',
    }
    assert (scores["anls"], scores["exactMatch"], scores["wellFormed"]) == (round(8 / 9, 6), 0, 1)
    last = lines_of(folder / "predictions" / "step-3.jsonl")[0]
    assert (last["answer"], set(last["scores"].values())) == ("seventeen", {0})


def test_predicted_boxes_are_stored_with_the_true_ones(
    attempt_on: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = (
        '{"phrase_grounding":{"sentence":"box","groundings":[{"phrase":"A '
        'box","grounding":[[102,205,614,%d]]}]}}'
    )
    answers_by_evaluation(
        monkeypatch, *[lambda number: predicted % (922 if number % 2 else 300)] * 3
    )
    phrase = GroundedPhrase(
        phrase="a box", start_token_index=0, end_token_index=2, bounds=[(0.1, 0.2, 0.6, 0.9)]
    )
    folder = attempt_on(
        "phrase-grounding", PhraseGrounding(caption="a box", grounded_phrases=[phrase])
    )
    assert train_attempt(folder) == 0
    event = events_of(folder, "evaluation")[-1]
    preview, line = event["previews"][1], lines_of(folder / "predictions" / "step-3.jsonl")[1]
    for each in (preview, line):
        assert each["truthBoxes"] == [{"phrase": "a box", "box": [102, 205, 614, 922]}]
        assert each["boxes"] == [{"phrase": "A box", "box": [102, 205, 614, 922]}]
    assert (line["scores"]["iou"], line["scores"]["f1At50"]) == (1, 1)
    # The same for people, with boxes as fractions and the image that the server has.
    written = lines_of(folder / "samples.jsonl")
    assert {each["kind"] for each in written} == {"evaluation", "sample"}
    assert [each["step"] for each in written if each["kind"] == "evaluation"] == [1, 2, 3]
    sample = next(each for each in written if (each.get("step"), each.get("index")) == (3, 1))
    for side, text in (("truth", "a box"), ("predicted", "A box")):
        box = [round(value / 1024, 5) for value in (102, 205, 614, 922)]
        assert sample[side]["boxes"] == [{"phrase": text, "box": box}]
    assert (sample["score"], sample["parse"]) == (1, "ok")
    assert (sample["image"]["width"], sample["image"]["height"]) == (24, 16)
    assert len(sample["image"]["sha256"]) == 64
    right = event["values"]["validation/precisionAt50"]
    assert 0 < right < 1
    assert (
        event["values"]["validation/recallAt50"]
        == event["values"]["validation/accuracyAt50"]
        == right
    )
    assert 0 < event["values"]["validation/map"] <= event["values"]["validation/map50"] <= right


def test_predictions_that_cannot_be_written_are_a_warning(
    attempt_on: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def refuse_once(*arguments: Any, **more: Any) -> Path:
        if not refused:
            refused.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_predictions(*arguments, **more)

    monkeypatch.setattr(train_module, "write_predictions", refuse_once)
    contents = Vqa(interactions=[Interaction(order=1, question="How many?", answer="two")])
    folder = attempt_on("vqa", contents, evaluation={"max_new_tokens": 1})
    assert train_attempt(folder) == 0
    (warning,) = events_of(folder, "warning")
    assert (
        warning["message"]
        == "the predictions of step 1 could not be written: No space left on device"
    )
    have = [
        (folder / "checkpoints" / f"epoch-{n}" / "predictions.jsonl").exists() for n in (1, 2, 3)
    ]
    assert have == [False, True, True]


def test_a_metric_of_another_task_is_refused_with_the_available_ones(
    attempt_on: Callable[..., Path],
) -> None:
    contents = Vqa(interactions=[Interaction(order=1, question="How many?", answer="two")])
    folder = attempt_on("vqa", contents, checkpoint={"metric": "validation/cider"})
    assert train_attempt(folder) == 64
    assert "'validation/cider' is not measured for vqa; try: anls, bleu, exactMatch, loss" in str(
        rundir.read_json(folder / "result.json")
    )
