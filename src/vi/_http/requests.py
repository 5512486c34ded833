"""Parts of a request: endpoint, query, timeouts and proxy. Pure except for the proxy.

Loopback addresses never use a proxy, whatever the environment says. Modules that only a request
needs are imported by the functions that use them.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import urlencode, urlsplit

from vi import __version__
from vi._http.encoding import to_json_value
from vi._http.retry import Failure
from vi._http.tls import Trust, explain_tls_error, find_tls_error, is_certificate_refused
from vi.errors import (
    ViConfigurationError,
    ViError,
    ViInvalidParameterError,
    ViNetworkError,
    ViTimeoutError,
)

if TYPE_CHECKING:
    import httpx2

QueryValue: TypeAlias = str | int | float | bool | None
Params: TypeAlias = Mapping[str, QueryValue] | Iterable[tuple[str, QueryValue]]

USER_AGENT = f"vi/{__version__} (Python/{'.'.join(map(str, sys.version_info[:3]))}; {sys.platform})"

_MAX_CONNECT_S = 10.0
_CHUNK_BYTES = 1 << 20


class Body(Protocol):
    """Request body that is sent in chunks; ``chunks`` starts again on each retry."""

    @property
    def size_bytes(self) -> int: ...

    def chunks(self) -> Iterator[bytes]: ...


class FileBody:
    """File body that is read while it is sent."""

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
    """Return the endpoint without a trailing slash.

    Raises:
        ViConfigurationError: The endpoint is not an http or https URL, or contains credentials.
    """
    if "@" in endpoint:
        raise ViConfigurationError(
            "the endpoint contains a user name or a password, expected: a URL without credentials",
            suggestion="try: pass the key as secret_key",
        )
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError as error:
        raise _endpoint_error(endpoint, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _endpoint_error(endpoint, "http:// or https:// and a host are required")
    return endpoint.rstrip("/")


def _endpoint_error(endpoint: str, why: str) -> ViConfigurationError:
    return ViConfigurationError(
        f"the endpoint is {endpoint!r}, expected: a URL; {why}",
        suggestion="try: http://127.0.0.1:7878/ (argument endpoint, or DATATURE_VI_API_ENDPOINT)",
    )


def encode_params(params: Params | None) -> str:
    """Return the query string with its question mark; parameters that are None are omitted.

    Raises:
        ViInvalidParameterError: A value is not a string, finite number or bool.
    """
    if not params:
        return ""
    pairs = params.items() if isinstance(params, Mapping) else params
    given = [(name, _encode_value(name, value)) for name, value in pairs if value is not None]
    return "?" + urlencode(given) if given else ""


def _encode_value(name: str, value: QueryValue) -> str:
    plain = to_json_value(value, name=f"the query parameter {name}")
    if isinstance(plain, dict | list):
        raise ViInvalidParameterError(
            f"the query parameter {name} is a {type(value).__name__}, expected: a string, number "
            "or bool"
        )
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


def build_timeouts(timeout_s: float) -> dict[str, float]:
    """Return the timeouts of one request for the transport; connecting gets at most 10 seconds."""
    return {
        "connect": min(timeout_s, _MAX_CONNECT_S),
        "read": timeout_s,
        "write": timeout_s,
        "pool": timeout_s,
    }


def find_proxy(endpoint: str) -> str | None:
    """Return the URL of the proxy that the environment sets for an endpoint; None without one."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Return True if the host is this machine."""
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def classify_transport_error(cause: "httpx2.RequestError") -> Failure:
    """Return how far a request without a response may have got."""
    import httpx2

    if is_certificate_refused(cause):
        return Failure.REFUSED  # it would be presented again
    if isinstance(
        cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    ):
        return Failure.UNREACHED
    if isinstance(cause, (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)):
        return Failure.REFUSED
    return Failure.UNKNOWN


def error_from_transport(
    cause: "httpx2.RequestError",
    *,
    request_name: str,
    endpoint: str,
    timeout_s: float,
    trust: Trust,
) -> ViError:
    """Return the exception for a request without a response."""
    import httpx2

    tls_error = find_tls_error(cause) if isinstance(cause, httpx2.ConnectError) else None
    if tls_error is not None:
        problem, suggestion = explain_tls_error(tls_error, endpoint=endpoint, trust=trust)
        return ViNetworkError(
            f"{request_name} was not sent: {problem}", suggestion=suggestion, cause=cause
        )
    if isinstance(cause, httpx2.TimeoutException):
        return ViTimeoutError(
            f"{request_name} to {endpoint} got no response within {timeout_s:g} s",
            suggestion="The server may be overloaded or the network slow. try: a longer timeout=",
            cause=cause,
        )
    suggestion = (
        "try: check that the server is up (`runyard up` starts one) and that the endpoint is right"
    )
    was_answered = isinstance(cause, (httpx2.RemoteProtocolError, httpx2.ReadError))
    if was_answered and endpoint.startswith("http:"):
        suggestion += f"; if it serves TLS, that is {endpoint.replace('http:', 'https:', 1)}"
    return ViNetworkError(
        f"{request_name} to {endpoint} got no response: {cause or type(cause).__name__}",
        suggestion=suggestion,
        cause=cause,
    )
