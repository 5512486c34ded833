"""The list of readers, in the order in which formats are detected, and the detection itself."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import Reader
from runyard.datasets.readers.coco import CocoReader
from runyard.datasets.readers.conversations import ConversationsReader
from runyard.datasets.readers.csv import CsvFourCornerReader, CsvWidthHeightReader
from runyard.datasets.readers.folders.captions import CaptionsReader
from runyard.datasets.readers.folders.class_folders import explain_folders
from runyard.datasets.readers.parquet import ParquetReader
from runyard.datasets.readers.shards.webdataset import WebDatasetReader
from runyard.datasets.readers.tables.reader import TableReader
from runyard.datasets.readers.tables.row_forms import explain_table, find_tables
from runyard.datasets.readers.text_labels.dota import DotaReader
from runyard.datasets.readers.text_labels.kitti import KittiReader
from runyard.datasets.readers.text_labels.yolo import YoloDarknetReader, YoloKerasPytorchReader
from runyard.datasets.readers.tools.create_ml import CreateMlReader
from runyard.datasets.readers.tools.cvat import CvatXmlReader
from runyard.datasets.readers.tools.datumaro import DatumaroReader
from runyard.datasets.readers.tools.label_studio import LabelStudioReader
from runyard.datasets.readers.tools.labelme import LabelMeReader
from runyard.datasets.readers.tools.recognized import RecognizedFormat, recognize
from runyard.datasets.readers.tools.via import ViaReader
from runyard.datasets.readers.vi_jsonl import ViJsonlReader
from runyard.datasets.readers.voc import PascalVocReader
from runyard.datasets.sources import Source, is_system_file

READERS: list[Reader] = [
    ViJsonlReader(),
    CocoReader(),
    PascalVocReader(),
    CvatXmlReader(),
    LabelMeReader(),
    LabelStudioReader(),
    DatumaroReader(),
    CreateMlReader(),
    ViaReader(),
    YoloKerasPytorchReader(),
    YoloDarknetReader(),
    DotaReader(),
    KittiReader(),
    CsvFourCornerReader(),
    CsvWidthHeightReader(),
    ConversationsReader(),
    ParquetReader(),
    WebDatasetReader(),
    TableReader(),
    CaptionsReader(),
]

_DATA_ENDINGS = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".xml", ".parquet", ".arrow"),
    *(".tar", ".tar.gz", ".tgz", ".zip"),
)
# Files that accompany data.
_NOT_DATA = re.compile(r"(?:readme|licen[cs]e|notice|changelog|citation|requirements|copying)\b")


def find_reader(name: str) -> Reader | None:
    """Return the reader of a format; case is ignored."""
    return next((reader for reader in READERS if reader.name.lower() == name.lower()), None)


class Detection(NamedTuple):
    """The reader of the annotation files, and these files.

    ``reader`` is None if the files match no format, or several.
    """

    reader: Reader | None
    files: list[str]


def detect_format(source: Source, report: ReportFinding, *, requested: str = "auto") -> Detection:
    """Detect the format of the annotation files.

    If several formats match, all are named and none is used, because a wrong guess costs more than
    a second command.
    """
    if requested.lower() != "auto":
        reader = find_reader(requested)
        matches = [(reader, reader.detect(source))] if reader else []
    else:
        matches = [(reader, files) for reader in READERS if (files := reader.detect(source))]
    matches = [(reader, files) for reader, files in matches if files]
    if len(matches) > 1:
        matches = _drop_claimed_tables(source, matches)
    if len(matches) > 1:
        report(_make_ambiguous(matches))
        return Detection(None, sorted({path for _, files in matches for path in files}))
    if not matches and requested.lower() != "auto":
        report(_make_unmatched(source, requested))
    return Detection(*matches[0]) if matches else Detection(None, [])


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


def _drop_claimed_tables(
    source: Source, matches: list[tuple[Reader, list[str]]]
) -> list[tuple[Reader, list[str]]]:
    """Leave files to the other formats: tables are recognized by common names of columns alone."""
    others = {
        path for reader, files in matches if not isinstance(reader, TableReader) for path in files
    }
    tables = set(find_tables(source)) - others
    return [
        (reader, files)
        for reader, files in matches
        if not isinstance(reader, TableReader) or not tables.isdisjoint(files)
    ]


def _make_ambiguous(matches: list[tuple[Reader, list[str]]]) -> Finding:
    choices = " or ".join(f"--format {reader.name}" for reader, _ in matches)
    return make_finding(
        "FormatUnknown",
        file=matches[0][1][0],
        cause=f"the files match {len(matches)} formats: {_list_formats(matches)}",
        fix=f"choose one with {choices}, or leave out the files of the others",
        action="FileRejected",
    )


def report_unread(
    source: Source,
    read: Sequence[str],
    report: ReportFinding,
    *,
    reader: Reader | None,
    has_rows: bool,
) -> None:
    """Report every file that is neither an image nor was read.

    If no row was read, a file that looks like data is an error: it may be the labels.
    """
    if reader is None and (folders := explain_folders(source)) is not None:
        report(folders)
    known = set(read)
    for path in source.paths():
        if path in known or source.is_image(path):
            continue
        tool = recognize(source, path)
        if not has_rows and (tool is not None or _looks_like_data(path)):
            report(_make_unread(source, path, tool))
        else:
            report(_make_ignored(path, reader.name if reader else None, tool))


def _looks_like_data(path: str) -> bool:
    base = path.rpartition("/")[2].lower()
    return base.endswith(_DATA_ENDINGS) and _NOT_DATA.match(base) is None


def _make_unread(source: Source, path: str, tool: RecognizedFormat | None) -> Finding:
    if tool is None and (cause := explain_table(source, path)) is not None:
        cause = f"no labels were read: {cause}"
        fix = "name the columns so, or write rows such as {file_name, question, answer}"
    elif tool is None:
        names = ", ".join(reader.name for reader in READERS)
        cause = "no labels were read, and this file has none of the known formats"
        fix = f"export the labels as one of {names}, or remove the file if it has no labels"
    else:
        cause = f"no labels were read; this file is {tool.tool}, which is not supported"
        fix = f"export instead: {tool.export}"
    return make_finding("FormatUnknown", file=path, cause=cause, fix=fix, action="FileRejected")


def _make_ignored(path: str, format: str | None, tool: RecognizedFormat | None) -> Finding:
    if tool is not None:
        cause = f"it is {tool.tool}, which is not supported"
        fix = f"export instead if it has labels: {tool.export}"
        return make_finding("FileIgnored", file=path, cause=cause, fix=fix)
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
