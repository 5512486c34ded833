"""The items that every writer gets, and the protocol of a writer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from runyard.datasets.records import AssetRef, DatasetType, Record
from runyard.datasets.splits import Split


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """One image with all its records. ``read`` returns its bytes, as they were imported.

    Its records have the same split.
    """

    asset: AssetRef
    sha256: str
    records: list[Record]
    read: Callable[[], bytes]
    split: Split | None = None


class Writer(Protocol):
    """A writer of one format.

    It leaves out what the format cannot carry, described by ``loses``.
    """

    name: str  # as in ``spec.format`` on the wire
    types: tuple[DatasetType, ...]
    loses: str  # for people; empty when everything is carried

    def write(self, items: Iterable[ExportedImage], folder: Path, *, with_images: bool) -> None:
        """Write all items, streaming. The folder exists and is empty."""
        ...
