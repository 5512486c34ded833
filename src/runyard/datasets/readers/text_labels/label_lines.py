"""The lines of a label file, whatever ends them."""

from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding
from runyard.datasets.readers.lines import read_lines
from runyard.datasets.sources import Source


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
