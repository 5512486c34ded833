"""Hooks of schemathesis that replace most ids in paths with existing ids.

Without them nearly every response would be a 404, and no successful response would be checked
against its schema. Deletions keep their random ids, so that existing resources remain.
"""

import json
import os
import random
from typing import Any

import schemathesis

KNOWN: dict[str, list[str]] = json.loads(os.environ["RUNYARD_FUZZ_IDS"])
SHARE_KNOWN = 0.8
LONGEST_WAIT_S = 0.2
chance = random.Random(1)  # noqa: S311


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Insert known ids into the path, and shorten long polls."""
    parameters = case.path_parameters if isinstance(case.path_parameters, dict) else {}
    for name, value in parameters.items():
        keeps = case.method.upper() == "DELETE" and name not in ("org", "dataset")
        keeps = keeps or (case.method.upper() == "DELETE" and case.path.endswith("{dataset}"))
        if name in KNOWN and not keeps and chance.random() < SHARE_KNOWN:
            action = str(value).partition(":")[2]
            known = chance.choice(KNOWN[name])
            parameters[name] = f"{known}:{action}" if action.isalpha() else known
    if isinstance(case.query, dict) and case.path.endswith("/logs"):
        case.query.pop("wait", None)
    if isinstance(case.body, dict) and case.path.endswith("/claims") and "wait_s" not in case.body:
        case.body["wait_s"] = LONGEST_WAIT_S
    elif isinstance(case.body, dict) and isinstance(case.body.get("wait_s"), int | float):
        case.body["wait_s"] = min(case.body["wait_s"], LONGEST_WAIT_S)


@schemathesis.serializer("application/x-tar", "application/octet-stream")  # type: ignore[untyped-decorator]
def serialize_bytes(context: Any, value: Any) -> Any:
    """Return the bytes of a file unchanged."""
    return value if isinstance(value, bytes) else str(value).encode()
