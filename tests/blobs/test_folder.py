"""The folder store verifies blobs on upload and on reads, and never serves a flipped bit."""

import hashlib
import io
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.blobs import BlobDamaged, BlobMismatch, BlobMissing, FolderBlobs, InvalidBlobName
from runyard.blobs.folder import BLOCK_BYTES


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(blobs: FolderBlobs, content: bytes) -> str:
    blobs.put(io.BytesIO(content), sha256=hash_of(content), size_bytes=len(content))
    return hash_of(content)


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)  # noqa: S311 - test data


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


def file_of(blobs: FolderBlobs, sha256: str) -> Path:
    return blobs.root / sha256[:2] / sha256


def flip(path: Path, *, at: int) -> None:
    """Flip one bit at rest, like a failing disk: length and times stay unchanged."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 77]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_stored_blob_is_read_back(blobs: FolderBlobs, size_bytes: int) -> None:
    content = noise(size_bytes)
    sha256 = put(blobs, content)
    with blobs.open(sha256) as file:
        assert file.read() == content
    assert blobs.has(sha256)
    assert blobs.size_bytes(sha256) == size_bytes
    assert blobs.verify(sha256)
    assert list(blobs.hashes()) == [sha256]


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 200_000), length=st.integers(0, 200_000))
def test_any_range_equals_the_slice(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int
) -> None:
    content = noise(150_000)
    blobs = FolderBlobs(tmp_path_factory.getbasetemp() / "ranges")
    sha256 = hash_of(content)
    if not blobs.has(sha256):
        put(blobs, content)
    with blobs.open(sha256) as file:
        file.seek(start)
        assert file.read(length) == content[start : start + length]


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.integers(0, 2 * BLOCK_BYTES), max_size=6))
def test_chunks_of_any_length_make_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int]
) -> None:
    blobs = FolderBlobs(tmp_path_factory.mktemp("pieces"))
    content = noise(sum(pieces))
    rest = io.BytesIO(content)
    with blobs.receive(sha256=hash_of(content), size_bytes=len(content)) as upload:
        for size_bytes in pieces:
            upload.write(rest.read(size_bytes))
    with blobs.open(hash_of(content)) as file:
        assert file.read() == content


def test_a_wrong_hash_stores_nothing(blobs: FolderBlobs) -> None:
    with pytest.raises(
        BlobMismatch, match=r"announced 5 bytes with hash .*, got 5 bytes with hash"
    ) as caught:
        blobs.put(io.BytesIO(b"apple"), sha256=hash_of(b"pears"), size_bytes=5)
    assert caught.value.got_sha256 == hash_of(b"apple")
    assert not blobs.has(hash_of(b"pears"))
    assert not blobs.has(hash_of(b"apple"))
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


def test_a_short_stream_stores_nothing(blobs: FolderBlobs) -> None:
    with pytest.raises(BlobMismatch, match="announced 6 bytes"):
        blobs.put(io.BytesIO(b"apple"), sha256=hash_of(b"apple"), size_bytes=6)
    assert list(blobs.hashes()) == []


def test_a_long_stream_is_refused_before_it_is_all_written(blobs: FolderBlobs) -> None:
    endless = io.BufferedReader(EndlessZeros(), buffer_size=BLOCK_BYTES)
    with pytest.raises(BlobMismatch, match="announced 100 bytes"):
        blobs.put(endless, sha256=hash_of(bytes(100)), size_bytes=100)


class EndlessZeros(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def test_an_interrupted_upload_stores_nothing_and_leaves_no_file(blobs: FolderBlobs) -> None:
    with (
        pytest.raises(ConnectionResetError),
        blobs.receive(sha256=hash_of(b"apple"), size_bytes=5) as upload,
    ):
        upload.write(b"app")
        raise ConnectionResetError
    assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "A" * 64,
        "a" * 63,
        "a" * 65,
        "a" * 64 + "\n",
        "٣" * 64,
        "a/" * 32,
    ],
)
def test_a_name_that_is_not_a_hash_never_reaches_the_disk(blobs: FolderBlobs, name: str) -> None:
    for call in (blobs.has, blobs.open, blobs.delete, blobs.size_bytes, blobs.verify):
        with pytest.raises(InvalidBlobName):
            call(name)
    with pytest.raises(InvalidBlobName):
        blobs.put(io.BytesIO(b""), sha256=name, size_bytes=0)
    assert not blobs.root.exists()


def test_a_missing_blob_is_named(blobs: FolderBlobs) -> None:
    for call in (blobs.open, blobs.size_bytes, blobs.verify):
        with pytest.raises(BlobMissing, match=hash_of(b"apple")):
            call(hash_of(b"apple"))


def test_deleting_twice_is_the_same_as_once(blobs: FolderBlobs) -> None:
    sha256, other = put(blobs, b"apple"), put(blobs, b"pears")
    blobs.delete(sha256)
    blobs.delete(sha256)
    assert not blobs.has(sha256)
    assert list(blobs.hashes()) == [other]
    assert [path.name for path in blobs.root.rglob(f"{sha256}*")] == []


@pytest.mark.parametrize("at", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 76])
def test_a_flipped_bit_is_reported_and_never_served(blobs: FolderBlobs, at: int) -> None:
    content = noise(3 * BLOCK_BYTES + 77)
    sha256 = put(blobs, content)
    flip(file_of(blobs, sha256), at=at)
    assert not blobs.verify(sha256)
    with blobs.open(sha256) as file:
        file.seek(at)
        with pytest.raises(BlobDamaged, match=sha256):
            file.read(1)


def test_a_bit_flipped_while_a_reader_is_open_is_not_served(blobs: FolderBlobs) -> None:
    sha256 = put(blobs, noise(3 * BLOCK_BYTES))
    with blobs.open(sha256) as file:
        file.read(10)
        flip(file_of(blobs, sha256), at=2 * BLOCK_BYTES)
        file.seek(2 * BLOCK_BYTES)
        with pytest.raises(BlobDamaged):
            file.read(10)


@pytest.mark.parametrize("size_bytes", [0, 10, BLOCK_BYTES, 2 * BLOCK_BYTES + 5])
def test_a_truncated_or_extended_blob_is_reported(blobs: FolderBlobs, size_bytes: int) -> None:
    sha256 = put(blobs, noise(BLOCK_BYTES + 9))
    os.truncate(file_of(blobs, sha256), size_bytes)
    with pytest.raises(BlobDamaged):
        blobs.open(sha256)


def test_uploading_a_damaged_blob_again_repairs_it(blobs: FolderBlobs) -> None:
    content = noise(1000)
    sha256 = put(blobs, content)
    flip(file_of(blobs, sha256), at=500)
    put(blobs, content)
    with blobs.open(sha256) as file:
        assert file.read() == content


@pytest.mark.parametrize("spoil", ["missing", "flipped", "short"])
def test_damaged_checksums_of_an_intact_blob_are_rebuilt(blobs: FolderBlobs, spoil: str) -> None:
    content = noise(2 * BLOCK_BYTES + 5)
    sha256 = put(blobs, content)
    checksums = file_of(blobs, sha256).with_name(sha256 + ".crc")
    sound = checksums.read_bytes()
    if spoil == "missing":
        checksums.unlink()
    elif spoil == "flipped":
        flip(checksums, at=5)
    else:
        os.truncate(checksums, 3)
    with blobs.open(sha256) as file:
        assert file.read() == content
    assert checksums.read_bytes() == sound


def test_concurrent_uploads_of_one_hash_leave_one_valid_blob(blobs: FolderBlobs) -> None:
    content = noise(5 * BLOCK_BYTES + 3)
    errors: list[BaseException] = []
    gate = threading.Barrier(8)

    def upload() -> None:
        gate.wait()
        try:
            put(blobs, content)
            with blobs.open(hash_of(content)) as file:
                assert file.read() == content
        except BaseException as error:  # carried to the main thread, where the test fails with it
            errors.append(error)

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(blobs.hashes()) == [hash_of(content)]
    assert list((blobs.root / "incoming").iterdir()) == []


def test_blob_bytes_are_synced_before_the_name_and_the_name_before_success(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8: fsync the file, rename, fsync the folder.

    In any other order a power cut loses an acknowledged blob.
    """
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("fsync folder" if name.is_dir() and len(name.name) == 2 else "fsync")
        fsync(descriptor)

    def seen_replace(source: Path, target: Path) -> None:
        steps.append(f"rename {Path(target).suffix or 'blob'}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    put(blobs, b"first")  # makes the folders, with fsyncs of their own
    steps.clear()
    put(blobs, b"first")
    assert steps == ["fsync", "fsync", "rename .crc", "rename blob", "fsync folder"]


def test_a_failed_fsync_fails_the_upload(
    blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(blobs, b"before")

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        put(blobs, b"apple")
    assert list(blobs.hashes()) == [hash_of(b"before")]
    assert list((blobs.root / "incoming").iterdir()) == []


def test_remains_of_a_crash_in_incoming_are_removed(blobs: FolderBlobs) -> None:
    sha256 = put(blobs, b"apple")
    (blobs.root / "incoming" / "tmpleft").write_bytes(b"half")
    blobs.clear_incoming()
    assert not (blobs.root / "incoming").exists()
    assert list(blobs.hashes()) == [sha256]
    put(blobs, b"pears")


@given(name=st.text())
def test_only_a_hash_is_a_valid_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    blobs = FolderBlobs(tmp_path_factory.getbasetemp() / "names")
    with pytest.raises(InvalidBlobName):
        blobs.has(name)
