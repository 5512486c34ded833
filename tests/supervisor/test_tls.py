"""A supervisor on the server's machine accepts the certificate that its files name now."""

import json
import shutil
from pathlib import Path

import pytest

from runyard.supervisor import messages as msg
from runyard.supervisor.api_client import AttemptClient
from tests.support.certificates import make_certificate
from tests.support.tls_server import serve_tls
from vi._http import Trust
from vi.errors import ViNetworkError


def test_a_renewed_certificate_is_accepted_after_the_first_failure(tmp_path: Path) -> None:
    pinned, server_file = tmp_path / "certificate.pem", tmp_path / "server.json"
    old, new = (make_certificate(tmp_path, name) for name in ("old", "new"))
    shutil.copy(old.certificate, pinned)
    with serve_tls(new) as server:
        endpoint = f"https://127.0.0.1:{server.server_port}/"
        server_file.write_text(json.dumps({"endpoint": endpoint, "certificate": str(pinned)}))
        client = AttemptClient(
            endpoint,
            token="t",
            folder=tmp_path,
            server_file=server_file,
            trust=Trust(certificate=str(pinned)),
        )
        # The server has been restarted but not yet announced: its file has the old certificate.
        assert client.renew(None) == msg.ServerUnreachable("lease")
        with pytest.raises(ViNetworkError, match="is not trusted"):
            client._http.send("GET", "/x")
        shutil.copy(new.certificate, pinned)
        assert client.renew(None) == msg.ServerUnreachable("lease")
        assert client._http.send("GET", "/x").status == 200
        client._http.close()


def test_a_server_that_serves_tls_since_its_restart_is_followed(tmp_path: Path) -> None:
    pair, server_file = make_certificate(tmp_path), tmp_path / "server.json"
    client = AttemptClient(
        "http://127.0.0.1:9", token="t", folder=tmp_path, server_file=server_file
    )
    with serve_tls(pair) as server:
        endpoint = f"https://127.0.0.1:{server.server_port}/"
        document = {"endpoint": endpoint, "certificate": str(pair.certificate)}
        server_file.write_text(json.dumps(document))
        assert client.renew(None) == msg.ServerUnreachable("lease")
        assert client._http.send("GET", "/x").status == 200
        client._http.close()
