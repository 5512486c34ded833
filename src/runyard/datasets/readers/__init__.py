"""Formats in. Each module has one ``Reader``; ``READERS`` is the order in which detection asks them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.records import DatasetType, Record
from runyard.datasets.sources import Source, is_litter


class Spot(NamedTuple):
    """Where in a file something stands."""

    line: int | None
    field: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it was read, and where. Boxes are shares of the picture already; whether they fit is checked later.

    ``frame`` is the width and height that the file claims for the picture, if it claims any. ``unit`` is what the file
    counts boxes in, and ``spots[i][j]`` where box ``j`` of phrase ``i`` stands, in formats where that is not the place
    of the row. ``defects`` are parts that could not be read: whoever checks the row tells them, and decides whether the
    rest is taken.
    """

    record: Record
    file: str
    line: int | None = None
    field: str | None = None
    frame: tuple[int, int] | None = None
    unit: Literal["share", "pixel"] = "share"
    spots: Sequence[Sequence[Spot]] | None = None
    defects: Sequence[Finding] = ()


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


# The modules of the formats need the names above, so they come last.
from runyard.datasets.readers.captions import Captions  # noqa: E402
from runyard.datasets.readers.coco import Coco  # noqa: E402
from runyard.datasets.readers.conversations import Conversations  # noqa: E402
from runyard.datasets.readers.csv import CsvFourCorner, CsvWidthHeight  # noqa: E402
from runyard.datasets.readers.parquet import Parquet  # noqa: E402
from runyard.datasets.readers.vi_jsonl import ViJsonl  # noqa: E402
from runyard.datasets.readers.voc import PascalVoc  # noqa: E402
from runyard.datasets.readers.webdataset import WebDataset  # noqa: E402
from runyard.datasets.readers.yolo import YoloDarknet, YoloKerasPytorch  # noqa: E402

READERS: list[Reader] = [
    ViJsonl(),
    Coco(),
    PascalVoc(),
    YoloKerasPytorch(),
    YoloDarknet(),
    CsvFourCorner(),
    CsvWidthHeight(),
    Conversations(),
    Parquet(),
    WebDataset(),
    Captions(),
]


def by_name(name: str) -> Reader | None:
    """The reader of that format, upper and lower case alike."""
    return next((reader for reader in READERS if reader.name.lower() == name.lower()), None)


def detect(source: Source, say: Say, *, wanted: str = "auto") -> tuple[Reader, list[str]] | None:
    """The format of the annotation files, and which files those are; None when there are none, or it cannot be told.

    Files that the format does not claim and that are no pictures are told as ``FileIgnored``. Where several formats
    claim files, all are named and none is taken: a wrong guess costs more than a second command.
    """
    if wanted.lower() != "auto":
        reader = by_name(wanted)
        claims = [(reader, reader.claims(source))] if reader else []
    else:
        claims = [(reader, files) for reader in READERS if (files := reader.claims(source))]
    claims = [(reader, files) for reader, files in claims if files]
    if len(claims) > 1:
        say(_ambiguous(claims))
        return None
    claimed = set(claims[0][1]) if claims else set()
    for path in source.paths():
        if path not in claimed and not source.is_picture(path):
            say(_ignored(path, claims[0][0].name if claims else None))
    if not claims and wanted.lower() != "auto":
        cause = f"no file is of the format {wanted}" if by_name(wanted) else f"there is no format {wanted!r}"
        names = ", ".join(reader.name for reader in READERS)
        say(finding("FormatUnknown", file="", cause=cause, cure=f"name one of {names}, or auto", action="FileRejected"))
    return claims[0] if claims else None


def _ambiguous(claims: list[tuple[Reader, list[str]]]) -> Finding:
    seen = "; ".join(f"{reader.name} ({_few(files)})" for reader, files in claims)
    return finding(
        "FormatUnknown",
        file=claims[0][1][0],
        cause=f"the files fit {len(claims)} formats: {seen}",
        cure="name the format that is meant, or leave the files of the others out",
        action="FileRejected",
    )


def _ignored(path: str, format: str | None) -> Finding:
    if is_litter(path):
        return finding("FileIgnored", file=path, cause="an operating system left it there")
    whose = f"it belongs to no {format} data" if format else "it is neither a picture nor of a known format"
    return finding("FileIgnored", file=path, cause=whose)


def _few(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
