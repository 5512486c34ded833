"""Safe reading of untrusted zip and tar archives.

Only regular files and folders with plain relative names are accepted. All headers are checked
before any member is used: one link, device, ``..`` or duplicate name rejects the whole archive. The
unpacked size is bounded by the sizes in the headers, by ``ArchiveLimits``, and by a ratio to the
archive's size; the bounds also hold while bytes stream.

A member is bytes under a name. A member's name never becomes a path of this machine:
``ExpandedSource`` keeps members in files that it numbers itself.

This module parses the headers itself. ``zipfile`` builds an object for each entry before they can
be counted, and allows overlapping entries. ``tarfile`` reads headers of any length into memory and,
in older Pythons, loops forever on a negative size.
"""

import bz2
import contextlib
import gzip
import io
import stat
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.images import MAX_BYTES, is_image_name
from runyard.datasets.naming.image_names import ImageFacts, Resolution
from runyard.datasets.packs import is_safe
from runyard.datasets.sources import Source, is_hidden, is_system_file

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
MAX_PART_BYTES = 255
_PIECE = 1 << 18
_BLOCK = 512
_MAX_PAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The limits on what an archive may unpack to.

    Below ``free_bytes`` the ratio does not apply.
    """

    entries: int = 1_000_000
    ratio: int = 100
    total_bytes: int = 256 << 30
    free_bytes: int = 16 << 20

    def max_unpacked_bytes(self, archive_bytes: int) -> int:
        """Return the most bytes that an archive of that size may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * archive_bytes))


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """One regular file of an archive.

    ``pieces`` yields its bytes once, before the next member is requested. ``raw_name`` is the name
    as stored, if its encoding is unknown; ``name`` is then only one reading of it.
    """

    name: str
    size_bytes: int
    _pieces: Callable[[], Iterator[bytes]]
    raw_name: bytes | None = None

    def pieces(self) -> Iterator[bytes]:
        with _reject_damaged():
            yield from self._pieces()

    def read(self) -> bytes:
        return b"".join(self.pieces())


class ArchiveRejected(Exception):
    """The archive is rejected as a whole.

    ``code`` is that of the finding, ``member`` the offending entry.
    """

    def __init__(self, code: str, cause: str, *, member: str | None = None) -> None:
        super().__init__(cause)
        self.code, self.cause, self.member = code, cause, member

    def to_finding(self, file: str, rest: str = "") -> Finding:
        return make_finding(
            self.code, file=file, cause=self.cause + rest, value=self.member, action="FileRejected"
        )


def is_archive(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def read_members(
    file: BinaryIO,
    path: str,
    limits: ArchiveLimits = ArchiveLimits(),
    *,
    is_checked: bool = False,
) -> Iterator[ArchiveMember]:
    """Yield the regular files of an archive in order, after checking that all of it is safe.

    ``is_checked`` means that ``list_names`` has checked all headers of a tar.

    Raises:
        ArchiveRejected: before the first member if the headers are not acceptable; while bytes are
            read if they contradict the headers.
    """
    with _reject_damaged():
        if path.lower().endswith(".zip"):
            yield from _iter_zip_members(file, limits)
            return
        if not is_checked:
            list_names(file, path, limits)
        yield from _iter_tar_members(file, path.lower(), limits)


def list_names(file: BinaryIO, path: str, limits: ArchiveLimits = ArchiveLimits()) -> list[str]:
    """List the names of the regular files of a tar, after checking that all of it is safe.

    Raises ArchiveRejected if the headers are not acceptable.
    """
    names = _Names(limits)
    with _reject_damaged():
        data = _TarBytes(file, path.lower(), limits)
        listed = [name for name, _ in _iter_tar_files(data, names)]
    names.check_conflicts()
    return listed


def read_first_members(file: BinaryIO, path: str, count: int) -> Iterator[ArchiveMember]:
    """Yield at most ``count`` first files of a tar, without checking the rest, to detect what it
    contains.

    Raises:
        ArchiveRejected: these files are not acceptable, or it is not a tar.
    """
    limits = ArchiveLimits(total_bytes=64 << 20, free_bytes=64 << 20)
    with _reject_damaged():
        data = _TarBytes(file, path.lower(), limits)
        for name, size in islice(_iter_tar_files(data, _Names(limits)), count):
            yield ArchiveMember(name, size, lambda size=size: data.pieces(size))  # type: ignore[misc]


@contextlib.contextmanager
def _reject_damaged() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ArchiveRejected(
            "FileUnreadable", f"the archive is damaged: {error or type(error).__name__}"
        ) from error


def normalize_member_name(name: str) -> str | None:
    """Normalize a name to a safe relative path without ``.`` parts; None if it is not one."""
    if name.startswith("/") or name[1:2] == ":":
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(len(part.encode(errors="replace")) > MAX_PART_BYTES for part in parts):
        return None
    plain = "/".join(parts)
    return plain if is_safe(plain) else None


class _Names:
    """The names of an archive, checked: plain, not too many, no duplicates, none both file and
    folder.
    """

    def __init__(self, limits: ArchiveLimits) -> None:
        self._limits = limits
        self._count = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, name: str, *, is_folder: bool) -> str:
        self._count += 1
        if self._count > self._limits.entries:
            raise ArchiveRejected(
                "ArchiveTooLarge", f"it has more than {self._limits.entries:,} entries"
            )
        if is_folder and name.strip("/.") == "" and not name.startswith("/") and ".." not in name:
            return ""
        plain = normalize_member_name(name)
        if plain is None:
            raise ArchiveRejected(
                "ArchiveUnsafe", "this name is not a plain relative path", member=name
            )
        above = plain
        while (above := above.rpartition("/")[0]) and above not in self._folders:
            self._folders.add(above)
        if is_folder:
            self._folders.add(plain)
        elif plain in self._files:
            raise ArchiveRejected("ArchiveUnsafe", "this name occurs twice", member=name)
        else:
            self._files.add(plain)
        return plain

    def check_conflicts(self) -> None:
        for both in sorted(self._files & self._folders)[:1]:
            raise ArchiveRejected(
                "ArchiveUnsafe", "this name is both a file and a folder", member=both
            )


# -- zip -------------------------------------------------------------------------------------------

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
_STORED, _DEFLATED = 0, 8


class _ZipEntry(NamedTuple):
    offset: int
    name: str
    raw: bytes
    method: int
    crc: int
    packed: int
    size: int
    is_folder: bool
    is_encoding_known: bool


def _iter_zip_members(file: BinaryIO, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    entries, ends = _read_zip_entries(file, limits)
    for entry, end in zip(entries, ends, strict=True):
        if not entry.is_folder:
            yield ArchiveMember(
                entry.name,
                entry.size,
                partial(_read_zip_entry_bytes, file, entry, end),
                None if entry.is_encoding_known else entry.raw,
            )


def _read_zip_entries(file: BinaryIO, limits: ArchiveLimits) -> tuple[list[_ZipEntry], list[int]]:
    """Read all entries in order of offset, and the latest offset at which each must end."""
    archive_bytes = file.seek(0, io.SEEK_END)
    count, length, start = _find_central_directory(file, archive_bytes)
    if count > limits.entries:
        raise ArchiveRejected(
            "ArchiveTooLarge", f"it has {count:,} entries, more than {limits.entries:,}"
        )
    file.seek(start)
    names, entries, total, most = _Names(limits), [], 0, limits.max_unpacked_bytes(archive_bytes)
    for _ in range(count):
        entry = _read_zip_entry(file, names)
        total += entry.size
        if total > most:
            raise ArchiveRejected(
                "ArchiveTooLarge", f"its headers declare more than {most:,} unpacked bytes"
            )
        entries.append(entry)
    if file.tell() != start + length:
        raise ArchiveRejected("ArchiveUnsafe", "its directory does not have the declared length")
    names.check_conflicts()
    entries.sort(key=lambda entry: entry.offset)
    ends = [entry.offset for entry in entries[1:]] + [start]
    for entry, end in zip(entries, ends, strict=False):
        if entry.offset + _LOCAL.size + len(entry.raw) + entry.packed > end:
            raise ArchiveRejected("ArchiveUnsafe", "its entries overlap", member=entry.name)
    return entries, ends[: len(entries)]


def _find_central_directory(file: BinaryIO, archive_bytes: int) -> tuple[int, int, int]:
    """Find the central directory; return the number of entries, its length and its offset."""
    file.seek(max(0, archive_bytes - _END.size - 0xFFFF))
    tail = file.read(_END.size + 0xFFFF)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveRejected("FileUnreadable", "not a zip archive, or its end is missing")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = archive_bytes - len(tail) + at
    if at + _END.size + comment != len(tail):
        raise ArchiveRejected("ArchiveUnsafe", "data follows its end")
    if 0xFFFF in (count, here) or 0xFFFFFFFF in (length, start):
        if at < _LOCATOR64.size:
            raise ArchiveRejected("FileUnreadable", "its end is missing")
        mark, _, end, _ = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        if mark != b"PK\6\7" or end + _END64.size > archive_bytes:
            raise ArchiveRejected("FileUnreadable", "its 64-bit end is missing")
        file.seek(end)
        mark, _, _, _, disk, first_disk, here, count, length, start = _END64.unpack(
            file.read(_END64.size)
        )
        if mark != b"PK\6\6":
            raise ArchiveRejected("FileUnreadable", "its 64-bit end is missing")
    if disk or first_disk or here != count:
        raise ArchiveRejected("ArchiveUnsafe", "multi-part archives are not supported")
    if start + length != end:
        raise ArchiveRejected("ArchiveUnsafe", "its directory is not at the declared offset")
    return count, length, start


def _read_zip_entry(file: BinaryIO, names: _Names) -> _ZipEntry:
    head = _CENTRAL.unpack(file.read(_CENTRAL.size))
    mark, _, _, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len = (
        head[:15]
    )
    disk, attributes, offset = head[15], head[17], head[18]
    raw, extra = file.read(name_len), file.read(extra_len)
    file.seek(comment_len, io.SEEK_CUR)
    if mark != b"PK\1\2" or disk not in (0, 0xFFFF):
        raise ArchiveRejected("FileUnreadable", "its directory is damaged")
    size, packed, offset = _read_zip64(extra, size, packed, offset)
    text, is_encoding_known = _decode_zip_name(raw, flags, extra)
    is_folder = text.endswith("/")
    _check_zip_entry(text, flags, method, attributes >> 16, size, packed, is_folder=is_folder)
    name = names.add(text, is_folder=is_folder)
    return _ZipEntry(offset, name, raw, method, crc, packed, size, is_folder, is_encoding_known)


def _check_zip_entry(
    name: str, flags: int, method: int, mode: int, size: int, packed: int, *, is_folder: bool
) -> None:
    kind = stat.S_IFMT(mode)
    if kind and kind != (stat.S_IFDIR if is_folder else stat.S_IFREG):
        raise ArchiveRejected(
            "ArchiveUnsafe", "this entry is neither a file nor a folder", member=name
        )
    if flags & _ENCRYPTED:
        raise ArchiveRejected("FileUnreadable", "encrypted entries are not supported", member=name)
    if method not in (_STORED, _DEFLATED):
        raise ArchiveRejected(
            "FileUnreadable", f"compression method {method} is not supported", member=name
        )
    if (is_folder and size) or (method == _STORED and size != packed):
        raise ArchiveRejected(
            "ArchiveUnsafe", "this entry's sizes contradict each other", member=name
        )


def _decode_zip_name(raw: bytes, flags: int, extra: bytes) -> tuple[str, bool]:
    """Decode a name; return it, and whether its encoding is known.

    It is the Unicode name of Info-ZIP's extra field, UTF-8 even if not marked so, or else cp437,
    which decodes any bytes. Windows tools write backslashes.
    """
    is_known = True
    try:
        name = _find_unicode_name(raw, extra) or raw.decode()
    except UnicodeDecodeError:
        if flags & _UTF8:
            raise ArchiveRejected(
                "ArchiveUnsafe", "this name is not UTF-8", member=repr(raw)
            ) from None
        name, is_known = raw.decode("cp437"), False
    return name.replace("\\", "/"), is_known


def _find_unicode_name(raw: bytes, extra: bytes) -> str | None:
    """Return the name of the Unicode path field, if it belongs to this name."""
    for tag, body in _iter_extra_fields(extra):
        if (
            tag == 0x7075
            and body[:1] == b"\1"
            and body[1:5] == zlib.crc32(raw).to_bytes(4, "little")
        ):
            return body[5:].decode()
    return None


def _iter_extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        yield tag, extra[4 : 4 + length]
        extra = extra[4 + length :]


def _read_zip64(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Replace numbers that did not fit into 32 bits by those of the zip64 extra field."""
    values = [size, packed, offset]
    for tag, body in _iter_extra_fields(extra):
        if tag == 1:
            for number, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    values[number], body = struct.unpack_from("<Q", body)[0], body[8:]
            break
    return values[0], values[1], values[2]


def _read_zip_entry_bytes(file: BinaryIO, entry: _ZipEntry, end: int) -> Iterator[bytes]:
    file.seek(entry.offset)
    head = _LOCAL.unpack(file.read(_LOCAL.size))
    method, name_len, extra_len = head[3], head[9], head[10]
    if head[0] != b"PK\3\4" or method != entry.method or file.read(name_len) != entry.raw:
        raise ArchiveRejected(
            "ArchiveUnsafe", "its directory and this entry contradict each other", member=entry.name
        )
    start = entry.offset + _LOCAL.size + name_len + extra_len
    if start + entry.packed > end:
        raise ArchiveRejected("ArchiveUnsafe", "its entries overlap", member=entry.name)
    length, crc = 0, 0
    pieces = _inflate if entry.method == _DEFLATED else _read_slices
    for piece in pieces(file, start, entry.packed):
        length, crc = length + len(piece), zlib.crc32(piece, crc)
        if length > entry.size:
            break
        yield piece
    if length != entry.size:
        raise ArchiveRejected(
            "ArchiveUnsafe", "this entry does not have the declared length", member=entry.name
        )
    if crc != entry.crc:
        raise ArchiveRejected(
            "FileUnreadable", "the checksum of this entry is wrong", member=entry.name
        )


def _read_slices(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    while length > 0:
        file.seek(start)  # the file is shared; the consumer of the pieces may have moved it
        piece = file.read(min(_PIECE, length))
        if not piece:
            raise EOFError("it ends early")
        start, length = start + len(piece), length - len(piece)
        yield piece


def _inflate(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for packed in _read_slices(file, start, length):
        while packed:
            yield inflate.decompress(packed, _PIECE)
            packed = inflate.unconsumed_tail
    while tail := inflate.decompress(b"", _PIECE):
        yield tail
    if not inflate.eof or inflate.unused_data:
        raise ArchiveRejected("FileUnreadable", "its compressed bytes are damaged")


# -- tar -------------------------------------------------------------------------------------------

_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_SPECIAL_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file, which is not supported",
}


def _iter_tar_members(file: BinaryIO, path: str, limits: ArchiveLimits) -> Iterator[ArchiveMember]:
    data = _TarBytes(file, path, limits)
    for name, size in _iter_tar_files(data, _Names(limits)):
        yield ArchiveMember(name, size, lambda size=size: data.pieces(size))  # type: ignore[misc]


class _TarBytes:
    """The bytes of a tar, decompressed on demand and counted."""

    def __init__(self, file: BinaryIO, path: str, limits: ArchiveLimits) -> None:
        self._archive_bytes = file.seek(0, io.SEEK_END)
        self._max_bytes = limits.max_unpacked_bytes(self._archive_bytes)
        file.seek(0)
        self._is_compressed = not path.endswith(".tar")
        self._file: IO[bytes] = file
        if path.endswith(("gz",)):
            self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif path.endswith("bz2"):
            self._file = bz2.BZ2File(file)
        self.at = 0

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes."""
        while size > 0:
            piece = self._read(min(size, _PIECE))
            if not piece:
                raise EOFError("it ends early")
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def read_block(self) -> bytes:
        """Read the next block; less than a block at the end."""
        block = b""
        while len(block) < _BLOCK and (piece := self._read(_BLOCK - len(block))):
            block += piece
        return block

    def check_remaining(self, size: int) -> None:
        """Check that so many bytes are left, if that is known without decompressing them."""
        if not self._is_compressed and self.at + size > self._archive_bytes:
            raise EOFError("it ends early")

    def skip_to(self, offset: int) -> None:
        """Move forward to this offset."""
        if self._is_compressed:
            for _ in self.pieces(offset - self.at):
                pass
        else:
            self.at = offset

    def _read(self, size: int) -> bytes:
        if not self._is_compressed:
            self._file.seek(self.at)  # the file is shared
        piece = self._file.read(size)
        self.at += len(piece)
        if self.at > self._max_bytes:
            raise ArchiveRejected(
                "ArchiveTooLarge", f"it unpacks to more than {self._max_bytes:,} bytes"
            )
        return piece


def _iter_tar_files(data: _TarBytes, names: _Names) -> Iterator[tuple[str, int]]:
    """Yield name and size of each file, with ``data`` positioned at its bytes.

    Bytes that the caller does not read are skipped.
    """
    long_name: str | None = None
    pax_size: int | None = None
    while len(block := data.read_block()) == _BLOCK and block.count(0) < _BLOCK:
        info = _parse_tar_header(block)
        size, kind = info.size, info.kind
        if size < 0:
            raise ArchiveRejected(
                "ArchiveUnsafe", "this entry has a negative size", member=info.name
            )
        if kind in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.XHDTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.XGLTYPE,
        ):
            after = data.at + _pad_to_block(size)
            if size > _MAX_PAX_BYTES:
                raise ArchiveRejected("ArchiveUnsafe", f"a header of {size:,} bytes is too large")
            body = data.read(size)
            data.skip_to(after)
            if kind == tarfile.GNUTYPE_LONGNAME:
                long_name = _decode_tar_text(body.rstrip(b"\0"))
            else:
                long_name, pax_size = _parse_pax(
                    body, long_name, pax_size, is_global=kind == tarfile.XGLTYPE
                )
            continue
        name = long_name or info.name
        size = size if pax_size is None else pax_size
        long_name, pax_size = None, None
        is_folder = kind == tarfile.DIRTYPE or (kind in _FILE_TYPES and name.endswith("/"))
        if kind not in (*_FILE_TYPES, tarfile.DIRTYPE):
            what = _SPECIAL_TYPES.get(kind, f"of an unknown type ({kind!r})")
            raise ArchiveRejected("ArchiveUnsafe", f"this entry is {what}", member=name)
        if is_folder and size:
            raise ArchiveRejected("ArchiveUnsafe", "this folder has a size", member=name)
        plain = names.add(name, is_folder=is_folder)
        after = data.at + _pad_to_block(size)
        data.check_remaining(size)
        if not is_folder:
            yield plain, size
        data.skip_to(after)
    if len(block) < _BLOCK:  # truncated between two files, or not a tar
        raise EOFError("its end is missing")


class _TarHeader(NamedTuple):
    name: str
    size: int
    kind: bytes


def _parse_tar_header(block: bytes) -> _TarHeader:
    checksum = _parse_tar_number(block[148:156])
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ArchiveRejected("FileUnreadable", "the checksum of a header is wrong")
    raw = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (above := block[345:500].partition(b"\0")[0]):
        raw = above + b"/" + raw
    # A name that a long-name entry replaces may be cut within a character, so it is validated only
    # when used.
    return _TarHeader(
        raw.decode(errors="surrogateescape"), _parse_tar_number(block[124:136]), block[156:157]
    )


def _parse_tar_number(field: bytes) -> int:
    """Parse octal digits or, if the first bit is set, a binary number, which may be negative."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (
            256 ** (len(field) - 1) if field[0] == 0xFF else 0
        )
    digits = field.partition(b"\0")[0].strip(b" ")
    if not all(digit in b"01234567" for digit in digits):
        raise ArchiveRejected("FileUnreadable", "a number in a header is damaged")
    return int(digits or b"0", 8)


def _pad_to_block(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _decode_tar_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ArchiveRejected("ArchiveUnsafe", "a name is not UTF-8", member=repr(raw)) from None


def _parse_pax(
    body: bytes, name: str | None, size: int | None, *, is_global: bool
) -> tuple[str | None, int | None]:
    """Parse an extended header of lines ``<length> <key>=<value>``.

    Return the name and size in effect.
    """
    while body.strip(b"\0"):
        digits, space, _ = body.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = body[len(digits) + 1 : length - 1].partition(b"=")
        if length > len(body) or not equals or body[length - 1 : length] != b"\n":
            raise ArchiveRejected("FileUnreadable", "an extended header is damaged")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveRejected("ArchiveUnsafe", "sparse entries are not supported")
        if is_global and key in (b"path", b"size"):
            raise ArchiveRejected(
                "ArchiveUnsafe", "a global header sets path or size for all files"
            )
        if key == b"path":
            name = _decode_tar_text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise ArchiveRejected(
                    "ArchiveUnsafe", "an entry has an invalid size", member=repr(value)
                )
            size = int(value)
        body = body[length:]
    return name, size


# -- as a source -----------------------------------------------------------------------------------


def expand_archives(
    source: Source,
    folder: Path,
    report: ReportFinding,
    *,
    keeps_packed: Callable[[Source, str], bool] = lambda *_: False,
) -> Source:
    """Return the source with its archives expanded (see ``ExpandedSource``), or the source itself
    if it has none.

    ``keeps_packed`` selects archives that a reader reads directly.
    """
    archives = [path for path in source.paths() if is_archive(path)]
    closed = {path for path in archives if keeps_packed(source, path)}
    return (
        ExpandedSource(source, folder, report, skip=closed)
        if len(closed) < len(archives)
        else source
    )


@dataclass(eq=False)  # the key of what readers remember of a source
class ExpandedSource:
    """A source with archives expanded: ``data.zip`` becomes ``data.zip/inner.jpg`` and so on.

    Images are added to the inner source. Other members are kept below ``folder``, in files numbered
    from 1. Archives within archives are not opened. ``skip`` names archives that a reader reads
    directly.
    """

    inner: Source
    folder: Path
    report: ReportFinding
    skip: Container[str] = ()
    limits: ArchiveLimits = ArchiveLimits()
    _kept: dict[str, tuple[Path, int]] = field(default_factory=dict)
    _paths: list[str] = field(default_factory=list)
    _names: "_NameReadings" = field(default_factory=lambda: _NameReadings())

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        expanded = set()
        for path in self.inner.paths():
            if is_archive(path) and path not in self.skip:
                expanded.add(path)
                self._unpack(path)
        self._paths = sorted(
            {path for path in self.inner.paths() if path not in expanded} | set(self._paths)
        )

    def paths(self) -> Sequence[str]:
        return self._paths

    def size_bytes(self, path: str) -> int:
        return self._kept[path][1] if path in self._kept else self.inner.size_bytes(path)

    def open(self, path: str) -> BinaryIO:
        return open(self._kept[path][0], "rb") if path in self._kept else self.inner.open(path)

    def is_image(self, path: str) -> bool:
        return self.inner.is_image(path)

    def resolve_image(self, name: str, *, relative_to: str = "") -> Resolution:
        found = self.inner.resolve_image(name, relative_to=relative_to)
        if found.status == "missing" and (path := self._names.find(name)) is not None:
            return self.inner.resolve_image(path)
        return found

    def find_image(self, name: str, *, relative_to: str = "") -> ImageFacts | None:
        return self.resolve_image(name, relative_to=relative_to).image

    def add_image(
        self, path: str, data: bytes, *, found_in: str, line: int | None = None
    ) -> ImageFacts | None:
        return self.inner.add_image(path, data, found_in=found_in, line=line)

    def _unpack(self, path: str) -> None:
        ignored = added = 0
        unknown: list[ArchiveMember] = []
        try:
            with self.inner.open(path) as file:
                for member in read_members(file, path, self.limits):
                    if is_hidden(member.name) or is_system_file(member.name):
                        ignored += 1
                    else:
                        self._add_member(path, member)
                        added += 1
                    if member.raw_name is not None:
                        unknown.append(member)
        except ArchiveRejected as rejected:
            rest = f"; {added} files before it were read, none after it" if added else ""
            self.report(rejected.to_finding(path, rest))
        if unknown:
            self.report(_make_unknown_names(path, unknown))
        if ignored:
            cause = f"{ignored} hidden files and files of operating systems are ignored"
            self.report(make_finding("FileIgnored", file=path, cause=cause))

    def _add_member(self, archive: str, member: ArchiveMember) -> None:
        path = f"{archive}/{member.name}"
        if is_archive(path):
            cause = "an archive within an archive is not opened, so nothing in it is read"
            fix = "unpack the inner archive, and pack or send its files instead"
            self.report(
                make_finding(
                    "ArchiveUnsafe", file=path, cause=cause, fix=fix, action="FileRejected"
                )
            )
        elif is_image_name(path):
            self._add_image(archive, path, member)
        else:
            target = self.folder / f"{len(self._kept) + 1:06d}"
            with contextlib.ExitStack() as undo, open(target, "wb") as file:
                undo.callback(target.unlink)
                for piece in member.pieces():
                    file.write(piece)
                undo.pop_all()
            self._kept[path] = (target, member.size_bytes)
            self._paths.append(path)

    def _add_image(self, archive: str, path: str, member: ArchiveMember) -> None:
        if member.size_bytes > MAX_BYTES:
            cause = f"an image of {member.size_bytes:,} bytes"
            self.report(
                make_finding("ImageTooLarge", file=path, cause=cause, action="FileRejected")
            )
        elif self.inner.add_image(path, member.read(), found_in=archive):
            self._paths.append(path)
            if member.raw_name is not None:
                self._names.add(path, member.raw_name)


_OTHER_ENCODINGS = (*("gbk", "shift_jis", "euc_kr", "big5", "cp1252", "cp1251", "cp866", "cp850"),)
_MAX_SHOWN = 3


class _NameReadings:
    """The names of members whose encoding is unknown, in each encoding that decodes them.

    A row that has one of these names settles which encoding it is.
    """

    def __init__(self) -> None:
        self._by_base: dict[str, set[tuple[str, str]]] = {}  # name as decoded, and path

    def add(self, path: str, raw: bytes) -> None:
        for name in list_readings(raw).values():
            base = name.rpartition("/")[2]
            self._by_base.setdefault(base, set()).add((name, path))

    def find(self, name: str) -> str | None:
        """Return the path of the one image that has this name in some encoding."""
        name = unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")
        readings = self._by_base.get(name.rpartition("/")[2], ())
        fitting = {path for read, path in readings if f"/{read}".endswith(f"/{name}")}
        return fitting.pop() if len(fitting) == 1 else None


def list_readings(raw: bytes) -> dict[str, str]:
    """Decode the name of a member in each encoding that can be its own."""
    readings = {}
    for encoding in _OTHER_ENCODINGS:
        with contextlib.suppress(UnicodeDecodeError):
            readings[encoding] = raw.decode(encoding).replace("\\", "/")
    return readings


def _make_unknown_names(path: str, members: Sequence[ArchiveMember]) -> Finding:
    first = members[0]
    readings = list(list_readings(first.raw_name or b"").items())[:_MAX_SHOWN]
    shown = ", ".join(f"{name!r} in {encoding}" for encoding, name in readings)
    cause = (
        f"{len(members)} names are not UTF-8, and their encoding is unknown; {first.name!r} could "
        f"be {shown}; rows may use any of these names"
    )
    return make_finding("NameEncodingUnknown", file=path, cause=cause, value=first.name)
