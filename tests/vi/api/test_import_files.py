"""Selection of a folder's files, and the packs they are sent in."""

import hashlib
import io
import os
from pathlib import Path

import pytest

import vi
from runyard.datasets.packs import read_index
from vi.api.resources.datasets._files import find_files
from vi.api.resources.datasets._packs import PACK_BYTES, Pack, build_pack, group_files
from vi.api.resources.datasets._walk import LocalFile


def write(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def bytes_of(pack: Pack) -> bytes:
    data = b"".join(pack.chunks())
    assert len(data) == pack.size_bytes
    assert hashlib.sha256(data).hexdigest() == pack.sha256
    return data


def unpacked(pack: Pack) -> dict[str, bytes]:
    data = bytes_of(pack)
    return {
        entry.path: data[entry.offset :][: entry.size_bytes]
        for entry in read_index(io.BytesIO(data), len(data))
    }


def test_every_file_below_the_folder_is_found_in_a_stable_order(tmp_path: Path) -> None:
    write(tmp_path, b_jpg=b"2", a__c_jpg=b"1", a__b__d_png=b"33")
    found = find_files(tmp_path)
    assert [(file.path, file.size_bytes) for file in found.files] == [
        ("a/b/d.png", 2),
        ("a/c.jpg", 1),
        ("b.jpg", 1),
    ]
    assert found.size_bytes == 4
    assert found.skipped == []


def test_hidden_files_and_system_files_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, a_jpg=b"1", Thumbs_db=b"2")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("")
    (tmp_path / ".DS_Store").write_text("")
    assert [file.path for file in find_files(tmp_path).files] == ["a.jpg"]


def test_a_link_that_leads_outside_the_folder_is_reported_and_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", tmp_path / "outside"
    write(folder, a_jpg=b"1")
    write(outside, secret_txt=b"s3cret")
    (folder / "file.txt").symlink_to(outside / "secret.txt")
    (folder / "dir").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (folder / "inside.jpg").symlink_to(folder / "a.jpg")
    os.mkfifo(folder / "pipe")
    found = find_files(folder)
    assert [file.path for file in found.files] == ["a.jpg", "inside.jpg"]
    assert {item.file: item.cause for item in found.skipped} == {
        "dir": "it is a link that leads outside the folder",
        "file.txt": "it is a link that leads outside the folder",
        "gone.jpg": "it is a link to a folder or to a missing file",
        "pipe": "it is neither a file nor a folder",
        "up": "it is a link that leads outside the folder",
    }
    assert {item.code for item in found.skipped} == {"NameUnsafe"}


def test_an_unprintable_file_name_is_reported(tmp_path: Path) -> None:
    write(tmp_path, a_jpg=b"1")
    (tmp_path / "b\udcff.jpg").write_bytes(b"2")
    (tmp_path / "c\n.jpg").write_bytes(b"3")
    found = find_files(tmp_path)
    assert [file.path for file in found.files] == ["a.jpg"]
    assert sorted(item.file for item in found.skipped) == ["b\\udcff.jpg", "c\n.jpg"]


def test_a_single_file_is_accepted_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, shelf_parquet=b"PAR1")
    assert find_files(tmp_path / "shelf.parquet").files == [
        LocalFile("shelf.parquet", str(tmp_path / "shelf.parquet"), 4)
    ]


def test_a_path_without_files_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match="has no file to import"):
        find_files(tmp_path)
    with pytest.raises(vi.ViInvalidParameterError, match="does not exist"):
        find_files(tmp_path / "nowhere")


def test_a_pack_is_read_back_by_the_server_as_it_was_sent(tmp_path: Path) -> None:
    write(tmp_path, a__x_png=b"\x89PNG", b_txt=b"", c_bin=os.urandom(700_000))
    files = find_files(tmp_path).files
    assert unpacked(build_pack(files)) == {
        file.path: Path(file.local_path).read_bytes() for file in files
    }


def test_a_large_file_is_its_own_pack_and_is_streamed(tmp_path: Path) -> None:
    size_bytes = PACK_BYTES + 5
    with open(tmp_path / "large.zip", "wb") as file:
        file.truncate(size_bytes)
    write(tmp_path, a_txt=b"1", z_txt=b"2")
    groups = list(group_files(find_files(tmp_path).files))
    assert [[file.path for file in group] for group in groups] == [
        ["a.txt"],
        ["large.zip"],
        ["z.txt"],
    ]
    large = build_pack(groups[1])
    assert sum(len(piece) for piece in large._header_and_content) < 1000
    assert unpacked(large) == {"large.zip": bytes(size_bytes)}


def test_the_same_files_make_the_same_packs_within_their_limit() -> None:
    files = [LocalFile(f"{number:03}", "", number * 7 % 50) for number in range(200)]
    groups = list(group_files(files, limit_bytes=100))
    assert [file for group in groups for file in group] == files
    assert all(sum(file.size_bytes for file in group) <= 100 for group in groups)
    assert groups == list(group_files(iter(files), limit_bytes=100))


def test_a_file_that_grew_or_disappeared_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt=b"1")
    files = find_files(tmp_path).files
    (tmp_path / "a.txt").write_bytes(b"12")
    with pytest.raises(
        vi.ViUploadError, match=r"size of .*a\.txt changed during the import, expected: 1 bytes"
    ):
        build_pack(files)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(vi.ViUploadError, match=r"a\.txt cannot be read: No such file"):
        build_pack(files)


def test_a_large_file_that_is_cut_while_it_is_sent_breaks_the_upload(tmp_path: Path) -> None:
    with open(tmp_path / "large.zip", "wb") as file:
        file.truncate(PACK_BYTES + 5)
    pack = build_pack(find_files(tmp_path).files)
    os.truncate(tmp_path / "large.zip", 10)
    with pytest.raises(vi.ViUploadError, match="changed during the import"):
        bytes_of(pack)
