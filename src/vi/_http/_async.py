"""HTTP client that sends requests to one endpoint and retries them where that is safe.

It uses the transport of httpx2 directly. A full httpx2 client would add cookies, redirects and a
log line with the whole URL, which would expose signed links. Redirects are not followed, so that a
key is never sent to another host. httpx2 takes longer to import than everything else together and
is imported when the first request is sent.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from vi._concurrency import asynchronous as concurrency
from vi._http.encoding import encode_body
from vi._http.requests import (
    USER_AGENT,
    Body,
    FileBody,
    Params,
    build_timeouts,
    check_endpoint,
    classify_transport_error,
    encode_params,
    error_from_transport,
    find_proxy,
)
from vi._http.response import Response, decode, error_from_response
from vi._http.retry import (
    REPEATABLE_METHODS,
    Failure,
    RetryPolicy,
    classify_status,
    draw_random,
)
from vi._http.tls import Trust, build_ssl_context
from vi.errors import (
    ViConfigurationError,
    ViInvalidParameterError,
    ViNotFoundError,
    ViOperationError,
)

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")


class AsyncHttp:
    """HTTP client of one endpoint, with the same headers on each request."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        trust: Trust | None = None,
        transport: "httpx2.AsyncBaseTransport | None" = None,
        sleep: Callable[[float], Any] = concurrency.sleep,
        random: Callable[[], float] = draw_random,
    ) -> None:
        self.endpoint = check_endpoint(endpoint)
        self.sleep = sleep
        self.random = random
        self.retry = retry or RetryPolicy()
        self.timeout_s = timeout_s
        self.trust = trust or Trust()
        self.is_closed = False
        self._headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **(headers or {})}
        self._given_transport = transport
        self._transports: dict[concurrency.ConnectionScope, httpx2.AsyncBaseTransport] = {}
        concurrency.close_on_finalize(self, self._transports)

    def without_credentials(self, endpoint: str) -> "AsyncHttp":
        """Return a client with the same settings but without our headers, for signed links."""
        return AsyncHttp(
            endpoint,
            timeout_s=self.timeout_s,
            retry=self.retry,
            trust=self.trust.for_link(self.endpoint, endpoint),
            transport=self._given_transport,
            sleep=self.sleep,
            random=self.random,
        )

    @overload
    async def call(
        self,
        method: str,
        path: str,
        *,
        decode_as: type[T],
        params: Params | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        idempotent: bool | None = None,
    ) -> T: ...

    @overload
    async def call(
        self,
        method: str,
        path: str,
        *,
        decode_as: None = None,
        params: Params | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        idempotent: bool | None = None,
    ) -> None: ...

    async def call(
        self,
        method: str,
        path: str,
        *,
        decode_as: type[T] | None = None,
        body: Any = None,
        **options: Any,
    ) -> T | None:
        """Send ``body`` as JSON and return the response as ``decode_as``; None ignores its body.

        ``idempotent`` allows a retry when it is unknown whether the server executed the request. By
        default it is True for GET, HEAD, PUT and DELETE.

        Raises:
            ViInvalidParameterError: The body contains a value that JSON lacks; nothing was sent.
            ViError: See ``vi.errors``; ``status_code`` is None if no response arrived.
        """
        content = None if body is None else encode_body(body)
        response = await self.send(method, path, content=content, **options)
        if decode_as is None:
            return None
        return decode(response, decode_as, request_name=f"{method} {path}")

    async def send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        content: bytes | Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        idempotent: bool | None = None,
        request_name: str | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Response:
        """Send a request and return the raw response; raise if its status is 300 or above.

        ``content`` is JSON, or a ``Body`` that is sent in chunks. ``request_name`` stands for the
        request in error messages, because the path of a signed link is a secret. ``on_sent`` is
        called with the number of body bytes sent so far.
        """
        import httpx2

        policy, timeout_s, request_name = (
            retry or self.retry,
            timeout_s or self.timeout_s,
            request_name or f"{method} {path}",
        )
        repeatable = method in REPEATABLE_METHODS if idempotent is None else idempotent
        url = self.endpoint + path + encode_params(params)
        earlier: Counter[Failure] = Counter()
        while True:
            try:
                response = await self._exchange(
                    method,
                    url,
                    content=content,
                    headers=headers,
                    timeout_s=timeout_s,
                    on_sent=on_sent,
                )
            except httpx2.RequestError as cause:
                failure = classify_transport_error(cause)
                error = error_from_transport(
                    cause,
                    request_name=request_name,
                    endpoint=self.endpoint,
                    timeout_s=timeout_s,
                    trust=self.trust,
                )
            else:
                # A DELETE whose response was lost is retried and gets 404: the first one succeeded.
                is_deleted = (
                    method == "DELETE" and response.status == 404 and earlier[Failure.UNKNOWN] > 0
                )
                if response.status < 300 or is_deleted:
                    return replace(response, tries=earlier.total() + 1)
                failure = classify_status(response.status)
                error = error_from_response(response, request_name=request_name)
            delay_s = policy.delay_s(
                failure,
                repeatable=repeatable,
                earlier=earlier,
                retry_after_s=error.retry_after if error.status_code in (429, 503) else None,
                random=self.random,
            )
            if delay_s is None:
                raise error from error.cause
            earlier[failure] += 1
            await self.sleep(delay_s)

    async def exists(self, path: str, **options: Any) -> bool:
        """Return True if a HEAD request succeeds, False on 404."""
        try:
            await self.send("HEAD", path, **options)
        except ViNotFoundError:
            return False
        return True

    async def put_file(self, path: str, file: Path, **options: Any) -> Response:
        """Send a file in chunks; each retry starts at its first byte."""
        return await self.send("PUT", path, content=FileBody(file), **options)

    async def fetch(
        self,
        method: str,
        path: str,
        write: Callable[[bytes], Any],
        *,
        on_length: Callable[[int | None], None],
        timeout_s: float | None = None,
    ) -> None:
        """Stream a response body to ``write``, without retries.

        ``on_length`` is called first, with the length in bytes or None if the server omits it.

        Raises:
            ViError: The server rejected the request, or the connection was lost.
        """
        import httpx2

        timeout_s, request_name = timeout_s or self.timeout_s, f"{method} {path}"
        try:
            async with self.stream(method, self.endpoint + path, timeout_s=timeout_s) as response:
                if response.status_code >= 300:
                    body = await response.aread()
                    refused = Response(
                        status=response.status_code, headers=dict(response.headers), body=body
                    )
                    raise error_from_response(refused, request_name=request_name)
                length = response.headers.get("content-length", "")
                on_length(int(length) if length.isdigit() else None)
                async for chunk in response.aiter_bytes():
                    write(chunk)
        except httpx2.RequestError as cause:
            raise error_from_transport(
                cause,
                request_name=request_name,
                endpoint=self.endpoint,
                timeout_s=timeout_s,
                trust=self.trust,
            ) from cause

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> "AsyncIterator[httpx2.Response]":
        """Send one request and yield the unread response; the caller checks its status."""
        request = self._request(
            method, url, content=None, headers=headers, timeout_s=timeout_s or self.timeout_s
        )
        response = await self._transport().handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections; later requests raise ViOperationError."""
        self.is_closed = True
        transport = self._transports.pop(concurrency.current_scope(), None)
        if transport is not None:
            await transport.aclose()
        concurrency.drop_closed_scopes(self._transports)

    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Body | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        on_sent: Callable[[int], None] | None,
    ) -> Response:
        request = self._request(
            method, url, content=content, headers=headers, timeout_s=timeout_s, on_sent=on_sent
        )
        response = await self._transport().handle_async_request(request)
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        return Response(status=response.status_code, headers=dict(response.headers), body=body)

    def _request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Body | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        on_sent: Callable[[int], None] | None = None,
    ) -> "httpx2.Request":
        import httpx2

        all_headers = {**self._headers, **(headers or {})}
        if isinstance(content, bytes):
            all_headers["Content-Type"] = "application/json"
        elif content is not None:
            all_headers |= {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(content.size_bytes),
            }
        try:
            return httpx2.Request(
                method,
                url,
                headers=all_headers,
                content=content if isinstance(content, bytes | None) else _chunks(content, on_sent),
                extensions={"timeout": build_timeouts(timeout_s)},
            )
        except (httpx2.InvalidURL, ValueError, TypeError) as error:
            raise ViInvalidParameterError(
                f"the request cannot be encoded as HTTP: {error}",
                suggestion="try: shorter arguments without characters that URLs and headers cannot "
                "contain",
                cause=error,
            ) from error

    def _transport(self) -> "httpx2.AsyncBaseTransport":
        if self.is_closed:
            raise ViOperationError("this client is closed", suggestion="try: create a new client")
        if self._given_transport is not None:
            return self._given_transport
        # One transport per scope: a forked child must not write to its parent's connections, nor an
        # event loop to those of another. Two threads may get here at once: setdefault is atomic, so
        # both use the same transport, and the discarded one has not opened a connection yet.
        scope = concurrency.current_scope()
        transport = self._transports.get(scope)
        if transport is None:
            concurrency.drop_closed_scopes(self._transports)
            transport = self._transports.setdefault(scope, self._open())
        return transport

    def __reduce__(self) -> NoReturn:
        raise ViConfigurationError(
            "an object with connections and a key cannot be pickled or copied",
            suggestion="try: pickle the client itself, which looks up its key again",
        )

    def _open(self) -> "httpx2.AsyncBaseTransport":
        import httpx2

        return httpx2.AsyncHTTPTransport(
            verify=build_ssl_context(self.endpoint, self.trust), proxy=find_proxy(self.endpoint)
        )


async def _chunks(body: Body, on_sent: Callable[[int], None] | None) -> AsyncIterator[bytes]:
    sent_bytes = 0
    for chunk in body.chunks():
        yield chunk
        sent_bytes += len(chunk)
        if on_sent is not None:
            on_sent(sent_bytes)
