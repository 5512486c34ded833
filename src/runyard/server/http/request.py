"""What a route function gets to know about its request: services, who asks, query, body.

Bodies pass three gates before a route sees them: size (while they arrive, in ``door``), shape of the JSON as such
(depth, number of items, length of strings), and a strict struct that knows every allowed field.
"""

import asyncio
import re
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request

from runyard import limits
from runyard.server.http import compat
from runyard.server.http.exact_json import check_exact
from runyard.server.http.responses import Response
from runyard.server.services import pages
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.pages import PageRequest

T = TypeVar("T")
Asked = Request[Any, Any, Any]
Answer = Response
Id = str  # from the path, checked by ``access.authorize``

SERVICES, ACTOR, TOKEN = "runyard.services", "runyard.actor", "runyard.token"
ADDRESS, HEADERS, ORIGIN = "runyard.address", "runyard.headers", "runyard.origin"

DEEPEST, MOST_ITEMS, LONGEST_TEXT = limits.BODY_LEVELS.value, limits.BODY_ITEMS.value, limits.BODY_TEXT.value
MOST_ITEMS_OF_LISTS = limits.LIST_BODY_ITEMS.value  # where thousands of files are listed in one body
PLACE = re.compile(r" - at `\$?(.*?)`$")
FIELD = re.compile(r"`(\w+)` ha[sd] ")  # how a message of ``bodies.Body`` begins
LARGE_BODY_BYTES = 128 * 1024  # larger ones are read on a thread


def services_of(request: Asked) -> Services:
    return cast(Services, request.scope[SERVICES])  # type: ignore[literal-required]


def actor_of(request: Asked) -> Actor:
    return cast(Actor, request.scope[ACTOR])  # type: ignore[literal-required]


def if_match_of(request: Asked) -> str | None:
    return request.headers.get("if-match")


def origin_of(request: Asked) -> str:
    """The origin under which the caller reaches this server; links begin with it. See ``proxies``."""
    return cast(str, request.scope[ORIGIN])  # type: ignore[literal-required]


def json_answer(body: bytes, *, etag: str | None = None, status: int = 200) -> Answer:
    """JSON that is encoded already."""
    headers = ((b"etag", f'"{etag}"'.encode()),) if etag else ()
    return Response(body, media_type=b"application/json", headers=headers, status=status)


def answer(document: Any, *, status: int = 200) -> Answer:
    return json_answer(msgspec.json.encode(document), etag=getattr(document, "etag", None), status=status)


def empty(status: int = 204) -> Answer:
    return Response(status=status)


class Query:
    """The query parameters, as text; ``integer`` and friends refuse what they cannot read."""

    def __init__(self, request: Asked) -> None:
        self._pairs = compat.query_pairs(request.scope["query_string"])
        for name, value in self._pairs:
            check_query_text(name, value)

    def text(self, name: str) -> str | None:
        return next((value for key, value in self._pairs if key == name and value), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def integer(self, name: str, default: int | None = None, *, least: int = 0, most: int = 2**53) -> int | None:
        given = self.text(name)
        if given is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,18}", given) or not least <= int(given) <= most:
            raise bad_query(name, given, f"an integer from {least} to {most}")
        return int(given)

    def seconds(self, name: str) -> float:
        given = self.text(name)
        if given is None:
            return 0.0
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", given):
            raise bad_query(name, given, "a number of seconds")
        return float(given)

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        given = self.text(name)
        if given is not None and given not in allowed:
            raise bad_query(name, given, f"one of {', '.join(allowed)}")
        return given

    def page(self, question: str) -> PageRequest:
        """Size and token. Sizes above the limit are cut, since the published client sends them unchecked."""
        size = self.integer("s", pages.DEFAULT_SIZE, least=1) or pages.DEFAULT_SIZE
        return PageRequest(size=min(size, pages.MOST), token=self.text("p"), question=question)


def check_query_text(name: str, value: str) -> None:
    """Raise Refusal unless a text from a query can be looked up in every store."""
    for text in (name, value):
        if defect := limits.QUERY_TEXT.defect(text):
            message = f"query parameter {name[:80]!r} {defect}"
            problem = Problem(
                path=f"?{name[:80]}", given=value[:80], allowed="a shorter text without NUL", message=message
            )
            raise Refusal("InvalidQuery", message, problems=[problem])


def bad_query(name: str, given: str, allowed: str) -> Refusal:
    message = f"query parameter {name!r} is {given[:80]!r}; it must be {allowed}"
    problem = Problem(path=f"?{name}", given=given[:80], allowed=allowed, message=message)
    return Refusal("InvalidQuery", message, problems=[problem])


async def json_body(request: Asked, *, most_items: int = MOST_ITEMS) -> tuple[bytes, Any]:
    """The bytes as sent, and the JSON in them.

    Raises:
        Refusal: InvalidBody, BodyTooLarge.
    """
    body = await request.body()
    if len(body) > LARGE_BODY_BYTES:
        return body, await asyncio.to_thread(_checked_json, body, most_items)
    return body, _checked_json(body, most_items)


def _checked_json(body: bytes, most_items: int) -> Any:
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise Refusal("InvalidBody", f"the body is nested deeper than {DEEPEST} levels; flatten it") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise Refusal("InvalidBody", f"the body is not JSON: {error}; send one JSON object in UTF-8") from error
    _check_limits(value, most_items)
    if b"\\u0000" in body:
        _refuse_nul(value)
    check_exact(body, value)
    return value


def fitted(value: Any, kind: type[T]) -> T:
    """A JSON value as the strict struct that a route takes.

    Raises:
        Refusal: InvalidBody.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        place = PLACE.search(text)
        path = _pointer(place.group(1)) if place else "/"
        what = PLACE.sub("", text)
        if field := FIELD.match(what):
            path = f"{path.rstrip('/')}/{field[1]}"
        message = f"{what} (at {path})"
        problem = Problem(path=path, given=None, allowed="see the OpenAPI document", message=message)
        raise Refusal("InvalidBody", f"the body does not fit: {message}", problems=[problem]) from error


def _pointer(place: str) -> str:
    """A JSON pointer from a place such as ``.spec.blocks[3].settings[...]``; which key ``[...]`` was is not known."""
    parts = re.sub(r"\[([0-9]+)\]", r".\1", place.replace("[...]", "")).strip(".")
    return "/" + parts.replace(".", "/")


def _check_limits(value: Any, most_items: int) -> None:
    """Refuse JSON that is too deep, too long or holds too much. Iterative, so that depth cannot hurt us here."""
    items = 0
    level = [value]
    for _ in range(DEEPEST + 1):
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
            raise Refusal("InvalidBody", f"the body holds more than {most_items} items; send less")
        if not inner:
            return
        level = inner
    raise Refusal("InvalidBody", f"the body is nested deeper than {DEEPEST} levels; flatten it")


def _refuse_nul(value: Any) -> None:
    """Refuse NUL in any text or field name; the body has been checked to be shallow."""
    level: list[tuple[str, Any]] = [("", value)]
    while level:
        path, found = level.pop()
        if isinstance(found, str) and "\0" in found:
            message = f"the text at {path or '/'} {limits.BODY_TEXT.defect(found)}"
            problem = Problem(path=path or "/", given=found[:80], allowed="a text without NUL", message=message)
            raise Refusal("InvalidBody", message, problems=[problem])
        if isinstance(found, dict):
            for name, inner in found.items():
                level += [(path, name), (f"{path}/{name[:80]}", inner)]
        elif isinstance(found, list):
            level += [(f"{path}/{number}", inner) for number, inner in enumerate(found)]


def _check_texts(texts: Any) -> None:
    for text in texts:
        if len(text) > LONGEST_TEXT:
            raise Refusal("InvalidBody", f"the text {text[:20]!r}... is longer than {LONGEST_TEXT} characters; cut it")
