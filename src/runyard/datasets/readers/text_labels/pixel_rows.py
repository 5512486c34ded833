"""The rows of label files with boxes in pixels and the names of classes in each line."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import LabeledBox, build_row, find_image_size, to_fractions
from runyard.datasets.readers.text_labels.image_paths import LabelImages
from runyard.datasets.readers.text_labels.label_lines import is_too_large, read_label_lines
from runyard.datasets.readers.text_labels.text_kinds import find_text_kinds
from runyard.datasets.readers.text_labels.words import split_words
from runyard.datasets.sources import Source


class IgnoredRegion(NamedTuple):
    """A line that marks a region without labels."""

    line: int


# Parses a line, given the file and the number of the line; None if it has no object.
ParseLine = Callable[[str, int, bytes], LabeledBox | IgnoredRegion | Finding | None]


def read_pixel_rows(
    source: Source, files: list[str], report: ReportFinding, parse_line: ParseLine
) -> Iterator[Row]:
    """Yield a row for each label file with an object or an error.

    A file that only marks regions without labels has no row, and its finding is reported.
    """
    forms = find_text_kinds(source).forms
    labels = [path for path in files if path in forms]
    images = LabelImages(source, labels)
    for path in labels:
        if source.size_bytes(path) == 0 or is_too_large(source, path, report):
            continue
        row = _read_file(source, path, images, report, parse_line)
        if row is not None:
            yield row


def decode_words(path: str, number: int, line: bytes) -> list[str] | Finding:
    """Decode a line and split it; return a finding if it is not UTF-8."""
    try:
        return split_words(line.decode())
    except UnicodeDecodeError as error:
        cause = f"byte {error.start + 1} of the line is not UTF-8"
        return make_finding("EncodingWrong", file=path, line=number, cause=cause)


def _read_file(
    source: Source,
    path: str,
    images: LabelImages,
    report: ReportFinding,
    parse_line: ParseLine,
) -> Row | None:
    boxes: list[LabeledBox] = []
    findings: list[Finding] = []
    ignored: list[int] = []
    size = find_image_size(source, images.find(path), path)
    for number, line in read_label_lines(source, path, findings.append):
        found = parse_line(path, number, line)
        if isinstance(found, Finding):
            findings.append(found)
        elif isinstance(found, IgnoredRegion):
            ignored.append(found.line)
        elif found is not None:
            boxes.append(found._replace(box=to_fractions(found.box, size)))
    if ignored:
        cause = f"{len(ignored)} of its rows mark regions without labels; they are left out"
        region = make_finding("RegionIgnored", file=path, line=ignored[0], cause=cause)
        if not boxes and not findings:
            report(region)
        else:
            findings.append(region)
    if not boxes and not findings:
        return None
    if rival := images.check_rivals(path):
        findings.append(rival)
    lines = [*(box.location.line for box in boxes), *(found.line for found in findings)]
    first = min((line for line in lines if line is not None), default=1)
    return build_row(
        source, images.find(path), boxes, file=path, line=first, unit="pixel", findings=findings
    )
