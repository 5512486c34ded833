"""Lossless formats read back what was written, for all three dataset types."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from runyard.datasets.readers.registry import find_reader
from runyard.datasets.records import (
    AssetRef,
    Contents,
    DatasetType,
    Freeform,
    GroundedPhrase,
    Interaction,
    PhraseGrounding,
    Record,
    Vqa,
)
from runyard.datasets.writers import arrow as arrow_writer
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.parquet import ParquetWriter
from runyard.datasets.writers.vi_full import ViFullWriter, merge_records

BOX = (0.1, 0.2, 1 / 3, 0.75)


def phrase(text: str, start: int, end: int) -> GroundedPhrase:
    return GroundedPhrase(
        phrase=text, start_token_index=start, end_token_index=end, bounds=[BOX, (0, 0, 1, 1)]
    )


CONTENTS: dict[DatasetType, list[Contents]] = {
    "phrase-grounding": [
        PhraseGrounding(
            caption="Eine rote Dose, « zwei »", grounded_phrases=[phrase("rote Dose", 1, 3)]
        ),
        PhraseGrounding(caption="tin", grounded_phrases=[phrase("tin", 0, 1)]),
        PhraseGrounding(caption="nothing here", grounded_phrases=[]),
    ],
    "vqa": [
        Vqa(
            interactions=[
                Interaction(order=1, question="箱は?", answer="2"),
                Interaction(order=2, question="?", answer="-"),
            ]
        ),
        Vqa(interactions=[Interaction(order=1, question="Who?", answer="She.\nHe.")]),
    ],
    "freeform": [Freeform(text="{}", prompt=""), Freeform(text='a "tin"', prompt="What, then?")],
}


def record(number: int, filename: str, contents: Contents, category: str | None = None) -> Record:
    asset = AssetRef(filename=filename, width=40, height=20)
    return Record(id=f"r{number}", asset=asset, contents=contents, category=category)


def items_of(task: DatasetType, item: Callable[..., ExportedImage]) -> list[ExportedImage]:
    content = CONTENTS[task]
    names = ["a.png", "b/a.png", "b/ä ö.png"]
    items = [
        item(name, record(n, name, content[n % len(content)], "shelf"))
        for n, name in enumerate(names)
    ]
    return [*items, item("c.png", *(record(10 + n, "c.png", one) for n, one in enumerate(content)))]


def write_items(
    writer: Any, items: Iterable[ExportedImage], folder: Path, *, with_images: bool = True
) -> Path:
    folder.mkdir(exist_ok=True)
    writer.write(items, folder, with_images=with_images)
    return folder


@pytest.mark.parametrize("task", ["phrase-grounding", "vqa", "freeform"])
def test_parquet_round_trips_every_record(
    source_folder: Any, item: Callable[..., ExportedImage], task: DatasetType
) -> None:
    items = items_of(task, item)
    write_items(ParquetWriter(), [*items, item("unsaid.png")], source_folder.folder)
    result = source_folder.check(task)
    assert result.outcome.format == "Parquet"
    assert result.records == [one for it in items for one in it.records]
    # Of the image nothing is said of.
    assert {found.code for found in result.findings} == {
        "AnnotationsAbsent"
    }  # the image without records


def test_parquet_without_images_names_them(
    source_folder: Any, item: Callable[..., ExportedImage]
) -> None:
    items = items_of("vqa", item)
    write_items(ParquetWriter(), items, source_folder.folder, with_images=False)
    for it in items:
        source_folder.put(it.asset.filename, it.read())
    assert source_folder.check("vqa").records == [one for it in items for one in it.records]


def test_parquet_is_cut_into_shards(
    source_folder: Any, item: Callable[..., ExportedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item(f"{n}.png", record(n, f"{n}.png", CONTENTS["freeform"][0])) for n in range(10)]
    size = len(items[0].read())
    monkeypatch.setattr(arrow_writer, "SHARD_BYTES", 4 * size + 40)
    monkeypatch.setattr(arrow_writer, "_GROUP_BYTES", 2 * size + 20)
    write_items(ParquetWriter(), items, source_folder.folder)
    assert sorted(path.name for path in (source_folder.folder / "data").iterdir()) == [
        "train-00000.parquet",
        "train-00001.parquet",
        "train-00002.parquet",
    ]
    assert [one.id for one in source_folder.check("freeform").records] == [
        f"r{n}" for n in range(10)
    ]


def test_parquet_says_what_its_columns_are(
    source_folder: Any, item: Callable[..., ExportedImage]
) -> None:
    """As the library ``datasets`` expects: each column has a feature, and ``image`` is an image."""
    write_items(ParquetWriter(), items_of("phrase-grounding", item), source_folder.folder)
    table = parquet.read_table(source_folder.folder / "data/train-00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["image"] == {"_type": "Image"}
    assert features["grounded_phrases"][0]["bounds"] == [[{"dtype": "float64", "_type": "Value"}]]
    assert table.schema.field("image").type == pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())]
    )


def test_an_empty_dataset_is_a_file_without_rows(source_folder: Any) -> None:
    write_items(ParquetWriter(), [], source_folder.folder)
    assert parquet.read_table(source_folder.folder / "data/train-00000.parquet").num_rows == 0


@pytest.mark.parametrize("task", ["phrase-grounding", "vqa", "freeform"])
@pytest.mark.parametrize("fraction", [None, 0.5])
def test_vi_full_pairs_images_and_lines_by_position(
    source_folder: Any,
    item: Callable[..., ExportedImage],
    task: DatasetType,
    fraction: float | None,
) -> None:
    items = [*items_of(task, item), item("unsaid.png")]
    names = [
        "a.b.PNG",
        "a.png",
        "A.PNG",
        "a-2.png",
        "x" * 200 + ".png",
        "no ending",
        "..png",
        "a.m.jpeg",
        "-.png",
    ]
    items += [
        item(f"{n}/{name}", record(100 + n, name, CONTENTS[task][0]))
        for n, name in enumerate(names)
    ]
    write_items(ViFullWriter(held_out_fraction=fraction), items, source_folder.folder)
    parts = ["dump"] if fraction is None else ["training", "validation"]
    assert sorted(path.name for path in source_folder.folder.iterdir()) == parts
    seen = 0
    for part in parts:
        images = sorted((source_folder.folder / part / "images").iterdir())
        annotations = sorted((source_folder.folder / part / "annotations").iterdir())
        assert [path.stem for path in images] == [path.stem for path in annotations]
        assert images
        for image, annotation in zip(images, annotations, strict=True):
            lines = annotation.read_text().splitlines()
            assert len(lines) == 1 or task == "freeform"
            assert all(json.loads(line)["asset"]["filename"] == image.name for line in lines)
            assert image.suffix == image.suffix.lower()
        seen += len(images)
    assert seen == len(items) - 1
    result = source_folder.check(task)
    assert result.outcome.format == "ViJsonl"
    by_id = {one.id: one for one in result.records}
    assert by_id["r1"].contents == items[1].records[0].contents and by_id["r1"].category == "shelf"
    assert not [found for found in result.findings if found.severity == "error"]


def test_vi_full_holds_out_by_content(
    source_folder: Any, item: Callable[..., ExportedImage], tmp_path: Path
) -> None:
    items = [item(f"{n}.png", record(n, f"{n}.png", CONTENTS["vqa"][0])) for n in range(40)]
    held: list[set[str]] = []
    for seed in (1, 1, 2):
        folder = write_items(
            ViFullWriter(held_out_fraction=0.25, seed=seed), items, tmp_path / f"{len(held)}"
        )
        held.append({path.name for path in (folder / "validation/images").iterdir()})
    assert held[0] == held[1] != held[2]
    assert 2 <= len(held[0]) <= 20


def test_several_records_of_an_image_become_one(item: Callable[..., ExportedImage]) -> None:
    asset = AssetRef(filename="c.png", width=40, height=20)
    [one] = merge_records(
        [record(n, "c.png", content) for n, content in enumerate(CONTENTS["vqa"])], asset
    )
    assert isinstance(one.contents, Vqa)
    assert [(i.order, i.question) for i in one.contents.interactions] == [
        (1, "箱は?"),
        (2, "?"),
        (3, "Who?"),
    ]
    [one] = merge_records(
        [record(n, "c.png", content) for n, content in enumerate(CONTENTS["phrase-grounding"])],
        asset,
    )
    assert isinstance(one.contents, PhraseGrounding)
    words = one.contents.caption.split()
    spans = [words[p.start_token_index : p.end_token_index] for p in one.contents.grounded_phrases]
    assert spans == [["rote", "Dose,"], ["tin"]]


def test_every_writer_has_a_reader() -> None:
    assert find_reader("Parquet") is not None and find_reader("ViJsonl") is not None
