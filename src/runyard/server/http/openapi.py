"""The OpenAPI document, made from the list of routes and the structs of the wire; nothing in it is written twice.

Every status that a route can answer with is in it: those of success from the route, those of refusals from ``CODES``.
``make fuzz-api`` sends thousands of requests made from the document and compares the responses with it.
"""

import functools
import re
from http import HTTPStatus
from typing import Any

import msgspec

from runyard import limits
from runyard.limits import Limit
from runyard.server.http import assets, imports, runs
from runyard.server.http.problems import ProblemDocument
from runyard.server.http.route import Route
from runyard.server.http.routes import IF_MATCH, ROUTES
from runyard.server.services.errors import CODES
from runyard.server.services.imports import exports
from runyard.server.services.runs import telemetry
from runyard.server.services.runs.conditions import REASONS
from runyard.server.version import VERSION
from runyard.store.assets import SORTINGS

REF = "#/components/schemas/{name}"
ID_PATTERN = "[A-Za-z0-9_-]{1,255}"
# The actions that stand behind the last id of a path.
ACTIONS = {"import_id": "finish|cancel", "session_id": "cancel"}


def _text(limit: Limit, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": limit.value, **more}


def _one_of(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


TIME = _integer(0, limits.MAX_INTEGER)
QUERY: dict[str, dict[str, Any]] = {
    "s": _integer(1, limits.MAX_INTEGER),
    "p": _text(limits.QUERY_TEXT),
    "condition": _one_of(*(kind.value for kind in REASONS)),
    "flow": _text(limits.ID),
    "trainingProject": _text(limits.ID),
    "attribute": {
        "type": "array",
        "items": _text(limits.ATTRIBUTE_VALUE, pattern="^[^:]+:"),
        "maxItems": limits.ATTRIBUTE_FILTERS.value,
    },
    "createdAfter": TIME,
    "createdBefore": TIME,
    "since": TIME,
    "until": TIME,
    "limit": _integer(1, telemetry.MOST),
    "actor": _text(limits.ID, pattern="^[ -~]+$"),
    "action": _text(limits.ID, pattern="^[ -~]+$"),
    "block": _one_of(*runs.STREAMS),
    "wait": {"type": "number", "minimum": 0, "maximum": 999_999},
    "contents": _one_of("y", "n"),
    "sortBy": _one_of(*SORTINGS),
    "o": _one_of(*assets.ORDERS),
    "filter": _text(limits.FILE_NAME),
    "severity": _one_of(*imports.SEVERITIES),
    "code": _text(limits.ID),
    "count": _integer(1, exports.MOST_SHOWN),
    "seed": _integer(0, 2**31),
    "version": _text(limits.ID),
}
PATH: dict[str, dict[str, Any]] = {
    "org": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "filename": _text(limits.FILE_NAME, minLength=1, pattern="^[^/\\\\\\x00]+$"),
    "part": {"type": "string", "pattern": "^[0-9]{1,6}$"},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}


@functools.cache
def document() -> dict[str, Any]:
    """Return OpenAPI 3.1 of every route."""
    kinds = [kind for route in ROUTES for kind in (route.takes, route.gives) if kind not in (None, bytes)]
    schemas, components = msgspec.json.schema_components([*kinds, ProblemDocument], ref_template=REF)
    schema_of = dict(zip(map(id, [*kinds, ProblemDocument]), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of)
    described: dict[str, Any] = _portable(
        {
            "openapi": "3.1.0",
            "info": {"title": "Runyard", "version": VERSION},
            "paths": paths,
            "components": {
                "schemas": components,
                "responses": _refusals(schema_of[id(ProblemDocument)]),
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}],
        }
    )
    return described


@functools.cache
def encoded_document() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(document())


def _portable(value: Any) -> Any:
    """Write patterns as ECMA 262 has them, which knows no ``\\A`` and ``\\Z``."""
    if isinstance(value, dict):
        return {
            name: item.replace(r"\A", "^").replace(r"\Z", "$")
            if name == "pattern" and isinstance(item, str)
            else _portable(item)
            for name, item in value.items()
        }
    return [_portable(item) for item in value] if isinstance(value, list) else value


def _operation(route: Route, path: str, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    answer = _answer(route, schema_of)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{re.sub('[^A-Za-z0-9]+', '_', path).strip('_')}",
        "parameters": _parameters(route, path),
        "responses": {str(status): answer for status in route.status} | _problems(route, path),
    }
    if route.takes is not None:
        # What cancels an import needs no body, what finishes it does.
        operation["requestBody"] = {"required": "import_id" not in path, "content": _taken(route, schema_of)}
    if route.access == "public":
        operation["security"] = []
    return operation


def _parameters(route: Route, path: str) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", path)
    found = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(route, path, name)} for name in names
    ]
    for name in route.query:
        schema = QUERY[name]
        if name == "limit" and path.endswith("/metrics"):
            schema = _integer(1, 10 * telemetry.MOST)
        found.append({"name": name, "in": "query", "schema": schema})
    if (route.method, route.path) in IF_MATCH:
        found.append({"name": "If-Match", "in": "header", "schema": _text(limits.ID, pattern="^[ -~]*$")})
    return found


def _path_schema(route: Route, path: str, name: str) -> dict[str, Any]:
    if route.method == "POST" and name in ACTIONS and path.endswith(f"{{{name}}}"):
        return {"type": "string", "pattern": f"^{ID_PATTERN}:({ACTIONS[name]})$"}
    return PATH.get(name, {"type": "string", "pattern": f"^{ID_PATTERN}$"})


def _problems(route: Route, path: str) -> dict[str, Any]:
    """Return every refusal that the route can answer with, by status."""
    never = {405, 416}  # another method than this one; links to files
    if route.access == "public":
        never |= {401}
    if route.method in ("GET", "HEAD"):
        never |= {408, 413}
    if (route.method, route.path) not in IF_MATCH:
        never |= {412}
    statuses = sorted({status for status, _ in CODES.values()} - never)
    if route.method == "HEAD":  # without a body
        return {str(status): {"description": HTTPStatus(status).phrase} for status in statuses}
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _refusals(problem: dict[str, Any]) -> dict[str, Any]:
    """Return what each status of a refusal means."""
    codes: dict[int, list[str]] = {}
    for code, (status, _) in CODES.items():
        codes.setdefault(status, []).append(code)
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(found)}",
            "content": {"application/problem+json": {"schema": problem}},
        }
        for status, found in codes.items()
    }


def _answer(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if route.gives is None:
        return {"description": "Done; the answer is empty"}
    if route.gives is bytes:
        return {"description": "Done", "content": _binary(route)}
    schema = schema_of[id(route.gives)]
    if route.is_page:
        text_or_null = {"type": ["string", "null"]}
        schema = {
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": schema},
                "nextPage": text_or_null,
                "prevPage": text_or_null,
            },
            "required": ["items"],
        }
    further = {media: {"schema": {"type": "string"}} for media in route.media if route.takes is not bytes}
    return {"description": "Done", "content": {"application/json": {"schema": schema}} | further}


def _taken(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if route.takes is bytes:
        return _binary(route)
    return {"application/json": {"schema": schema_of[id(route.takes)]}}


def _binary(route: Route) -> dict[str, Any]:
    return {media: {"schema": {"type": "string", "format": "binary"}} for media in route.media}
