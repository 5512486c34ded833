"""The address of a caller and the origin it used, as far as proxies are trusted.

``X-Forwarded-For`` and ``X-Forwarded-Proto`` count only in connections from ``trusted_proxies``;
any other client could forge them. ``X-Forwarded-Host`` never counts: many proxies pass on what
their client sent, and links made from it would lead to another host. Links use ``public_url``, or
else the Host header, which must be an allowed one.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from runyard.server.services.errors import Refusal
from runyard.settings import Settings, trusted_networks

FORWARDED_FOR, FORWARDED_PROTO = b"x-forwarded-for", b"x-forwarded-proto"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
DEFAULT_PORTS = {"http": "80", "https": "443"}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@,\s]+)(?::([0-9]{1,5}))?", re.IGNORECASE)


@dataclass(frozen=True)
class Caller:
    """Address of the client, and the origin (``scheme://host[:port]``) that it used."""

    address: str
    origin: str


class Proxies:
    """Reader of the headers that describe client and origin, as far as they are trusted."""

    def __init__(self, settings: Settings) -> None:
        self._public_url = settings.public_url.rstrip("/")
        public_host = urlsplit(self._public_url).netloc
        self._allowed_hosts = list_allowed_hosts(
            settings.host, f"{settings.allowed_hosts},{_split_host(public_host)[0]}"
        )
        self._trusted = trusted_networks(settings.trusted_proxies)
        # A few callers send most requests, and parsing their headers costs more than all other
        # checks.
        self._read = lru_cache(maxsize=1024)(self._read_caller)

    def read_caller(self, peer: str, scheme: str, headers: dict[bytes, bytes]) -> Caller:
        """Return the address of the caller and the origin that it used.

        Raises:
            Refusal: InvalidHost, OriginRefused.
        """
        get = headers.get
        return self._read(
            peer,
            scheme,
            get(b"host", b""),
            get(b"origin"),
            get(FORWARDED_FOR, b""),
            get(FORWARDED_PROTO, b""),
        )

    def _read_caller(
        self,
        peer: str,
        scheme: str,
        host_header: bytes,
        origin_header: bytes | None,
        for_header: bytes,
        proto: bytes,
    ) -> Caller:
        given = host_header.decode("latin-1").lower()
        host, _ = _split_host(given)
        if host not in self._allowed_hosts:
            raise Refusal(
                "InvalidHost",
                f"Host {given[:80]!r} is not an allowed host; try: use the server's address, or "
                "add the host to RUNYARD_ALLOWED_HOSTS or RUNYARD_PUBLIC_URL",
            )
        is_proxied = bool(for_header or proto) and self.is_trusted(peer)
        address = peer
        if is_proxied:
            address = self._client_address(for_header.decode("latin-1")) or peer
            forwarded_scheme = proto.decode("latin-1").strip().lower()
            scheme = forwarded_scheme if forwarded_scheme in DEFAULT_PORTS else scheme
        origin = f"{scheme}://{given}"
        if origin_header is not None:
            self._check_origin(origin_header.decode("latin-1"), origin)
        # A local program that used no proxy gets links to the address that it used.
        is_direct = host in LOOPBACK_HOSTS and not is_proxied
        return Caller(address, self._public_url if self._public_url and not is_direct else origin)

    def _check_origin(self, given: str, own: str) -> None:
        """Raise unless the request comes from a page of this server: same scheme, host and port."""
        ours = {normalize_origin(own)} | (
            {normalize_origin(self._public_url)} if self._public_url else set()
        )
        if normalize_origin(given) not in ours:
            raise Refusal(
                "OriginRefused",
                "this request comes from a page of another site; try: Runyard's own pages",
            )

    def _client_address(self, forwarded_for: str) -> str:
        """Return the last untrusted address: its sender may have forged those before it."""
        for given in reversed(forwarded_for.split(",")):
            address = _parse_address(given)
            if address is None:
                return ""
            if not self.is_trusted(address):
                return address
        return ""

    def is_trusted(self, address: str) -> bool:
        """Return whether this is the address of a trusted proxy."""
        if not self._trusted:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        # How a dual-stack socket names IPv4.
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._trusted)


def list_allowed_hosts(host: str, further: str) -> frozenset[str]:
    """Return the allowed host names: loopback, the listening address, and what the settings add."""
    named = {part.strip().lower() for part in further.split(",") if part.strip()}
    own = set() if _is_any_address(host) else {f"[{host}]" if ":" in host else host.lower()}
    return LOOPBACK_HOSTS | own | named


def normalize_origin(given: str) -> str:
    """Return an origin in lower case with an explicit port.

    The empty string if it is not an origin.
    """
    scheme, separator, rest = given.strip().lower().partition("://")
    host, port = _split_host(rest)
    if not separator or scheme not in DEFAULT_PORTS or not host:
        return ""
    return f"{scheme}://{host}:{port or DEFAULT_PORTS[scheme]}"


def _split_host(given: str) -> tuple[str, str]:
    """Return host and port of an authority; two empty strings if it is invalid."""
    found = _HOST.fullmatch(given)
    return (found.group(1).lower(), found.group(2) or "") if found else ("", "")


def _parse_address(given: str) -> str | None:
    """Return the IP address in an entry of ``X-Forwarded-For``, which may have a port."""
    text = given.strip().strip('"')
    for candidate in (text, text.removeprefix("[").partition("]")[0], text.partition(":")[0]):
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return None


def _is_any_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
