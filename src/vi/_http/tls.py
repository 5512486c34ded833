"""TLS of a client: which certificates it accepts, and messages for those that it does not.

Certificates of authorities are slow to load, so a context is built only for ``https``. Modules that
only a request needs are imported by the functions that use them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vi.errors import ViConfigurationError

if TYPE_CHECKING:
    import ssl

CA_VARIABLE = "RUNYARD_CA"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Files of the certificates that a client accepts; empty strings mean those of the system.

    ``ca`` has authorities, or the server's own certificate; the name of the server is checked.
    ``certificate`` is the one certificate that the server must present, whatever its name and
    dates, and takes precedence. Processes on the server's own machine use it: they connect to a
    loopback address, which certificates rarely name. Comparing the certificate itself is stricter
    than comparing a name.
    """

    ca: str = ""
    certificate: str = ""

    def for_link(self, endpoint: str, link: str) -> "Trust":
        """Return what to accept from the host of a signed link that ``endpoint`` has issued.

        Another host presents another certificate.
        """
        if urlsplit(link).netloc == urlsplit(endpoint).netloc:
            return self
        return Trust(ca=self.ca)


def find_certificate(text: str) -> str | None:
    """Return the first certificate in a PEM file, that of the server itself; None without one."""
    found = _CERTIFICATE.search(text)
    return found and found.group()


def build_ssl_context(endpoint: str, trust: Trust) -> "ssl.SSLContext":
    """Return the TLS context for an endpoint; one that trusts nothing unless it is https.

    Raises:
        ViConfigurationError: A file of ``trust`` cannot be read, or has no certificate.
    """
    import ssl

    if not endpoint.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    path = trust.certificate or _find_authorities(trust)
    if not path:
        import httpx2

        return httpx2.create_ssl_context()
    try:
        text = Path(path).read_text("utf-8", errors="replace")
        certificate = find_certificate(text)
        if certificate is None:
            raise ValueError("it has no certificate in PEM form")
        return pin_certificate(certificate) if trust.certificate else _trust_authorities(text)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or error
        raise ViConfigurationError(
            f"cannot use the certificates in {path} ({reason})",
            suggestion=f"try: a PEM file with the certificate of the server or of its authority "
            f"(--ca, {CA_VARIABLE})",
            cause=error,
        ) from error


def _find_authorities(trust: Trust) -> str:
    """Return the file of the authorities; an empty string if they are those of the system."""
    return trust.ca or os.environ.get("SSL_CERT_FILE", "")


def pin_certificate(pem: str) -> "ssl.SSLContext":
    """Return a context that accepts a certificate, whatever its name and dates.

    Any other would need to be signed by the private key of this one. The day on which it expires
    matters to clients that know its authority alone; runs on the server's machine continue.

    Raises:
        ssl.SSLError: It is not a certificate.
    """
    context = _trust_authorities(pem)
    context.check_hostname = False
    context.verify_flags |= _NO_CHECK_TIME
    return context


def _trust_authorities(pem: str) -> "ssl.SSLContext":
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pem)
    # A certificate that is trusted itself needs no authority above it.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def find_tls_error(cause: BaseException | None) -> "ssl.SSLError | None":
    """Return the TLS error that prevented a connection; None if something else has failed."""
    import ssl

    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def is_certificate_refused(cause: BaseException) -> bool:
    """Return whether we did not accept a certificate, as opposed to a handshake that was cut."""
    import ssl

    return isinstance(find_tls_error(cause), ssl.SSLCertVerificationError)


def explain_tls_error(error: "ssl.SSLError", *, endpoint: str, trust: Trust) -> tuple[str, str]:
    """Return what is wrong with the TLS connection to an endpoint, and a suggestion."""
    import ssl

    if not isinstance(error, ssl.SSLCertVerificationError):
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            plain = endpoint.replace("https:", "http:", 1)
            return f"{endpoint} speaks plain HTTP, not TLS", f"try: the endpoint {plain}"
        return (
            f"TLS with {endpoint} failed: {error.reason or error}",
            "try: check what listens there, and its certificate",
        )
    reason = error.verify_message.rstrip(".")
    problem = f"the certificate of {endpoint} is not trusted: {reason}"
    if trust.certificate:
        return (
            f"{problem} (expected: exactly the certificate in {trust.certificate})",
            "try: check that it is this machine's own server that listens there, and restart it",
        )
    if "ismatch" in reason:
        return problem, "try: an endpoint with a name that the certificate is valid for"
    if "expired" in reason or "not yet valid" in reason:
        return (
            problem,
            "try: renew it on the server and restart that, or check this machine's clock",
        )
    file = _find_authorities(trust)
    return (
        f"{problem} (trusted are the authorities {f'in {file}' if file else 'of this system'})",
        f"try: --ca FILE ({CA_VARIABLE}=FILE) with the certificate of its authority, or with the "
        "server's own",
    )
