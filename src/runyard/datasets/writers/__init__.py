"""Formats out. Each module has one ``Writer``, which lays a dataset out below a folder; ``WRITERS`` lists them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runyard.datasets.records import AssetRef, DatasetType, Record


@dataclass(frozen=True, slots=True)
class Item:
    """One picture with everything that is said of it. ``read`` gives its bytes, as they were imported."""

    asset: AssetRef
    sha256: str
    records: list[Record]
    read: Callable[[], bytes]


class Writer(Protocol):
    """One format. What it cannot carry is left out, and ``loses`` says what that is."""

    name: str  # as in the wire's ``spec.format``
    types: tuple[DatasetType, ...]
    loses: str  # for people; empty when everything is carried

    def write(self, items: Iterable[Item], folder: Path, *, with_pictures: bool) -> None:
        """Write all items, streaming. The folder exists and is empty."""
        ...


# The modules of the formats need the names above, so they come last.
from runyard.datasets.writers.coco import Coco  # noqa: E402
from runyard.datasets.writers.csv import CsvFourCorner, CsvWidthHeight  # noqa: E402
from runyard.datasets.writers.parquet import Parquet  # noqa: E402
from runyard.datasets.writers.vi_full import ViFull  # noqa: E402
from runyard.datasets.writers.vi_jsonl import ViJsonl  # noqa: E402
from runyard.datasets.writers.voc import PascalVoc  # noqa: E402
from runyard.datasets.writers.yolo import YoloDarknet, YoloKerasPytorch  # noqa: E402

WRITERS: list[Writer] = [
    ViFull(),
    ViJsonl(),
    Coco(),
    PascalVoc(),
    YoloKerasPytorch(),
    YoloDarknet(),
    CsvFourCorner(),
    CsvWidthHeight(),
    Parquet(),
]


def by_name(name: str) -> Writer | None:
    """The writer of that format, upper and lower case alike."""
    return next((writer for writer in WRITERS if writer.name.lower() == name.lower()), None)
