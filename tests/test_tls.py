"""The server's certificate: what a client would not accept is refused before the start."""

import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from runyard.security.tls import ServerCertificate, load_server_certificate
from runyard.settings import SettingError, read_settings
from tests.support.certificates import KeyPair, make_authority, make_certificate, run_openssl

NOBODY = 65534


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def pair(folder: Path) -> KeyPair:
    names = "DNS:Train.example,DNS:*.train.example,IP:10.0.0.1,IP:2001:db8::1,email:me@example"
    return make_certificate(folder, names=names)


def load(certificate: Path, key: Path) -> ServerCertificate:
    settings = read_settings({}, tls_cert=str(certificate), tls_key=str(key))
    found = load_server_certificate(settings)
    assert found is not None
    return found


def refuse(certificate: Path, key: Path, *words: str) -> None:
    with pytest.raises(SettingError) as refused:
        load(certificate, key)
    for word in (*words, "; try: "):
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_certificate_is_read_with_its_names_and_dates(pair: KeyPair) -> None:
    found = load(pair.certificate, pair.key)
    assert found.names == ("Train.example", "*.train.example", "10.0.0.1", "2001:db8::1")
    assert found.hosts == ("train.example", "10.0.0.1", "[2001:db8::1]")
    assert found.days_left == 1
    assert found.begins <= time.time() < found.ends
    assert found.pem == pair.certificate.read_text().strip()


def test_of_a_chain_the_first_certificate_is_the_servers(folder: Path) -> None:
    authority = make_authority(folder)
    pair = make_certificate(folder, "signed", authority=authority)
    own = pair.certificate.read_text()
    chain = folder / "chain.pem"
    chain.write_text(own + authority.certificate.read_text())
    assert load(chain, pair.key).pem == own.strip()


@pytest.mark.parametrize(
    "key",
    [
        ("-newkey", "rsa:2048", "-nodes"),
        ("-newkey", "ed25519", "-nodes"),
        ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"),
    ],
    ids=["rsa", "ed25519", "p384"],
)
def test_the_usual_kinds_of_keys_are_accepted(key: tuple[str, ...], tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, key=key)
    assert load(pair.certificate, pair.key).names == ("localhost", "127.0.0.1")


@pytest.mark.parametrize(
    "key",
    [
        ("-newkey", "rsa:1024", "-nodes"),
        ("-newkey", "ed448", "-nodes"),
        ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521", "-nodes"),
    ],
    ids=["short", "ed448", "p521"],
)
def test_a_key_with_which_the_server_would_crash_is_refused(
    key: tuple[str, ...], tmp_path: Path
) -> None:
    pair = make_certificate(tmp_path, key=key)
    refuse(pair.certificate, pair.key, str(pair.certificate), "key")


def test_a_file_that_cannot_be_read_is_named(pair: KeyPair, folder: Path) -> None:
    refuse(folder / "none.crt", pair.key, "TLS_CERT", "none.crt", "No such file")
    refuse(pair.certificate, folder / "none.key", "TLS_KEY", "none.key", "No such file")
    refuse(folder, pair.key, str(folder), "directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_key_that_the_user_may_not_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        pair = make_certificate(Path(folder))
        pair.certificate.chmod(0o644)
        pair.key.chmod(0o600)
        os.seteuid(NOBODY)
        try:
            refuse(pair.certificate, pair.key, "TLS_KEY", str(pair.key), "Permission denied")
        finally:
            os.seteuid(0)


def test_files_without_a_certificate_or_key_are_named(pair: KeyPair) -> None:
    refuse(pair.key, pair.key, "TLS_CERT", str(pair.key), "no certificate")
    refuse(pair.certificate, pair.certificate, "TLS_KEY", str(pair.certificate), "no private key")


def test_a_damaged_certificate_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.crt"
    damaged.write_text(re.sub(r"(?m)^.{20}", "A" * 20, pair.certificate.read_text(), count=3))
    refuse(damaged, pair.key, str(damaged))


def test_a_certificate_that_is_not_base64_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.crt"
    damaged.write_text(pair.certificate.read_text().replace("\nMII", "\n!II", 1))
    refuse(damaged, pair.key, str(damaged), "is damaged")


def test_a_certificate_without_extensions_is_refused(tmp_path: Path) -> None:
    """``openssl x509 -req`` makes one without ``-copy_extensions``; the server would crash."""
    request, pair = tmp_path / "server.csr", KeyPair(tmp_path / "v1.crt", tmp_path / "v1.key")
    run_openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
        *("-keyout", str(pair.key), "-out", str(request)),
    )
    run_openssl(
        *("x509", "-req", "-in", str(request), "-signkey", str(pair.key)),
        *("-out", str(pair.certificate)),
    )
    refuse(pair.certificate, pair.key, "version 1", "subjectAltName")


def test_a_file_may_hold_both_certificate_and_key(pair: KeyPair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(pair.key.read_text() + pair.certificate.read_text())
    assert load(both, both) == load(pair.certificate, pair.key)


def test_the_key_of_another_certificate_is_refused(pair: KeyPair, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    rsa = make_certificate(tmp_path, "rsa", key=("-newkey", "rsa:2048", "-nodes"))
    refuse(pair.certificate, other.key, str(other.key), "is not the private key")
    refuse(pair.certificate, rsa.key, str(rsa.key), "is not the private key")


def test_an_encrypted_key_is_refused_without_asking_for_its_password(
    pair: KeyPair, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    run_openssl(
        *("pkey", "-in", str(pair.key), "-aes256", "-passout", "pass:word", "-out", str(locked))
    )
    refuse(pair.certificate, locked, str(locked), "password", "openssl pkey")


def test_an_expired_certificate_is_refused_with_its_date(folder: Path) -> None:
    authority = make_authority(folder, "expired authority")
    pair = make_certificate(folder, "expired", authority=authority, days=-1)
    refuse(pair.certificate, pair.key, "expired on 20", "renew")


def test_a_certificate_of_the_future_is_refused(
    pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    refuse(pair.certificate, pair.key, "not valid before 20", "clock")


def test_a_certificate_for_clients_alone_is_refused(tmp_path: Path) -> None:
    key = ("-newkey", "rsa:2048", "-nodes", "-addext", "extendedKeyUsage=clientAuth")
    pair = make_certificate(tmp_path, key=key)
    refuse(pair.certificate, pair.key, "cannot be used")


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_one_of_the_two_files_alone_is_refused(given: str) -> None:
    with pytest.raises(SettingError, match=r"is not set; try: both"):
        read_settings({}, **{given: "file"})


def test_paths_are_those_of_the_command_and_not_of_the_server(tmp_path: Path) -> None:
    settings = read_settings({}, tls_cert="c.pem", tls_key="~/k.pem", ca="ca.pem")
    assert settings.tls_cert == str(Path.cwd() / "c.pem")
    assert settings.tls_key == str(Path.home() / "k.pem")
    assert settings.ca == str(Path.cwd() / "ca.pem")
