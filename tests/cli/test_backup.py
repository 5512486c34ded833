"""``runyard backup`` and ``runyard restore`` against a separate server."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vi
from tests.server.test_backups import rewritten

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(tmp_path: Path, eventually: Any) -> Iterator[Path]:
    """The data folder of a running server."""
    data_dir = tmp_path / "data"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environ = kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
    )
    eventually(lambda: (data_dir / "server.json").exists(), timeout_s=60, what="the server is up")
    yield data_dir
    process.terminate()
    process.wait()


def test_a_backup_is_created_inspected_and_restored(
    server: Path, runyard: Any, tmp_path: Path
) -> None:
    """One test, since each start of a server takes a second."""
    data_dir, file = str(server), tmp_path / "one.backup"
    with vi.Client(config_file=server / "credentials.json") as client:
        kept = client.runs.create(flow={"name": "kept"}).run_id

        taken = runyard("backup", str(file), "--data-dir", data_dir, "--json")
        assert taken.exit_code == 0, taken.output
        report = json.loads(taken.stdout)
        assert (report["file"], report["sizeBytes"], report["backup"]["rows"]["runs"]) == (
            str(file),
            file.stat().st_size,
            1,
        )
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in file.parent.glob("*one.backup*")] == ["one.backup"]
        again = runyard("backup", str(file), "--data-dir", data_dir)
        assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)
        secret = json.loads((server / "credentials.json").read_text())["secret_key"]
        pepper = (server / "secrets" / "pepper").read_text().strip()
        content = file.read_bytes()
        assert not any(word.encode() in content for word in (secret, secret[23:97], pepper))

        verified = runyard(
            "backup", "--verify", str(file), "--data-dir", str(tmp_path / "nowhere"), "--json"
        )
        assert verified.exit_code == 0, verified.output
        assert json.loads(verified.stdout) == {**report, "isRestorable": True}
        check_rows_are_verified(runyard, content, tmp_path)

        lost = client.runs.create(flow={"name": "lost"}).run_id
        asked = runyard("restore", str(file), "--data-dir", data_dir, stdin="n\n")
        assert asked.exit_code == 2
        assert "1 runs were created after the backup and will be lost" in asked.stdout
        assert "nothing was changed" in asked.stderr
        assert client.runs.get(lost).run_id == lost

        torn = tmp_path / "torn.backup"
        torn.write_bytes(content[:-600])
        refused = runyard("restore", str(torn), "--data-dir", data_dir, "--yes")
        assert refused.exit_code == 1
        assert "torn" in refused.stderr
        assert client.runs.get(lost).run_id == lost

        done = runyard("restore", str(file), "--data-dir", data_dir, "--yes", "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert (report["before"]["rows"]["runs"], report["restored"]["rows"]["runs"]) == (2, 1)
        assert [run.run_id for run in client.runs.list().items] == [kept]
        with pytest.raises(vi.ViNotFoundError):
            client.runs.get(lost)
        assert runyard("backup", str(file), "--overwrite", "--data-dir", data_dir).exit_code == 0
        assert file.read_bytes() != content
        confirmed = runyard("restore", str(file), "--data-dir", data_dir, stdin="y\n")
        assert confirmed.exit_code == 0, confirmed.output
        assert "restored" in confirmed.stdout


def check_rows_are_verified(runyard: Any, content: bytes, tmp_path: Path) -> None:
    """Check files with valid hashes and invalid rows."""
    for what, change in BAD_ROWS.items():
        bad = tmp_path / "bad.backup"
        bad.write_bytes(rewritten(content, change))
        result = runyard("backup", "--verify", str(bad))
        assert (result.exit_code, result.stdout) == (1, ""), what
        assert "cannot be restored" in result.stderr, what
        assert what in result.stderr, result.stderr
    good = tmp_path / "same.backup"
    good.write_bytes(rewritten(content, lambda manifest, tables, blobs: None))
    shown = runyard("backup", "--verify", str(good))
    assert (shown.exit_code, "can be restored" in shown.stdout) == (0, True)


def with_value(table: str, column: str, value: Any) -> Any:
    """Return a change that sets a value in the first row of a table."""

    def change(manifest: Any, tables: Any, _blobs: Any) -> None:
        columns = next(part.columns for part in manifest.tables if part.name == table)
        first, *others = tables[table].splitlines(keepends=True)
        row = json.loads(first)
        row[columns.index(column)] = value
        tables[table] = json.dumps(row).encode() + b"\n" + b"".join(others)

    return change


def lacking_a_row(manifest: Any, tables: Any, _blobs: Any) -> None:
    tables["pulse"] = b""
    next(part for part in manifest.tables if part.name == "pulse").rows = 0


def of_another(manifest: Any, _tables: Any, _blobs: Any) -> None:
    manifest.operator = "org-another"


def of_tomorrow(manifest: Any, _tables: Any, _blobs: Any) -> None:
    manifest.schema_revision = "9999"


BAD_ROWS = {
    "column 'id' is 'abc:finish'": with_value("runs", "id", "abc:finish"),
    "column 'id' is '..'": with_value("runs", "id", ".."),
    "column 'time_created' is 'soon'": with_value("runs", "time_created", "soon"),
    "column 'condition' is None": with_value("runs", "condition", None),
    "column 'priority' is 2147483648": with_value("runs", "priority", 2**31),
    "no row for its lease clock": lacking_a_row,
    "its rows begin with another one": of_another,
    "is at schema 9999": of_tomorrow,
}


def test_a_file_that_is_not_a_backup_is_not_verified(runyard: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    result = runyard("backup", "--verify", str(tmp_path / "notes.txt"), "--json")
    assert (result.exit_code, result.stdout, "cannot be restored" in result.stderr) == (1, "", True)
    assert runyard("backup", "--verify", str(tmp_path / "none")).exit_code == 2
    assert runyard("backup", "--verify", "--overwrite", str(tmp_path / "notes.txt")).exit_code == 2


def test_an_unreachable_server_leaves_no_file(runyard: Any, server: Path, tmp_path: Path) -> None:
    credentials = json.loads((server / "credentials.json").read_text())
    away = tmp_path / "away"
    away.mkdir()
    (away / "credentials.json").write_text(
        json.dumps({**credentials, "endpoint": "http://127.0.0.1:9/"})
    )
    result = runyard("backup", str(tmp_path / "none.backup"), "--data-dir", str(away))
    assert result.exit_code == 5
    assert not list(tmp_path.glob("*none.backup*"))


def test_a_file_that_is_not_a_backup_is_rejected_without_a_server(
    runyard: Any, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    result = runyard(
        "restore", str(tmp_path / "notes.txt"), "--yes", "--data-dir", str(tmp_path / "nowhere")
    )
    assert result.exit_code == 1
    assert "cannot be restored" in result.stderr
    assert runyard("restore", str(tmp_path / "none")).exit_code == 2
