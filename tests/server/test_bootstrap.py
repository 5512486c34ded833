"""The first start and later ones: permanent keys in files that only the owner can read."""

import asyncio
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from runyard.security.key_format import LENGTH
from runyard.server.clock import AsyncSystemClock
from runyard.server.http.app import open_services
from runyard.server.services.access import secrets as secret_files
from runyard.server.services.access.bootstrap import write_endpoint
from runyard.server.services.access.secrets import InsecureSecret, open_secrets
from runyard.settings import Settings
from runyard.store import StoreUnavailable, tables


def start_and_stop(settings: Settings) -> list[Any]:
    """Start and stop once; return the rows of keys."""

    async def once() -> list[Any]:
        async with open_services(settings, AsyncSystemClock(), run_ticker=False) as services:
            return list(
                services.store.read(
                    lambda connection: connection.execute(tables.keys.select()).all()
                )
            )

    return asyncio.run(once())


def read_credentials(settings: Settings) -> dict[str, str]:
    credentials: dict[str, str] = json.loads(settings.credentials_file.read_text())
    return credentials


def test_the_first_start_creates_organization_and_keys_and_later_ones_keep_them(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    rows = start_and_stop(settings)
    first = read_credentials(settings)
    assert re.fullmatch(r"org-[a-z0-9]{8}", first["organization_id"])
    assert len(first["secret_key"]) == LENGTH
    assert [(row.role, row.org) for row in rows] == [
        ("admin", first["organization_id"]),
        ("controller", None),
    ]
    assert start_and_stop(settings) == rows
    assert read_credentials(settings) == first


def test_only_the_owner_can_read_files_with_secrets(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    start_and_stop(settings)
    files = [settings.credentials_file, *settings.secrets_dir.iterdir()]
    assert {path.name for path in files} == {
        "credentials.json",
        "pepper",
        "signing.json",
        "controller.json",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(settings.secrets_dir.stat().st_mode) == 0o700


def test_the_database_contains_no_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    start_and_stop(settings)
    keys = [
        read_credentials(settings)["secret_key"],
        json.loads((settings.secrets_dir / "controller.json").read_text())["key"],
    ]
    signing = json.loads((settings.secrets_dir / "signing.json").read_text())["keys"]["1"]
    stored = b"".join(path.read_bytes() for path in settings.data_dir.glob("server.db*"))
    for secret in (
        *(key[23:97] for key in keys),
        signing,
        (settings.secrets_dir / "pepper").read_text(),
    ):
        assert secret.encode() not in stored
    assert bytes.fromhex((settings.secrets_dir / "pepper").read_text()) not in stored


def test_a_key_written_before_an_interrupted_start_is_adopted(
    tmp_path: Path, monkeypatch: Any
) -> None:
    settings = Settings(data_dir=tmp_path / "data")

    async def cut(*_: Any) -> None:
        raise StoreUnavailable("cut here")

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr("runyard.store.Store.write", cut)
        start_and_stop(settings)
    written = read_credentials(settings)
    rows = start_and_stop(settings)
    assert read_credentials(settings) == written
    assert rows[0].id == written["secret_key"][7:23]


def test_a_secret_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    open_secrets(tmp_path / "secrets")
    (tmp_path / "secrets" / "pepper").chmod(0o644)
    with pytest.raises(InsecureSecret, match="chmod 600"):
        open_secrets(tmp_path / "secrets")


def test_two_concurrent_starts_agree_on_the_secrets(tmp_path: Path, monkeypatch: Any) -> None:
    """The other server creates its pepper between this one's check and write, and wins."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    real = secret_files._create

    def create_late(path: Path, text: str) -> None:
        real(path, text)
        if "pepper" in path.name and not (folder / "pepper").exists():
            real(folder / "pepper", "ab" * 32)

    monkeypatch.setattr(secret_files, "_create", create_late)
    assert open_secrets(folder).pepper == bytes.fromhex("ab" * 32)
    assert open_secrets(folder) == open_secrets(folder)


def test_the_endpoint_next_to_the_keys_is_kept_up_to_date(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    start_and_stop(settings)
    before = read_credentials(settings)
    write_endpoint(settings, "http://127.0.0.1:1/")
    assert read_credentials(settings) == before | {"endpoint": "http://127.0.0.1:1/"}
    assert (
        json.loads((settings.secrets_dir / "controller.json").read_text())["endpoint"]
        == "http://127.0.0.1:1/"
    )
    settings.credentials_file.unlink()  # its owner moved the key elsewhere
    write_endpoint(settings, "http://127.0.0.1:2/")
    assert not settings.credentials_file.exists()
