"""The server's certificate: what prevents a client from accepting it is found before the start.

A handshake in memory checks certificate and key as a real one would, and yields the certificate's
fields; the standard library has no other public function that parses a certificate.
"""

import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runyard.settings import SettingError, Settings
from vi._http.tls import find_certificate, pin_certificate

EXPIRES_SOON_DAYS = 14
FETCH_TIMEOUT_S = 5.0
# The web server aborts the process for an earlier version, and for any public key but these, which
# are named by the AlgorithmIdentifier of RFC 5280 in DER.
_VERSION_WITH_NAMES = 3
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_OTHER_KEYS = (
    bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"),  # ECDSA, P-256
    bytes.fromhex("301006072a8648ce3d020106052b81040022"),  # ECDSA, P-384
    bytes.fromhex("300506032b6570032100"),  # Ed25519
)
_LONGEST_RSA_BYTES = 560  # of the public key with its header; 4096 bits take 546
_HANDSHAKE_ROUNDS = 8  # TLS 1.3 takes 2, each of which moves data in both directions


class _EncryptedKey(Exception):
    """The private key has a password."""


@dataclass(frozen=True, kw_only=True)
class ServerCertificate:
    """A certificate that a server presents.

    ``names`` are the host names and addresses that it is valid for; ``begins`` and ``ends`` are
    Unix times in seconds.
    """

    pem: str
    names: tuple[str, ...]
    begins: int
    ends: int

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names as hosts of a URL, without those with a wildcard."""
        return tuple(
            f"[{name}]" if ":" in name else name.lower() for name in self.names if "*" not in name
        )

    @property
    def days_left(self) -> int:
        return int((self.ends - time.time()) // 86_400)


def load_server_certificate(settings: Settings) -> ServerCertificate | None:
    """Return the certificate of the settings, fully checked; None without TLS.

    Raises:
        SettingError: A file is missing, unreadable or malformed, the key belongs to another
            certificate or has a password, or the certificate is not valid now.
    """
    if not settings.tls_cert:
        return None
    found = _read_pair(settings.tls_cert, settings.tls_key)
    now = time.time()
    if now >= found.ends:
        raise _invalid_certificate(
            settings.tls_cert, f"expired on {_format_date(found.ends)}", "renew it"
        )
    if now < found.begins:
        raise _invalid_certificate(
            settings.tls_cert,
            f"is not valid before {_format_date(found.begins)}",
            "check the clock of this machine, or another certificate",
        )
    return found


def fetch_certificate(endpoint: str, pem: str) -> ServerCertificate:
    """Return the certificate that a running server presents, which must be ``pem``.

    Raises:
        OSError: It does not respond, or presents another certificate.
    """
    address = urlsplit(endpoint)
    with (
        socket.create_connection((address.hostname, address.port or 443), FETCH_TIMEOUT_S) as plain,
        pin_certificate(pem).wrap_socket(plain) as secured,
    ):
        return _describe_peer(dict(secured.getpeercert() or {}), pem)


def _describe_peer(fields: dict[str, Any], pem: str) -> ServerCertificate:
    """Return the certificate of ``SSLSocket.getpeercert()``."""
    return ServerCertificate(
        pem=pem,
        names=tuple(
            str(ipaddress.ip_address(name)) if kind == "IP Address" else name
            for kind, name in fields.get("subjectAltName", ())
            if kind in ("DNS", "IP Address")
        ),
        begins=ssl.cert_time_to_seconds(fields["notBefore"]),
        ends=ssl.cert_time_to_seconds(fields["notAfter"]),
    )


def describe_expiry(certificate: ServerCertificate) -> str:
    """Return when a certificate expires, as part of a sentence."""
    days = certificate.days_left
    return f"expires on {_format_date(certificate.ends)}, in {days} day{'' if days == 1 else 's'}"


def _format_date(seconds: int) -> str:
    """Return a Unix time as a date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _read_pair(certificate: str, key: str) -> ServerCertificate:
    pem = find_certificate(_read_file(certificate, "TLS_CERT"))
    if pem is None:
        raise _invalid_certificate(
            certificate,
            "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
            f"openssl x509 -in {certificate} -noout -text shows what it holds",
        )
    if "PRIVATE KEY-----" not in _read_file(key, "TLS_KEY"):
        raise SettingError(
            f"RUNYARD_TLS_KEY: {key} holds no private key in PEM form; try: the key that was made "
            "with the certificate"
        )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        _check_key_algorithm(certificate, ssl.PEM_cert_to_DER_cert(pem))
        server.load_cert_chain(certificate, key, password=_refuse_password)
        fields = _exchange_handshake(server, pin_certificate(pem))
    except _EncryptedKey as error:
        raise SettingError(
            f"RUNYARD_TLS_KEY: {key} is encrypted with a password, which nobody enters when the "
            f"server starts; try: openssl pkey -in {key} -out FILE (chmod 600 FILE)"
        ) from error
    except ssl.SSLError as error:
        # OpenSSL looks for the certificate of a key of this kind, and has none.
        if (error.reason or "").endswith(("_MISMATCH", "NO_CERTIFICATE_ASSIGNED")):
            raise SettingError(
                f"RUNYARD_TLS_KEY: {key} is not the private key of the certificate {certificate}; "
                "try: the key that was made with it"
            ) from error
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise _invalid_certificate(
            certificate, f"cannot be used with the key {key} ({reason})", "another certificate"
        ) from error
    except ValueError as error:  # not base64
        raise _invalid_certificate(
            certificate, f"is damaged ({error})", "a copy of the file"
        ) from error
    if fields["version"] < _VERSION_WITH_NAMES:
        raise _invalid_certificate(
            certificate,
            "is of X.509 version 1, which names no host",
            "a certificate with subjectAltName",
        )
    return _describe_peer(fields, pem)


def _read_file(path: str, setting: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError as error:
        raise SettingError(
            f"RUNYARD_{setting}: cannot read {path} ({error.strerror}); try: a PEM file that the "
            "user of the server may read"
        ) from error


def _check_key_algorithm(path: str, certificate: bytes) -> None:
    at = certificate.find(_RSA)
    is_usable = any(key in certificate for key in _OTHER_KEYS) or (
        at > 0 and int.from_bytes(certificate[at - 2 : at], "big") <= _LONGEST_RSA_BYTES
    )
    if not is_usable:
        raise _invalid_certificate(
            path,
            "has a kind of key that the server cannot use",
            "a key of ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits",
        )


def _refuse_password() -> str:
    raise _EncryptedKey  # without this, OpenSSL asks for the password on the terminal


def _exchange_handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Return the fields of the server's certificate, which the client has verified.

    Raises:
        ssl.SSLError: The handshake fails.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, True))
    for _ in range(_HANDSHAKE_ROUNDS):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return dict(ends[0].getpeercert() or {})


def _invalid_certificate(path: str, problem: str, fix: str) -> SettingError:
    return SettingError(f"RUNYARD_TLS_CERT: {path} {problem}; try: {fix}")
