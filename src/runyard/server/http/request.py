"""What an endpoint reads from its request: services, caller, query parameters, and JSON body.

A body passes three checks before an endpoint sees it: its size (while it arrives, in ``gateway``),
the shape of the JSON (depth, number of items, length of strings), and a strict struct of the
allowed fields.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar, cast

import msgspec

from runyard import limits
from runyard.server.http import compat
from runyard.server.http.exact_json import check_exact
from runyard.server.services import paging
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.paging import PageRequest

T = TypeVar("T")
Id = str  # from the path, checked by ``access.authorize``

SERVICES, ACTOR, TOKEN = "runyard.services", "runyard.actor", "runyard.token"
KEY_ID = "runyard.key_id"  # of the key that the request sent
SESSION = "runyard.session"  # of the browser that sent the request
REQUEST_ID = "runyard.request_id"  # of the response and the access log
ADDRESS, HEADERS, ORIGIN = "runyard.address", "runyard.headers", "runyard.origin"

MAX_LEVELS, MAX_ITEMS = limits.BODY_LEVELS.value, limits.BODY_ITEMS.value
MAX_TEXT_LENGTH = limits.BODY_TEXT.value
MAX_LIST_ITEMS = limits.LIST_BODY_ITEMS.value  # where thousands of files are listed in one body
LOCATION = re.compile(r" - at `\$?(.*?)`$")
FIELD = re.compile(r"`(\w+)` ha[sd] ")  # how a message of ``bodies.Body`` begins
LARGE_BODY_BYTES = 128 * 1024  # larger ones are read on a thread


class Request:
    """One request, as an endpoint reads it.

    ``path_params`` are the parameters of the matched route, ``state`` is what the router was given.
    """

    __slots__ = ("_body", "path_params", "receive", "scope", "state")

    def __init__(self, scope: Any, receive: Any, state: Mapping[str, Any]) -> None:
        self.scope, self.receive, self.state = scope, receive, state
        self.path_params: dict[str, str] = {}
        self._body: bytes | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, by their names in lower case."""
        given: dict[bytes, bytes] = self.scope[HEADERS]
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in given.items()}

    @property
    def content_length(self) -> int | None:
        """The announced length of the body; None if there is none."""
        given: bytes = self.scope[HEADERS].get(b"content-length", b"")
        return int(given) if given.isdigit() else None

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks, as they arrive."""
        has_more = True
        while has_more:
            message = await self.receive()
            has_more = message.get("more_body", False)
            yield message.get("body", b"")

    async def body(self) -> bytes:
        """Return the whole body."""
        if self._body is None:
            self._body = b"".join([chunk async for chunk in self.stream()])
        return self._body


def get_services(request: Request) -> Services:
    return cast(Services, request.scope[SERVICES])


def get_actor(request: Request) -> Actor:
    return cast(Actor, request.scope[ACTOR])


def get_if_match(request: Request) -> str | None:
    return request.headers.get("if-match")


def get_origin(request: Request) -> str:
    """Return the origin by which the caller reached this server; links begin with it.

    See ``proxies``.
    """
    return cast(str, request.scope[ORIGIN])


class Query:
    """The query parameters.

    ``integer`` and the others raise Refusal for a value that they cannot parse.
    """

    def __init__(self, request: Request) -> None:
        self._pairs = compat.parse_query(request.scope["query_string"])
        for name, value in self._pairs:
            check_query_text(name, value)

    def text(self, name: str) -> str | None:
        return next((value for key, value in self._pairs if key == name and value), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def integer(
        self, name: str, default: int | None = None, *, minimum: int = 0, maximum: int = 2**53
    ) -> int | None:
        given = self.text(name)
        if given is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,18}", given) or not minimum <= int(given) <= maximum:
            raise invalid_query(name, given, f"an integer from {minimum} to {maximum}")
        return int(given)

    def seconds(self, name: str) -> float:
        given = self.text(name)
        if given is None:
            return 0.0
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given):
            raise invalid_query(name, given, "a number of seconds")
        return float(given)

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        given = self.text(name)
        if given is not None and given not in allowed:
            raise invalid_query(name, given, f"one of {', '.join(allowed)}")
        return given

    def page(self, question: str) -> PageRequest:
        """Return size and token.

        Larger sizes are cut, since the published client sends them unchecked.
        """
        size = self.integer("s", paging.DEFAULT_SIZE, minimum=1) or paging.DEFAULT_SIZE
        return PageRequest(size=min(size, paging.MOST), token=self.text("p"), question=question)


def check_query_text(name: str, value: str) -> None:
    """Raise Refusal unless every store can look a query parameter up."""
    for text in (name, value):
        if problem := limits.QUERY_TEXT.find_problem(text):
            message = f"query parameter {name[:80]!r} {problem}"
            allowed = "a shorter text without NUL"
            entry = Problem(
                path=f"?{name[:80]}", given=value[:80], allowed=allowed, message=message
            )
            raise Refusal("InvalidQuery", message, problems=[entry])


def invalid_query(name: str, given: str, allowed: str) -> Refusal:
    message = f"query parameter {name!r} is {given[:80]!r}; it must be {allowed}"
    problem = Problem(path=f"?{name}", given=given[:80], allowed=allowed, message=message)
    return Refusal("InvalidQuery", message, problems=[problem])


async def parse_json_body(request: Request, *, most_items: int = MAX_ITEMS) -> tuple[bytes, Any]:
    """Return the body as sent, and the JSON in it.

    Raises:
        Refusal: InvalidBody, BodyTooLarge.
    """
    body = await request.body()
    if len(body) > LARGE_BODY_BYTES:
        return body, await asyncio.to_thread(_decode_json, body, most_items)
    return body, _decode_json(body, most_items)


def _decode_json(body: bytes, most_items: int) -> Any:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise Refusal(
            "InvalidBody", f"the body is nested deeper than {MAX_LEVELS} levels; try: flatten it"
        ) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise Refusal(
            "InvalidBody", f"the body is not JSON: {error}; try: one JSON object in UTF-8"
        ) from error
    _check_limits(value, most_items)
    if b"\\u0000" in body:
        _check_nul(value)
    check_exact(body, value)
    return value


def convert_body(value: Any, kind: type[T]) -> T:
    """Convert JSON to the strict struct that a route takes.

    Raises:
        Refusal: InvalidBody.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        location = LOCATION.search(text)
        path = _build_pointer(location.group(1)) if location else "/"
        cause = LOCATION.sub("", text)
        if field := FIELD.match(cause):
            path = f"{path.rstrip('/')}/{field[1]}"
        message = f"{cause} (at {path})"
        problem = Problem(
            path=path, given=None, allowed="see the OpenAPI document", message=message
        )
        raise Refusal(
            "InvalidBody", f"the body is not valid: {message}", problems=[problem]
        ) from error


def _build_pointer(location: str) -> str:
    """Return the JSON pointer of a location such as ``.spec.blocks[3].settings[...]``.

    The key that ``[...]`` stands for is not known.
    """
    parts = re.sub(r"\[([0-9]+)\]", r".\1", location.replace("[...]", "")).strip(".")
    return "/" + parts.replace(".", "/")


def _check_limits(value: Any, most_items: int) -> None:
    """Refuse JSON that is too deep, too long or too large.

    Iterative, so that depth exhausts no stack.
    """
    items = 0
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        inner: list[Any] = []
        for found in level:
            if isinstance(found, dict):
                items += len(found)
                inner += found.values()
                _check_texts(found)
            elif isinstance(found, list):
                items += len(found)
                inner += found
            elif isinstance(found, str):
                _check_texts((found,))
        if items > most_items:
            raise Refusal(
                "InvalidBody", f"the body holds more than {most_items} items; try: send less"
            )
        if not inner:
            return
        level = inner
    raise Refusal(
        "InvalidBody", f"the body is nested deeper than {MAX_LEVELS} levels; try: flatten it"
    )


def _check_nul(value: Any) -> None:
    """Refuse NUL in any text or field name; the depth has been checked before."""
    level: list[tuple[str, Any]] = [("", value)]
    while level:
        path, found = level.pop()
        if isinstance(found, str) and "\0" in found:
            message = f"the text at {path or '/'} {limits.BODY_TEXT.find_problem(found)}"
            problem = Problem(
                path=path or "/", given=found[:80], allowed="a text without NUL", message=message
            )
            raise Refusal("InvalidBody", message, problems=[problem])
        if isinstance(found, dict):
            for name, inner in found.items():
                level += [(path, name), (f"{path}/{name[:80]}", inner)]
        elif isinstance(found, list):
            level += [(f"{path}/{number}", inner) for number, inner in enumerate(found)]


def _check_texts(texts: Any) -> None:
    for text in texts:
        if len(text) > MAX_TEXT_LENGTH:
            raise Refusal(
                "InvalidBody",
                f"the text {text[:20]!r}... is longer than {MAX_TEXT_LENGTH} characters; try: "
                "shorten it",
            )
