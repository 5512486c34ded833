"""The controller's client: what its key file says about endpoint and certificates."""

import json
from pathlib import Path

import pytest

from runyard.controller.api_client import NoControllerKey, ServerClient
from runyard.settings import SettingError
from tests.support.certificates import make_authority, make_certificate
from tests.support.tls_server import serve_tls
from vi._http import Trust


def write_key(path: Path, endpoint: str, **values: str) -> Path:
    path.write_text(json.dumps({"endpoint": endpoint, "key": "k", **values}))
    return path


def test_the_key_is_not_sent_to_another_machine_in_clear_text(tmp_path: Path) -> None:
    file = write_key(tmp_path / "controller.json", "http://192.0.2.1:7878/")
    with pytest.raises(SettingError, match="RUNYARD_INSECURE=1"):
        ServerClient(file)._connect()
    ServerClient(file, insecure=True)._connect().close()


def test_the_key_file_names_the_certificates_to_trust(tmp_path: Path) -> None:
    file = tmp_path / "controller.json"
    client = ServerClient(file, ca="/setting.pem")
    with pytest.raises(NoControllerKey):
        client._connect()
    for values, trust in (
        ({}, Trust(ca="/setting.pem")),
        ({"ca": "/file.pem"}, Trust(ca="/file.pem")),
        ({"certificate": "/own.pem"}, Trust(ca="/setting.pem", certificate="/own.pem")),
    ):
        write_key(file, "https://train.example/", **values)
        client._connect().close()
        assert client.trust == trust


def test_a_machine_connects_by_tls_with_the_authority_of_its_key_file(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with serve_tls(make_certificate(tmp_path, authority=authority)) as server:
        endpoint = f"https://localhost:{server.server_port}/"
        file = write_key(tmp_path / "controller.json", endpoint, ca=str(authority.certificate))
        http = ServerClient(file)._connect()
        assert http.send("GET", "/x").status == 200
        http.close()
