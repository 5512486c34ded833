"""TLS of the client against a real server: what it accepts, and what it says about the rest."""

from pathlib import Path

import pytest

from tests.support.certificates import KeyPair, make_authority, make_certificate
from tests.support.tls_server import TlsServer, serve_tls
from vi._http import AsyncHttp, Http, RetryPolicy, Trust
from vi.errors import ViConfigurationError, ViError, ViNetworkError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> KeyPair:
    return make_authority(folder)


@pytest.fixture(scope="module")
def pair(folder: Path, authority: KeyPair) -> KeyPair:
    return make_certificate(folder, authority=authority, names="DNS:localhost,DNS:train.example")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "RUNYARD_CA"):
        monkeypatch.delenv(name, raising=False)


def call(server: TlsServer, trust: Trust, *, host: str = "localhost", scheme: str = "https") -> str:
    http = Http(
        f"{scheme}://{host}:{server.server_port}",
        trust=trust,
        retry=RetryPolicy(base_delay_s=0.0),
    )
    try:
        return http.send("GET", "/x").body.decode()
    finally:
        http.close()


def refuse(
    server: TlsServer, trust: Trust, *, host: str = "localhost", scheme: str = "https"
) -> str:
    """Return the message and the suggestion for a request that fails."""
    with pytest.raises(ViNetworkError) as raised:
        call(server, trust, host=host, scheme=scheme)
    assert raised.value.status_code is None
    return f"{raised.value.message} | {raised.value.suggestion}"


def test_a_certificate_is_trusted_by_its_authority_or_by_itself(
    pair: KeyPair, authority: KeyPair
) -> None:
    with serve_tls(pair) as server:
        for file in (authority.certificate, pair.certificate):
            assert call(server, Trust(ca=str(file))) == '{"path": "/x"}'


def test_the_system_does_not_trust_it_and_the_message_says_what_would(pair: KeyPair) -> None:
    with serve_tls(pair) as server:
        text = refuse(server, Trust())
        assert server.connections == 1, "the same certificate would be presented again"
    assert f"the certificate of https://localhost:{server.server_port} is not trusted" in text
    assert "unable to get local issuer certificate" in text
    assert "try: --ca FILE (RUNYARD_CA=FILE)" in text


def test_the_standard_variable_is_honored(
    pair: KeyPair, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with serve_tls(pair) as server:
        assert call(server, Trust())


def test_a_file_of_the_standard_variable_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")
    with pytest.raises(ViConfigurationError, match=r"/none\.pem"):
        Http("https://localhost:1").send("GET", "/x")


def test_a_handshake_that_was_cut_is_tried_again(pair: KeyPair) -> None:
    """As when the server is being restarted."""
    with serve_tls(pair) as server:
        server.cuts = 2
        assert call(server, Trust(ca=str(pair.certificate)))
        assert server.connections == 3


def test_another_authority_is_named(pair: KeyPair, tmp_path: Path) -> None:
    other = str(make_authority(tmp_path, "other").certificate)
    with serve_tls(pair) as server:
        text = refuse(server, Trust(ca=other))
    assert f"trusted are the authorities in {other}" in text
    assert "try: --ca FILE" in text


def test_the_name_counts_even_if_the_authority_is_trusted(
    pair: KeyPair, authority: KeyPair
) -> None:
    with serve_tls(pair) as server:
        text = refuse(server, Trust(ca=str(authority.certificate)), host="127.0.0.1")
    assert "not valid for '127.0.0.1'" in text
    assert "try: an endpoint with a name that the certificate is valid for" in text


def test_an_expired_certificate_is_refused(folder: Path, authority: KeyPair) -> None:
    expired = make_certificate(folder, "expired", authority=authority, days=-1)
    with serve_tls(expired) as server:
        text = refuse(server, Trust(ca=str(authority.certificate)))
    assert "has expired" in text
    assert "try: renew it" in text


def test_a_pinned_certificate_is_accepted_by_any_name(pair: KeyPair) -> None:
    with serve_tls(pair) as server:
        assert call(server, Trust(certificate=str(pair.certificate)), host="127.0.0.1")


def test_a_pinned_certificate_is_accepted_after_it_has_expired(
    folder: Path, authority: KeyPair
) -> None:
    """Runs on the server's machine continue; others have been warned."""
    expired = make_certificate(folder, "expired pin", authority=authority, days=-1)
    with serve_tls(expired) as server:
        assert call(server, Trust(certificate=str(expired.certificate)), host="127.0.0.1")


def test_nothing_but_the_pinned_certificate_is_accepted(
    pair: KeyPair, folder: Path, authority: KeyPair, tmp_path: Path
) -> None:
    """Neither one of the same authority, nor the others in the file of the pinned one."""
    other = make_certificate(folder, "other", authority=authority)
    chain = tmp_path / "chain.pem"
    chain.write_text(pair.certificate.read_text() + authority.certificate.read_text())
    with serve_tls(other) as server:
        for file in (pair.certificate, chain):
            text = refuse(server, Trust(certificate=str(file)))
            assert f"expected: exactly the certificate in {file}" in text


def test_a_pin_is_not_used_for_links_to_another_host() -> None:
    trust = Trust(ca="ca.pem", certificate="pin.pem")
    http = Http("https://127.0.0.1:7878", trust=trust)
    assert http.without_credentials("https://127.0.0.1:7878").trust == trust
    assert http.without_credentials("https://train.example").trust == Trust(ca="ca.pem")
    assert http.without_credentials("https://127.0.0.1:7879").trust == Trust(ca="ca.pem")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    for trust in (Trust(ca=str(file)), Trust(certificate=str(file))):
        with pytest.raises(ViConfigurationError, match=str(file)) as raised:
            Http("https://localhost:1", trust=trust).send("GET", "/x")
        assert "--ca" in (raised.value.suggestion or "")


def test_plain_http_to_a_port_of_tls_suggests_https(pair: KeyPair) -> None:
    with serve_tls(pair) as server:
        text = refuse(server, Trust(), scheme="http")
        assert f"if it serves TLS, that is https://localhost:{server.server_port}" in text


def test_tls_to_a_port_of_plain_http_suggests_http() -> None:
    with serve_tls(None) as server:
        text = refuse(server, Trust())
    port = server.server_port
    assert f"https://localhost:{port} speaks plain HTTP, not TLS" in text
    assert f"try: the endpoint http://localhost:{port}" in text


async def test_the_asynchronous_client_says_the_same(pair: KeyPair, authority: KeyPair) -> None:
    with serve_tls(pair) as server:
        endpoint = f"https://localhost:{server.server_port}"
        trusting = AsyncHttp(endpoint, trust=Trust(ca=str(authority.certificate)))
        assert (await trusting.send("GET", "/x")).status == 200
        await trusting.close()
        refusing = AsyncHttp(endpoint)
        with pytest.raises(ViError, match="is not trusted"):
            await refusing.send("GET", "/x")
        await refusing.close()
        assert server.connections == 2
