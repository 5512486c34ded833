# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""Follow signed links, many of them over the same few connections."""

from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from vi._http._sync import Http
from vi._http.answers import Answer


class Links:
    """Sends requests to links; a link without a host is one of the server itself. Used inside its ``with`` block."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._by_origin: dict[str, Http] = {}

    def send(self, method: str, link: str, *, asked: str, **options: Any) -> Answer:
        """As ``Http.send``. ``asked`` is what error messages say, since a link is a secret."""
        source, path = self._of(link)
        return source.send(method, path, asked=asked, **options)

    def exists(self, link: str, *, asked: str) -> bool:
        """Whether a HEAD request finds something there."""
        source, path = self._of(link)
        return source.exists(path, asked=asked)

    def _of(self, link: str) -> tuple[Http, str]:
        url = urljoin(self._http.endpoint + "/", link)
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        source = self._by_origin.get(origin)
        if source is None:
            source = self._by_origin.setdefault(origin, self._http.without_key(origin))
        return source, url.removeprefix(origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for source in self._by_origin.values():
            source.close()
