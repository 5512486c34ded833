"""Ids, paths made from them, and rows of backups are validated the same everywhere."""

import re
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from runyard import backup_rows, backup_schema, ids
from runyard.store import backup

HOSTILE_NAMES = (
    *(
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "..\\x",
        "a\0b",
        "\0",
        "x" * 256,
        "ü" * 128,
        "a/../..",
        "./a",
        "a/",
    ),
    *("\n/..", "~/../x"),
)
HOSTILE_IDS = (
    *(
        *HOSTILE_NAMES,
        "abc:finish",
        ":finish",
        "a b",
        "a\n",
        "\na",
        "<script>",
        "ünï",
        "x" * 5000,
        "a.b",
        "a%2fb",
        "\ud800",
    ),
    *("٣", "\uff41", "a\u200b", "*", "-\0"),
)
HOSTILE_PATHS = (
    *(
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "training_state/../../x",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "a/.",
        "a\\b",
        "C:x",
    ),
    *("a\0", "a\nb", "a\x7f", "\ud800", "x" * 1025, "y" * 256, "a/" * 32 + "b"),
)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_hostile_name_becomes_a_folder(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    for names in ((name,), ("org", name), (name, "run"), ("org", name, "attempts")):
        with pytest.raises(ids.PathEscapes):
            ids.resolve_folder(base, *names)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_inside_its_base_which_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "base").symlink_to(tmp_path / "disk")
    assert (
        ids.resolve_folder(tmp_path / "base", "org", "..run") == tmp_path / "base" / "org" / "..run"
    )
    with pytest.raises(ids.PathEscapes):
        ids.resolve_folder(tmp_path / "base")


def test_no_link_below_the_base_is_followed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "org").mkdir(parents=True)
    (base / "another").symlink_to(base / "org")
    (base / "org" / "out").symlink_to(tmp_path)
    (base / "org" / "loop").symlink_to(base / "org" / "loop")
    for names in (
        ("another",),
        ("another", "run"),
        ("org", "out"),
        ("org", "out", "x"),
        ("org", "loop"),
    ):
        with pytest.raises(ids.PathEscapes, match="symbolic link"):
            ids.resolve_folder(base, *names)


@pytest.mark.parametrize("kind", ids.PATTERNS)
def test_no_kind_of_id_accepts_a_hostile_value(kind: str) -> None:
    # The id of a boot is no path and may have dots and colons; there is none on some systems.
    harmless = {"", ".", "..", "a.b", "abc:finish", ":finish"} if kind == "boot" else set()
    for id in set(HOSTILE_IDS) - harmless:
        assert not ids.is_id(kind, id), id
        with pytest.raises(ids.InvalidId, match=re.escape(f"{kind} id")):
            ids.check_id(kind, id)
    assert not ids.is_id(kind, None)
    assert not ids.is_id(kind, 5)


@pytest.mark.parametrize("kind", ids.PATTERNS)
def test_a_backup_accepts_the_same_ids_as_the_server(kind: str) -> None:
    decoder = msgspec.json.Decoder(Annotated[str, msgspec.Meta(pattern=ids.PATTERNS[kind])])
    for id in (
        "r1",
        "_",
        "-",
        "a" * 64,
        "a" * 65,
        "a" * 255,
        "latest",
        "best",
        "Latest",
        "0" * 64,
        *HOSTILE_IDS,
    ):
        if id == "\ud800":
            continue  # JSON has no lone surrogates
        try:
            decoder.decode(msgspec.json.encode(id))
            is_taken = True
        except msgspec.ValidationError:
            is_taken = False
        assert is_taken == ids.is_id(kind, id), id


def test_aliases_such_as_latest_are_not_checkpoint_ids() -> None:
    assert [
        id
        for id in ("latest", "best", "Latest", "latest-1", "epoch-1")
        if ids.is_id("checkpoint", id)
    ] == [
        "Latest",
        "latest-1",
        "epoch-1",
    ]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_no_hostile_path_is_a_checkpoint_file(path: str) -> None:
    assert not ids.is_path(path)
    with pytest.raises(ids.InvalidId):
        ids.check_paths(["model_full/config.json", path])


def test_files_of_a_checkpoint_have_distinct_names() -> None:
    ids.check_paths(
        ["a", "b/a", "b/c.txt", ".gitattributes", "..a", "a...", "ü/日本 .txt", "x" * 255]
    )
    for paths in (["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]):
        with pytest.raises(ids.InvalidId):
            ids.check_paths(paths)


def test_the_described_tables_are_those_of_the_store() -> None:
    described = {
        name: backup_rows.parse_columns(notation) for name, notation in backup_schema.TABLES.items()
    }
    assert described == backup.COLUMNS, "run scripts/backup-schema"
    assert backup_schema.REVISION == backup.SCHEMA_REVISION, "run scripts/backup-schema"


def test_every_column_that_becomes_a_path_is_checked() -> None:
    for name, columns in backup.COLUMNS.items():
        for column in columns.values():
            is_named = column.name in (
                "org",
                "path",
                "filename",
                "sha256",
                "content",
            ) or column.name.endswith("_id")
            if (
                not is_named
                or column.name in ("boot_id", "machine_id", "claim_id", "flow_id")
                or name in ("audit", "keys")
            ):
                continue
            values = {key: _value(other) for key, other in columns.items()} | {
                column.name: "../../x"
            }
            line = msgspec.json.encode(list(values.values())) + b"\n"
            with pytest.raises(
                backup_rows.InvalidRows, match=f"column '{column.name}' is '../../x'"
            ):
                backup_rows.TableRows(name, list(columns), columns).decode(line)


def _value(column: backup_rows.Column) -> object:
    if column.is_nullable:
        return None
    text = "a" * 64 if column.name in ("sha256", "content") else "a"
    return {"str": text, "bytes": b"", "bool": True, "float": 0.5}.get(column.type, 1)


def test_a_base_folder_may_be_missing(tmp_path: Path) -> None:
    folder = ids.resolve_folder(tmp_path / "none", "org", "run")
    assert not folder.exists()
    folder.mkdir(parents=True)
    assert ids.resolve_folder(tmp_path / "none", "org", "run") == folder
