"""Formats in. Each module has one ``Reader``; ``READERS`` is the order in which detection asks them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from runyard.datasets.findings import Say
from runyard.datasets.records import DatasetType, Record
from runyard.datasets.sources import Source


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it was read, and where. Boxes are shares of the picture already; whether they fit is checked later.

    ``frame`` is the width and height that the file claims for the picture, if it claims any.
    """

    record: Record
    file: str
    line: int | None = None
    field: str | None = None
    frame: tuple[int, int] | None = None


class Reader(Protocol):
    """One format."""

    name: str
    types: tuple[DatasetType, ...]  # what it can carry

    def claims(self, source: Source) -> list[str]:
        """The annotation files of this format among the files; looks at names and the first KiB at most."""
        ...

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        """Every row that can be read, in the order of the files; what cannot is said. Streams: a file is never held as
        a whole where its format allows that."""
        ...
