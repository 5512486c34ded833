"""The file format of ``runyard backup``: its members, their order, and their verification.

    manifest.json            format, schema, store id, time, and rows, length and hash of the rest
    tables/<name>.jsonl      one member per table, one JSON array per row; bytes are base64
    blobs.jsonl              organization, hash and length of every blob that a row needs
    blobs/<org>/<sha256>     their bytes
    manifest.sha256          hash of the manifest: a file without it is truncated

It is a plain tar, so ``tar tf`` lists it. But nothing is read from a tar header: the manifest
determines every further byte but the contents, and the contents have hashes. So one comparison
detects any difference: a path with ``..``, a link, another length, an additional member, a flipped
bit. ``BackupReader`` is that reader. It is fed chunks of any length. So the server checks bytes
while they arrive, and the command line checks a file with the same code, both with bounded memory.

The headers are written here rather than by ``tarfile``, since their bytes must never change.
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
MAX_MANIFEST_BYTES, MAX_BLOB_LIST_BYTES = 16 << 20, 1 << 30
MAX_OCTAL_SIZE = 8**11
END = bytes(2 * BLOCK_BYTES)

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
# Table names and organization ids: no separator and no dot, so no path can be made of them.
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Write = Callable[[bytes], Any]


class BackupFileError(Exception):
    """The file cannot be used; the message says why.

    BackupDamaged    it is truncated, altered, or not a backup
    BackupTooNew     a newer Runyard wrote it
    InvalidRows      its rows do not match the tables of this version (``runyard.backup_rows``)
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


class BackupManifest(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """The manifest of a backup.

    ``store_id`` is the store incarnation that it was made of. ``operator`` is the organization
    whose admins operate the instance. ``pepper_id`` only shows whether its keys can verify in
    another instance. ``missing_blobs`` were lost before the backup was made.
    """

    format: str
    version: int
    schema_revision: str
    written_by: str
    time: int
    store_id: str = msgspec.field(name="epoch")
    operator: Name
    pepper_id: str
    tables: list[TablePart]
    blob_count: Size
    blob_bytes: Size
    blob_list_size_bytes: Size
    blob_list_sha256: Sha256
    missing_blobs: Size = 0

    def count_rows(self, table: str) -> int:
        """Return how many rows of a table are in the file."""
        return next((part.rows for part in self.tables if part.name == table), 0)


@dataclass(frozen=True)
class BackupMember:
    """One file in the tar.

    A table has its name in ``table``, a blob its organization in ``org``.
    """

    path: str
    size_bytes: int
    sha256: str
    table: str | None = None
    org: str | None = None


class Sink:
    """The receiver of what a reader reads; this base class discards everything.

    Each method may raise to reject the backup. The context of ``receive`` exits with an error
    unless the member was complete.
    """

    def begin(self, manifest: BackupManifest) -> None:
        """Receive the manifest, which is complete and verified."""

    def list_blobs(self, blobs: Sequence[BlobPart]) -> None:
        """Receive the list of the blobs that follow, after the tables."""

    def receive(self, member: BackupMember) -> AbstractContextManager[Write]:
        """Return the function that receives the bytes of a table or a blob."""
        return nullcontext(lambda chunk: None)


class BackupReader:
    """A reader of a backup that arrives in chunks."""

    def __init__(self, sink: Sink | None = None) -> None:
        self._manifest: BackupManifest | None = None
        self._parser = self._parse(sink or Sink())
        self._requested = next(self._parser)

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            BackupFileError: they are not those of a backup; the reader cannot be used any more.
        """
        view = memoryview(data)
        while view:
            if self._manifest is not None:
                raise BackupDamaged("the backup has more bytes than its manifest says")
            chunk, view = view[: self._requested], view[self._requested :]
            self._advance(bytes(chunk))

    def finish(self) -> BackupManifest:
        """Return the manifest after the last byte.

        Raises:
            BackupDamaged: some are missing.
        """
        if self._manifest is None:
            self._advance(b"")
        assert self._manifest is not None  # noqa: S101 - a reader that wants more raises at the end
        return self._manifest

    def close(self) -> None:
        """Stop reading, whether or not the backup is complete."""
        self._parser.close()

    def _advance(self, chunk: bytes) -> None:
        try:
            self._requested = self._parser.send(chunk)
        except StopIteration as stop:
            self._manifest = stop.value

    def _parse(self, sink: Sink) -> Generator[int, bytes, BackupManifest]:
        """Yield the maximum of bytes to send next.

        Expect that many or fewer, none at the end of the file.
        """
        encoded = yield from _read_manifest()
        manifest = decode_manifest(encoded)
        sink.begin(manifest)
        for table in list_table_members(manifest):
            yield from _read_member(table, sink)
        listed = bytearray()
        yield from _read_into(_build_list_member(manifest), listed.extend)
        blobs = decode_blobs(bytes(listed), manifest)
        del listed
        sink.list_blobs(blobs)
        for blob in blobs:
            yield from _read_member(build_blob_member(blob), sink)
        yield from _read_into(_build_seal_member(encoded), lambda chunk: None)
        yield from _expect(END, "end")
        return manifest


def verify_backup(chunks: Iterator[bytes], sink: Sink | None = None) -> BackupManifest:
    """Read a whole backup and compare every hash; ``sink`` checks its content.

    Raises:
        BackupFileError: it cannot be restored.
    """
    reader = BackupReader(sink)
    for chunk in chunks:
        reader.feed(chunk)
    return reader.finish()


def compute_size(manifest: BackupManifest, blobs: Sequence[BlobPart]) -> int:
    """Return the exact length of the file."""
    encoded = encode_manifest(manifest)
    members = [
        _build_manifest_member(encoded),
        *list_table_members(manifest),
        _build_list_member(manifest),
        *map(build_blob_member, blobs),
    ]
    members.append(_build_seal_member(encoded))
    return sum(
        BLOCK_BYTES + member.size_bytes + _padding_bytes(member.size_bytes) for member in members
    ) + len(END)


def iter_chunks(
    manifest: BackupManifest,
    blobs: Sequence[BlobPart],
    open_member: Callable[[BackupMember], Iterator[bytes]],
) -> Iterator[bytes]:
    """Yield the bytes of a backup; ``open_member`` returns those of a table or a blob."""
    encoded = encode_manifest(manifest)
    yield from _iter_member(_build_manifest_member(encoded), iter([encoded]))
    for table in list_table_members(manifest):
        yield from _iter_member(table, open_member(table))
    yield from _iter_member(_build_list_member(manifest), iter([encode_blobs(blobs)]))
    for blob in blobs:
        member = build_blob_member(blob)
        yield from _iter_member(member, open_member(member))
    yield from _iter_member(_build_seal_member(encoded), iter([_build_seal(encoded)]))
    yield END


def encode_manifest(manifest: BackupManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(encoded: bytes) -> BackupManifest:
    """Decode a manifest; raise BackupFileError unless this version can read such a backup."""
    try:
        fields = msgspec.json.decode(encoded, type=dict[str, Any])
        if fields.get("format") != FORMAT:
            raise BackupDamaged("this is not a backup of Runyard")
        if not isinstance(fields.get("version"), int) or fields["version"] > VERSION:
            raise BackupTooNew(
                f"the backup has format version {fields.get('version')!r}, and this Runyard reads "
                f"up to {VERSION}; try: the Runyard that wrote it, or a later one"
            )
        return msgspec.json.decode(encoded, type=BackupManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackupDamaged(f"the backup's {MANIFEST} cannot be read: {error}") from error


def encode_blobs(blobs: Sequence[BlobPart]) -> bytes:
    return b"".join(msgspec.json.encode(blob) + b"\n" for blob in blobs)


def decode_blobs(listed: bytes, manifest: BackupManifest) -> list[BlobPart]:
    try:
        blobs = [msgspec.json.decode(line, type=BlobPart) for line in listed.splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackupDamaged(f"the backup's {BLOB_LIST} cannot be read: {error}") from error
    if (len(blobs), sum(blob.size_bytes for blob in blobs)) != (
        manifest.blob_count,
        manifest.blob_bytes,
    ):
        raise BackupDamaged(f"the backup's {BLOB_LIST} does not agree with its {MANIFEST}")
    return blobs


def list_table_members(manifest: BackupManifest) -> list[BackupMember]:
    return [
        BackupMember(f"tables/{part.name}.jsonl", part.size_bytes, part.sha256, table=part.name)
        for part in manifest.tables
    ]


def build_blob_member(blob: BlobPart) -> BackupMember:
    return BackupMember(
        f"blobs/{blob.org}/{blob.sha256}", blob.size_bytes, blob.sha256, org=blob.org
    )


def _build_manifest_member(encoded: bytes) -> BackupMember:
    return BackupMember(MANIFEST, len(encoded), hashlib.sha256(encoded).hexdigest())


def _build_list_member(manifest: BackupManifest) -> BackupMember:
    if manifest.blob_list_size_bytes > MAX_BLOB_LIST_BYTES:
        raise BackupDamaged(
            f"the backup's {BLOB_LIST} cannot have {manifest.blob_list_size_bytes} bytes"
        )
    return BackupMember(BLOB_LIST, manifest.blob_list_size_bytes, manifest.blob_list_sha256)


def _build_seal_member(encoded: bytes) -> BackupMember:
    seal = _build_seal(encoded)
    return BackupMember(SEAL, len(seal), hashlib.sha256(seal).hexdigest())


def _build_seal(encoded: bytes) -> bytes:
    return hashlib.sha256(encoded).hexdigest().encode() + b"\n"


def _iter_member(member: BackupMember, content: Iterator[bytes]) -> Iterator[bytes]:
    yield _build_header(member.path, member.size_bytes)
    yield from content
    if padding := _padding_bytes(member.size_bytes):
        yield bytes(padding)


def _read_manifest() -> Generator[int, bytes, bytes]:
    header = yield from _read_exactly(BLOCK_BYTES, MANIFEST)
    digits = header[124:135]
    if not digits.isdigit() or any(digit > ord("7") for digit in digits):
        raise BackupDamaged("this is not a backup of Runyard")
    length = int(digits, 8)
    if length > MAX_MANIFEST_BYTES or header != _build_header(MANIFEST, length):
        raise BackupDamaged("this is not a backup of Runyard")
    encoded = yield from _read_exactly(length, MANIFEST)
    yield from _expect(bytes(_padding_bytes(length)), MANIFEST)
    return encoded


def _read_member(member: BackupMember, sink: Sink) -> Generator[int, bytes, None]:
    yield from _expect(_build_header(member.path, member.size_bytes), member.path)
    with sink.receive(member) as write:
        yield from _read_content(member, write)
    yield from _expect(bytes(_padding_bytes(member.size_bytes)), member.path)


def _read_into(member: BackupMember, write: Write) -> Generator[int, bytes, None]:
    yield from _expect(_build_header(member.path, member.size_bytes), member.path)
    yield from _read_content(member, write)
    yield from _expect(bytes(_padding_bytes(member.size_bytes)), member.path)


def _read_content(member: BackupMember, write: Write) -> Generator[int, bytes, None]:
    digest, left = hashlib.sha256(), member.size_bytes
    while left:
        chunk = yield min(left, CHUNK_BYTES)
        if not chunk:
            raise _truncated(member.path)
        digest.update(chunk)
        write(chunk)
        left -= len(chunk)
    if digest.hexdigest() != member.sha256:
        raise BackupDamaged(
            f"{member.path} in the backup is damaged: its hash does not match the manifest"
        )


def _read_exactly(length: int, path: str) -> Generator[int, bytes, bytes]:
    read = bytearray()
    while len(read) < length:
        chunk = yield min(length - len(read), CHUNK_BYTES)
        if not chunk:
            raise _truncated(path)
        read += chunk
    return bytes(read)


def _expect(expected: bytes, path: str) -> Generator[int, bytes, None]:
    read = yield from _read_exactly(len(expected), path)
    if read != expected:
        raise BackupDamaged(f"the backup is damaged at {path}: unexpected bytes")


def _truncated(path: str) -> BackupDamaged:
    return BackupDamaged(f"the backup is truncated: it ends within {path}")


def _padding_bytes(length: int) -> int:
    return -length % BLOCK_BYTES


def _build_header(path: str, length: int) -> bytes:
    """Return a ustar header: mode 0600, without user and time."""
    name, prefix = path.encode("ascii"), b""
    if len(name) > 100:
        prefix, _, name = name.rpartition(b"/")
    # Eleven octal digits end at 8 GiB; a larger number is binary, after a byte that marks it.
    size = b"%011o\0" % length if length < MAX_OCTAL_SIZE else b"\x80" + length.to_bytes(11, "big")
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
