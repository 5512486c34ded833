"""Run both proxy configurations of docs/deployment.md with the real proxies and a real server."""

import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi
from tests.server.test_process import environment

DEADLINE_S = 60.0
PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text()
# Not the proxy's own address, so that the two can be distinguished.
CLIENT_ADDRESS = "127.0.0.9"


@dataclass(frozen=True)
class ProxiedServer:
    """A server and the proxy in front of it."""

    url: str
    certificate: Path
    data_dir: Path
    access_log: Path

    @property
    def credentials(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.data_dir / "credentials.json").read_text())
        return found

    def path(self, rest: str) -> str:
        return f"/workspaces/{self.credentials['organization_id']}/{rest}"

    def client(self, key: str | None = None) -> httpx2.Client:
        tls = ssl.create_default_context(cafile=str(self.certificate))
        transport = httpx2.HTTPTransport(verify=tls, local_address=CLIENT_ADDRESS)
        headers = {"authorization": f"Bearer {key or self.credentials['secret_key']}"}
        return httpx2.Client(base_url=self.url, transport=transport, headers=headers)


@pytest.fixture(scope="module", params=["caddy", "nginx"])
def proxied_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxiedServer]:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    certificate, key = make_certificate(folder)
    server_port, port = free_port(), free_port()
    url, log = f"https://localhost:{port}", folder / "server.log"
    settings = {"PUBLIC_URL": url, "TRUSTED_PROXIES": "127.0.0.1", "PORT": str(server_port)}
    environ = environment(
        folder / "data", **{f"RUNYARD_{name}": value for name, value in settings.items()}
    )
    written = re.search(rf"```{request.param}\w*\n(.*?)```", PAGE, re.DOTALL)
    assert written is not None
    configuration = written.group(1).replace("127.0.0.1:7878", f"127.0.0.1:{server_port}")
    start = {"caddy": caddy_command, "nginx": nginx_command}[request.param]
    command = start(folder, configuration, port, certificate, key)
    with (
        log.open("w") as server_output,
        subprocess.Popen(
            [sys.executable, "-m", "runyard.server"], env=environ, stderr=server_output
        ) as server,
        (folder / "proxy.log").open("w") as proxy_output,
        subprocess.Popen(
            command, stdout=proxy_output, stderr=proxy_output, env=environ | {"HOME": str(folder)}
        ) as proxy,
    ):
        try:
            found = ProxiedServer(url, certificate, folder / "data", log)
            wait_for(found, server, proxy, folder / "proxy.log")
            yield found
        finally:
            proxy.terminate()
            server.terminate()


def caddy_command(
    folder: Path, configuration: str, port: int, certificate: Path, key: Path
) -> list[str]:
    """Return the command, with the test's certificate instead of one from a public authority."""
    site = configuration.replace(
        "train.example {", f"https://localhost:{port} {{\n    tls {certificate} {key}"
    )
    file = folder / "Caddyfile"
    file.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{site}")
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


def nginx_command(
    folder: Path, configuration: str, port: int, certificate: Path, key: Path
) -> list[str]:
    site = configuration.replace("listen 443", f"listen 127.0.0.1:{port}").replace(
        "train.example;", "localhost;"
    )
    site = site.replace("/etc/ssl/train.example.crt", str(certificate)).replace(
        "/etc/ssl/train.example.key", str(key)
    )
    paths = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{site}}}\n"
    )
    return ["nginx", "-p", str(folder), "-c", str(file), "-e", "stderr"]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    extension = [
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*command, *extension], check=True, capture_output=True)
    return certificate, key


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(found: ProxiedServer, server: Any, proxy: Any, proxy_log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert server.poll() is None, found.access_log.read_text()
        assert proxy.poll() is None, proxy_log.read_text()
        if (found.data_dir / "server.json").exists():
            with suppress(httpx2.TransportError), found.client("none") as client:
                if client.get("/health").status_code == 200:
                    return
        assert time.monotonic() < deadline, proxy_log.read_text()
        time.sleep(0.05)


def register_checkpoint(proxied_server: ProxiedServer, run_id: str, content: bytes) -> None:
    """Register a checkpoint as controller and supervisor do, also through the proxy."""
    key = json.loads((proxied_server.data_dir / "secrets/controller.json").read_text())["key"]
    offer = {"claim_id": run_id, "machine_id": "m1", "host": "here", "slots": 1, "wait_s": 0}
    with proxied_server.client(key) as controller:
        token = controller.post("/internal/v1/claims", json=offer).json()["assignment"]["token"]
    contents = {"model_full/model.safetensors": content, "model_full/run.json": b"{}"}
    files = [
        {"path": path, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in contents.items()
    ]
    report: dict[str, Any] = {"machine_id": "m1", "boot_id": "b", "pid": 1, "start_ticks": 1}
    checkpoint = {
        "checkpoint_id": "epoch-1",
        "step": 1,
        "epoch": 1,
        "metrics": {},
        "is_best": True,
        "time": 1,
    }
    with proxied_server.client(token) as attempt:
        attempt.post("/internal/v1/attempt/process", json=report).raise_for_status()
        for file in files:
            blob = f"/internal/v1/attempt/blobs/{file['sha256']}"
            attempt.put(blob, content=contents[str(file["path"])]).raise_for_status()
        attempt.post(
            "/internal/v1/attempt/checkpoints", json={**checkpoint, "files": files}
        ).raise_for_status()
        end = {
            "exit_code": 0,
            "signal": None,
            "group_empty": True,
            "cause": "exit code 0",
            "time": 2,
        }
        result = {
            "outcome": "Succeeded",
            "reason": "Completed",
            "message": "done",
            "checkpoint": "epoch-1",
        }
        attempt.post(
            "/internal/v1/attempt/finish", json={**end, "result": result}
        ).raise_for_status()


def test_a_client_works_through_the_proxy(
    proxied_server: ProxiedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(proxied_server.certificate))
    given = proxied_server.credentials
    with vi.Client(
        secret_key=given["secret_key"],
        organization_id=given["organization_id"],
        endpoint=proxied_server.url,
    ) as client:
        run = client.runs.create(flow={"name": "Through the proxy", "schema": "v1", "blocks": []})
        content = bytes(range(256)) * 16_384
        register_checkpoint(proxied_server, run.run_id, content)
        models = list(client.models.list(run.run_id).all_items())
        assert [model.model_id for model in models] == ["epoch-1"]
        downloaded = client.models.download(
            run.run_id, "epoch-1", save_dir=tmp_path, show_progress=False
        )
        assert next(Path(downloaded.model_path).rglob("*.safetensors")).read_bytes() == content


def test_links_lead_through_the_proxy_and_the_client_sees_an_aborted_download(
    proxied_server: ProxiedServer,
) -> None:
    with proxied_server.client() as client:
        client.put(proxied_server.path("runs/cut"), json={"spec": {}}).raise_for_status()
        register_checkpoint(proxied_server, "cut", b"weights" * 100_000)
        model = client.get(proxied_server.path("runs/cut/outputs/latest?contents=y")).json()
        link = model["status"]["contents"]["downloadUrl"]["url"]
        assert link.startswith(f"{proxied_server.url}/downloads/")
        part = client.get(link, headers={"range": "bytes=512-1023"})
        assert (part.status_code, len(part.content)) == (206, 512)
        client.delete(proxied_server.path("runs/cut")).raise_for_status()
        # Some clients would take the body of an error response for bytes of the model.
        with pytest.raises(httpx2.TransportError):
            client.get(link, headers={"range": "bytes=512-1023"})


def test_the_clients_real_address_counts_and_not_what_it_claims(
    proxied_server: ProxiedServer,
) -> None:
    with proxied_server.client() as client:
        claims = {
            "x-forwarded-for": "203.0.113.9",
            "x-forwarded-host": "evil.example",
            "x-forwarded-proto": "http",
        }
        assert client.get(proxied_server.path("runs/whose"), headers=claims).status_code == 404
        answer = client.get(proxied_server.path("runs"), headers={"origin": proxied_server.url})
        assert answer.status_code == 200
        assert (
            client.get(
                proxied_server.path("runs"), headers={"origin": "https://evil.example"}
            ).status_code
            == 403
        )
    lines = [
        json.loads(line)
        for line in proxied_server.access_log.read_text().splitlines()
        if "runs/whose" in line
    ]
    assert [line["address"] for line in lines] == [CLIENT_ADDRESS]


def test_the_proxy_passes_no_other_spelling_of_a_path(proxied_server: ProxiedServer) -> None:
    tls = ssl.create_default_context(cafile=str(proxied_server.certificate))
    port = int(proxied_server.url.rpartition(":")[2])
    for path in ("/{}", "/.{}", "/x/..{}", "/x/%2e%2e{}", "{}/", "{}%2f"):
        spelled = path.format(proxied_server.path("runs"))
        with tls.wrap_socket(
            socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"
        ) as connection:
            connection.sendall(
                f"GET {spelled} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
                "\r\n".encode()
            )
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        # 401 where the proxy has normalized the path: no key was sent.
        assert answer.split()[1] in (b"400", b"401"), (spelled, answer)
