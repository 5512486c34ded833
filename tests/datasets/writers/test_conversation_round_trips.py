"""Every format that can carry conversations reads back what was written."""

import hashlib
import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from runyard.datasets.ingest import check_folder
from runyard.datasets.readers.stand_ins import STAND_IN_SHA256, make_stand_in
from runyard.datasets.records import (
    AssetRef,
    Contents,
    Conversation,
    DatasetType,
    Freeform,
    Interaction,
    Record,
    Turn,
    Vqa,
)
from runyard.datasets.writers.base import ExportedImage
from runyard.datasets.writers.coco import CocoWriter
from runyard.datasets.writers.conversations import ConversationsWriter
from runyard.datasets.writers.registry import find_writer
from runyard.datasets.writers.vi_full import ViFullWriter
from tests.datasets.conftest import KeptRecords, png

PAIRED = ("images", "annotations")
NAMES = ("a.png", "b/a.png", "b/ä ö.png", "c.x.png")
# Formats strip texts, and a mark is never a part of another word.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="<"), min_size=1)
STRIPPED = TEXTS.map(str.strip).filter(bool)


@st.composite
def conversations(draw: st.DrawFn, name: str) -> Conversation:
    """Draw a conversation about one image, or several that begin with ``name``."""
    images = [name, *draw(st.lists(st.sampled_from(NAMES), max_size=2))]
    count = draw(st.integers(1, 3))
    turns = [Turn("assistant" if n % 2 else "user", draw(STRIPPED)) for n in range(2 * count)]
    if len(images) > 1:
        for _ in images:
            number = 2 * draw(st.integers(0, count - 1))
            text = turns[number].content
            turns[number] = Turn(
                "user", draw(st.sampled_from([f"<image>{text}", f"{text} <image>"]))
            )
    if count == 1 or draw(st.booleans()):
        turns.insert(0, Turn("system", draw(STRIPPED)))
    return Conversation(images=images if len(images) > 1 else [], turns=turns)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[DatasetType, dict[str, list[Contents]]]:
    """Draw a dataset type, and the contents of each image."""
    task: DatasetType = draw(st.sampled_from(("vqa", "freeform")))

    def make_simple(pair: tuple[str, str]) -> Contents:
        if task == "vqa":
            return Vqa([Interaction(1, *pair)])
        return Freeform(prompt=pair[0], text=pair[1])

    simple = st.tuples(STRIPPED, STRIPPED).map(make_simple)
    contents = {
        name: draw(st.lists(st.one_of(conversations(name), simple), max_size=2)) for name in NAMES
    }
    assume(any(contents.values()))
    return task, contents


def make_items(contents: dict[str, list[Contents]]) -> list[ExportedImage]:
    items = []
    for number, (name, some) in enumerate(sorted(contents.items())):
        asset = AssetRef(filename=name, width=40 + number, height=20)
        records = [
            Record(id=f"{name}-{n}", asset=asset, contents=one) for n, one in enumerate(some)
        ]
        items.append(
            ExportedImage(
                asset,
                hashlib.sha256(name.encode()).hexdigest(),
                records,
                partial(png, 40 + number, 20),
            )
        )
    return items


def read_back(
    writer: Any, items: list[ExportedImage], task: DatasetType
) -> tuple[list[Record], list[str]]:
    """Write and read; return the records by id, and the codes of all errors."""
    with tempfile.TemporaryDirectory() as folder:
        writer.write(items, Path(folder), with_images=True)
        findings: list[Any] = []
        kept = KeptRecords()
        check_folder(folder, dataset_type=task, on_finding=findings.append, records=kept)
    errors = [f"{found.code}: {found.cause}" for found in findings if found.severity == "error"]
    return sorted(kept.records, key=lambda record: record.id), errors


@pytest.mark.parametrize("format", ["ViJsonl", "Parquet", "Conversations"])
@settings(max_examples=30, deadline=None)
@given(made=datasets())
def test_conversations_are_read_back_as_they_were(
    format: str, made: tuple[DatasetType, dict[str, list[Contents]]]
) -> None:
    task, contents = made
    items = make_items(contents)
    written = sorted((r for item in items for r in item.records), key=lambda record: record.id)
    records, errors = read_back(find_writer(format), items, task)
    assert errors == []
    assert records == written


@pytest.mark.parametrize("format", ["ViJsonl", "Parquet", "Conversations"])
def test_rows_of_text_only_are_read_back(format: str) -> None:
    image = make_stand_in()
    assert Image.open(io.BytesIO(image)).convert("RGB").getcolors() == [(256, (192, 192, 192))]
    asset = AssetRef(filename="text.png", width=16, height=16)
    contents = Conversation(
        turns=[Turn("user", "Why?"), Turn("assistant", "So.")], is_text_only=True
    )
    item = ExportedImage(
        asset, STAND_IN_SHA256, [Record(id="7", asset=asset, contents=contents)], lambda: image
    )
    (record,), errors = read_back(find_writer(format), [item], "vqa")
    assert (errors, record.id, record.contents) == ([], "7", contents)
    expected = "conversations/text-000001.png" if format == "Conversations" else "text.png"
    assert record.asset.filename == expected


@pytest.mark.parametrize("fraction", [None, 0.5])
@settings(max_examples=30, deadline=None)
@given(made=datasets())
def test_vi_full_keeps_conversations_and_renames_their_images(
    fraction: float | None, made: tuple[DatasetType, dict[str, list[Contents]]]
) -> None:
    task, contents = made
    items = make_items(contents)
    widths = {item.asset.filename: item.asset.width for item in items}
    written = [
        (record.contents.turns, [widths[name] for name in record.contents.images])
        for item in items
        for record in item.records
        if isinstance(record.contents, Conversation)
    ]
    with tempfile.TemporaryDirectory() as folder:
        ViFullWriter(held_out_fraction=fraction).write(items, Path(folder), with_images=True)
        kept, findings = KeptRecords(), list[Any]()
        sizes: dict[str, int] = {}

        def keep_size(facts: Any, *_: Any) -> None:
            sizes[facts.path] = facts.width

        check_folder(
            folder,
            dataset_type=task,
            on_finding=findings.append,
            on_image=keep_size,
            records=kept,
        )
        for part in Path(folder).iterdir():
            names = [sorted(p.stem for p in (part / name).iterdir()) for name in PAIRED]
            assert names[0] == names[1]
    assert [found.code for found in findings if found.severity == "error"] == []
    again = [
        (record.contents.turns, [sizes[name] for name in record.contents.images])
        for record in kept.records
        if isinstance(record.contents, Conversation)
    ]
    assert sorted(again, key=repr) == sorted(written, key=repr)


def test_llava_rows_are_written_with_their_marks(tmp_path: Path) -> None:
    several = Conversation(
        images=["a.png", "b/a.png"],
        turns=[Turn("user", "<image><image>Same?"), Turn("assistant", "No.")],
    )
    alone = Conversation(
        turns=[
            Turn("system", "Be brief."),
            Turn("user", "What?"),
            Turn("assistant", "A tin."),
        ]
    )
    questions = Vqa([Interaction(1, "Who?", "She."), Interaction(2, "Where?", "Here.")])
    items = make_items({"a.png": [several, questions], "b/a.png": [alone]})
    ConversationsWriter().write(items, tmp_path, with_images=False)
    rows = json.loads((tmp_path / "conversations.json").read_text())
    assert rows == [
        {
            "id": "a.png-0",
            "image": ["a.png", "b/a.png"],
            "conversations": [
                {"from": "human", "value": "<image><image>Same?"},
                {"from": "gpt", "value": "No."},
            ],
        },
        {
            "id": "a.png-1",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWho?"},
                {"from": "gpt", "value": "She."},
            ],
        },
        {
            "id": "a.png-1-2",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhere?"},
                {"from": "gpt", "value": "Here."},
            ],
        },
        {
            "id": "b/a.png-0",
            "image": "b/a.png",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "A tin."},
            ],
        },
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["conversations.json"]


def test_an_empty_dataset_is_an_empty_list(tmp_path: Path) -> None:
    ConversationsWriter().write([], tmp_path, with_images=True)
    assert json.loads((tmp_path / "conversations.json").read_text()) == []


def test_coco_names_conversations_as_lost() -> None:
    assert "conversations" in CocoWriter().loses
