"""The samples that a trainer chooses for people, and their file."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runyard.trainer.answers import Answer, describe_form, read_answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.evaluation.samples import (
    FIRST,
    MAX_BOXES,
    MAX_LINE_BYTES,
    MAX_TEXT,
    WORST,
    SampleWriter,
    choose_samples,
    choose_score,
    make_line,
)
from runyard.trainer.main import train_attempt


def make_sample(number: int = 0) -> Sample:
    return Sample(Image.new("RGB", (8, 6), (number, 0, 0)), "Which?", Answer("one"))


def make_prediction(index: int, score: float, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "question": "Which?",
        "truth": "one",
        "answer": "two",
        "raw": "two",
        "scores": {"exactMatch": score},
    } | more


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_first_samples_and_the_worst_others_are_chosen() -> None:
    scores: list[float | None] = [1.0] * 300
    for index in range(100, 300, 2):
        scores[index] = index / 1000
    scores[290] = None
    chosen = choose_samples(scores)
    assert chosen[:FIRST] == list(range(FIRST))
    assert chosen[FIRST:] == list(range(100, 100 + 2 * WORST, 2))
    assert choose_samples([0.5, None]) == [0, 1]
    assert choose_samples([]) == []


def test_a_sample_is_scored_by_the_runs_metric_or_the_first_of_its_task() -> None:
    assert choose_score({"anls": 0.3, "exactMatch": 0.1}, "anls") == 0.3
    assert choose_score({"anls": 0.3, "exactMatch": 0.1}, "loss") == 0.1
    assert choose_score({"f1At50": 0.2, "iou": 0.4}, "exactMatch") == 0.4
    assert choose_score({}, "iou") is None


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ('{"vqa":{"answer":"7"}}', None),
        ('{"freeform":{"caption":"a"}}', None),
        ("seven", "not JSON"),
        ('{"vqa":{"answer":7}}', "JSON of another form"),
        ("[" * 100_000, "nested too deeply"),
        (
            '{"phrase_grounding":{"sentence":"a","groundings":[{"phrase":"a","grounding":[[1,2]]}]}}',
            "1 of 1 groundings cannot be read",
        ),
    ],
)
def test_an_answer_is_described_as_it_is_read(raw: str, problem: str | None) -> None:
    assert describe_form(raw) == problem
    assert read_answer(raw).is_well_formed == (problem is None)


def test_long_texts_and_many_boxes_are_cut_and_marked() -> None:
    boxes = [{"phrase": "x" * 300, "box": [-5, 0, 2000, 512]}] * (MAX_BOXES + 1)
    prediction = make_prediction(0, 0, raw="y" * 9999, boxes=boxes, truthBoxes=boxes[:2])
    line = make_line(4, prediction, make_sample(), score=0.0)
    assert (len(line["raw"]), line["isCut"]) == (MAX_TEXT, True)
    assert len(line["predicted"]["boxes"]) == MAX_BOXES
    assert line["predicted"]["boxes"][0]["box"] == [0, 0, 1, 0.5]
    assert len(json.dumps(line)) <= MAX_LINE_BYTES
    assert make_line(4, make_prediction(0, 0), make_sample(), score=0.0)["isCut"] is False


def test_each_image_of_a_builtin_dataset_is_written_once(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, lambda: 5)
    samples = [make_sample(number) for number in range(3)]
    for step in (1, 2):
        predictions = [make_prediction(index, 0.5) for index in range(step + 1)]
        writer.write(step, predictions, samples, metric="exactMatch")
    lines = read_lines(tmp_path / "samples.jsonl")
    assert lines[0] == {"kind": "evaluation", "step": 1, "time": 5, "total": 2, "samples": 2}
    assert [line["index"] for line in lines if line["kind"] == "image"] == [0, 1, 2]
    image = next(line for line in lines if line["kind"] == "image")
    assert Image.open(io.BytesIO(bytes.fromhex(image["png"]))).size == (8, 6)
    assert [(line["step"], line["index"]) for line in lines if line["kind"] == "sample"] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip


def test_a_failed_write_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, samples = SampleWriter(tmp_path), [make_sample()]
    writer.write(1, [make_prediction(0, 0.5)], samples, metric="exactMatch")
    before = (tmp_path / "samples.jsonl").read_bytes()
    sync = os.fsync

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        writer.write(2, [make_prediction(0, 0.5)], samples, metric="exactMatch")
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    monkeypatch.setattr(os, "fsync", sync)
    writer.write(3, [make_prediction(0, 0.5)], samples, metric="exactMatch")
    assert [line["step"] for line in read_lines(tmp_path / "samples.jsonl") if "step" in line] == [
        1, 1, 3, 3,
    ]  # fmt: skip


def test_samples_that_cannot_be_written_are_a_warning(
    make_attempt: Callable[..., Path],
    events_of: Callable[[Path, str], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SampleWriter, "write", refuse)
    dataset = {"datasetId": "digits", "projectKind": "vqa", "maxSamples": 40}
    hyperparameters = {"batchSize": 64, "epochs": 1}
    folder = make_attempt(
        {
            "vi-dataset": dataset,
            "vi-model": {"hyperparameters": hyperparameters, "compute": {"compile": False}},
        }
    )
    assert train_attempt(folder) == 0
    (warning,) = events_of(folder, "warning")
    assert (
        warning["message"] == "the samples of step 1 could not be written: No space left on device"
    )
