"""Rules about connections without TLS: plain HTTP stays on this machine unless it is allowed.

A key sent in clear text is a key lost, and neither end sees it. So both ends need a permission of
their own: the server with ``insecure_bind`` to listen beyond loopback, and a machine that connects
to it with ``insecure``.
"""

import ipaddress
from urllib.parse import urlsplit

from runyard.settings import SettingError, Settings


def is_loopback(endpoint: str) -> bool:
    """Return whether an endpoint is an address of this machine that no network reaches."""
    return _is_loopback_host(urlsplit(endpoint).hostname or "")


def check_transport(endpoint: str, *, insecure: bool) -> None:
    """Check that a key may be sent to an endpoint: by TLS, within this machine, or if allowed.

    Raises:
        SettingError: It is plain HTTP to another machine, and ``insecure`` is false.
    """
    if endpoint.lower().startswith("https:") or insecure or is_loopback(endpoint):
        return
    raise SettingError(
        f"{endpoint} is plain HTTP to another machine: the key, images and weights would cross the "
        "network in clear text; try: an https:// endpoint (`runyard up --tls-cert` on the server), "
        "or, on a trusted network, RUNYARD_INSECURE=1"
    )


def check_bind(settings: Settings) -> None:
    """Check that a server may listen on its address: with TLS, on loopback, or if allowed.

    Raises:
        SettingError: It would serve plain HTTP beyond loopback.
    """
    if settings.tls_cert or settings.insecure_bind or _is_loopback_host(settings.host):
        return
    raise SettingError(
        f"listening on {settings.host} would send keys and data over the network in clear text; "
        "try: --tls-cert and --tls-key, a TLS proxy in front of --host 127.0.0.1, or, on a trusted "
        "network, --insecure-bind (RUNYARD_INSECURE_BIND=1)"
    )


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
