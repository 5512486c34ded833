"""The lines of a label file, whatever ends them."""

from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.readers.lines import read_lines
from runyard.datasets.sources import Source

MAX_BYTES = 16 << 20


def is_too_large(source: Source, path: str, report: ReportFinding) -> bool:
    """Return whether a label file is too large for one image, which is reported."""
    size_bytes = source.size_bytes(path)
    if size_bytes <= MAX_BYTES:
        return False
    cause = f"it has {size_bytes:,} bytes; the limit for one image is {MAX_BYTES:,}"
    report(make_finding("FileUnreadable", file=path, cause=cause, action="FileRejected"))
    return True


def read_label_lines(
    source: Source, path: str, report: ReportFinding
) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1; a carriage return alone also ends a line."""
    extra = 0
    for number, line in read_lines(source, path, report):
        parts = line.split(b"\r") if b"\r" in line else [line]
        for part in parts:
            yield number + extra, part
            extra += 1
        extra -= 1
