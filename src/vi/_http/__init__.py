"""HTTP client of one endpoint: ``Http``, and ``AsyncHttp`` with the same methods.

It builds a request, sends it, retries it where that is safe, and returns a value or raises an
exception of ``vi.errors``. It knows neither resources nor keys, only headers. Other parts of
Runyard therefore use it with their own bearer tokens and documents::

    http = Http("http://127.0.0.1:7878", headers={"Authorization": f"Bearer {token}"})
    desired = http.call(
        "POST", "/internal/v1/attempt/renew", body=renewal, decode_as=DesiredState, retry=NO_RETRY
    )

``call`` encodes ``body`` and decodes the response with msgspec, ``send`` returns the raw response,
``exists`` sends HEAD, ``put_file`` streams a file. An exception carries the ``status_code`` and
``code`` of the server; without a ``status_code``, no response arrived. No connection is opened
before the first request. Threads may share one object; a forked child opens its own connections.

Names are resolved on first use, so that a caller of ``Http`` does not load asyncio.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi._http._async import AsyncHttp
    from vi._http._sync import Http
    from vi._http.response import Response
    from vi._http.retry import NO_RETRY, RetryPolicy
    from vi._http.tls import Trust

__all__ = ["NO_RETRY", "AsyncHttp", "Http", "Response", "RetryPolicy", "Trust"]

_MODULES = {
    "AsyncHttp": "vi._http._async",
    "Http": "vi._http._sync",
    "Response": "vi._http.response",
    "NO_RETRY": "vi._http.retry",
    "RetryPolicy": "vi._http.retry",
    "Trust": "vi._http.tls",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value
