"""``runyard keys`` and ``runyard audit`` against a separate server."""

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi
from runyard.cli import time_arguments
from runyard.cli.resources import keys
from runyard.cli.time_arguments import parse_duration_s

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, eventually: Any) -> Iterator[Path]:
    """The data folder of a running server."""
    data_dir = tmp_path_factory.mktemp("keys") / "data"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    environ = kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"], env=environ, stderr=subprocess.DEVNULL
    )
    eventually(lambda: (data_dir / "server.json").exists(), timeout_s=60, what="the server is up")
    yield data_dir
    process.terminate()
    process.wait()


def credentials(server: Path) -> dict[str, str]:
    values: dict[str, str] = json.loads((server / "credentials.json").read_text())
    return values


def is_rejected(client: vi.Client) -> bool:
    try:
        client.runs.list()
    except vi.ViAuthenticationError as error:
        return error.status_code == 401
    return False


def test_a_keys_lifecycle_on_the_command_line(server: Path, runyard: Any, tmp_path: Path) -> None:
    """One test, since each start of a server takes a second."""
    where, first = ("--data-dir", str(server)), credentials(server)

    # With stdout as a pipe and no explicit choice, no key is created.
    refused = runyard("keys", "create", "--name", "ci", *where)
    assert (refused.exit_code, "--out FILE" in refused.stderr) == (2, True)
    assert len(json.loads(runyard("keys", "list", "--json", *where).stdout)["items"]) == 1

    out = tmp_path / "ci.json"
    created = runyard(
        "keys",
        "create",
        "--name",
        "ci",
        "--role",
        "viewer",
        "--expires",
        "90d",
        "--out",
        str(out),
        *where,
    )
    assert created.exit_code == 0, created.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    secret = json.loads(out.read_text())["secret_key"]
    assert secret not in created.output
    with vi.Client(config_file=out) as viewer:
        assert viewer.runs.list().items == []
        with pytest.raises(vi.ViAuthenticationError) as raised:
            viewer.keys.list()
        assert (raised.value.status_code, raised.value.code) == (403, "RoleForbidden")
    again = runyard("keys", "create", "--name", "ci", "--out", str(out), *where)
    assert (again.exit_code, "already exists" in again.stderr) == (2, True)

    shown = json.loads(runyard("keys", "create", "--name", "job", "--json", *where).stdout)
    listed = json.loads(runyard("keys", "list", "--json", *where).stdout)["items"]
    assert {(key["spec"]["name"], key["spec"]["role"]) for key in listed} == {
        ("first key", "admin"),
        ("ci", "viewer"),
        ("job", "member"),
    }
    table = runyard("keys", "list", *where).stdout
    assert "LAST USED" in table
    assert secret[7:23] in table

    # The key in use is replaced in its file, and only then ends.
    rotated = runyard("keys", "rotate", *where)
    assert rotated.exit_code == 0, rotated.output
    renewed = credentials(server)
    assert renewed["secret_key"] != first["secret_key"]
    assert renewed["secret_key"] not in rotated.output
    assert {**renewed, "secret_key": ""} == {**first, "secret_key": ""}
    assert stat.S_IMODE((server / "credentials.json").stat().st_mode) == 0o600
    assert [path.name for path in server.glob("*credentials*")] == ["credentials.json"]
    with (
        vi.Client(
            secret_key=first["secret_key"],
            organization_id=first["organization_id"],
            endpoint=first["endpoint"],
        ) as old,
        vi.Client(config_file=server / "credentials.json") as new,
    ):
        assert is_rejected(old)
        assert new.keys.get(renewed["secret_key"][7:23]).spec.role == "admin"

    other = runyard("keys", "rotate", shown["keyId"], "--overlap", "1h", "--json", *where)
    assert json.loads(other.stdout)["spec"]["name"] == "job"
    for key_id in (shown["keyId"], secret[7:23]):
        assert runyard("keys", "revoke", key_id, *where).exit_code == 0
    with vi.Client(config_file=out) as revoked:
        assert is_rejected(revoked)
    last = runyard("keys", "revoke", renewed["secret_key"][7:23], *where)
    assert (last.exit_code, "last admin key" in last.stderr) == (1, True)

    log = json.loads(runyard("audit", "--json", "--since", "1h", *where).stdout)["items"]
    assert {"create key", "rotate key", "revoke key", "reject key"} <= {
        entry["action"] for entry in log
    }
    rejected = runyard("audit", "--action", "reject key", "--limit", "5", *where)
    assert f"key {secret[7:23]}: revoked" in rejected.stdout

    # A user who can write into the data folder gets an admin key while the server runs.
    lost = {**renewed, "secret_key": shown["secretKey"]}
    (server / "credentials.json").write_text(json.dumps(lost))
    recovered = runyard("keys", "recover", *where)
    assert recovered.exit_code == 0, recovered.output
    assert (
        json.loads(runyard("keys", "list", "--json", *where).stdout)["items"][0]["spec"]["name"]
        == "recovered key"
    )


def test_a_lost_response_leaves_the_credentials_valid(
    server: Path, runyard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = credentials(server)

    def cut(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("runyard.rundir.write_json", cut)
        failed = runyard("keys", "rotate", "--data-dir", str(server))
        assert (failed.exit_code, "stays valid for 60 minutes" in failed.stderr) == (1, True)
    assert credentials(server) == first
    done = runyard("keys", "rotate", "--data-dir", str(server))
    assert done.exit_code == 0, done.output
    assert credentials(server)["secret_key"] != first["secret_key"]


def test_a_key_that_another_process_revokes_ends_with_its_requests(server: Path) -> None:
    """Changed in the database without a notification: otherwise the poll would wait for 30 s."""
    with vi.Client(config_file=server / "credentials.json") as admin:
        key = admin.keys.create("ci", "viewer")
        run = admin.runs.create(flow={"name": "waits"})
        runs = f"{admin.endpoint.rstrip('/')}/workspaces/{admin.organization_id}/runs"
        url = f"{runs}/{run.run_id}/logs?since=0&wait=30"
        with httpx2.Client(
            headers={"authorization": f"Bearer {key.secret_key}"}, timeout=60
        ) as viewer:
            with ThreadPoolExecutor(1) as pool:
                poll = pool.submit(viewer.get, url)
                # Until the server has it.
                while admin.keys.get(key.key_id).status.last_used is None:
                    time.sleep(0.05)
                with (
                    closing(sqlite3.connect(server / "server.db", timeout=30)) as database,
                    database,
                ):
                    database.execute("UPDATE keys SET revoked = 1 WHERE id = ?", (key.key_id,))
                answer = poll.result()
            assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
            assert viewer.get(url).status_code == 401
        assert admin.keys.get(key.key_id).status.state == "Revoked"


def test_four_hundred_wrong_keys_get_429_and_a_valid_key_keeps_working(server: Path) -> None:
    values = credentials(server)
    wrong = {"authorization": f"Bearer {values['secret_key'][:-1]}!"}
    url = f"{values['endpoint']}workspaces/{values['organization_id']}/runs"
    with (
        httpx2.Client(headers=wrong) as stranger,
        vi.Client(config_file=server / "credentials.json") as client,
    ):
        for _ in range(400):
            answer = stranger.get(url)
        assert (answer.status_code, answer.json()["code"]) == (429, "TooManyRequests")
        assert int(answer.headers["retry-after"]) >= 1
        client.runs.list()
        entries = client.audit.list(action="reject key").items
        assert sum(entry.count for entry in entries if entry.target == "malformed key") >= 400


def test_a_recovery_needs_an_instance(runyard: Any, tmp_path: Path) -> None:
    result = runyard("keys", "recover", "--data-dir", str(tmp_path / "none"))
    assert (result.exit_code, "--data-dir" in result.stderr) == (2, True)
    assert not (tmp_path / "none").exists()


def test_a_secret_is_shown_once_to_a_terminal(
    server: Path, runyard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests' stdout is not a terminal.
    monkeypatch.setattr(keys, "_check_output", lambda out, *, as_json: None)
    shown = runyard(
        "keys", "create", "--name", "mine", "--role", "admin", "--data-dir", str(server)
    ).stdout
    secret = shown.rpartition(" ")[2].strip()
    with vi.Client(**{**credentials(server), "secret_key": secret}) as client:
        assert client.keys.get(secret[7:23]).spec.name == "mine"


@pytest.mark.parametrize("is_written", [False, True])
def test_a_file_for_a_secret_is_kept_once_it_has_one(tmp_path: Path, is_written: bool) -> None:
    with pytest.raises(BrokenPipeError), keys._create_secret_file(tmp_path / "key.json") as file:
        assert file is not None
        assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
        if is_written:
            file.write(b"secret")
        raise BrokenPipeError
    assert (tmp_path / "key.json").exists() is is_written


def test_durations_and_times_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [parse_duration_s(text) for text in ("90s", "5m", "12h", "90d")] == [
        90,
        300,
        43_200,
        7_776_000,
    ]
    assert [parse_duration_s(text) for text in ("", "d", "1w", "-1d", "1.5h", "2027-01-31")] == [
        None
    ] * 6
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert time_arguments.Moment(is_past=False).convert("1h", None, None) == 1_003_600_000
    assert time_arguments.Moment(is_past=True).convert("1h", None, None) == 996_400_000
    assert (
        time_arguments.Moment(is_past=True).convert("2027-01-31T00:00+00:00", None, None)
        == 1_801_353_600_000
    )


def test_browsers_are_signed_in_by_a_link_and_out_by_a_command(server: Path, runyard: Any) -> None:
    where = ("--data-dir", str(server))
    link = runyard("open", "/ui/runs/r1", "--print", *where).stdout.strip()
    address, _, code = link.partition("#")
    assert address.endswith("/ui/enter?next=%2Fui%2Fruns%2Fr1")
    with httpx2.Client(base_url=credentials(server)["endpoint"]) as browser:
        headers = {"sec-fetch-site": "same-origin", "user-agent": "a browser"}
        assert browser.post("/ui/sessions", json={"code": code}, headers=headers).status_code == 201
        runs = f"/workspaces/{credentials(server)['organization_id']}/runs"
        assert browser.get(runs).status_code == 200
        [session] = json.loads(runyard("sessions", "list", "--json", *where).stdout)["items"]
        assert "a browser" in runyard("sessions", "list", *where).stdout
        gone = runyard("sessions", "revoke", session["sessionId"], *where)
        assert gone.stdout == f"signed out {session['sessionId']}\n"
        # 429 where another test has sent many wrong keys from this address.
        assert browser.get(runs).status_code in (401, 429)
    assert runyard("sessions", "revoke", session["sessionId"], *where).exit_code == 4


def test_the_page_of_a_run_opens_in_a_browser_where_there_is_one(
    server: Path, runyard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--data-dir", str(server))
    opened: list[str] = []

    def open_browser(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", open_browser)
    monkeypatch.setenv("DISPLAY", ":0")
    with vi.Client(config_file=server / "credentials.json") as client:
        run = client.runs.create(flow={"name": "x", "schema": "v1", "blocks": []})
    shown = runyard("runs", "get", run.run_id, "--web", *where)
    assert f"/ui/runs/{run.run_id} in a browser" in shown.stdout
    assert "#" not in shown.stdout
    assert f"next=%2Fui%2Fruns%2F{run.run_id}#" in opened[0]
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "/ui/enter?next=" in runyard("open", *where).stdout
    assert len(opened) == 1
