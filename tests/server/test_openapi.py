"""The OpenAPI document describes what the server does.

``make fuzz-api`` compares the two with thousands of requests.
"""

import re

from runyard import limits
from runyard.server.http.openapi import build_document, encode_document
from runyard.server.http.routes import IF_MATCH, ROUTES
from runyard.server.services.errors import CODES
from tests.support.server import TestServer

OPERATIONS = [
    (path, method.upper(), operation)
    for path, methods in build_document()["paths"].items()
    for method, operation in methods.items()
]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


async def test_an_unsupported_method_is_refused_with_the_supported_ones(
    server: TestServer,
) -> None:
    clients = {
        "/workspaces/": await server.api(),
        "/openapi.json": await server.api(),
        "/health": await server.api(),
        "/internal/v1/": await server.client(server.controller_key),
    }
    for path, methods in build_document()["paths"].items():
        if path.startswith("/internal/v1/attempt/"):
            continue  # only an attempt's token gives access
        client = next(client for prefix, client in clients.items() if path.startswith(prefix))
        url = path.replace("{org}", server.org).replace("{sha256}", "0" * 64)
        url = re.sub(r"\{\w+\}", "x", url)
        allowed = {*(method.upper() for method in methods), "OPTIONS"}
        options = await client.options(url)
        assert (options.status_code, set(options.headers["allow"].split(", "))) == (204, allowed), (
            path
        )
        for method in set(METHODS) - allowed:
            answer = await client.request(method, url)
            assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (
                405,
                allowed,
            ), (method, path)
    link = await clients["/health"].post("/downloads/none")
    assert (link.status_code, link.headers["allow"]) == (405, "GET, HEAD")


def test_each_operation_lists_its_statuses() -> None:
    documented = set[str]()
    for path, method, operation in OPERATIONS:
        responses = set(operation["responses"])
        documented |= responses
        assert "default" not in responses
        assert responses & {"200", "201", "204"}, path
        assert {"400", "404", "414", "431", "500", "503"} <= responses, path
        assert ("401" in responses) is (path != "/health"), path
        is_conditional = any(
            parameter["name"] == "If-Match" for parameter in operation["parameters"]
        )
        assert ("412" in responses) is is_conditional, (method, path)
    assert {str(status) for status, _ in CODES.values()} - documented == {"405", "416"}
    assert {(route.method, route.path) for route in ROUTES} >= IF_MATCH


def test_files_have_their_types_and_parameters_their_limits() -> None:
    paths = build_document()["paths"]
    base = "/workspaces/{org}/datasets/{dataset}"
    assert set(paths[f"{base}/preview"]["get"]["responses"]["200"]["content"]) == {"image/png"}
    report = paths[f"{base}/imports/{{import_id}}/report"]["get"]["responses"]["200"]["content"]
    assert set(report) == {"application/json", "text/html"}
    parameters = {
        found["name"]: found["schema"]
        for found in paths["/workspaces/{org}/runs"]["get"]["parameters"]
    }
    assert parameters["attribute"]["maxItems"] == limits.ATTRIBUTE_FILTERS.value
    attributes = build_document()["components"]["schemas"]["NewMetadata"]["properties"][
        "attributes"
    ]
    assert attributes["maxProperties"] == limits.ATTRIBUTES.value
    assert attributes["propertyNames"]["maxLength"] == limits.ATTRIBUTE_KEY.value
    assert rb"\\Z" not in encode_document()
