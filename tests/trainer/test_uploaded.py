"""Samples of an uploaded dataset: conversion of records, the split, and refusals."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.datasets.pixels import BrokenImage, decode_image
from runyard.datasets.records import (
    Conversation,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Turn,
    Vqa,
)
from runyard.datasets.splits import Split
from runyard.trainer.answers import Answer, Grounding
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.uploaded import (
    DESCRIBE,
    SampleSelection,
    list_questions,
    load_uploaded,
)
from runyard.trainer.errors import InvalidData

MakeVersion = Callable[..., Path]


def load(folder: Path, **changed: Any) -> Dataset:
    options: dict[str, Any] = {
        "task": "vqa",
        "seed": 7,
        "validation_fraction": 0.3,
        "max_samples": None,
    } | changed
    return load_uploaded(folder, name="shelves", version="0" * 16, **options)


def asked(*answers: str) -> Vqa:
    return Vqa(
        interactions=[
            Interaction(order=n + 1, question=f"q{n}", answer=text)
            for n, text in enumerate(answers)
        ]
    )


def parts(data: Dataset) -> tuple[set[str], set[str]]:
    """Return the file names of both splits."""
    assert isinstance(data.train, SampleSelection) and isinstance(data.validation, SampleSelection)
    train, held_out = (
        {part.whole.filename(int(n)) for n in part.numbers}
        for part in (data.train, data.validation)
    )
    return train, held_out


def test_each_interaction_is_a_sample_with_its_image(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    folder = make_version(
        {"b.png": (png(1), [asked("x", "y"), asked("z")]), "a.png": (png(2), [asked("w")])}
    )
    data = load(folder, validation_fraction=0)
    assert [(sample.question, sample.truth.text) for sample in data.train] == [
        ("q0", "w"),
        ("q0", "x"),
        ("q1", "y"),
        ("q0", "z"),
    ]
    assert np.array_equal(
        np.asarray(data.train[1].image), np.asarray(Image.open(io.BytesIO(png(1))))
    )
    assert (len(data.validation), data.train[:2][1].truth.text) == (0, "x")


def test_a_caption_becomes_a_question_for_its_boxes() -> None:
    phrases = [
        GroundedPhrase(
            phrase="a dog",
            start_token_index=0,
            end_token_index=2,
            bounds=[(0.0, 0.25, 0.5, 1.0), (0.1, 0.1, 0.2, 0.2)],
        )
    ]
    found = list_questions(PhraseGrounding(caption="a dog runs", grounded_phrases=phrases))
    boxes = ((0, 256, 512, 1024), (102, 102, 205, 205))
    assert found == [("a dog runs", Answer("a dog runs", (Grounding("a dog", boxes),)))]


def test_a_text_without_a_prompt_answers_the_default_question() -> None:
    assert list_questions(Freeform(text="a shelf")) == [
        ("Describe the picture.", Answer("a shelf"))
    ]
    assert list_questions(Freeform(text="a shelf", prompt="What is it?"))[0][0] == "What is it?"


def talk(
    *texts: str, images: list[str] | None = None, system: str = "", is_text_only: bool = False
) -> Conversation:
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]
    return Conversation(
        turns=[Turn("system", system), *turns] if system else turns,
        images=images or [],
        is_text_only=is_text_only,
    )


@pytest.mark.parametrize("task", ["vqa", "freeform"])
def test_a_conversation_is_a_sample_that_ends_with_its_last_answer(
    make_version: MakeVersion, png: Callable[..., bytes], task: str
) -> None:
    conversation = talk("What?", "A tin.", "Is <image> red?", "Yes.", "\n<image>", "A shelf.")
    single = talk("\n<image>", "A can.")
    folder = make_version({"a.png": (png(1), [conversation, single, talk("Is <image>?", "No.")])})
    data = load(folder, task=task, validation_fraction=0)
    assert [(sample.question, sample.truth.text) for sample in data.train] == [
        (DESCRIBE, "A shelf."),
        (DESCRIBE, "A can."),
        ("Is ?", "No."),
    ]
    assert [list(sample.turns) for sample in data.train] == [
        conversation.turns,
        [],
        talk("Is <image>?", "No.").turns,
    ]


def test_a_conversation_has_its_images_in_order(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    images = ["b.png", "c.png", "a.png"]
    files: dict[str, tuple[bytes, list[Any]]] = {
        f"{x}.png": (png(n), []) for n, x in enumerate("acd")
    }
    files["b.png"] = (png(9), [talk("<image><image><image>?", "No.", images=images)])
    files["t.png"] = (png(1), [talk("Why?", "So.", is_text_only=True)])
    data = load(make_version(files), validation_fraction=0)
    shown, text = data.train
    assert (shown.filename, shown.further_filenames) == ("b.png", ("c.png", "a.png"))
    for image, content in zip(shown.images, (png(9), png(1), png(0)), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(content))))
    assert (text.images, text.is_text_only) == ([], True)
    assert data.has_text_only
    assert isinstance(data.train, SampleSelection) and data.train.image_count == 1


def test_a_broken_image_of_several_is_named(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    record = talk("<image><image>?", "No.", images=["a.png", "b.png"])
    folder = make_version(
        {"a.png": (png(1), [record]), "b.png": (png(2), [])}, claimed_sizes={"b.png": (99, 1)}
    )
    (sample,) = load(folder, validation_fraction=0).train
    with pytest.raises(BrokenImage, match=r"its image 'b.png': it has"):
        assert sample.images


def test_texts_without_an_image_are_split_one_by_one(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    data = load(
        make_version(
            {f"{n}.png": (png(1), [talk(f"q{n}", "a", is_text_only=True)]) for n in range(40)}
        )
    )
    assert 4 < len(data.validation) < 20


def test_a_conversation_of_another_task_is_refused(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    with pytest.raises(InvalidData, match=r"phrase-grounding'; try: set projectKind to 'vqa'"):
        load(make_version({"b.png": (png(2), [talk("?", "No.")])}), task="phrase-grounding")


def test_added_images_change_no_split_and_names_have_no_effect(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    images = {f"{n:03}.png": (png(n), [asked(str(n))]) for n in range(60)}
    first, again = (
        parts(load(make_version(dict(list(images.items())[10:])))),
        parts(load(make_version(images))),
    )
    assert (first[0] <= again[0], first[1] <= again[1]) == (True, True)
    assert len(again[1]) > 0
    renamed = parts(load(make_version({f"new/{name}": item for name, item in images.items()})))
    assert renamed == tuple({f"new/{name}" for name in part} for part in again)
    assert parts(load(make_version(images), seed=8)) != again


def test_all_questions_about_an_image_are_in_one_split(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    images = {f"{n:02}{copy}.png": (png(n), [asked("x", "y")]) for n in range(20) for copy in "ab"}
    train, held_out = parts(load(make_version(images)))
    assert {name[:2] for name in train} & {name[:2] for name in held_out} == set()
    assert len(train) + len(held_out) == 40


@pytest.mark.parametrize(
    ("splits", "fraction", "train", "held_out", "unused"),
    [
        ("tvxx", 0.3, "0 4", "1", 2),  # test images are left out of both parts
        ("tvvx", 0.9, "0 4", "1 2", 1),  # the fraction changes nothing
        ("tvvx", 0, "0 4", "", 1),  # except that 0 holds nothing out
        ("ttxx", 0.3, "0 1 4", "2 3", 0),  # without validation, test is held out
        ("ttxx", 0, "0 1 4", "", 2),
        ("  vv", 0.3, "0 1 4", "2 3", 0),  # images of no split are trained on
    ],
)
def test_the_dataset_s_own_split_comes_first(
    make_version: MakeVersion,
    png: Callable[..., bytes],
    splits: str,
    fraction: float,
    train: str,
    held_out: str,
    unused: int,
) -> None:
    names: dict[str, Split] = {"t": "train", "v": "validation", "x": "test"}
    own = {str(n): names[sign] for n, sign in enumerate(splits) if sign in names}
    images = {str(n): (png(n), [asked("x", "y")]) for n in range(5)}
    data = load(make_version(images, own), validation_fraction=fraction)
    assert parts(data) == (set(train.split()), set(held_out.split()))
    assert data.unused_images == unused


def test_a_version_with_only_a_train_split_is_split_by_content(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    images = {f"{n:02}": (png(n), [asked("x")]) for n in range(20)}
    plain, own = (
        load(make_version(images)),
        load(make_version(images, dict.fromkeys(images, "train"))),
    )
    assert parts(own) == parts(plain)
    assert own.held_out_split is None


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({"a": "validation", "b": "test"}, "0 training samples and 1 held out in its own split.*"),
        ({"a": "test", "b": "test"}, "0 training samples and 2 held out in its own split.*"),
    ],
)
def test_an_own_split_without_training_images_is_refused_with_a_fix(
    make_version: MakeVersion,
    png: Callable[..., bytes],
    splits: dict[str, Split],
    words: str,
) -> None:
    images = {name: (png(n), [asked("x")]) for n, name in enumerate("ab")}
    with pytest.raises(InvalidData, match=f"{words} try: .*--split ignore"):
        load(make_version(images, splits))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"task": "freeform"},
            "has vqa records .*, but projectKind is 'freeform'; try: set projectKind to 'vqa'",
        ),
        (
            {"validation_fraction": 0.9},
            "0 training samples and 1 held out .* try: a lower validationFraction",
        ),
        (
            {"validation_fraction": 0.01},
            "1 training samples and 0 held out .* try: a higher validationFraction",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_a_fix(
    make_version: MakeVersion, png: Callable[..., bytes], changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidData, match=words):
        load(make_version({"a.png": (png(3), [asked("x")])}), **changed)


def test_a_version_without_a_sample_is_refused(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    with pytest.raises(InvalidData, match="has no sample"):
        load(make_version({"a.png": (png(3), [asked()])}))


def test_a_damaged_copy_is_a_failure_of_the_machine_and_verified_again(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    folder = make_version({"a.png": (png(3), [asked("x")])})
    data = load(folder, validation_fraction=0)
    pack = next((folder / "packs").iterdir())
    pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(OSError, match="is damaged"):
        data.train[0].image.load()
    assert not (folder / "complete.json").exists()


def test_images_are_rotated_and_scaled_to_eight_bits() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (5, 3), 200).save(turned, "JPEG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16)).save(deep, "PNG")
    assert (decode_image(turned.getvalue()).size, decode_image(turned.getvalue()).mode) == (
        (3, 5),
        "RGB",
    )
    assert np.asarray(decode_image(deep.getvalue()))[0, :, 0].tolist() == [0, 0x12, 0xFF]


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_bytes_that_are_not_an_image_are_broken(data: bytes) -> None:
    with pytest.raises(BrokenImage, match="cannot identify"):
        decode_image(data)


def test_an_image_with_too_many_pixels_is_not_decoded() -> None:
    held = io.BytesIO()
    Image.new("1", (50_000, 1_001)).save(held, "PNG")
    with pytest.raises(BrokenImage, match="50000 x 1001 are more than"):
        decode_image(held.getvalue())


def test_an_image_of_another_size_than_its_record_says_is_broken(
    make_version: MakeVersion, png: Callable[..., bytes]
) -> None:
    images = {"a.png": (png(1), [asked("x")]), "b.png": (png(1), [asked("y")])}
    folder = make_version(images, claimed_sizes={"a.png": (16, 24)})
    first, second = load(folder, validation_fraction=0).train
    with pytest.raises(BrokenImage, match=r"24 x 16 .* says 16 x 24: import the dataset again"):
        first.image.load()
    assert second.image.size == (24, 16)  # the same bytes, from the images kept decoded
    with pytest.raises(BrokenImage):
        first.image.load()
