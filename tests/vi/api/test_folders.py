"""Names from a server become paths only inside the given folder."""

from pathlib import Path

import pytest

import vi
from vi.api._folders import parse_relative_path, resolve_inside

HOSTILE = (
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a\\..\\x",
    "a\0b",
    "./..",
    "x/" * 70 + "y",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_never_becomes_a_path(name: str, tmp_path: Path) -> None:
    assert parse_relative_path(name) is None
    for names in ((name,), ("kept", name), (name, "kept")):
        with pytest.raises(vi.ViDownloadError, match="expected: a path inside"):
            resolve_inside(tmp_path, *names)
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_nowhere_else_and_the_folder_itself_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base").symlink_to(tmp_path / "elsewhere")
    assert (
        resolve_inside(tmp_path / "base", "shelf/1.png", "x")
        == tmp_path / "base" / "shelf" / "1.png" / "x"
    )
    (tmp_path / "base" / "out").symlink_to(tmp_path)
    with pytest.raises(vi.ViDownloadError):
        resolve_inside(tmp_path / "base", "out/secret")
    with pytest.raises(vi.ViDownloadError):
        resolve_inside(tmp_path)
