from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runyard.datasets import samples
from runyard.datasets.records import PhraseGrounding, Vqa
from runyard.trainer.data.datasets import make_digits, make_digits_grounding


def pixels(path: Path) -> bytes:
    with Image.open(path, formats=["PNG"]) as image:
        assert image.mode == "RGB"
        return image.tobytes()


def test_digits_match_those_of_the_trainer(source_folder: Any) -> None:
    samples.write("digits", source_folder.folder, count=40)
    result = source_folder.check()
    assert (result.outcome.format, result.outcome.type, result.outcome.counts["errors"]) == (
        "ViJsonl",
        "vqa",
        0,
    )
    made = make_digits(seed=0, validation_fraction=0.0).train[:40]
    for record, sample in zip(result.records, made, strict=True):
        assert isinstance(record.contents, Vqa)
        [one] = record.contents.interactions
        assert (one.question, one.answer) == (sample.question, sample.truth.text)
        assert pixels(source_folder.folder / record.asset.filename) == sample.image.tobytes()


def test_canvases_match_those_of_the_trainer(source_folder: Any) -> None:
    """Without held-out scans and with seed 1, the trainer draws the same scans in order."""
    samples.write("digits-grounding", source_folder.folder, count=40)
    result = source_folder.check()
    assert (result.outcome.type, result.outcome.counts["errors"]) == ("phrase-grounding", 0)
    made = make_digits_grounding(seed=1, validation_fraction=0.0).train[:40]
    for record, sample in zip(result.records, made, strict=True):
        assert isinstance(record.contents, PhraseGrounding)
        assert record.contents.caption == sample.truth.text
        boxes = [(p.phrase, [np.round(np.multiply(b, 1024)).astype(int).tolist() for b in p.bounds])
                 for p in record.contents.grounded_phrases]  # fmt: skip
        assert boxes == [
            (g.phrase, [list(box) for box in g.boxes]) for g in sample.truth.groundings
        ]
        assert pixels(source_folder.folder / record.asset.filename) == sample.image.tobytes()


def test_every_sample_can_be_written(tmp_path: Path) -> None:
    for name in samples.SAMPLES:
        (tmp_path / name).mkdir()
        samples.write(name, tmp_path / name, count=2)
        assert len((tmp_path / name / "annotations.jsonl").read_text().splitlines()) == 2
