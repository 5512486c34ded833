"""Text files as readers want them: their first KiB, and their lines, without holding them as a whole."""

from collections.abc import Iterator

from runyard.datasets.findings import Say, finding
from runyard.datasets.sources import Source

HEAD_BYTES = 1024
LONGEST_LINE_BYTES = 16 << 20
BOM = b"\xef\xbb\xbf"


def head_of(source: Source, path: str) -> bytes:
    """The first KiB of a file."""
    with source.open(path) as file:
        return file.read(HEAD_BYTES)


def lines_of(source: Source, path: str, say: Say) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1, without its end. A line that is too long is told and left out.

    A file that is empty, or in UTF-16, is told instead.
    """
    with source.open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE_BYTES):
            number += 1
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    say(finding("EncodingWrong", file=path, line=1, cause="it is UTF-16", action="FileRejected"))
                    return
                line = line.removeprefix(BOM)
            if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                cause = f"the line is longer than {LONGEST_LINE_BYTES:,} bytes"
                say(finding("RowInvalid", file=path, line=number, cause=cause))
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE_BYTES)
                continue
            yield number, line.rstrip(b"\r\n")
        if not number:
            say(finding("FileEmpty", file=path, cause="the file has no bytes", action="FileRejected"))


def text_of(source: Source, path: str, say: Say, *, limit_bytes: int) -> str | None:
    """A small text file as a whole; None when it is too large or not UTF-8, which is told."""
    if source.size_bytes(path) > limit_bytes:
        cause = f"it has {source.size_bytes(path):,} bytes; {limit_bytes:,} are the most for such a file"
        say(finding("FileUnreadable", file=path, cause=cause, action="FileRejected"))
        return None
    with source.open(path) as file:
        data = file.read().removeprefix(BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        cause = f"byte {error.start} is not UTF-8"
        say(finding("EncodingWrong", file=path, line=line, cause=cause, action="FileRejected"))
        return None
