"""One object that sends requests to one endpoint and repeats them where that is safe.

It drives httpx2's transport directly: what a full client adds above it (cookies, redirects, a log line with the whole
address, signed links included) is either unwanted here or done below in fewer steps. Redirects are not followed, so a
key never travels to a place nobody named.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

import httpx2

from vi._concurrency import asynchronous as concurrency
from vi._http.answers import Answer, decode, error_of
from vi._http.encoding import encode_body
from vi._http.requests import (
    USER_AGENT,
    Body,
    FileBody,
    Params,
    check_endpoint,
    encode_params,
    error_without_answer,
    failure_without_answer,
    proxy_of,
    ssl_context,
    timeouts,
)
from vi._http.retry import REPEATABLE_METHODS, Failure, RetryPolicy, failure_of
from vi.errors import ViConfigurationError, ViInvalidParameterError, ViNotFoundError, ViOperationError

T = TypeVar("T")


class AsyncHttp:
    """Requests to one endpoint with the same headers each."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Any] = concurrency.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.endpoint = check_endpoint(endpoint)
        self.sleep = sleep
        self.random = random
        self.retry = retry or RetryPolicy()
        self.timeout_s = timeout_s
        self.is_closed = False
        self._headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **(headers or {})}
        self._given_transport = transport
        self._transports: dict[concurrency.Place, httpx2.AsyncBaseTransport] = {}
        concurrency.close_with(self, self._transports)

    def without_key(self, endpoint: str) -> "AsyncHttp":
        """The same manners towards an endpoint that must not see our headers, such as that of a signed link."""
        return AsyncHttp(
            endpoint,
            timeout_s=self.timeout_s,
            retry=self.retry,
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
        self, method: str, path: str, *, decode_as: type[T] | None = None, body: Any = None, **options: Any
    ) -> T | None:
        """Send ``body`` as JSON and return the answer as ``decode_as``; None ignores the answer's body.

        ``idempotent`` says whether the request may be repeated when nobody knows if it was carried out; by default
        GET, HEAD, PUT and DELETE may.

        Raises:
            ViInvalidParameterError: the body holds a value that JSON does not have; nothing was sent.
            ViError: see ``vi.errors``; ``status_code`` is None if no answer arrived.
        """
        content = None if body is None else encode_body(body)
        answer = await self.send(method, path, content=content, **options)
        return None if decode_as is None else decode(answer, decode_as, asked=f"{method} {path}")

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
        asked: str | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> Answer:
        """Send JSON, or a body piece by piece; return the raw answer if its status is below 300, else raise.

        ``asked`` is what error messages call the request; they must not show a path that is a secret itself.
        ``on_sent`` gets the bytes of a body that are under way so far.
        """
        policy, timeout_s, asked = retry or self.retry, timeout_s or self.timeout_s, asked or f"{method} {path}"
        repeatable = method in REPEATABLE_METHODS if idempotent is None else idempotent
        url = self.endpoint + path + encode_params(params)
        earlier: Counter[Failure] = Counter()
        while True:
            try:
                answer = await self._exchange(
                    method, url, content=content, headers=headers, timeout_s=timeout_s, on_sent=on_sent
                )
            except httpx2.RequestError as cause:
                failure = failure_without_answer(cause)
                error = error_without_answer(cause, asked=asked, endpoint=self.endpoint, timeout_s=timeout_s)
            else:
                # A deletion whose answer was lost is repeated and then finds nothing: it was carried out.
                is_gone = method == "DELETE" and answer.status == 404 and earlier[Failure.UNKNOWN] > 0
                if answer.status < 300 or is_gone:
                    return replace(answer, tries=earlier.total() + 1)
                failure = failure_of(answer.status)
                error = error_of(answer, asked=asked)
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
        """Whether a HEAD request finds something there."""
        try:
            await self.send("HEAD", path, **options)
        except ViNotFoundError:
            return False
        return True

    async def put_file(self, path: str, file: Path, **options: Any) -> Answer:
        """Send a file piece by piece, from its start again on each try."""
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
        """Hand an answer of any length to ``write`` piece by piece; ``on_length`` gets its length first. One try.

        Raises:
            ViError: it was refused, or broke off.
        """
        timeout_s, asked = timeout_s or self.timeout_s, f"{method} {path}"
        try:
            async with self.stream(method, self.endpoint + path, timeout_s=timeout_s) as response:
                if response.status_code >= 300:
                    body = await response.aread()
                    answer = Answer(status=response.status_code, headers=dict(response.headers), body=body)
                    raise error_of(answer, asked=asked)
                length = response.headers.get("content-length", "")
                on_length(int(length) if length.isdigit() else None)
                async for chunk in response.aiter_bytes():
                    write(chunk)
        except httpx2.RequestError as cause:
            raise error_without_answer(cause, asked=asked, endpoint=self.endpoint, timeout_s=timeout_s) from cause

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """One try at an answer that is read piece by piece; its status is the caller's business."""
        request = self._request(method, url, content=None, headers=headers, timeout_s=timeout_s or self.timeout_s)
        response = await self._transport().handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close the connections; what is sent afterwards fails."""
        self.is_closed = True
        transport = self._transports.pop(concurrency.current_place(), None)
        if transport is not None:
            await transport.aclose()
        concurrency.forget_gone(self._transports)

    async def _exchange(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Body | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        on_sent: Callable[[int], None] | None,
    ) -> Answer:
        request = self._request(method, url, content=content, headers=headers, timeout_s=timeout_s, on_sent=on_sent)
        response = await self._transport().handle_async_request(request)
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        return Answer(status=response.status_code, headers=dict(response.headers), body=body)

    def _request(
        self,
        method: str,
        url: str,
        *,
        content: bytes | Body | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        on_sent: Callable[[int], None] | None = None,
    ) -> httpx2.Request:
        all_headers = {**self._headers, **(headers or {})}
        if isinstance(content, bytes):
            all_headers["Content-Type"] = "application/json"
        elif content is not None:
            all_headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(content.size_bytes)}
        try:
            return httpx2.Request(
                method,
                url,
                headers=all_headers,
                content=content if isinstance(content, bytes | None) else _chunks(content, on_sent),
                extensions={"timeout": timeouts(timeout_s)},
            )
        except (httpx2.InvalidURL, ValueError, TypeError) as error:
            raise ViInvalidParameterError(
                f"the request cannot be put into words that HTTP has: {error}",
                suggestion="An argument is too long, or has characters that addresses and headers cannot carry.",
                cause=error,
            ) from error

    def _transport(self) -> httpx2.AsyncBaseTransport:
        if self.is_closed:
            raise ViOperationError("this client is closed", suggestion="Make a new client, or close it later.")
        if self._given_transport is not None:
            return self._given_transport
        # One for each place: a forked child must not write into its parent's connections, nor an event loop into those
        # of another. setdefault is atomic, so of two threads that come here first both get the same one; the other has
        # opened nothing yet.
        place = concurrency.current_place()
        transport = self._transports.get(place)
        if transport is None:
            concurrency.forget_gone(self._transports)
            transport = self._transports.setdefault(place, self._open())
        return transport

    def __reduce__(self) -> NoReturn:
        raise ViConfigurationError(
            "what holds connections and a key cannot be pickled or copied",
            suggestion="Pickle the client itself: it is made again from where its key was found.",
        )

    def _open(self) -> httpx2.AsyncBaseTransport:
        return httpx2.AsyncHTTPTransport(verify=ssl_context(self.endpoint), proxy=proxy_of(self.endpoint))


async def _chunks(body: Body, on_sent: Callable[[int], None] | None) -> AsyncIterator[bytes]:
    sent_bytes = 0
    for chunk in body.chunks():
        yield chunk
        sent_bytes += len(chunk)
        if on_sent is not None:
            on_sent(sent_bytes)
