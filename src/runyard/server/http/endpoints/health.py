"""Routes about the server itself."""

from typing import Literal

import msgspec

from runyard.server.http.request import Request
from runyard.server.http.responses import Response, encode_response, json_response
from runyard.version import VERSION


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"
    version: str = VERSION


async def get_health(request: Request) -> Response:
    return encode_response(Health())


async def get_openapi(request: Request) -> Response:
    """Return the document, which ``app`` hands in since it depends on ``routes``."""
    return json_response(request.state["encode_openapi"]())
