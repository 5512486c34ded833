# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""Requests to signed links, with one client per origin so that connections are reused."""

from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from vi._http._sync import Http
from vi._http.response import Response


class SignedLinks:
    """Client for signed links.

    Relative links belong to the server itself. Use it in a ``with`` block.
    """

    def __init__(self, http: Http) -> None:
        self._http = http
        self._by_origin: dict[str, Http] = {}

    def send(self, method: str, link: str, *, request_name: str, **options: Any) -> Response:
        """Send a request to a link; ``request_name`` replaces the secret link in error messages."""
        source, path = self._resolve(link)
        return source.send(method, path, request_name=request_name, **options)

    def exists(self, link: str, *, request_name: str) -> bool:
        """Return True if a HEAD request succeeds, False on 404."""
        source, path = self._resolve(link)
        return source.exists(path, request_name=request_name)

    def _resolve(self, link: str) -> tuple[Http, str]:
        url = urljoin(self._http.endpoint + "/", link)
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        source = self._by_origin.get(origin)
        if source is None:
            source = self._by_origin.setdefault(origin, self._http.without_credentials(origin))
        return source, url.removeprefix(origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for source in self._by_origin.values():
            source.close()
