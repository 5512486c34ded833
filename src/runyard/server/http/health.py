"""Routes about the server itself."""

from typing import Literal

import msgspec

from runyard.server.http.request import Answer, Asked, answer, json_answer
from runyard.server.version import VERSION


class Health(msgspec.Struct):
    status: Literal["ok"] = "ok"
    version: str = VERSION


async def get_health(request: Asked) -> Answer:
    return answer(Health())


async def get_openapi(request: Asked) -> Answer:
    from runyard.server.http.openapi import encoded_document  # it reads the routes, which name this function

    return json_answer(encoded_document())
