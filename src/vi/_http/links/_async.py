"""Follow signed links, many of them over the same few connections."""

from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from vi._http._async import AsyncHttp
from vi._http.answers import Answer


class AsyncLinks:
    """Sends requests to links; a link without a host is one of the server itself. Used inside its ``with`` block."""

    def __init__(self, http: AsyncHttp) -> None:
        self._http = http
        self._by_origin: dict[str, AsyncHttp] = {}

    async def send(self, method: str, link: str, *, asked: str, **options: Any) -> Answer:
        """As ``AsyncHttp.send``. ``asked`` is what error messages say, since a link is a secret."""
        source, path = self._of(link)
        return await source.send(method, path, asked=asked, **options)

    async def exists(self, link: str, *, asked: str) -> bool:
        """Whether a HEAD request finds something there."""
        source, path = self._of(link)
        return await source.exists(path, asked=asked)

    def _of(self, link: str) -> tuple[AsyncHttp, str]:
        url = urljoin(self._http.endpoint + "/", link)
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        source = self._by_origin.get(origin)
        if source is None:
            source = self._by_origin.setdefault(origin, self._http.without_key(origin))
        return source, url.removeprefix(origin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for source in self._by_origin.values():
            await source.close()
