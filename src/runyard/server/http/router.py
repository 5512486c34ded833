"""The router: finds the endpoint of a path and a method, and sends what it returns.

Segments of a route's path are literal or a parameter (``{name:str}``); a literal one comes first. A
web framework would do the same with more layers, for which every request pays.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runyard.server.http.request import Request
from runyard.server.http.responses import Response
from runyard.server.http.route import Route
from runyard.server.services.errors import Refusal

CallEndpoint = Callable[[Request], Awaitable[Response]]
AnswerError = Callable[[Request, Exception], Response]


@dataclass(slots=True)
class _Node:
    """A position in the tree of paths; ``endpoints`` are those of the path that ends here."""

    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    endpoints: dict[str, tuple[CallEndpoint, tuple[str, ...]]] = field(default_factory=dict)


class Router:
    """An ASGI application that serves a list of routes.

    ``wrap`` returns what is called for a route, and ``answer_error`` the response for an error of
    it. ``state`` is passed to the endpoints with each request.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        wrap: Callable[[Route], CallEndpoint],
        answer_error: AnswerError,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._root = _Node()
        self._answer_error = answer_error
        self._state = state or {}
        for route in routes:
            self._add(route, wrap(route))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive, self._state)
        try:
            response = await self._call_endpoint(request)
        except Exception as error:
            response = self._answer_error(request, error)
        await response(scope, receive, send)

    async def _call_endpoint(self, request: Request) -> Response:
        path, method = request.scope["path"], request.scope["method"]
        node, values = self._find(path)
        if (found := node.endpoints.get(method)) is not None:
            call, names = found
            request.path_params = dict(zip(names, values, strict=True))
            return await call(request)
        if not node.endpoints:
            raise Refusal(
                "NotFound",
                f"there is no route {path[:200]!r}; try: a route of the OpenAPI document",
            )
        allow = sorted({*node.endpoints, "OPTIONS"})
        if method == "OPTIONS":
            return Response(status=204, headers=[(b"allow", ", ".join(allow).encode())])
        message = f"{path[:200]!r} does not take {method}; try: {', '.join(allow)}"
        raise Refusal("MethodNotAllowed", message, allow=allow)

    def _add(self, route: Route, call: CallEndpoint) -> None:
        node, names = self._root, []
        for segment in route.path.split("/"):
            if segment.startswith("{"):
                names.append(segment.removeprefix("{").removesuffix(":str}"))
                node.parameter = node = node.parameter or _Node()
            else:
                node = node.literals.setdefault(segment, _Node())
        node.endpoints[route.method] = (call, tuple(names))

    def _find(self, path: str) -> tuple[_Node, list[str]]:
        """Return the node of a path, without endpoints if there is none, and its parameters."""
        node, values = self._root, []
        for segment in path.split("/"):
            child = node.literals.get(segment)
            if child is None:
                child = node.parameter
                if child is None or not segment:
                    return _NOWHERE, []
                values.append(segment)
            node = child
        return node, values


_NOWHERE = _Node()
