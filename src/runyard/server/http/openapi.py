"""The OpenAPI document, generated from the list of routes and the structs of the wire.

It has every status of each route: those of success from the route, those of problems from
``CODES``. ``make fuzz-api`` sends thousands of requests generated from the document and checks the
responses against it.
"""

import functools
import re
from http import HTTPStatus
from typing import Any

import msgspec

from runyard import limits
from runyard.limits import Limit
from runyard.server.http.endpoints import assets, events, imports, run_output
from runyard.server.http.problems import ProblemDocument
from runyard.server.http.route import PUBLIC, Route
from runyard.server.http.routes import IF_MATCH, ROUTES
from runyard.server.services.datasets.thumbnails import SIZES
from runyard.server.services.errors import CODES
from runyard.server.services.events import KINDS
from runyard.server.services.imports import exports
from runyard.server.services.runs.conditions import REASONS
from runyard.server.services.runs.telemetry import logs, series
from runyard.server.services.runs.telemetry.levels import LEVELS
from runyard.server.services.runs.telemetry.log_search import MAX_PATTERN
from runyard.server.services.runs.telemetry.samples import ORDERS
from runyard.store.datasets.assets import SORTINGS
from runyard.store.telemetry.series import MOST_BITS
from runyard.version import VERSION

REF = "#/components/schemas/{name}"
ID_PATTERN = "[A-Za-z0-9_-]{1,255}"
# The actions that may follow the last id of a path.
ACTIONS = {"import_id": "finish|cancel", "session_id": "cancel"}


def _text_schema(limit: Limit, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": limit.value, **more}


def _enum_schema(*words: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(words)}


def _integer_schema(minimum: int, maximum: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


TIME = _integer_schema(0, limits.MAX_INTEGER)
QUERY: dict[str, dict[str, Any]] = {
    "s": _integer_schema(1, limits.MAX_INTEGER),
    "p": _text_schema(limits.QUERY_TEXT),
    "condition": _enum_schema(*(kind.value for kind in REASONS)),
    "flow": _text_schema(limits.ID),
    "trainingProject": _text_schema(limits.ID),
    "attribute": {
        "type": "array",
        "items": _text_schema(limits.ATTRIBUTE_VALUE, pattern="^[^:]+:"),
        "maxItems": limits.ATTRIBUTE_FILTERS.value,
    },
    "createdAfter": TIME,
    "createdBefore": TIME,
    "after": {"anyOf": [TIME, _enum_schema(events.LATEST)]},
    "since": TIME,
    "until": TIME,
    "limit": _integer_schema(1, logs.MOST),
    "keys": _text_schema(limits.QUERY_TEXT),
    "from": TIME,
    "to": TIME,
    "points": _integer_schema(1, series.MOST_POINTS),
    "bucketSteps": {"type": "integer", "enum": [1 << bits for bits in range(MOST_BITS)]},
    "id": {
        "type": "array",
        "items": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
        "minItems": 1,
        "maxItems": series.MOST_RUNS,
    },
    "actor": _text_schema(limits.ID, pattern="^[ -~]+$"),
    "action": _text_schema(limits.ID, pattern="^[ -~]+$"),
    "block": _enum_schema(*run_output.STREAMS),
    "before": TIME,
    "tail": _integer_schema(1, limits.MAX_INTEGER),
    "attempt": _integer_schema(0, limits.MAX_COLUMN),
    "search": {"type": "string", "minLength": 1, "maxLength": MAX_PATTERN},
    "regex": _enum_schema(*run_output.BOOLEANS),
    "case": _enum_schema(*run_output.BOOLEANS),
    "level": _enum_schema(*LEVELS),
    "evaluation": {"type": "string", "pattern": "^(latest|[0-9]{1,16})$"},
    "index": TIME,
    "size": _enum_schema(*map(str, SIZES)),
    "force": _enum_schema("true", "false"),
    "wait": {"type": "number", "minimum": 0, "maximum": 999_999},
    "contents": _enum_schema("y", "n"),
    "sortBy": _enum_schema(*SORTINGS),
    "o": _enum_schema(*assets.ORDERS),
    "filter": _text_schema(limits.QUERY_TEXT),
    "orderBy": _text_schema(limits.QUERY_TEXT, pattern="^-?(created|name|duration|metric\\..+)$"),
    "severity": _enum_schema(*imports.SEVERITIES),
    "code": _text_schema(limits.ID),
    "count": _integer_schema(1, exports.MOST_SHOWN),
    "seed": _integer_schema(0, 2**31),
    "version": _text_schema(limits.ID),
    "dataset": _text_schema(limits.ID),
    "run": {"type": "string", "pattern": f"^{ID_PATTERN}$"},
    "kind": _enum_schema(*KINDS),
}
# Where a route's parameter differs from that of the same name elsewhere: by the end of the path.
QUERY_OF: dict[tuple[str, str], dict[str, Any]] = {
    ("/metrics", "limit"): _integer_schema(1, 10 * series.MOST),
    ("/samples", "orderBy"): _enum_schema(*ORDERS),
    ("/logs", "after"): TIME,
}
PATH: dict[str, dict[str, Any]] = {
    "org": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
    "filename": _text_schema(limits.FILE_NAME, minLength=1, pattern="^[^/\\\\\\x00]+$"),
    "part": {"type": "string", "pattern": "^[0-9]{1,6}$"},
    "index": {"type": "string", "pattern": "^[0-9]{1,9}$"},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}


@functools.cache
def build_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of all routes."""
    kinds = [
        kind
        for route in ROUTES
        for kind in (route.body, route.returns)
        if kind not in (None, bytes)
    ]
    schemas, components = msgspec.json.schema_components(
        [*kinds, ProblemDocument], ref_template=REF
    )
    schema_of = dict(zip(map(id, [*kinds, ProblemDocument]), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _build_operation(route, path, schema_of)
    described: dict[str, Any] = _convert_patterns(
        {
            "openapi": "3.1.0",
            "info": {"title": "Runyard", "version": VERSION},
            "paths": paths,
            "components": {
                "schemas": components,
                "responses": _build_problem_responses(schema_of[id(ProblemDocument)]),
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}],
        }
    )
    return described


@functools.cache
def encode_document() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(build_document())


def _convert_patterns(value: Any) -> Any:
    """Convert patterns to ECMA 262, which has no ``\\A`` and ``\\Z``."""
    if isinstance(value, dict):
        return {
            name: item.replace(r"\A", "^").replace(r"\Z", "$")
            if name == "pattern" and isinstance(item, str)
            else _convert_patterns(item)
            for name, item in value.items()
        }
    return [_convert_patterns(item) for item in value] if isinstance(value, list) else value


def _build_operation(
    route: Route, path: str, schema_of: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    response = _build_response(route, schema_of)
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{re.sub('[^A-Za-z0-9]+', '_', path).strip('_')}",
        "parameters": _list_parameters(route, path),
        "responses": {str(status): response for status in route.statuses}
        | _list_problem_responses(route, path),
    }
    if route.body is not None:
        # Canceling an import needs no body, finishing it does.
        operation["requestBody"] = {
            "required": "import_id" not in path,
            "content": _build_request_content(route, schema_of),
        }
    if route.access == "public":
        operation["security"] = []
    return operation


def _list_parameters(route: Route, path: str) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", path)
    found = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _build_path_schema(route, path, name),
        }
        for name in names
    ]
    for name in route.query:
        schema = QUERY_OF.get(("/" + path.rpartition("/")[2], name), QUERY[name])
        found.append({"name": name, "in": "query", "schema": schema})
    if (route.method, route.path) in IF_MATCH:
        found.append(
            {
                "name": "If-Match",
                "in": "header",
                "schema": _text_schema(limits.ID, pattern="^[ -~]*$"),
            }
        )
    return found


def _build_path_schema(route: Route, path: str, name: str) -> dict[str, Any]:
    if route.method == "POST" and name in ACTIONS and path.endswith(f"{{{name}}}"):
        return {"type": "string", "pattern": f"^{ID_PATTERN}:({ACTIONS[name]})$"}
    return PATH.get(name, {"type": "string", "pattern": f"^{ID_PATTERN}$"})


def _list_problem_responses(route: Route, path: str) -> dict[str, Any]:
    """Return the problem responses of a route, by status."""
    never = {405, 416}  # another method than this one; download links
    if route.path in PUBLIC:
        never |= {401}
    if route.method in ("GET", "HEAD"):
        never |= {408, 413}
    if (route.method, route.path) not in IF_MATCH:
        never |= {412}
    statuses = sorted({status for status, _ in CODES.values()} - never)
    if route.method == "HEAD":  # without a body
        return {str(status): {"description": HTTPStatus(status).phrase} for status in statuses}
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _build_problem_responses(problem: dict[str, Any]) -> dict[str, Any]:
    """Return the shared problem responses, by status."""
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


def _build_response(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if route.returns is None:
        return {"description": "Done; the body is empty"}
    if route.returns is bytes:
        return {"description": "Done", "content": _build_file_content(route)}
    schema = schema_of[id(route.returns)]
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
    further = {
        media: {"schema": {"type": "string"}}
        for media in route.media_types
        if route.body is not bytes
    }
    return {"description": "Done", "content": {"application/json": {"schema": schema}} | further}


def _build_request_content(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if route.body is bytes:
        return _build_file_content(route)
    return {"application/json": {"schema": schema_of[id(route.body)]}}


def _build_file_content(route: Route) -> dict[str, Any]:
    return {
        media: {"schema": {"type": "string", "format": "binary"}} for media in route.media_types
    }
