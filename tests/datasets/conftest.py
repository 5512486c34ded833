"""Folders of images and labels, and the check of an import of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from runyard.datasets.findings import Finding
from runyard.datasets.ingest import IngestOutcome, RecordCounter, check_folder
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.records import AssetRef, DatasetType, Record
from runyard.datasets.writers.base import ExportedImage


def png(width: int = 40, height: int = 20, color: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, "PNG")
    return out.getvalue()


class KeptRecords(RecordCounter):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        super().add(record)
        self.records.append(record)

    def drop(self, numbers: Collection[int]) -> None:
        super().drop(numbers)
        kept = enumerate(self.records)
        self.records = [record for number, record in kept if number not in numbers]


@dataclass
class CheckResult:
    """The result of checking a folder."""

    outcome: IngestOutcome
    records: list[Record]
    findings: list[Finding] = field(default_factory=list)

    @property
    def codes(self) -> list[str]:
        return [found.code for found in self.findings]


@dataclass
class SourceFolder:
    """A folder to put files into."""

    folder: Path

    def put(self, path: str, data: bytes | str) -> SourceFolder:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        return self

    def check(
        self,
        task: DatasetType | None = None,
        format: str = "auto",
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> CheckResult:
        findings: list[Finding] = []
        records = KeptRecords()
        outcome = check_folder(
            self.folder,
            dataset_type=task,
            format=format,
            on_finding=findings.append,
            records=records,
            options=options,
        )
        return CheckResult(outcome, records.records, findings)


@pytest.fixture
def source_folder(tmp_path: Path) -> SourceFolder:
    (tmp_path / "shelf").mkdir()
    return SourceFolder(tmp_path / "shelf")


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    """Bytes of a PNG of one color: ``make_png(width, height, color)``."""
    return png


@pytest.fixture
def item() -> Callable[..., ExportedImage]:
    """Make an image with records: ``item("a.png", record, ...)``.

    Its color follows from its name.
    """

    def make(filename: str, *records: Record) -> ExportedImage:
        red, green, blue, *_ = hashlib.sha256(filename.encode()).digest()
        data = png(color=(red, green, blue))
        asset = AssetRef(filename=filename, width=40, height=20)
        return ExportedImage(asset, hashlib.sha256(data).hexdigest(), list(records), lambda: data)

    return make
