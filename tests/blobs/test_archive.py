"""The served tar equals the one from tarfile, byte for byte and range for range."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runyard.blobs import Archive, ArchiveFile, BlobDamaged, BlobMissing, FolderBlobs

NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\:", exclude_categories=("Cc", "Cs")),
    min_size=1,
)
PART = NAME.filter(lambda name: name not in (".", ".."))
FILES = st.dictionaries(
    st.lists(PART, min_size=1, max_size=4).map("/".join)
    | st.just("model_full/" + "long-folder-name/" * 12 + "model-00001-of-00002.safetensors")
    | st.sampled_from(
        [
            "model_full/config.json",
            "model_full/tokenizer.json",
            "model_adapter/adapter_model.safetensors",
        ]
    ),
    st.binary(max_size=1500) | st.just(bytes(70_000)),
    max_size=6,
)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> FolderBlobs:
    return FolderBlobs(tmp_path_factory.mktemp("archive") / "blobs")


def archive_of(files: dict[str, bytes], blobs: FolderBlobs) -> Archive:
    listed = []
    for path, content in files.items():
        sha256 = hashlib.sha256(content).hexdigest()
        if not blobs.has(sha256):
            blobs.put(io.BytesIO(content), sha256=sha256, size_bytes=len(content))
        listed.append(ArchiveFile(path=path, size_bytes=len(content), sha256=sha256))
    return Archive(listed)


def made_by_tarfile(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def compare_any_range(blobs: FolderBlobs, files: dict[str, bytes], data: st.DataObject) -> None:
    whole = made_by_tarfile(files)
    archive = archive_of(files, blobs)
    assert archive.size_bytes == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    assert b"".join(archive.read(blobs, start, end)) == whole[start:end]
    assert archive.sha256(blobs) == hashlib.sha256(whole).hexdigest()


@settings(max_examples=25, deadline=None)
@given(files=FILES, data=st.data())
def test_any_range_equals_the_slice_of_the_tar_that_tarfile_makes(
    blobs: FolderBlobs, files: dict[str, bytes], data: st.DataObject
) -> None:
    compare_any_range(blobs, files, data)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(files=FILES, data=st.data())
def test_any_range_of_many_archives_equals_the_slice_of_the_tar(
    blobs: FolderBlobs, files: dict[str, bytes], data: st.DataObject
) -> None:
    compare_any_range(blobs, files, data)


def test_every_byte_position_can_begin_and_end_a_range(blobs: FolderBlobs) -> None:
    files = {
        "model_full/empty.json": b"",
        "model_full/one.txt": b"x",
        "model_full/whole-block.bin": bytes(range(256)) * 2,
    }
    whole = made_by_tarfile(files)
    archive = archive_of(files, blobs)
    for position in range(len(whole) + 1):
        assert (
            b"".join(archive.read(blobs, position, min(position + 3, len(whole))))
            == whole[position : position + 3]
        )
        assert len(b"".join(archive.read(blobs, 0, position))) == position


def test_the_data_filter_unpacks_it(blobs: FolderBlobs, tmp_path: Path) -> None:
    files = {
        "model_full/run.json": b"{}",
        "model_full/" + "very-long-name-" * 12 + ".json": b"[1]",
        "model_full/größe-模型.txt": b"ok",
        "model_adapter/adapter_model.safetensors": bytes(100_000),
    }
    whole = b"".join(archive_of(files, blobs).read(blobs))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert unpacked == files


def test_the_bytes_of_an_archive_never_change(blobs: FolderBlobs) -> None:
    """A registered hash outlives releases: a change here breaks the check of earlier downloads."""
    archive = archive_of(
        {"model_full/config.json": b"{}", "model_full/" + "d" * 120 + "/ü.txt": b"text"}, blobs
    )
    assert archive.size_bytes == 10240
    assert (
        archive.sha256(blobs) == "733fd8ab288474226afec37b651147406489cfe17b7aa8bcf92879f9ddaedf25"
    )


def test_a_file_above_eight_gib_has_an_exact_length() -> None:
    size_bytes = 9 * 2**30 + 1
    info = tarfile.TarInfo("model_full/model.safetensors")
    info.size = size_bytes
    headers = len(info.tobuf(format=tarfile.PAX_FORMAT))
    padded = -(-size_bytes // 512) * 512
    archive = Archive([ArchiveFile(path=info.name, size_bytes=size_bytes, sha256="0" * 64)])
    assert archive.size_bytes == -(-(headers + padded + 1024) // 10240) * 10240


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../up",
        "a/../b",
        "a//b",
        "./a",
        "a/.",
        "a\\b",
        "c:d",
        "a\x00b",
        "line\nbreak",
        "\ud800",
    ],
)
def test_a_path_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not a valid path in an archive"):
        Archive([ArchiveFile(path=path, size_bytes=0, sha256="0" * 64)])


def test_a_path_given_twice_is_refused() -> None:
    file = ArchiveFile(path="model_full/config.json", size_bytes=0, sha256="0" * 64)
    with pytest.raises(ValueError, match="occurs twice"):
        Archive([file, file])


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, 10241), (10241, 10241)])
def test_a_range_outside_the_archive_is_refused_before_any_byte(
    blobs: FolderBlobs, start: int, end: int
) -> None:
    with pytest.raises(ValueError, match="are outside an archive of 10240 bytes"):
        archive_of({}, blobs).read(blobs, start, end)


def test_a_missing_blob_stops_the_archive(blobs: FolderBlobs) -> None:
    archive = Archive([ArchiveFile(path="a", size_bytes=3, sha256="0" * 64)])
    with pytest.raises(BlobMissing):
        b"".join(archive.read(blobs))


def test_a_damaged_blob_stops_the_archive(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    archive = archive_of({"a": b"apple"}, blobs)
    (path,) = blobs.root.glob("??/" + "?" * 64)
    path.write_bytes(b"apqle")
    with pytest.raises(BlobDamaged):
        archive.sha256(blobs)


def test_a_blob_shorter_than_listed_is_an_error_not_a_short_read(blobs: FolderBlobs) -> None:
    sha256 = hashlib.sha256(b"apple").hexdigest()
    archive_of({"a": b"apple"}, blobs)
    with pytest.raises(EOFError, match="ends at byte 5, expected 9"):
        b"".join(Archive([ArchiveFile(path="a", size_bytes=9, sha256=sha256)]).read(blobs))
