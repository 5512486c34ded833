"""Certificates made with openssl, as docs/tls.md shows."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
LOOPBACK = "DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str = "authority") -> KeyPair:
    """Make the certificate of an authority that signs others."""
    pair = _locate(folder, name)
    run_openssl("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", f"/CN={name}", *_outputs(pair))
    return pair


def make_certificate(
    folder: Path,
    name: str = "server",
    *,
    names: str = LOOPBACK,
    authority: KeyPair | None = None,
    days: int = 2,
    key: tuple[str, ...] = _NEW_KEY,
) -> KeyPair:
    """Make a server's certificate for ``names``, an openssl ``subjectAltName``.

    Without an authority it signs itself. A negative number of ``days`` makes an expired one.
    """
    pair = _locate(folder, name)
    subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}")
    if authority is None:
        run_openssl("req", "-x509", *key, "-days", str(days), *subject, *_outputs(pair))
        return pair
    request = folder / f"{name}.csr"
    run_openssl("req", *key, *subject, "-keyout", str(pair.key), "-out", str(request))
    run_openssl(
        *("x509", "-req", "-in", str(request), "-out", str(pair.certificate)),
        *("-CA", str(authority.certificate), "-CAkey", str(authority.key)),
        *("-days", str(days), "-copy_extensions", "copy"),
    )
    return pair


def run_openssl(*arguments: str) -> None:
    """Run ``openssl``, which must succeed."""
    command = ["openssl", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def _locate(folder: Path, name: str) -> KeyPair:
    return KeyPair(folder / f"{name}.crt", folder / f"{name}.key")


def _outputs(pair: KeyPair) -> tuple[str, ...]:
    return ("-keyout", str(pair.key), "-out", str(pair.certificate))
