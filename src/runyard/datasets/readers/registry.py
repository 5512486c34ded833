"""The list of readers, in the order in which formats are detected, and the detection itself."""

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import Reader
from runyard.datasets.readers.captions import CaptionsReader
from runyard.datasets.readers.coco import CocoReader
from runyard.datasets.readers.conversations import ConversationsReader
from runyard.datasets.readers.csv import CsvFourCornerReader, CsvWidthHeightReader
from runyard.datasets.readers.parquet import ParquetReader
from runyard.datasets.readers.tools.create_ml import CreateMlReader
from runyard.datasets.readers.tools.cvat import CvatXmlReader
from runyard.datasets.readers.tools.datumaro import DatumaroReader
from runyard.datasets.readers.tools.label_studio import LabelStudioReader
from runyard.datasets.readers.tools.labelme import LabelMeReader
from runyard.datasets.readers.tools.via import ViaReader
from runyard.datasets.readers.vi_jsonl import ViJsonlReader
from runyard.datasets.readers.voc import PascalVocReader
from runyard.datasets.readers.webdataset import WebDatasetReader
from runyard.datasets.readers.yolo import YoloDarknetReader, YoloKerasPytorchReader
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
        cause = (
            f"no file has the format {requested}"
            if find_reader(requested)
            else f"there is no format {requested!r}"
        )
        names = ", ".join(reader.name for reader in READERS)
        report(
            make_finding(
                "FormatUnknown",
                file="",
                cause=cause,
                fix=f"name one of {names}, or auto",
                action="FileRejected",
            )
        )
    return matches[0] if matches else None


def _make_ambiguous(matches: list[tuple[Reader, list[str]]]) -> Finding:
    seen = "; ".join(f"{reader.name} ({_summarize_files(files)})" for reader, files in matches)
    return make_finding(
        "FormatUnknown",
        file=matches[0][1][0],
        cause=f"the files match {len(matches)} formats: {seen}",
        fix="name the format to use, or leave out the files of the others",
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


def _summarize_files(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
