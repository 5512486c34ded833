"""A server with a certificate: clients that trust it, pages, and links."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import vi
from runyard.cli.instance.doctor import certificate_finding
from runyard.cli.instance.instance import is_healthy
from runyard.settings import read_settings
from tests.server.processes import ServerProcess, running_server
from tests.server.test_behind_proxies import ProxiedServer, register_checkpoint
from tests.support.certificates import KeyPair, make_authority, make_certificate

PUBLISHED = """
import json, sys, vi
with vi.Client() as client:
    run = client.runs.create(flow={"name": "TLS", "schema": "v1", "blocks": []})
    print(json.dumps([client.runs.get(run.run_id).run_id, run.run_id]))
    client.runs.delete(run.run_id)
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_certificate(
        tmp_path_factory.mktemp("server"),
        names="DNS:localhost,DNS:train.example",
        authority=authority,
    )


@pytest.fixture(scope="module")
def server(pair: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data_dir = tmp_path_factory.mktemp("data")
    # Every address: with TLS that needs no permission.
    settings = {"host": "0.0.0.0", "tls_cert": pair.certificate, "tls_key": pair.key}  # noqa: S104
    with running_server(data_dir, **settings) as running:
        yield running


def data_dir_of(server: ServerProcess) -> Path:
    return server.log_file.parent


def browse(server: ServerProcess, authority: KeyPair) -> httpx2.Client:
    tls = ssl.create_default_context(cafile=str(authority.certificate))
    return httpx2.Client(base_url=f"https://localhost:{server.port}", verify=tls)


def test_the_files_of_the_data_folder_name_endpoint_and_certificate(
    server: ServerProcess,
) -> None:
    data_dir = data_dir_of(server)
    certificate = str(data_dir / "certificate.pem")
    for name in ("server.json", "credentials.json", "secrets/controller.json"):
        document = json.loads((data_dir / name).read_text())
        assert document["endpoint"] == f"https://127.0.0.1:{server.port}/"
        assert document["certificate"] == certificate
    document = json.loads((data_dir / "server.json").read_text())
    assert document["namedEndpoint"] == f"https://localhost:{server.port}/"


def test_a_client_of_this_machine_recognizes_the_certificate(server: ServerProcess) -> None:
    """By an address that the certificate does not name."""
    file = data_dir_of(server) / "credentials.json"
    with vi.Client(config_file=file) as client:
        assert client.endpoint.startswith("https://127.0.0.1:")
        run = client.runs.create(flow={"name": "TLS", "schema": "v1", "blocks": []})
        assert client.runs.get(run.run_id).run_id == run.run_id
        client.runs.delete(run.run_id)


def test_a_client_elsewhere_needs_the_authority(
    server: ServerProcess, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"https://localhost:{server.port}"
    untrusting = vi.Client(server.key, server.org, endpoint=endpoint)
    with untrusting as client, pytest.raises(vi.ViNetworkError, match="is not trusted"):
        client.runs.list()
    for variable in ("RUNYARD_CA", "SSL_CERT_FILE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(authority.certificate))
            with vi.Client(server.key, server.org, endpoint=endpoint) as client:
                assert client.runs.list() is not None


def runyard(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")}
    folders = {"HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "runyard.cli", *arguments],
        env=kept | folders | environ,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_commands_trust_what_the_option_and_a_profile_name(
    server: ServerProcess, authority: KeyPair, tmp_path: Path
) -> None:
    data_dir, ca = str(data_dir_of(server)), str(authority.certificate)
    arguments = ("keys", "create", "--name", "laptop", "--out", "lab.json")
    created = runyard(*arguments, "--data-dir", data_dir, home=tmp_path)
    assert created.returncode == 0, created.stderr
    # The file is for other machines: it has the certificate's name, and no path of this one.
    written = json.loads((tmp_path / "lab.json").read_text())
    assert written["endpoint"] == f"https://localhost:{server.port}"
    assert set(written) == {"endpoint", "organization_id", "secret_key"}

    assert runyard("profiles", "add", "bare", "lab.json", home=tmp_path).returncode == 0
    refused = runyard("--profile", "bare", "runs", "list", home=tmp_path)
    assert refused.returncode == 5
    assert f"the certificate of https://localhost:{server.port} is not trusted" in refused.stderr
    assert "try: --ca FILE" in refused.stderr
    named = runyard("--profile", "bare", "runs", "list", "--ca", ca, home=tmp_path)
    assert named.returncode == 0, named.stderr
    assert runyard("--ca", ca, "profiles", "add", "lab", "lab.json", home=tmp_path).returncode == 0
    saved = runyard("--profile", "lab", "runs", "list", home=tmp_path)
    assert saved.returncode == 0, saved.stderr


def test_the_instance_is_healthy_only_with_its_own_certificate(
    server: ServerProcess, pair: KeyPair, tmp_path: Path
) -> None:
    endpoint = f"https://127.0.0.1:{server.port}/"
    other = make_certificate(tmp_path)
    assert is_healthy(endpoint, str(pair.certificate))
    assert not is_healthy(endpoint, str(other.certificate))
    assert not is_healthy(endpoint, str(tmp_path / "none.crt"))
    assert not is_healthy(endpoint)


def test_the_doctor_compares_the_running_server_with_the_settings(
    server: ServerProcess, pair: KeyPair, tmp_path: Path
) -> None:
    endpoint, data_dir = f"https://127.0.0.1:{server.port}/", data_dir_of(server)
    running = certificate_finding(read_settings({}, data_dir=data_dir), endpoint)
    assert running.observed.startswith("for localhost, train.example; expires on ")
    renewed = make_certificate(tmp_path, days=90)
    settings = read_settings(
        {}, data_dir=data_dir, tls_cert=str(renewed.certificate), tls_key=str(renewed.key)
    )
    finding = certificate_finding(settings, endpoint)
    assert finding.state == "note"
    assert "still presents an earlier one" in finding.suggestion


def test_plain_http_to_the_port_of_tls_suggests_https(server: ServerProcess) -> None:
    endpoint = f"http://127.0.0.1:{server.port}"
    mistaken = vi.Client(server.key, server.org, endpoint=endpoint, max_retries=0)
    with mistaken as client, pytest.raises(vi.ViNetworkError) as raised:
        client.runs.list()
    assert f"that is https://127.0.0.1:{server.port}" in (raised.value.suggestion or "")


def test_a_browser_gets_a_secure_cookie_that_only_our_pages_can_use(
    server: ServerProcess, authority: KeyPair
) -> None:
    with browse(server, authority) as browser:
        ours = {"sec-fetch-site": "same-origin", "origin": str(browser.base_url).rstrip("/")}
        answer = browser.post("/ui/sessions", json={"key": server.key}, headers=ours)
        assert answer.status_code == 201, answer.text
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-runyard_")
        assert "; Secure" in cookie
        assert browser.get("/ui/runs", headers=ours).status_code == 200
        foreign = ours | {"origin": f"http://localhost:{server.port}"}
        assert browser.get("/ui/runs", headers=foreign).status_code == 403


def test_the_certificates_names_are_accepted_as_host_and_no_other(
    server: ServerProcess, authority: KeyPair
) -> None:
    with browse(server, authority) as client:
        for host, status in (("train.example", 200), ("evil.example", 400)):
            named = {"host": f"{host}:{server.port}"}
            assert client.get("/health", headers=named).status_code == status


def test_clients_that_never_complete_a_handshake_delay_nobody(
    server: ServerProcess, authority: KeyPair
) -> None:
    silent = [socket.create_connection((server.host, server.port)) for _ in range(20)]
    try:
        silent[0].sendall(b"\x16\x03\x01")  # the start of a TLS record
        with browse(server, authority) as client:
            assert client.get("/health").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_earlier_versions_of_tls_than_1_3_are_refused(server: ServerProcess) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    address = (server.host, server.port)
    with socket.create_connection(address) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_the_published_client_works_over_tls(
    server: ServerProcess, authority: KeyPair, repository: Path, tmp_path: Path
) -> None:
    python = repository / ".venv-vi-sdk" / "bin" / "python"
    if not python.exists():
        pytest.skip("scripts/setup-vi-sdk installs the published client")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ = kept | {
        "DATATURE_VI_API_ENDPOINT": f"https://localhost:{server.port}/",
        "DATATURE_VI_SECRET_KEY": server.key,
        "DATATURE_VI_ORGANIZATION_ID": server.org,
        "VI_ENABLE_FILE": "false",
        "SSL_CERT_FILE": str(authority.certificate),
    }
    done = subprocess.run(
        [python, "-c", PUBLISHED],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, made = json.loads(done.stdout)
    assert found == made


def test_a_link_is_downloaded_over_tls_and_cut_when_it_ends(
    server: ServerProcess, authority: KeyPair, tmp_path: Path
) -> None:
    data_dir = data_dir_of(server)
    endpoint = f"https://localhost:{server.port}"
    reached = ProxiedServer(endpoint, authority.certificate, data_dir, server.log_file)
    with vi.Client(config_file=data_dir / "credentials.json") as client:
        run = client.runs.create(flow={"name": "TLS", "schema": "v1", "blocks": []})
        content = bytes(range(256)) * 16_384
        register_checkpoint(reached, run.run_id, content)
        found = client.models.download(run.run_id, save_dir=tmp_path, show_progress=False)
        assert next(Path(found.model_path).rglob("*.safetensors")).read_bytes() == content
    with reached.client() as raw:
        path = reached.path(f"runs/{run.run_id}")
        link = raw.get(f"{path}/outputs/latest?contents=y").json()["status"]["contents"]
        url = link["downloadUrl"]["url"]
        assert url.startswith(f"{endpoint}/downloads/")
        assert raw.get(url, headers={"range": "bytes=512-1023"}).status_code == 206
        raw.delete(path).raise_for_status()
        # Some clients would take the body of an error response for bytes of the model.
        with pytest.raises(httpx2.TransportError):
            raw.get(url, headers={"range": "bytes=512-1023"})
