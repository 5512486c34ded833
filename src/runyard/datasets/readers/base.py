"""The rows that every reader yields, and the protocol of a reader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from runyard.datasets.findings import Finding, ReportFinding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.records import DatasetType, Record
from runyard.datasets.sources import Source


class BoxLocation(NamedTuple):
    """The line and field of a box in its file."""

    line: int | None
    field: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A record as read, and its location.

    Boxes are fractions of the image; ``checks`` validates them later.

    ``frame`` is the image's width and height according to the file, if given. ``unit`` is the unit
    of boxes in the file. ``box_locations[i][j]`` locates box ``j`` of phrase ``i``, in formats
    where that differs from the row's location. ``findings`` are about parts that could not be read:
    the checker reports them, and decides whether the rest of the row is kept. ``is_unit_chosen``
    means that the reader has read the boxes in the unit that the user chose, if any; otherwise the
    checker converts them.
    """

    record: Record
    file: str
    line: int | None = None
    field: str | None = None
    frame: tuple[int, int] | None = None
    unit: Literal["fraction", "pixel"] = "fraction"
    box_locations: Sequence[Sequence[BoxLocation]] | None = None
    findings: Sequence[Finding] = ()
    is_unit_chosen: bool = False


class Reader(Protocol):
    """A reader of one format."""

    name: str
    types: tuple[DatasetType, ...]  # that the format can carry

    def detect(self, source: Source) -> list[str]:
        """List the annotation files of this format.

        Read names, and at most the first MiB of each file.
        """
        ...

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        """Yield every row that can be read, in the order of the files, and report what cannot.

        Files are streamed, and never held in memory as a whole if the format allows it.
        """
        ...


@runtime_checkable
class TypeFinder(Protocol):
    """A reader that finds the type of its data without reading it, which can take minutes."""

    def find_type(self, source: Source, files: list[str]) -> DatasetType | None:
        """Return the type of the rows; None if only reading shows it."""
        ...
