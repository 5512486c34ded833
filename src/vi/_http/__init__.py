"""The one way to talk to a server over HTTP: ``Http``, and ``AsyncHttp`` with the same names.

It builds a request, sends it, tries again where that is safe, and turns the answer into a value or an error of
``vi.errors``. It knows no resources and no keys, only headers, so the parts of Runyard that speak with another bearer
token and other documents use it as well::

    http = Http("http://127.0.0.1:7878", headers={"Authorization": f"Bearer {token}"})
    wanted = http.call("POST", "/internal/v1/attempt/renew", body=Renewal(), decode_as=Wanted, retry=NO_RETRY)

``call`` encodes ``body`` and decodes the answer with msgspec, ``send`` hands over the raw answer, ``exists`` asks with
HEAD, ``put_file`` streams a file. A failure carries the server's ``status_code`` and ``code``; one without a
``status_code`` means that no answer arrived, which is not the same as being refused. Nothing is opened before the first
request; threads may share one object, and a forked child gets connections of its own.

Names are resolved on first use, so that who needs ``Http`` does not load asyncio as well.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi._http._async import AsyncHttp
    from vi._http._sync import Http
    from vi._http.answers import Answer
    from vi._http.retry import NO_RETRY, RetryPolicy

__all__ = ["NO_RETRY", "Answer", "AsyncHttp", "Http", "RetryPolicy"]

_HOMES = {
    "AsyncHttp": "vi._http._async",
    "Http": "vi._http._sync",
    "Answer": "vi._http.answers",
    "NO_RETRY": "vi._http.retry",
    "RetryPolicy": "vi._http.retry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value
