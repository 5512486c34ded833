"""Text files for readers: their beginning, and single lines, without holding the whole file.

Text is UTF-8, or UTF-16 with a byte-order mark, which is converted while it is read.
"""

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.sources import Source

HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 16 << 20
BOM = codecs.BOM_UTF8
_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_head(source: Source, path: str, size_bytes: int = HEAD_BYTES) -> bytes:
    """Read the beginning of a text file, as UTF-8, by default 64 KiB."""
    with open_text(source, path) as file:
        return file.read(size_bytes)


def open_text(source: Source, path: str) -> BinaryIO:
    """Open a text file for reading as UTF-8 bytes; UTF-16 with a byte-order mark is converted.

    The result can be rewound with ``seek(0)``. Malformed UTF-16 becomes bytes that are not valid
    UTF-8, so that it is noticed where the bytes are decoded.
    """
    file = source.open(path)
    mark = file.read(2)
    file.seek(0)
    if mark not in _UTF16_BOMS:
        return file
    return io.BufferedReader(_Utf16AsUtf8(file), buffer_size=1 << 16)


class _Utf16AsUtf8(io.RawIOBase):
    """A UTF-16 file, read as UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending, self._is_whole, self._at = b"", False, 0
        self._rewind()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (offset, whence) != (0, io.SEEK_SET):
            raise io.UnsupportedOperation("a converted file can only be rewound")
        self._rewind()
        return 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._pending and not self._is_whole:
            data = self._file.read(1 << 15)
            self._is_whole = not data
            self._pending = self._convert(data)
        size_bytes = min(len(buffer), len(self._pending))
        buffer[:size_bytes] = self._pending[:size_bytes]
        self._pending = self._pending[size_bytes:]
        self._at += size_bytes
        return size_bytes

    def close(self) -> None:
        self._file.close()
        super().close()

    def _convert(self, data: bytes) -> bytes:
        try:
            return self._decoder.decode(data, final=self._is_whole).encode(errors="surrogatepass")
        except UnicodeDecodeError:  # the last character is cut off
            return b"\xff"

    def _rewind(self) -> None:
        self._file.seek(0)
        self._decoder = codecs.getincrementaldecoder("utf-16")(errors="surrogatepass")
        self._pending, self._is_whole, self._at = b"", False, 0


def read_lines(source: Source, path: str, report: ReportFinding) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number, from 1, without its end.

    Report and skip a line that is too long.

    An empty file is reported and gives no lines.
    """
    with open_text(source, path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
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

    Return None if it is too large or not valid text, which is reported.
    """
    if source.size_bytes(path) > limit_bytes:
        cause = f"it has {source.size_bytes(path):,} bytes; the limit is {limit_bytes:,}"
        report(make_finding("FileUnreadable", file=path, cause=cause, action="FileRejected"))
        return None
    with open_text(source, path) as file:
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
