"""The file that ``runyard backup`` writes: what is in it, in which order, and how it proves itself.

    manifest.json            format, schema, epoch, time, and rows, length and hash of everything that follows
    tables/<name>.jsonl      one table a member, one JSON array a row; bytes are base64
    blobs.jsonl              organisation, hash and length of every blob that a row needs
    blobs/<org>/<sha256>     their bytes
    manifest.sha256          hash of the manifest: a file that lacks it is torn

It is a plain tar, so ``tar tf`` lists it. Yet nothing is taken from a tar header: once the manifest is known, every
further byte but the contents is, and the contents have their hashes. So whatever differs (a path with ``..``, a link,
another length, one member more, a flipped bit) is refused by one comparison. ``Intake`` is that reader. It is fed in
pieces of any length, so that the server checks while bytes arrive and the command line checks a file on disk with the
same code, both with bounded memory.

The headers are written here rather than by ``tarfile``, since their bytes must stay the same for ever.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

FORMAT, VERSION = "runyard-backup", 1
MANIFEST, BLOB_LIST, SEAL = "manifest.json", "blobs.jsonl", "manifest.sha256"
BLOCK_BYTES, CHUNK_BYTES = 512, 1 << 20
LARGEST_MANIFEST, LARGEST_BLOB_LIST = 16 << 20, 1 << 30
LARGEST_OCTAL = 8**11
END = bytes(2 * BLOCK_BYTES)

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
# The alphabet of table names and organisation ids; no separator and no dot, so no path can be made of them.
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Write = Callable[[bytes], Any]


class BackupFileError(Exception):
    """The file cannot be used; the sentence says why.

    BackupDamaged    it is not what was written: torn, altered, or no backup at all
    BackupTooNew     a newer Runyard wrote it
    RowsUnfit        its rows do not fit into the tables of this version (``runyard.backup_rows``)
    """


class BackupDamaged(BackupFileError):
    """The bytes are not those that were written."""


class BackupTooNew(BackupFileError):
    """A newer Runyard wrote it."""


class TablePart(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """One table: its columns, in the order of each row's array."""

    name: Name
    columns: list[str]
    rows: Size
    size_bytes: Size
    sha256: Sha256


class BlobPart(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One blob: a line of ``blobs.jsonl``."""

    org: Name
    sha256: Sha256
    size_bytes: Size


class Manifest(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What a backup says about itself.

    ``operator`` is the organisation whose admins look after the instance. ``pepper_id`` tells whether the keys in it
    can verify in another instance, and nothing else. ``missing_blobs`` were lost before the backup was made.
    """

    format: str
    version: int
    schema_revision: str
    written_by: str
    time: int
    epoch: str
    operator: Name
    pepper_id: str
    tables: list[TablePart]
    blob_count: Size
    blob_bytes: Size
    blob_list_size_bytes: Size
    blob_list_sha256: Sha256
    missing_blobs: Size = 0

    def rows(self, table: str) -> int:
        """How many rows of a table are in the file."""
        return next((part.rows for part in self.tables if part.name == table), 0)


@dataclass(frozen=True)
class Member:
    """One file in the tar. A table's names it in ``table``, a blob's its organisation in ``org``."""

    path: str
    size_bytes: int
    sha256: str
    table: str | None = None
    org: str | None = None


class Sink:
    """Where a reader puts what it reads; this one looks at everything and keeps nothing.

    Each method may raise to refuse. What ``receive`` gives is left with an error unless the member was whole.
    """

    def begin(self, manifest: Manifest) -> None:
        """The manifest is there, and whole; its contents are not."""

    def list_blobs(self, blobs: Sequence[BlobPart]) -> None:
        """The tables are there; these blobs follow."""

    def receive(self, member: Member) -> AbstractContextManager[Write]:
        """Where the bytes of a table or a blob go."""
        return nullcontext(lambda chunk: None)


class Intake:
    """Reads a backup that arrives in pieces."""

    def __init__(self, sink: Sink | None = None) -> None:
        self._manifest: Manifest | None = None
        self._steps = self._read(sink or Sink())
        self._wanted = next(self._steps)

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            BackupFileError: they are not those of a backup; nothing more can be fed.
        """
        view = memoryview(data)
        while view:
            if self._manifest is not None:
                raise BackupDamaged("the backup has more bytes than it should have")
            piece, view = view[: self._wanted], view[self._wanted :]
            self._step(bytes(piece))

    def end(self) -> Manifest:
        """There are no more bytes.

        Raises:
            BackupDamaged: some are missing.
        """
        if self._manifest is None:
            self._step(b"")
        assert self._manifest is not None  # noqa: S101 - a reader that wants more raises at the end
        return self._manifest

    def close(self) -> None:
        """Stop, whether or not all of it has come."""
        self._steps.close()

    def _step(self, piece: bytes) -> None:
        try:
            self._wanted = self._steps.send(piece)
        except StopIteration as stop:
            self._manifest = stop.value

    def _read(self, sink: Sink) -> Generator[int, bytes, Manifest]:
        """Yields how many bytes it wants at most, and is sent that many or fewer; none at the end of the file."""
        encoded = yield from _read_manifest()
        manifest = decode_manifest(encoded)
        sink.begin(manifest)
        for table in table_members(manifest):
            yield from _read_member(table, sink)
        listed = bytearray()
        yield from _read_into(_list_member(manifest), listed.extend)
        blobs = decode_blobs(bytes(listed), manifest)
        del listed
        sink.list_blobs(blobs)
        for blob in blobs:
            yield from _read_member(blob_member(blob), sink)
        yield from _read_into(_seal_member(encoded), lambda chunk: None)
        yield from _expect(END, "end")
        return manifest


def check(pieces: Iterator[bytes], sink: Sink | None = None) -> Manifest:
    """Read a whole backup and compare every hash; ``sink`` checks what is in it.

    Raises:
        BackupFileError: it cannot be restored.
    """
    intake = Intake(sink)
    for piece in pieces:
        intake.feed(piece)
    return intake.end()


def size_bytes(manifest: Manifest, blobs: Sequence[BlobPart]) -> int:
    """Exact length of the file."""
    encoded = encode_manifest(manifest)
    members = [_manifest_member(encoded), *table_members(manifest), _list_member(manifest), *map(blob_member, blobs)]
    members.append(_seal_member(encoded))
    return sum(BLOCK_BYTES + member.size_bytes + _padding(member.size_bytes) for member in members) + len(END)


def pieces(
    manifest: Manifest, blobs: Sequence[BlobPart], open_member: Callable[[Member], Iterator[bytes]]
) -> Iterator[bytes]:
    """The bytes of a backup, in order; ``open_member`` gives those of a table or a blob."""
    encoded = encode_manifest(manifest)
    yield from _written(_manifest_member(encoded), iter([encoded]))
    for table in table_members(manifest):
        yield from _written(table, open_member(table))
    yield from _written(_list_member(manifest), iter([encode_blobs(blobs)]))
    for blob in blobs:
        member = blob_member(blob)
        yield from _written(member, open_member(member))
    yield from _written(_seal_member(encoded), iter([_seal(encoded)]))
    yield END


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(encoded: bytes) -> Manifest:
    """Raises BackupFileError unless this code can read a backup with this manifest."""
    try:
        told = msgspec.json.decode(encoded, type=dict[str, Any])
        if told.get("format") != FORMAT:
            raise BackupDamaged("this is not a backup of Runyard")
        if not isinstance(told.get("version"), int) or told["version"] > VERSION:
            raise BackupTooNew(
                f"the backup has format version {told.get('version')!r}, and this Runyard reads up to {VERSION}; "
                "use the Runyard that wrote it, or a later one"
            )
        return msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackupDamaged(f"the backup's {MANIFEST} cannot be read: {error}") from error


def encode_blobs(blobs: Sequence[BlobPart]) -> bytes:
    return b"".join(msgspec.json.encode(blob) + b"\n" for blob in blobs)


def decode_blobs(listed: bytes, manifest: Manifest) -> list[BlobPart]:
    try:
        blobs = [msgspec.json.decode(line, type=BlobPart) for line in listed.splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"the backup's {BLOB_LIST} cannot be read: {error}") from error
    if (len(blobs), sum(blob.size_bytes for blob in blobs)) != (manifest.blob_count, manifest.blob_bytes):
        raise BackupDamaged(f"the backup's {BLOB_LIST} does not agree with its {MANIFEST}")
    return blobs


def table_members(manifest: Manifest) -> list[Member]:
    return [
        Member(f"tables/{part.name}.jsonl", part.size_bytes, part.sha256, table=part.name) for part in manifest.tables
    ]


def blob_member(blob: BlobPart) -> Member:
    return Member(f"blobs/{blob.org}/{blob.sha256}", blob.size_bytes, blob.sha256, org=blob.org)


def _manifest_member(encoded: bytes) -> Member:
    return Member(MANIFEST, len(encoded), hashlib.sha256(encoded).hexdigest())


def _list_member(manifest: Manifest) -> Member:
    if manifest.blob_list_size_bytes > LARGEST_BLOB_LIST:
        raise BackupDamaged(f"the backup's {BLOB_LIST} cannot have {manifest.blob_list_size_bytes} bytes")
    return Member(BLOB_LIST, manifest.blob_list_size_bytes, manifest.blob_list_sha256)


def _seal_member(encoded: bytes) -> Member:
    seal = _seal(encoded)
    return Member(SEAL, len(seal), hashlib.sha256(seal).hexdigest())


def _seal(encoded: bytes) -> bytes:
    return hashlib.sha256(encoded).hexdigest().encode() + b"\n"


def _written(member: Member, content: Iterator[bytes]) -> Iterator[bytes]:
    yield _header(member.path, member.size_bytes)
    yield from content
    if padding := _padding(member.size_bytes):
        yield bytes(padding)


def _read_manifest() -> Generator[int, bytes, bytes]:
    header = yield from _exactly(BLOCK_BYTES, MANIFEST)
    digits = header[124:135]
    if not digits.isdigit() or any(digit > ord("7") for digit in digits):
        raise BackupDamaged("this is not a backup of Runyard")
    length = int(digits, 8)
    if length > LARGEST_MANIFEST or header != _header(MANIFEST, length):
        raise BackupDamaged("this is not a backup of Runyard")
    encoded = yield from _exactly(length, MANIFEST)
    yield from _expect(bytes(_padding(length)), MANIFEST)
    return encoded


def _read_member(member: Member, sink: Sink) -> Generator[int, bytes, None]:
    yield from _expect(_header(member.path, member.size_bytes), member.path)
    with sink.receive(member) as write:
        yield from _content(member, write)
    yield from _expect(bytes(_padding(member.size_bytes)), member.path)


def _read_into(member: Member, write: Write) -> Generator[int, bytes, None]:
    yield from _expect(_header(member.path, member.size_bytes), member.path)
    yield from _content(member, write)
    yield from _expect(bytes(_padding(member.size_bytes)), member.path)


def _content(member: Member, write: Write) -> Generator[int, bytes, None]:
    digest, left = hashlib.sha256(), member.size_bytes
    while left:
        chunk = yield min(left, CHUNK_BYTES)
        if not chunk:
            raise _torn(member.path)
        digest.update(chunk)
        write(chunk)
        left -= len(chunk)
    if digest.hexdigest() != member.sha256:
        raise BackupDamaged(f"{member.path} in the backup is damaged: its hash is not the one it was written with")


def _exactly(length: int, path: str) -> Generator[int, bytes, bytes]:
    read = bytearray()
    while len(read) < length:
        chunk = yield min(length - len(read), CHUNK_BYTES)
        if not chunk:
            raise _torn(path)
        read += chunk
    return bytes(read)


def _expect(wanted: bytes, path: str) -> Generator[int, bytes, None]:
    read = yield from _exactly(len(wanted), path)
    if read != wanted:
        raise BackupDamaged(f"the backup is damaged at {path}: what stands there is not what was written")


def _torn(path: str) -> BackupDamaged:
    return BackupDamaged(f"the backup is torn: it ends within {path}")


def _padding(length: int) -> int:
    return -length % BLOCK_BYTES


def _header(path: str, length: int) -> bytes:
    """A ustar header: a file that only its owner may read, of no user and no time."""
    name, prefix = path.encode("ascii"), b""
    if len(name) > 100:
        prefix, _, name = name.rpartition(b"/")
    # Eleven octal digits end at 8 GiB; beyond, the number stands in binary behind a byte that says so.
    size = b"%011o\0" % length if length < LARGEST_OCTAL else b"\x80" + length.to_bytes(11, "big")
    header = bytearray(BLOCK_BYTES)
    for start, value in (
        (0, name),
        (100, b"0000600\0"),
        (108, b"0000000\0" * 2),
        (124, size),
        (136, b"%011o\0" % 0),
        (148, b" " * 8),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (329, b"0000000\0" * 2),
        (345, prefix),
    ):
        header[start : start + len(value)] = value
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
