"""The server process: it starts, announces its address, and exits cleanly."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

START_TIMEOUT_S = 60.0


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    return kept | {"RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"} | settings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "runyard.server"]
    data_dir = tmp_path / "data"
    process = subprocess.Popen(
        command, env=environment(data_dir), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (data_dir / "server.json").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_server_starts_responds_refuses_a_second_one_and_exits_cleanly(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    """One test, since each start takes a second."""
    data_dir = tmp_path / "data"
    document = json.loads((data_dir / "server.json").read_text())
    credentials: dict[str, Any] = json.loads((data_dir / "credentials.json").read_text())
    assert document["pid"] == server.pid
    assert credentials["endpoint"] == document["endpoint"]
    with httpx2.Client(base_url=document["endpoint"]) as client:
        assert client.get("/health").json()["status"] == "ok"
        key = {"authorization": f"Bearer {credentials['secret_key']}"}
        url = f"/workspaces/{credentials['organization_id']}/runs/r1"
        assert client.get(url).status_code == 401
        assert client.put(url, json={"spec": {}}, headers=key).status_code == 201
        too_large = client.put(url, content=b"x" * (2 << 20), headers=key)
        assert (too_large.status_code, too_large.json()["code"]) == (413, "BodyTooLarge")
        assert client.get(url, headers=key | {"host": "evil.example"}).status_code == 400
    # Other clients normalize paths before they send them.
    raw = http.client.HTTPConnection(
        "127.0.0.1", int(document["endpoint"].rstrip("/").rpartition(":")[2])
    )
    other = url.replace("/r1", "/r2")
    for spelled in (
        f"/{other}",
        f"/.{other}",
        f"/x/..{other}",
        f"/x/%2e%2e{other}",
        f"{other}/",
        f"{other}%2F",
        f"{other}%00",
    ):
        raw.request("GET", spelled, headers=key)
        answer = raw.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (400, "InvalidPath"), spelled
    raw.close()

    second = subprocess.run(
        [sys.executable, "-m", "runyard.server"],
        env=environment(data_dir),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert second.returncode == 3
    assert "already uses" in second.stderr
    assert document["endpoint"] in second.stderr

    port = str(httpx2.URL(document["endpoint"]).port)
    elsewhere = subprocess.run(
        [sys.executable, "-m", "runyard.server"],
        env=environment(tmp_path / "other", RUNYARD_PORT=port),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert elsewhere.returncode == 3
    assert f"127.0.0.1:{port}" in elsewhere.stderr
    assert "--port" in elsewhere.stderr

    server.send_signal(signal.SIGTERM)
    _, log = server.communicate(timeout=START_TIMEOUT_S)
    assert server.returncode == 0
    assert not (data_dir / "server.json").exists()
    assert credentials["secret_key"] not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line.get("path", "").endswith("/r1")] == [
        401,
        201,
        413,
        400,
    ]


def test_an_address_beyond_loopback_needs_insecure_bind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runyard.server"],
        # Refused before it is bound.
        env=environment(tmp_path / "data", RUNYARD_HOST="0.0.0.0"),  # noqa: S104
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 3
    assert "RUNYARD_INSECURE_BIND" in done.stderr
    assert not (tmp_path / "data" / "server.json").exists()


def test_killed_servers_lose_nothing_they_acknowledged(
    server: subprocess.Popen[str], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    credentials = json.loads((data_dir / "credentials.json").read_text())
    key = {"authorization": f"Bearer {credentials['secret_key']}"}
    url = f"/workspaces/{credentials['organization_id']}/runs/r1"
    with httpx2.Client(base_url=credentials["endpoint"], headers=key) as client:
        made = client.put(url, json={"spec": {}}).json()
    server.kill()
    server.wait()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    again = subprocess.Popen(
        [sys.executable, "-m", "runyard.server"],
        env=environment(data_dir, RUNYARD_PORT=str(port)),
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while json.loads((data_dir / "server.json").read_text())["pid"] != again.pid:
            assert again.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        credentials = json.loads((data_dir / "credentials.json").read_text())
        assert credentials["endpoint"] == f"http://127.0.0.1:{port}/"
        with httpx2.Client(base_url=credentials["endpoint"], headers=key) as client:
            assert client.get(url).json() == made
    finally:
        again.terminate()
        again.wait()
