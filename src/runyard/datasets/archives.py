"""Zip and tar that strangers made, read so that nothing in them can do harm.

Only regular files and folders, under plain relative names. An archive is looked through from end to end before anything
of it is taken; one entry that is a link, a device, named ``..`` or twice refuses the whole. What it unpacks to is
bounded by what it says of itself, by ``Caps``, and by a ratio to its own size, and the bounds hold while bytes stream.

Members are given as bytes under a name. No member's name ever becomes a path of this machine: ``Unpacked`` keeps what
it must keep in files that it numbers itself.

The headers are read here, not by ``zipfile`` and ``tarfile``: the one builds an object for each entry before anybody
can count them and lets entries overlap, the other reads headers of any length into memory and, in older Pythons, runs
in a circle when a size is negative.
"""

import bz2
import contextlib
import gzip
import io
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

from runyard.datasets.findings import Finding, Say, finding
from runyard.datasets.images import MOST_BYTES, is_picture_name
from runyard.datasets.packs import is_safe
from runyard.datasets.sources import ImageFacts, Source, is_litter

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
LONGEST_PART_BYTES = 255
_PIECE = 1 << 18
_BLOCK = 512
_LONGEST_PAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Caps:
    """How far an archive may grow. Below ``free_bytes`` the ratio is not asked for."""

    entries: int = 1_000_000
    ratio: int = 100
    total_bytes: int = 256 << 30
    free_bytes: int = 16 << 20

    def most_bytes(self, archive_bytes: int) -> int:
        """What an archive of that size may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * archive_bytes))


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive. ``pieces`` gives its bytes once, before the next member is asked for."""

    name: str
    size_bytes: int
    _pieces: Callable[[], Iterator[bytes]]

    def pieces(self) -> Iterator[bytes]:
        with _damage_refused():
            yield from self._pieces()

    def read(self) -> bytes:
        return b"".join(self.pieces())


class ArchiveRefused(Exception):
    """Nothing of this archive is taken. ``code`` is that of the finding, ``member`` the entry at fault."""

    def __init__(self, code: str, cause: str, *, member: str | None = None) -> None:
        super().__init__(cause)
        self.code, self.cause, self.member = code, cause, member

    def finding(self, file: str, rest: str = "") -> Finding:
        return finding(self.code, file=file, cause=self.cause + rest, value=self.member, action="FileRejected")


def is_archive(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def members(file: BinaryIO, path: str, caps: Caps = Caps()) -> Iterator[Member]:
    """The regular files of an archive in its order, once all of it is found to be safe.

    Raises:
        ArchiveRefused: before the first member if a look through the headers shows why; while bytes are read if they
            are not what the headers said.
    """
    read = _zip_members if path.lower().endswith(".zip") else _tar_members
    with _damage_refused():
        yield from read(file, path.lower(), caps)


def first_members(file: BinaryIO, path: str, count: int) -> Iterator[Member]:
    """At most that many of the first files of a tar, without a look at the rest, to see what it may be.

    Raises:
        ArchiveRefused: something is wrong right there, or it is not a tar.
    """
    caps = Caps(total_bytes=64 << 20, free_bytes=64 << 20)
    with _damage_refused():
        data = _TarBytes(file, path.lower(), caps)
        for name, size in islice(_tar_files(data, _Names(caps)), count):
            yield Member(name, size, lambda size=size: data.pieces(size))  # type: ignore[misc]


@contextlib.contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ArchiveRefused("FileUnreadable", f"the archive is damaged: {error or type(error).__name__}") from error


def plain_name(name: str) -> str | None:
    """The name as a relative path that is safe, without ``.`` parts; None when it is no such thing."""
    if name.startswith("/") or name[1:2] == ":":
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if any(len(part.encode(errors="replace")) > LONGEST_PART_BYTES for part in parts):
        return None
    plain = "/".join(parts)
    return plain if is_safe(plain) else None


class _Names:
    """Checks names one after another: plain, not too many, none twice, none both file and folder."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._count = 0
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def take(self, name: str, *, is_folder: bool) -> str:
        self._count += 1
        if self._count > self._caps.entries:
            raise ArchiveRefused("ArchiveTooLarge", f"it has more than {self._caps.entries:,} entries")
        if is_folder and name.strip("/.") == "" and not name.startswith("/") and ".." not in name:
            return ""
        plain = plain_name(name)
        if plain is None:
            raise ArchiveRefused("ArchiveUnsafe", "this name is not a plain relative one", member=name)
        above = plain
        while (above := above.rpartition("/")[0]) and above not in self._folders:
            self._folders.add(above)
        if is_folder:
            self._folders.add(plain)
        elif plain in self._files:
            raise ArchiveRefused("ArchiveUnsafe", "this name is there twice", member=name)
        else:
            self._files.add(plain)
        return plain

    def finish(self) -> None:
        for both in sorted(self._files & self._folders)[:1]:
            raise ArchiveRefused("ArchiveUnsafe", "this name is a file and a folder", member=both)


# -- zip ---------------------------------------------------------------------------------------------------------------

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


def _zip_members(file: BinaryIO, _path: str, caps: Caps) -> Iterator[Member]:
    entries, ends = _zip_entries(file, caps)
    for entry, end in zip(entries, ends, strict=True):
        if not entry.is_folder:
            yield Member(entry.name, entry.size, lambda entry=entry, end=end: _unzipped(file, entry, end))  # type: ignore[misc]


def _zip_entries(file: BinaryIO, caps: Caps) -> tuple[list[_ZipEntry], list[int]]:
    """All entries by place, and where the bytes of each end at the latest. They lie one after another."""
    archive_bytes = file.seek(0, io.SEEK_END)
    count, length, start = _central_directory(file, archive_bytes)
    if count > caps.entries:
        raise ArchiveRefused("ArchiveTooLarge", f"it has {count:,} entries, more than {caps.entries:,}")
    file.seek(start)
    names, entries, total, most = _Names(caps), [], 0, caps.most_bytes(archive_bytes)
    for _ in range(count):
        entry = _zip_entry(file, names)
        total += entry.size
        if total > most:
            raise ArchiveRefused("ArchiveTooLarge", f"it says that it unpacks to more than {most:,} bytes")
        entries.append(entry)
    if file.tell() != start + length:
        raise ArchiveRefused("ArchiveUnsafe", "its directory is not as long as it says")
    names.finish()
    entries.sort(key=lambda entry: entry.offset)
    ends = [entry.offset for entry in entries[1:]] + [start]
    for entry, end in zip(entries, ends, strict=False):
        if entry.offset + _LOCAL.size + len(entry.raw) + entry.packed > end:
            raise ArchiveRefused("ArchiveUnsafe", "its entries overlap", member=entry.name)
    return entries, ends[: len(entries)]


def _central_directory(file: BinaryIO, archive_bytes: int) -> tuple[int, int, int]:
    """How many entries, and how long and where their directory is."""
    file.seek(max(0, archive_bytes - _END.size - 0xFFFF))
    tail = file.read(_END.size + 0xFFFF)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise ArchiveRefused("FileUnreadable", "this is no zip archive, or its end is missing")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = archive_bytes - len(tail) + at
    if at + _END.size + comment != len(tail):
        raise ArchiveRefused("ArchiveUnsafe", "something follows its end")
    if 0xFFFF in (count, here) or 0xFFFFFFFF in (length, start):
        if at < _LOCATOR64.size:
            raise ArchiveRefused("FileUnreadable", "its end is missing")
        mark, _, end, _ = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        if mark != b"PK\6\7" or end + _END64.size > archive_bytes:
            raise ArchiveRefused("FileUnreadable", "its 64-bit end is missing")
        file.seek(end)
        mark, _, _, _, disk, first_disk, here, count, length, start = _END64.unpack(file.read(_END64.size))
        if mark != b"PK\6\6":
            raise ArchiveRefused("FileUnreadable", "its 64-bit end is missing")
    if disk or first_disk or here != count:
        raise ArchiveRefused("ArchiveUnsafe", "it is one of several parts")
    if start + length != end:
        raise ArchiveRefused("ArchiveUnsafe", "its directory does not lie where it says")
    return count, length, start


def _zip_entry(file: BinaryIO, names: _Names) -> _ZipEntry:
    head = _CENTRAL.unpack(file.read(_CENTRAL.size))
    mark, _, _, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len = head[:15]
    disk, attributes, offset = head[15], head[17], head[18]
    raw, extra = file.read(name_len), file.read(extra_len)
    file.seek(comment_len, io.SEEK_CUR)
    if mark != b"PK\1\2" or disk not in (0, 0xFFFF):
        raise ArchiveRefused("FileUnreadable", "its directory is damaged")
    size, packed, offset = _wide(extra, size, packed, offset)
    text = _zip_name(raw, flags)
    is_folder = text.endswith("/")
    _check_zip_entry(text, flags, method, attributes >> 16, size, packed, is_folder=is_folder)
    name = names.take(text, is_folder=is_folder)
    return _ZipEntry(offset, name, raw, method, crc, packed, size, is_folder)


def _check_zip_entry(name: str, flags: int, method: int, mode: int, size: int, packed: int, *, is_folder: bool) -> None:
    kind = stat.S_IFMT(mode)
    if kind and kind != (stat.S_IFDIR if is_folder else stat.S_IFREG):
        raise ArchiveRefused("ArchiveUnsafe", "this entry is neither a file nor a folder", member=name)
    if flags & _ENCRYPTED:
        raise ArchiveRefused("FileUnreadable", "it is encrypted", member=name)
    if method not in (_STORED, _DEFLATED):
        raise ArchiveRefused("FileUnreadable", f"its method of compression ({method}) is not known here", member=name)
    if (is_folder and size) or (method == _STORED and size != packed):
        raise ArchiveRefused("ArchiveUnsafe", "this entry's sizes contradict each other", member=name)


def _zip_name(raw: bytes, flags: int) -> str:
    """As text. What is not marked as UTF-8 mostly is nevertheless; backslashes come from Windows."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        if flags & _UTF8:
            raise ArchiveRefused("ArchiveUnsafe", "this name is not UTF-8", member=repr(raw)) from None
        name = raw.decode("cp437")
    return name.replace("\\", "/")


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The three numbers, where they did not fit into 32 bits taken from the extra field."""
    values = [size, packed, offset]
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        body, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag == 1:
            for number, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    values[number], body = struct.unpack_from("<Q", body)[0], body[8:]
            break
    return values[0], values[1], values[2]


def _unzipped(file: BinaryIO, entry: _ZipEntry, end: int) -> Iterator[bytes]:
    file.seek(entry.offset)
    head = _LOCAL.unpack(file.read(_LOCAL.size))
    method, name_len, extra_len = head[3], head[9], head[10]
    if head[0] != b"PK\3\4" or method != entry.method or file.read(name_len) != entry.raw:
        raise ArchiveRefused("ArchiveUnsafe", "directory and entry contradict each other", member=entry.name)
    start = entry.offset + _LOCAL.size + name_len + extra_len
    if start + entry.packed > end:
        raise ArchiveRefused("ArchiveUnsafe", "its entries overlap", member=entry.name)
    length, crc = 0, 0
    pieces = _inflated if entry.method == _DEFLATED else _slices
    for piece in pieces(file, start, entry.packed):
        length, crc = length + len(piece), zlib.crc32(piece, crc)
        if length > entry.size:
            break
        yield piece
    if length != entry.size:
        raise ArchiveRefused("ArchiveUnsafe", "this entry is not as long as it says", member=entry.name)
    if crc != entry.crc:
        raise ArchiveRefused("FileUnreadable", "the checksum of this entry is wrong", member=entry.name)


def _slices(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    while length > 0:
        file.seek(start)  # the file is shared; whoever takes pieces may have moved it
        piece = file.read(min(_PIECE, length))
        if not piece:
            raise EOFError("it ends early")
        start, length = start + len(piece), length - len(piece)
        yield piece


def _inflated(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for packed in _slices(file, start, length):
        while packed:
            yield inflate.decompress(packed, _PIECE)
            packed = inflate.unconsumed_tail
    while tail := inflate.decompress(b"", _PIECE):
        yield tail
    if not inflate.eof or inflate.unused_data:
        raise ArchiveRefused("FileUnreadable", "its compressed bytes are damaged")


# -- tar ---------------------------------------------------------------------------------------------------------------

_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_SPECIAL = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a file with holes",
}


def _tar_members(file: BinaryIO, path: str, caps: Caps) -> Iterator[Member]:
    names = _Names(caps)
    for name, _ in _tar_files(_TarBytes(file, path, caps), names):  # the look through
        del name
    names.finish()
    data = _TarBytes(file, path, caps)
    for name, size in _tar_files(data, _Names(caps)):
        yield Member(name, size, lambda size=size: data.pieces(size))  # type: ignore[misc]


class _TarBytes:
    """The bytes of a tar, unpacked as they are asked for and counted."""

    def __init__(self, file: BinaryIO, path: str, caps: Caps) -> None:
        self._archive_bytes = file.seek(0, io.SEEK_END)
        self._most = caps.most_bytes(self._archive_bytes)
        file.seek(0)
        self._is_packed = not path.endswith(".tar")
        self._file: IO[bytes] = file
        if path.endswith(("gz",)):
            self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif path.endswith("bz2"):
            self._file = bz2.BZ2File(file)
        self.at = 0

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes."""
        while size > 0:
            piece = self._read(min(size, _PIECE))
            if not piece:
                raise EOFError("it ends early")
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        return b"".join(self.pieces(size))

    def block(self) -> bytes:
        """The next block; less than a block at the end."""
        block = b""
        while len(block) < _BLOCK and (piece := self._read(_BLOCK - len(block))):
            block += piece
        return block

    def expect(self, size: int) -> None:
        """See that so many bytes are left, where that can be seen without unpacking them."""
        if not self._is_packed and self.at + size > self._archive_bytes:
            raise EOFError("it ends early")

    def go_to(self, place: int) -> None:
        """Forward only."""
        if self._is_packed:
            for _ in self.pieces(place - self.at):
                pass
        else:
            self.at = place

    def _read(self, size: int) -> bytes:
        if not self._is_packed:
            self._file.seek(self.at)  # the file is shared
        piece = self._file.read(size)
        self.at += len(piece)
        if self.at > self._most:
            raise ArchiveRefused("ArchiveTooLarge", f"it unpacks to more than {self._most:,} bytes")
        return piece


def _tar_files(data: _TarBytes, names: _Names) -> Iterator[tuple[str, int]]:
    """Name and size of each file, with ``data`` standing at its bytes; moves on by itself."""
    long_name: str | None = None
    pax_size: int | None = None
    while len(block := data.block()) == _BLOCK and block.count(0) < _BLOCK:
        info = _tar_header(block)
        size, kind = info.size, info.kind
        if size < 0:
            raise ArchiveRefused("ArchiveUnsafe", "this entry has a negative size", member=info.name)
        if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            after = data.at + _padded(size)
            if size > _LONGEST_PAX_BYTES:
                raise ArchiveRefused("ArchiveUnsafe", f"a header of {size:,} bytes")
            body = data.take(size)
            data.go_to(after)
            if kind == tarfile.GNUTYPE_LONGNAME:
                long_name = _tar_text(body.rstrip(b"\0"))
            else:
                long_name, pax_size = _pax(body, long_name, pax_size, is_global=kind == tarfile.XGLTYPE)
            continue
        name = long_name or info.name
        size = size if pax_size is None else pax_size
        long_name, pax_size = None, None
        is_folder = kind == tarfile.DIRTYPE or (kind in _FILES and name.endswith("/"))
        if kind not in (*_FILES, tarfile.DIRTYPE):
            what = _SPECIAL.get(kind, f"of an unknown type ({kind!r})")
            raise ArchiveRefused("ArchiveUnsafe", f"this entry is {what}", member=name)
        if is_folder and size:
            raise ArchiveRefused("ArchiveUnsafe", "this folder has a size", member=name)
        plain = names.take(name, is_folder=is_folder)
        after = data.at + _padded(size)
        data.expect(size)
        if not is_folder:
            yield plain, size
        data.go_to(after)
    if len(block) < _BLOCK:  # cut off between two files, or no tar at all
        raise EOFError("its end is missing")


class _TarHeader(NamedTuple):
    name: str
    size: int
    kind: bytes


def _tar_header(block: bytes) -> _TarHeader:
    said = _tar_number(block[148:156])
    if said != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ArchiveRefused("FileUnreadable", "the checksum of a header is wrong")
    raw = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (above := block[345:500].partition(b"\0")[0]):
        raw = above + b"/" + raw
    # A long name that comes beside this one may be cut within a letter here, so it is looked at when it is used.
    return _TarHeader(raw.decode(errors="surrogateescape"), _tar_number(block[124:136]), block[156:157])


def _tar_number(field: bytes) -> int:
    """Octal digits, or, where these do not suffice, the number itself with the first bit set; that may be negative."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip(b" ")
    if not all(digit in b"01234567" for digit in digits):
        raise ArchiveRefused("FileUnreadable", "a number in a header is damaged")
    return int(digits or b"0", 8)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _tar_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ArchiveRefused("ArchiveUnsafe", "a name is not UTF-8", member=repr(raw)) from None


def _pax(body: bytes, name: str | None, size: int | None, *, is_global: bool) -> tuple[str | None, int | None]:
    """Name and size after an extended header, whose lines are ``<length> <key>=<value>``."""
    while body.strip(b"\0"):
        digits, space, _ = body.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = body[len(digits) + 1 : length - 1].partition(b"=")
        if length > len(body) or not equals or body[length - 1 : length] != b"\n":
            raise ArchiveRefused("FileUnreadable", "an extended header is damaged")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveRefused("ArchiveUnsafe", "an entry is a file with holes")
        if is_global and key in (b"path", b"size"):
            raise ArchiveRefused("ArchiveUnsafe", "one header names all files alike")
        if key == b"path":
            name = _tar_text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise ArchiveRefused("ArchiveUnsafe", "an entry has no proper size", member=repr(value))
            size = int(value)
        body = body[length:]
    return name, size


# -- as a source -------------------------------------------------------------------------------------------------------


def with_archives_open(
    source: Source, folder: Path, say: Say, *, is_left: Callable[[Source, str], bool] = lambda *_: False
) -> Source:
    """The source with its archives shown as what they hold (see ``Unpacked``); itself where there are none.

    ``is_left`` tells which archives a reader takes as they are.
    """
    archives = [path for path in source.paths() if is_archive(path)]
    closed = {path for path in archives if is_left(source, path)}
    return Unpacked(source, folder, say, skip=closed) if len(closed) < len(archives) else source


@dataclass
class Unpacked:
    """A source in whose stead archives show what they hold: ``data.zip`` becomes ``data.zip/inner.jpg`` and so on.

    Pictures go to the inner source. Other members are kept below ``folder``, in files numbered from 1. Archives within
    archives stay closed. ``skip`` names archives that a reader takes as they are.
    """

    inner: Source
    folder: Path
    say: Say
    skip: Container[str] = ()
    caps: Caps = Caps()
    _kept: dict[str, tuple[Path, int]] = field(default_factory=dict)
    _paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        opened = set()
        for path in self.inner.paths():
            if is_archive(path) and path not in self.skip:
                opened.add(path)
                self._unpack(path)
        self._paths = sorted({path for path in self.inner.paths() if path not in opened} | set(self._paths))

    def paths(self) -> Sequence[str]:
        return self._paths

    def size_bytes(self, path: str) -> int:
        return self._kept[path][1] if path in self._kept else self.inner.size_bytes(path)

    def open(self, path: str) -> BinaryIO:
        return open(self._kept[path][0], "rb") if path in self._kept else self.inner.open(path)

    def is_picture(self, path: str) -> bool:
        return self.inner.is_picture(path)

    def why_not(self, name: str, *, beside: str = "") -> str:
        return self.inner.why_not(name, beside=beside)

    def image(self, name: str, *, beside: str = "") -> ImageFacts | None:
        return self.inner.image(name, beside=beside)

    def is_ambiguous(self, name: str, *, beside: str = "") -> bool:
        return self.inner.is_ambiguous(name, beside=beside)

    def add_image(self, path: str, data: bytes, *, found_in: str, line: int | None = None) -> ImageFacts | None:
        return self.inner.add_image(path, data, found_in=found_in, line=line)

    def _unpack(self, path: str) -> None:
        ignored = taken = 0
        try:
            with self.inner.open(path) as file:
                for member in members(file, path, self.caps):
                    if is_litter(member.name):
                        ignored += 1
                    else:
                        self._take(path, member)
                        taken += 1
        except ArchiveRefused as refused:
            rest = f"; {taken} files before it were taken, nothing after it" if taken else ""
            self.say(refused.finding(path, rest))
        if ignored:
            cause = f"{ignored} files that an operating system left in the archive are not looked at"
            self.say(finding("FileIgnored", file=path, cause=cause))

    def _take(self, archive: str, member: Member) -> None:
        path = f"{archive}/{member.name}"
        if is_archive(path):
            cause = "an archive within an archive is not opened"
            cure = "unpack the inner archive and pack its files instead"
            self.say(finding("FileIgnored", file=path, cause=cause, cure=cure, action="FileRejected"))
        elif is_picture_name(path):
            self._take_picture(archive, path, member)
        else:
            beside = self.folder / f"{len(self._kept) + 1:06d}"
            with contextlib.ExitStack() as undo, open(beside, "wb") as file:
                undo.callback(beside.unlink)
                for piece in member.pieces():
                    file.write(piece)
                undo.pop_all()
            self._kept[path] = (beside, member.size_bytes)
            self._paths.append(path)

    def _take_picture(self, archive: str, path: str, member: Member) -> None:
        if member.size_bytes > MOST_BYTES:
            cause = f"a picture of {member.size_bytes:,} bytes"
            self.say(finding("ImageTooLarge", file=path, cause=cause, action="FileRejected"))
        elif self.inner.add_image(path, member.read(), found_in=archive):
            self._paths.append(path)
