"""The OpenAPI document, made from the list of routes and the structs of the wire; nothing in it is written twice."""

import functools
import re
from typing import Any

import msgspec

from runyard.server.http.problems import ProblemDocument
from runyard.server.http.route import Route
from runyard.server.http.routes import ROUTES
from runyard.server.services.errors import CODES
from runyard.server.version import VERSION

REF = "#/components/schemas/{name}"


@functools.cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1 of every route."""
    kinds = [kind for route in ROUTES for kind in (route.takes, route.gives) if kind not in (None, bytes)]
    schemas, components = msgspec.json.schema_components([*kinds, ProblemDocument], ref_template=REF)
    schema_of = dict(zip(map(id, [*kinds, ProblemDocument]), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Runyard", "version": VERSION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(route: Route, path: str, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": schema_of[id(ProblemDocument)]}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}_{re.sub('[^A-Za-z0-9]+', '_', path).strip('_')}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query],
        "responses": {
            "2XX": _answer(route, schema_of),
            "default": {"description": f"Refused: {', '.join(CODES)}", "content": problem},
        },
    }
    if route.takes is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.takes, schema_of)}
    if route.access == "public":
        operation["security"] = []
    return operation


def _answer(route: Route, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if route.gives is None:
        return {"description": "Done; the answer is empty"}
    if route.gives is bytes:
        return {"description": "Done", "content": _content(bytes, schema_of)}
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
    return {"description": "Done", "content": {"application/json": {"schema": schema}}}


def _content(kind: Any, schema_of: dict[int, dict[str, Any]]) -> dict[str, Any]:
    if kind is bytes:
        return {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": schema_of[id(kind)]}}
