"""Archives come from a network: their contents are not trusted."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import vi
from vi.api.resources.models import _archive
from vi.api.resources.models._archive import unpack_tar

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(
    name: str,
    content: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
) -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content), mode
    return [(info, content)]


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[Members], Path]:
    def write(members: Members) -> Path:
        path = tmp_path / ".epoch-1.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for info, content in members:
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_and_folders_are_extracted_and_the_archive_removed(
    pack: Callable[[Members], Path], tmp_path: Path
) -> None:
    archive = pack(
        member("./model_full/", kind=tarfile.DIRTYPE)
        + member("./model_full/config.json", b"{}", mode=0o4777)
        + member("model_adapter/deep/er.bin", b"x" * 5000)
    )
    folder = tmp_path / "epoch-1"
    unpack_tar(archive, folder)
    assert names(tmp_path) == [
        "epoch-1",
        "epoch-1/model_adapter",
        "epoch-1/model_adapter/deep",
        "epoch-1/model_adapter/deep/er.bin",
        "epoch-1/model_full",
        "epoch-1/model_full/config.json",
    ]
    assert (folder / "model_full" / "config.json").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize(
    "members",
    [
        member("../evil", b"x"),
        member("a/../../evil", b"x"),
        member("/etc/evil", b"x"),
        member("a\\..\\evil", b"x"),
        member("C:/evil", b"x"),
        member(".", b"x"),
        member("/".join("d" * 33), b"x"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("a", b"x") + member("hard", kind=tarfile.LNKTYPE, link="a"),
        member("device", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
        member("sparse", b"x", kind=tarfile.GNUTYPE_SPARSE),
        member("a", b"x") + member("a", b"y"),
        member("a", b"x") + member("./a", b"y"),
        member("../evil", kind=tarfile.DIRTYPE),
    ],
    ids=lambda members: f"{members[-1][0].name}-{members[-1][0].type.decode(errors='replace')}",
)
def test_unsafe_members_are_refused_and_leave_nothing(
    pack: Callable[[Members], Path], tmp_path: Path, members: Members
) -> None:
    archive = pack(member("model_full/run.json", b"{}") + members)
    with pytest.raises(vi.ViDownloadError, match="archive of the model is invalid"):
        unpack_tar(archive, tmp_path / "inner" / "epoch-1")
    assert names(tmp_path) == ["inner"]


def test_a_cut_archive_is_refused(pack: Callable[[Members], Path], tmp_path: Path) -> None:
    archive = pack(member("a", b"x" * 100_000))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(vi.ViDownloadError, match="archive of the model is invalid"):
        unpack_tar(archive, tmp_path / "epoch-1")
    assert names(tmp_path) == []


def test_a_member_longer_than_the_archive_writes_nothing(tmp_path: Path) -> None:
    (info, _), *_ = member("bomb")
    info.size = 10**11
    archive = tmp_path / ".a.tar"
    archive.write_bytes(info.tobuf() + b"\0" * 1024)
    with pytest.raises(vi.ViDownloadError, match="claims more bytes than the archive has"):
        unpack_tar(archive, tmp_path / "a")


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path: Path) -> None:
    archive = tmp_path / ".a.tar"
    archive.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(vi.ViDownloadError, match="cannot be read"):
        unpack_tar(archive, tmp_path / "a")


def test_limits_apply_to_compressed_archives(tmp_path: Path) -> None:
    archive = tmp_path / ".a.tar"
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in member("zeros", b"\0" * 1_000_000):
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(vi.ViDownloadError):
        unpack_tar(archive, tmp_path / "a")


def test_too_many_members_are_refused(
    pack: Callable[[Members], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archive, "_MAX_MEMBERS", 2)
    archive = pack(member("a") + member("b") + member("c"))
    with pytest.raises(vi.ViDownloadError, match="more than 2 members"):
        unpack_tar(archive, tmp_path / "epoch-1")


def test_an_existing_folder_is_replaced_completely(
    pack: Callable[[Members], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "epoch-1"
    folder.mkdir()
    (folder / "stale").write_text("old")
    unpack_tar(pack(member("fresh", b"new")), folder)
    assert names(tmp_path) == ["epoch-1", "epoch-1/fresh"]


def test_an_existing_folder_is_kept_when_the_archive_is_invalid(
    pack: Callable[[Members], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "epoch-1"
    folder.mkdir()
    (folder / "good").write_text("old")
    with pytest.raises(vi.ViDownloadError):
        unpack_tar(pack(member("../evil", b"x")), folder)
    assert names(tmp_path) == ["epoch-1", "epoch-1/good"]
