"""A check of a folder and an import of it select the same files and leave out the same ones."""

import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vi
from runyard.datasets.findings import Finding
from runyard.datasets.ingest import check_folder
from runyard.datasets.packs import is_safe
from runyard.datasets.sources import FolderSource
from vi.api.resources.datasets._files import LocalFiles, find_files
from vi.api.resources.datasets._walk import list_files

MakePng = Callable[..., bytes]
NAMES = st.sampled_from(
    [
        *("a.jpg", "b.json", "README.md", "shelf", "Straße.png", "e\u0301.png", "a b.csv"),
        *(".hidden", ".ipynb_checkpoints", ".DS_Store", "._a.jpg", "Thumbs.db", "thumbs.db"),
        *("__MACOSX", "desktop.ini", "back\\slash.jpg", "new\nline.jpg", "bad\udcff.jpg"),
        *("snapshots", "blobs", "x" * 200, "~", "..."),
    ]
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
LINKS = st.tuples(PATHS, st.one_of(PATHS, st.sampled_from(["/", "..", "../out/secret.jpg", "."])))
TREES = st.tuples(
    st.lists(PATHS, max_size=8), st.lists(LINKS, max_size=4), st.lists(PATHS, max_size=1)
)


def make_tree(
    folder: Path, files: list[str], links: list[tuple[str, str]], pipes: list[str]
) -> None:
    """Make files, links and pipes, as far as their paths do not collide."""
    for path in (*files, *(path for path, _ in links), *pipes):
        with suppress(OSError):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
    for path in files:
        with suppress(OSError):
            (folder / path).write_bytes(b"{}")
    for path, target in links:
        with suppress(OSError):
            (folder / path).symlink_to(folder / target)
    for path in pipes:
        with suppress(OSError):
            os.mkfifo(folder / path)


def check_files(folder: Path) -> tuple[list[str], list[tuple[str, str, str]]]:
    findings: list[Finding] = []
    source = FolderSource(folder, findings.append)
    source.find_files()
    return list(source.paths()), [(one.file, one.code, one.cause) for one in findings]


def import_files(folder: Path) -> tuple[list[str], list[tuple[str, str, str]]]:
    try:
        found = find_files(folder)
    except vi.ViInvalidParameterError:
        found = LocalFiles([], [])
    skipped = [(one.file, one.code, one.cause) for one in found.skipped]
    return [file.path for file in found.files], skipped


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(TREES)
def test_a_check_and_an_import_of_any_tree_select_the_same_files(
    tree: tuple[list[str], list[tuple[str, str]], list[str]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, outside = Path(name, "in").resolve(), Path(name, "out")
        folder.mkdir()
        outside.mkdir()
        (outside / "secret.jpg").write_bytes(b"secret")
        make_tree(folder, *tree)
        files, skipped = check_files(folder)
        if files:
            assert (files, skipped) == import_files(folder)
        else:
            assert import_files(folder)[0] == []
        assert all(is_safe(path) for path in files)
        assert not any(part.startswith(".") for path in files for part in path.split("/"))
        for file in find_files(folder).files if files else []:
            assert Path(file.local_path).resolve().is_relative_to(folder)


def make_hub_cache(top: Path) -> Path:
    """Make a cache of the Hub with one revision of two files and links elsewhere."""
    cache, revision = top / "datasets--shelf", top / "datasets--shelf" / "snapshots" / "0a1b"
    for name in ("ff00", "ff01", "sub/ff02"):
        (cache / "blobs" / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / "blobs" / name).write_bytes(name.encode())
    (top / "secret").write_bytes(b"secret")
    (revision / "data").mkdir(parents=True)
    (revision / "data" / "train.json").symlink_to("../../../blobs/ff00")
    (revision / "b.json").symlink_to("../../blobs/ff01")
    (revision / "deep.json").symlink_to("../../blobs/sub/ff02")
    (revision / "out.json").symlink_to(top / "secret")
    (revision / "all").symlink_to("../../blobs")
    return revision


@pytest.mark.parametrize(
    ("below", "files"),
    [
        (".", ["b.json", "data/train.json"]),
        ("data", ["train.json"]),
        ("..", ["0a1b/b.json", "0a1b/data/train.json"]),
    ],
)
def test_links_of_a_hub_snapshot_to_its_blobs_are_followed(
    tmp_path: Path, below: str, files: list[str]
) -> None:
    folder = make_hub_cache(tmp_path) / below
    checked, skipped = check_files(folder)
    assert checked == files
    assert (checked, skipped) == import_files(folder)
    left_out = {"..": {"0a1b/all", "0a1b/deep.json", "0a1b/out.json"}, "data": set()}
    assert {file for file, _, _ in skipped} == left_out.get(below, {"all", "deep.json", "out.json"})


def test_a_whole_hub_cache_has_each_file_once_by_its_name(tmp_path: Path) -> None:
    cache = make_hub_cache(tmp_path).parents[1]
    assert check_files(cache)[0] == [
        "blobs/sub/ff02",
        "snapshots/0a1b/b.json",
        "snapshots/0a1b/data/train.json",
        "snapshots/0a1b/deep.json",
    ]
    assert import_files(cache) == check_files(cache)


def test_a_link_to_blobs_from_elsewhere_is_not_followed(tmp_path: Path) -> None:
    make_hub_cache(tmp_path)
    folder = tmp_path / "datasets--shelf" / "other" / "0a1b"
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to("../../blobs/ff00")
    (tmp_path / "datasets--shelf" / "snapshots" / "a.json").symlink_to("../blobs/ff00")
    assert check_files(folder)[0] == []
    assert "a.json" not in check_files(tmp_path / "datasets--shelf" / "snapshots")[0]


def test_blobs_that_are_links_themselves_are_not_followed(tmp_path: Path) -> None:
    revision = make_hub_cache(tmp_path)
    blob = tmp_path / "datasets--shelf" / "blobs" / "ff00"
    blob.unlink()
    blob.symlink_to(tmp_path / "secret")
    assert check_files(revision)[0] == ["b.json"]


@pytest.mark.parametrize("path", [".data/shelf.json", ".shelf.json", "sub/.data/a/b.parquet"])
def test_data_that_only_hidden_files_hold_is_reported(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(b"{}")
    findings: list[Finding] = []
    outcome = check_folder(tmp_path, on_finding=findings.append)
    assert outcome.decision == "Rejected"
    assert [(one.file, one.code) for one in findings] == [(path, "FileIgnored")]
    assert "only hidden files hold data" in findings[0].cause
    with pytest.raises(vi.ViInvalidParameterError, match="no file to import") as raised:
        find_files(tmp_path)
    assert path in str(raised.value)
    (tmp_path / "README.md").write_text("see below")
    [skipped] = find_files(tmp_path).skipped
    assert (skipped.file, skipped.code) == (path, "FileIgnored")
    (tmp_path / "a.json").write_text("{}")
    assert find_files(tmp_path).skipped == []


def test_hidden_files_in_an_archive_are_left_out_and_counted(
    tmp_path: Path, make_png: MakePng
) -> None:
    with zipfile.ZipFile(tmp_path / "shelf.zip", "w") as archive:
        archive.writestr("tin/1.png", make_png())
        archive.writestr("tin/.ipynb_checkpoints/1-checkpoint.png", make_png())
        archive.writestr("__MACOSX/tin/._1.png", b"\0\5\x16\7")
    findings: list[Finding] = []
    outcome = check_folder(tmp_path / "shelf.zip", on_finding=findings.append)
    assert outcome.counts["images"] == 1
    assert [one.cause for one in findings if one.code == "FileIgnored"] == [
        "2 hidden files and files of operating systems are ignored"
    ]


def test_a_single_file_is_checked_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"question,answer\n")
    (tmp_path / ".shelf.csv").symlink_to(tmp_path / "blob")
    assert check_files(tmp_path / ".shelf.csv") == ([".shelf.csv"], [])
    assert check_files(tmp_path / ".shelf.csv") == import_files(tmp_path / ".shelf.csv")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotADirectoryError, match="neither a folder nor a file"):
        check_folder(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "nowhere")


def test_the_text_of_a_link_is_read_as_the_link_in_a_snapshot_alone(tmp_path: Path) -> None:
    revision = make_hub_cache(tmp_path)
    for folder in (revision, tmp_path / "datasets--shelf" / "other"):
        folder.mkdir(exist_ok=True)
        for name, text in (("c.json", "../../blobs/ff00"), ("d.json", "../../../../secret")):
            (folder / name).write_text(text)
    selected, _ = list_files(revision)
    read = {file.path: Path(file.local_path).read_bytes() for file in selected}
    assert read["c.json"] == b"ff00"
    assert read["d.json"] == b"../../../../secret"
    others, _ = list_files(tmp_path / "datasets--shelf" / "other")
    assert [Path(file.local_path).name for file in others] == ["c.json", "d.json"]
