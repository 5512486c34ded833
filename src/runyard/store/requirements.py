"""A run's requirements of a machine, as a key by which claims look runs up.

Equal requirements have equal keys. A key is the requirements as JSON. If that is too long for an
index, it is a hash, and the requirements are read from the document of any run with the key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

from runyard.flows.resources import count_accelerators

NOTHING = "{}"
MAX_KEY_LENGTH = 512
Labels = Mapping[str, Sequence[str]]

_UNFILLED = text(
    "SELECT org, id, document FROM runs WHERE requirements IS NULL AND condition IN ('Pending', "
    "'Running')"
)
_FILL = text("UPDATE runs SET requirements = :key WHERE org = :org AND id = :id")


@dataclass(frozen=True)
class Requirements:
    """Labels, of each of which one value is enough, and a number of accelerators."""

    labels: Labels = field(default_factory=dict)
    accelerators: int = 0


def build_key(tolerations: Labels, accelerators: int = 0) -> str:
    """Return the key of a flow's requirements. A label without values requires nothing."""
    labels = {name: sorted(set(values)) for name, values in sorted(tolerations.items()) if values}
    document: dict[str, Any] = {"labels": labels} if labels else {}
    if accelerators:
        document["accelerators"] = accelerators
    key = json.dumps(document, separators=(",", ":"))
    return key if len(key) <= MAX_KEY_LENGTH else "#" + hashlib.sha256(key.encode()).hexdigest()


@lru_cache(maxsize=1 << 15)
def parse_key(key: str) -> Requirements | None:
    """Return the requirements of a key; None for a hash."""
    if key.startswith("#"):
        return None
    document = json.loads(key)
    return Requirements(document.get("labels", {}), document.get("accelerators", 0))


def fill(connection: Connection) -> None:
    """Set the key of every run that may still wait; rows of older revisions have none."""
    found = [
        {"org": row.org, "id": row.id, "key": _read_key(row.document)}
        for row in connection.execute(_UNFILLED)
    ]
    if found:
        connection.execute(_FILL, found)


def _read_key(document: bytes) -> str:
    flow = json.loads(bytes(document))["spec"]["flow"]
    tolerations, settings = flow.get("tolerations"), flow.get("settings")
    return build_key(
        tolerations if isinstance(tolerations, dict) else {},
        count_accelerators(settings if isinstance(settings, dict) else {}),
    )
