"""The list of readers, in the order in which formats are detected, and the detection itself."""

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import Reader
from runyard.datasets.readers.captions import CaptionsReader
from runyard.datasets.readers.coco import CocoReader
from runyard.datasets.readers.conversations import ConversationsReader
from runyard.datasets.readers.csv import CsvFourCornerReader, CsvWidthHeightReader
from runyard.datasets.readers.parquet import ParquetReader
from runyard.datasets.readers.vi_jsonl import ViJsonlReader
from runyard.datasets.readers.voc import PascalVocReader
from runyard.datasets.readers.webdataset import WebDatasetReader
from runyard.datasets.readers.yolo import YoloDarknetReader, YoloKerasPytorchReader
from runyard.datasets.sources import Source, is_system_file

READERS: list[Reader] = [
    ViJsonlReader(),
    CocoReader(),
    PascalVocReader(),
    YoloKerasPytorchReader(),
    YoloDarknetReader(),
    CsvFourCornerReader(),
    CsvWidthHeightReader(),
    ConversationsReader(),
    ParquetReader(),
    WebDatasetReader(),
    CaptionsReader(),
]


def find_reader(name: str) -> Reader | None:
    """Return the reader of a format; case is ignored."""
    return next((reader for reader in READERS if reader.name.lower() == name.lower()), None)


def detect_format(
    source: Source, report: ReportFinding, *, requested: str = "auto"
) -> tuple[Reader, list[str]] | None:
    """Detect the format of the annotation files.

    Return its reader and the files, or None if there is no single match.

    Files that are neither images nor of the format are reported as ``FileIgnored``. If several
    formats match, all are named and none is used, because a wrong guess costs more than a second
    command.
    """
    if requested.lower() != "auto":
        reader = find_reader(requested)
        matches = [(reader, reader.detect(source))] if reader else []
    else:
        matches = [(reader, files) for reader in READERS if (files := reader.detect(source))]
    matches = [(reader, files) for reader, files in matches if files]
    if len(matches) > 1:
        report(_make_ambiguous(matches))
        return None
    claimed = set(matches[0][1]) if matches else set()
    for path in source.paths():
        if path not in claimed and not source.is_image(path):
            report(_make_ignored(path, matches[0][0].name if matches else None))
    if not matches and requested.lower() != "auto":
        report(_make_unmatched(source, requested))
    return matches[0] if matches else None


def _make_unmatched(source: Source, requested: str) -> Finding:
    """Make the finding about a requested format that no file has, with the detected formats."""
    is_known = find_reader(requested) is not None
    cause = (
        f"no file has the format {requested}" if is_known else f"there is no format {requested!r}"
    )
    detected = [(reader, files) for reader in READERS if (files := reader.detect(source))]
    if detected:
        cause += f"; the files match {_list_formats(detected)}"
    names = ", ".join(reader.name for reader in READERS)
    fix = f"name one of these with --format: {names}, or auto to detect the format"
    return make_finding("FormatUnknown", file="", cause=cause, fix=fix, action="FileRejected")


def _list_formats(matches: list[tuple[Reader, list[str]]]) -> str:
    return "; ".join(f"--format {reader.name}: {_list_files(files)}" for reader, files in matches)


def _make_ambiguous(matches: list[tuple[Reader, list[str]]]) -> Finding:
    choices = " or ".join(f"--format {reader.name}" for reader, _ in matches)
    return make_finding(
        "FormatUnknown",
        file=matches[0][1][0],
        cause=f"the files match {len(matches)} formats: {_list_formats(matches)}",
        fix=f"choose one with {choices}, or leave out the files of the others",
        action="FileRejected",
    )


def _make_ignored(path: str, format: str | None) -> Finding:
    if is_system_file(path):
        return make_finding("FileIgnored", file=path, cause="an operating system created it")
    whose = (
        f"it is not part of the {format} data"
        if format
        else "it is neither an image nor of a known format"
    )
    return make_finding("FileIgnored", file=path, cause=whose)


def _list_files(files: list[str]) -> str:
    """Return how many files there are, and the first of them."""
    if len(files) == 1:
        return f"1 file ({files[0]})"
    return f"{len(files):,} files ({', '.join(files[:3])}{', …' if len(files) > 3 else ''})"
