"""Formats out. Each module has one ``Writer``, which lays a dataset out below a folder."""

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
