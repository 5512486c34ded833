"""Text files for readers: the first KiB, and single lines, without holding the whole file."""

from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.sources import Source

HEAD_BYTES = 1024
MAX_LINE_BYTES = 16 << 20
BOM = b"\xef\xbb\xbf"


def read_head(source: Source, path: str) -> bytes:
    """Read the first KiB of a file."""
    with source.open(path) as file:
        return file.read(HEAD_BYTES)


def read_lines(source: Source, path: str, report: ReportFinding) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1, without its end.

    Report and skip a line that is too long.

    An empty file, or one in UTF-16, is reported and gives no lines.
    """
    with source.open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    report(
                        make_finding(
                            "EncodingWrong",
                            file=path,
                            line=1,
                            cause="the file is UTF-16",
                            action="FileRejected",
                        )
                    )
                    return
                line = line.removeprefix(BOM)
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                cause = f"the line is longer than {MAX_LINE_BYTES:,} bytes"
                report(make_finding("RowInvalid", file=path, line=number, cause=cause))
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                continue
            yield number, line.rstrip(b"\r\n")
        if not number:
            report(
                make_finding(
                    "FileEmpty", file=path, cause="the file has no bytes", action="FileRejected"
                )
            )


def read_text(source: Source, path: str, report: ReportFinding, *, limit_bytes: int) -> str | None:
    """Read a small text file as a whole.

    Return None if it is too large or not UTF-8, which is reported.
    """
    if source.size_bytes(path) > limit_bytes:
        cause = f"it has {source.size_bytes(path):,} bytes; the limit is {limit_bytes:,}"
        report(make_finding("FileUnreadable", file=path, cause=cause, action="FileRejected"))
        return None
    with source.open(path) as file:
        data = file.read().removeprefix(BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        cause = f"byte {error.start} is not UTF-8"
        report(
            make_finding("EncodingWrong", file=path, line=line, cause=cause, action="FileRejected")
        )
        return None
