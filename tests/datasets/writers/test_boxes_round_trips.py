"""Detection formats round-trip their data, as far as they can represent it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.datasets.readers.registry import find_reader
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    Freeform,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
    make_grounding,
)
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.csv import CsvFourCornerWriter, CsvWidthHeightWriter
from runyard.datasets.writers.registry import WRITERS, find_writer

BOXES: dict[str, list[tuple[str, Box]]] = {
    "a.png": [
        ("red tin", (0.1, 0.2, 1 / 3, 0.75)),
        ("box", (0.0, 0.0, 1.0, 1.0)),
        ("red tin", (0.5, 0.5, 0.9, 0.95)),
    ],
    "shelf/a.png": [("per", (0.25, 0.25, 0.5, 0.5)), ("person", (0.0, 0.1, 0.125, 1.0))],
    "ä ö.png": [("\"quoted\", & <b> 'c'", (0.01, 0.02, 0.06, 0.09)), ("箱", (0.3, 0.3, 0.6, 0.6))],
    "empty.png": [],
}
DETECTION = [
    "Coco",
    "PascalVoc",
    "YoloDarknet",
    "YoloKerasPytorch",
    "CsvFourCorner",
    "CsvWidthHeight",
]
Make = Callable[..., ExportedImage]


def record(number: int, filename: str, contents: Contents) -> Record:
    return Record(
        id=f"r{number}", asset=AssetRef(filename=filename, width=40, height=20), contents=contents
    )


def detection_items(item: Make) -> list[ExportedImage]:
    return [
        item(name, *([record(n, name, make_grounding(boxes))] if boxes else []))
        for n, (name, boxes) in enumerate(BOXES.items())
    ]


def flatten_boxes(contents: PhraseGrounding) -> list[tuple[str, list[Any]]]:
    return [
        (one.phrase, [pytest.approx(box, abs=4e-6) for box in one.bounds])
        for one in contents.grounded_phrases
    ]


def assert_same(source_folder: Any, item: Make, format: str) -> None:
    result = source_folder.check("phrase-grounding")
    assert result.outcome.format == format
    assert [found for found in result.findings if found.code != "AnnotationsAbsent"] == []
    by_image = {one.asset.filename.removeprefix("images/"): one.contents for one in result.records}
    expected = {
        one.asset.filename: one.records[0].contents for one in detection_items(item) if one.records
    }
    assert {name: contents.caption for name, contents in by_image.items()} == {
        name: contents.caption
        for name, contents in expected.items()
        if isinstance(contents, PhraseGrounding)
    }
    for name, contents in expected.items():
        assert isinstance(contents, PhraseGrounding)
        spans = [
            (one.start_token_index, one.end_token_index) for one in by_image[name].grounded_phrases
        ]
        assert spans == [
            (one.start_token_index, one.end_token_index) for one in contents.grounded_phrases
        ]
        assert [
            (one.phrase, one.bounds) for one in by_image[name].grounded_phrases
        ] == flatten_boxes(contents)


@pytest.mark.parametrize("format", DETECTION)
def test_boxes_and_names_round_trip(source_folder: Any, item: Make, format: str) -> None:
    writer = find_writer(format)
    assert writer is not None
    writer.write(detection_items(item), source_folder.folder, with_images=True)
    assert_same(source_folder, item, format)


@pytest.mark.parametrize(
    "writer", [CsvFourCornerWriter(is_normalized=False), CsvWidthHeightWriter(is_normalized=False)]
)
def test_csv_in_pixels_round_trips(source_folder: Any, item: Make, writer: Any) -> None:
    writer.write(detection_items(item), source_folder.folder, with_images=True)
    assert_same(source_folder, item, writer.name)


@pytest.mark.parametrize("format", DETECTION)
def test_annotations_alone_have_no_images(item: Make, tmp_path: Path, format: str) -> None:
    writer = find_writer(format)
    assert writer is not None
    writer.write(detection_items(item), tmp_path, with_images=False)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.suffix == ".png"]


def test_vi_jsonl_round_trips_every_record_of_every_type(
    source_folder: Any, item: Make, tmp_path: Path
) -> None:
    contents: dict[str, list[Contents]] = {
        "vqa": [Vqa(interactions=[Interaction(order=1, question="箱?", answer="2\n3")])],
        "freeform": [Freeform(text="a"), Freeform(text="b", prompt="c")],
        "phrase-grounding": [
            make_grounding(BOXES["a.png"]),
            PhraseGrounding(caption="nothing", grounded_phrases=[]),
        ],
    }
    for task, content in contents.items():
        folder = tmp_path / task
        folder.mkdir()
        items = [
            item("x/a.png", *(record(n, "x/a.png", one) for n, one in enumerate(content))),
            item("b.png"),
        ]
        writer = find_writer("ViJsonl")
        assert writer is not None
        writer.write(items, folder, with_images=True)
        result = type(source_folder)(folder).check()
        assert (result.outcome.type, result.outcome.format, result.codes) == (
            task,
            "ViJsonl",
            ["AnnotationsAbsent"],
        )
        assert result.records == items[0].records


def test_coco_carries_texts_as_captions(source_folder: Any, item: Make) -> None:
    texts = [Freeform(text="a tin"), Freeform(text="two")]
    writer = find_writer("Coco")
    assert writer is not None
    writer.write(
        [item("a.png", *(record(n, "a.png", one) for n, one in enumerate(texts)))],
        source_folder.folder,
        with_images=True,
    )
    assert [one.contents for one in source_folder.check("freeform").records] == texts


@pytest.mark.parametrize("format", ["PascalVoc", "YoloDarknet", "YoloKerasPytorch"])
def test_images_that_differ_only_in_their_suffix_keep_their_labels(
    source_folder: Any, item: Make, format: str
) -> None:
    boxes = [("tin", (0.0, 0.0, 0.5, 0.5)), ("box", (0.5, 0.5, 1.0, 1.0))]
    items = [
        item(name, record(n, name, make_grounding([boxes[n]])))
        for n, name in enumerate(["a.png", "a.PNG"])
    ]
    writer = find_writer(format)
    assert writer is not None
    writer.write(items, source_folder.folder, with_images=True)
    result = source_folder.check()
    assert result.findings == []
    assert sorted(one.contents.caption for one in result.records) == ["box", "tin"]


@pytest.mark.parametrize("format", ["ViJsonl", *DETECTION])
def test_no_name_leads_out_of_the_folder(item: Make, tmp_path: Path, format: str) -> None:
    writer = find_writer(format)
    assert writer is not None
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ValueError, match="not a plain relative path"):
        writer.write(
            [item("../a.png", record(1, "../a.png", make_grounding(BOXES["a.png"])))],
            folder,
            with_images=True,
        )
    assert list(tmp_path.iterdir()) == [folder]


def test_readers_accept_what_their_writers_write() -> None:
    for writer in WRITERS:
        reader = find_reader("ViJsonl" if writer.name == "ViFull" else writer.name)
        assert reader is not None
        assert set(writer.types) <= set(reader.types)
