"""The options of an import reach the reader and the checker, and unknown values are rejected."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from runyard.blobs import FolderBlobs
from runyard.datasets import ingest
from runyard.datasets.checks import Checker
from runyard.datasets.importing import JOB, PACKS, RESULT, SEALED, run
from runyard.datasets.options import (
    BOX_FORMS,
    BOX_UNITS,
    ON_BAD_BOX,
    ReadOptions,
    parse_read_options,
)
from runyard.datasets.readers.base import Row
from vi.api.resources.datasets.responses import ImportSpec

POLICIES = {"boxUnit": "percent", "boxForm": "size", "onBadBox": "drop"}
OPTIONS = ReadOptions(box_unit="percent", box_form="size", on_bad_box="drop")


class RecordingReader:
    """A reader of no rows that records the options it gets."""

    name = "Recording"
    types = ("phrase-grounding",)

    def __init__(self) -> None:
        self.seen: list[ReadOptions] = []

    def read(self, *arguments: Any) -> Iterator[Row]:
        self.seen.append(arguments[-1])
        return iter(())


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> RecordingReader:
    recording = RecordingReader()
    monkeypatch.setattr(ingest, "detect_format", lambda *_, **__: (recording, ["rows.json"]))
    return recording


@pytest.fixture
def checked_with(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The values of ``on_bad_box`` that checkers get."""
    seen: list[str] = []

    def make_checker(*arguments: Any) -> Checker:
        seen.append(arguments[-1].on_bad_box)
        return Checker(*arguments)

    monkeypatch.setattr(ingest, "Checker", make_checker)
    return seen


def test_options_of_a_check_reach_reader_and_checker(
    tmp_path: Path, reader: RecordingReader, checked_with: list[str]
) -> None:
    (tmp_path / "rows.json").write_text("[]")
    ingest.check_folder(tmp_path, dataset_type="phrase-grounding", options=OPTIONS)
    assert reader.seen == [OPTIONS]
    assert checked_with == ["drop"]
    ingest.check_folder(tmp_path, dataset_type="phrase-grounding")
    assert reader.seen[-1] == ReadOptions()
    assert checked_with == ["drop", "reject"]


def test_options_of_an_import_reach_reader_and_checker(
    tmp_path: Path, reader: RecordingReader, checked_with: list[str]
) -> None:
    blobs, sha256 = FolderBlobs(tmp_path / "blobs"), hashlib.sha256(b"[]").hexdigest()
    blobs.put(io.BytesIO(b"[]"), sha256=sha256, size_bytes=2)
    received = {"sha256": sha256, "size": 2, "number": 1, "path": "rows.json"}
    job = {"blobsDir": str(blobs.root), "datasetType": "phrase-grounding", "policies": POLICIES}
    (tmp_path / JOB).write_text(json.dumps(job))
    (tmp_path / PACKS).write_text(json.dumps(received) + "\n")
    (tmp_path / SEALED).write_text("{}")
    run(tmp_path)
    assert (tmp_path / RESULT).exists()
    assert reader.seen == [OPTIONS]
    assert checked_with == ["drop"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("boxUnit", BOX_UNITS), ("boxForm", BOX_FORMS), ("onBadBox", ON_BAD_BOX)],
)
def test_an_unknown_option_is_rejected_with_the_allowed_values(
    name: str, allowed: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=f"{name} is 'px'; it must be one of {allowed[0]}, "):
        parse_read_options({name: "px"})
    for value in allowed:
        parse_read_options({name: value})


def test_policies_without_options_are_the_defaults() -> None:
    assert parse_read_options({"onError": "Warn"}) == ReadOptions()
    assert parse_read_options(POLICIES) == OPTIONS


def test_the_sdk_knows_the_same_options() -> None:
    hints, defaults = get_type_hints(ImportSpec), ImportSpec()
    for name, allowed in (
        ("box_unit", BOX_UNITS),
        ("box_form", BOX_FORMS),
        ("on_bad_box", ON_BAD_BOX),
    ):
        assert get_args(hints[name]) == allowed
        assert getattr(defaults, name) == getattr(ReadOptions(), name)
