"""Samples of an uploaded dataset: what each record becomes, the split, and what cannot be trained on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.datasets.records import Freeform, GroundedPhrase, Interaction, PhraseGrounding, Vqa
from runyard.trainer.answers import Answer, Grounding
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.images import BrokenPicture, decoded
from runyard.trainer.data.uploaded import Selection, load_uploaded, questions_of
from runyard.trainer.errors import InvalidData

MakeVersion = Callable[..., Path]


def load(folder: Path, **changed: Any) -> Dataset:
    wanted = {"task": "vqa", "seed": 7, "validation_fraction": 0.3, "max_samples": None} | changed
    return load_uploaded(folder, name="shelves", version="0" * 16, **wanted)


def asked(*answers: str) -> Vqa:
    return Vqa(interactions=[Interaction(order=n + 1, question=f"q{n}", answer=text) for n, text in enumerate(answers)])


def parts(data: Dataset) -> tuple[set[str], set[str]]:
    """Filenames of both parts."""
    assert isinstance(data.train, Selection) and isinstance(data.validation, Selection)
    train, held_out = ({part.whole.filename(int(n)) for n in part.numbers} for part in (data.train, data.validation))
    return train, held_out


def test_each_interaction_is_a_sample_with_its_picture(make_version: MakeVersion, png: Callable[..., bytes]) -> None:
    folder = make_version({"b.png": (png(1), [asked("x", "y"), asked("z")]), "a.png": (png(2), [asked("w")])})
    data = load(folder, validation_fraction=0)
    assert [(sample.question, sample.truth.text) for sample in data.train] == [
        ("q0", "w"),
        ("q0", "x"),
        ("q1", "y"),
        ("q0", "z"),
    ]
    assert np.array_equal(np.asarray(data.train[1].image), np.asarray(Image.open(io.BytesIO(png(1)))))
    assert (len(data.validation), data.train[:2][1].truth.text) == (0, "x")


def test_a_caption_asks_for_its_boxes_in_whole_numbers() -> None:
    phrases = [
        GroundedPhrase(
            phrase="a dog", start_token_index=0, end_token_index=2, bounds=[(0.0, 0.25, 0.5, 1.0), (0.1, 0.1, 0.2, 0.2)]
        )
    ]
    found = questions_of(PhraseGrounding(caption="a dog runs", grounded_phrases=phrases))
    boxes = ((0, 256, 512, 1024), (102, 102, 205, 205))
    assert found == [("a dog runs", Answer("a dog runs", (Grounding("a dog", boxes),)))]


def test_a_text_without_a_prompt_answers_the_tasks_own_question() -> None:
    assert questions_of(Freeform(text="a shelf")) == [("Describe the picture.", Answer("a shelf"))]
    assert questions_of(Freeform(text="a shelf", prompt="What is it?"))[0][0] == "What is it?"


def test_adding_pictures_moves_none_and_names_decide_nothing(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    pictures = {f"{n:03}.png": (png(n), [asked(str(n))]) for n in range(60)}
    first, again = parts(load(make_version(dict(list(pictures.items())[10:])))), parts(load(make_version(pictures)))
    assert (first[0] <= again[0], first[1] <= again[1]) == (True, True)
    assert len(again[1]) > 0
    renamed = parts(load(make_version({f"new/{name}": item for name, item in pictures.items()})))
    assert renamed == tuple({f"new/{name}" for name in part} for part in again)
    assert parts(load(make_version(pictures), seed=8)) != again


def test_all_questions_about_a_picture_stand_on_one_side(make_version: MakeVersion, png: Callable[..., bytes]) -> None:
    pictures = {f"{n:02}{copy}.png": (png(n), [asked("x", "y")]) for n in range(20) for copy in "ab"}
    train, held_out = parts(load(make_version(pictures)))
    assert {name[:2] for name in train} & {name[:2] for name in held_out} == set()
    assert len(train) + len(held_out) == 40


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"task": "freeform"}, "holds vqa records .*, but projectKind is 'freeform'; set projectKind to 'vqa'"),
        ({"validation_fraction": 0.9}, "0 samples to train on and 1 held out .* lower validationFraction"),
        ({"validation_fraction": 0.01}, "1 samples to train on and 0 held out .* raise validationFraction"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_the_remedy(
    make_version: MakeVersion, png: Callable[..., bytes], changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidData, match=words):
        load(make_version({"a.png": (png(3), [asked("x")])}), **changed)


def test_a_version_without_a_sample_is_refused(make_version: MakeVersion, png: Callable[..., bytes]) -> None:
    with pytest.raises(InvalidData, match="has no sample"):
        load(make_version({"a.png": (png(3), [asked()])}))


def test_a_damaged_copy_is_the_machines_fault_and_proven_anew(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    folder = make_version({"a.png": (png(3), [asked("x")])})
    data = load(folder, validation_fraction=0)
    pack = next((folder / "packs").iterdir())
    pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(OSError, match="is damaged"):
        data.train[0].image.load()
    assert not (folder / "complete.json").exists()


def test_pictures_are_turned_and_scaled_to_eight_bits() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (5, 3), 200).save(turned, "JPEG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16)).save(deep, "PNG")
    assert (decoded(turned.getvalue()).size, decoded(turned.getvalue()).mode) == ((3, 5), "RGB")
    assert np.asarray(decoded(deep.getvalue()))[0, :, 0].tolist() == [0, 0x12, 0xFF]


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_says_so(data: bytes) -> None:
    with pytest.raises(BrokenPicture, match="cannot identify"):
        decoded(data)


def test_a_picture_beyond_all_bounds_is_not_decoded() -> None:
    held = io.BytesIO()
    Image.new("1", (50_000, 1_001)).save(held, "PNG")
    with pytest.raises(BrokenPicture, match="50000 x 1001 are more than"):
        decoded(held.getvalue())
