"""What a request is made of: endpoint, query, timeouts, and the way out to the network. Pure but for the proxies.

The endpoint decides two things. Addresses of this machine are never reached through a proxy, whatever the environment
says. And the list of certificate authorities, slow to load, is loaded only for ``https``; with ``http`` an empty list
stands in, so that nothing encrypted could be trusted by mistake.
"""

import ipaddress
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from vi import __version__
from vi._http.encoding import to_json_value
from vi._http.retry import Failure
from vi.errors import ViConfigurationError, ViError, ViInvalidParameterError, ViNetworkError, ViTimeoutError

Scalar: TypeAlias = str | int | float | bool | None
Params: TypeAlias = Mapping[str, Scalar] | Iterable[tuple[str, Scalar]]

USER_AGENT = f"vi/{__version__} (Python/{'.'.join(map(str, sys.version_info[:3]))}; {sys.platform})"

_LONGEST_CONNECT_S = 10.0
_CHUNK_BYTES = 1 << 20


class Body(Protocol):
    """Bytes to send piece by piece; ``chunks`` begins anew each time, when a request is repeated."""

    @property
    def size_bytes(self) -> int: ...

    def chunks(self) -> Iterator[bytes]: ...


class FileBody:
    """A file, read while it is sent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size_bytes(self) -> int:
        return self._path.stat().st_size

    def chunks(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def check_endpoint(endpoint: str) -> str:
    """The endpoint without a slash at its end.

    Raises:
        ViConfigurationError: it is not an address to send requests to.
    """
    if "@" in endpoint:
        raise ViConfigurationError(
            "the endpoint holds a user name or a password, which it must not",
            suggestion="Give the key as secret_key, and the endpoint without it.",
        )
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError as error:
        raise _bad_endpoint(endpoint, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _bad_endpoint(endpoint, "it needs http:// or https:// and a host")
    return endpoint.rstrip("/")


def _bad_endpoint(endpoint: str, why: str) -> ViConfigurationError:
    return ViConfigurationError(
        f"the endpoint is {endpoint!r}, which is no address: {why}",
        suggestion="Write it like http://127.0.0.1:7878/ (argument endpoint, or DATATURE_VI_API_ENDPOINT).",
    )


def encode_params(params: Params | None) -> str:
    """The query with its question mark; parameters that are None are left out, and without any there is no query.

    Raises:
        ViInvalidParameterError: a value is neither a text nor a number that can be written down.
    """
    if not params:
        return ""
    pairs = params.items() if isinstance(params, Mapping) else params
    given = [(name, _text(name, value)) for name, value in pairs if value is not None]
    return "?" + urlencode(given) if given else ""


def _text(name: str, value: Scalar) -> str:
    plain = to_json_value(value, name=f"the query parameter {name}")
    if isinstance(plain, dict | list):
        raise ViInvalidParameterError(
            f"the query parameter {name} is a {type(value).__name__}", suggestion="Give a string, number or bool."
        )
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


def timeouts(timeout_s: float) -> dict[str, float]:
    """The timeouts of one request as the transport wants them; a server that is there accepts at once."""
    return {"connect": min(timeout_s, _LONGEST_CONNECT_S), "read": timeout_s, "write": timeout_s, "pool": timeout_s}


def ssl_context(endpoint: str) -> ssl.SSLContext:
    """Whom to trust on the way to this endpoint."""
    if endpoint.startswith("https:"):
        return httpx2.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def proxy_of(endpoint: str) -> str | None:
    """The proxy the environment names for this endpoint, if any."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def failure_without_answer(cause: httpx2.RequestError) -> Failure:
    """How far the request may have come."""
    if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)):
        return Failure.UNREACHED
    if isinstance(cause, (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)):
        return Failure.REFUSED
    return Failure.UNKNOWN


def error_without_answer(cause: httpx2.RequestError, *, asked: str, endpoint: str, timeout_s: float) -> ViError:
    """The error for a request nobody answered."""
    if isinstance(cause, httpx2.TimeoutException):
        return ViTimeoutError(
            f"{asked} to {endpoint} got no answer within {timeout_s:g} s",
            suggestion="Is the server overloaded, or the network slow? A longer timeout= may help.",
            cause=cause,
        )
    return ViNetworkError(
        f"{asked} to {endpoint} got no answer: {cause or type(cause).__name__}",
        suggestion="Is the server up (`runyard up` starts one), and is the endpoint right?",
        cause=cause,
    )
