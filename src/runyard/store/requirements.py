"""A run's requirements of a machine, as a key by which claims look runs up.

Equal requirements have equal keys. A key is the requirements as JSON. If that is too long for an
index, it is a hash, and the requirements are read from the document of any run with the key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

NOTHING = "{}"
MAX_KEY_LENGTH = 512
Labels = Mapping[str, Sequence[str]]

_UNFILLED = text(
    "SELECT org, id, document FROM runs WHERE requirements IS NULL AND condition IN ('Pending', "
    "'Running')"
)
_FILL = text("UPDATE runs SET requirements = :key WHERE org = :org AND id = :id")


def build_key(tolerations: Labels) -> str:
    """Return the key of a flow's tolerations. A label without values requires nothing."""
    labels = {name: sorted(set(values)) for name, values in sorted(tolerations.items()) if values}
    if not labels:
        return NOTHING
    key = json.dumps({"labels": labels}, separators=(",", ":"))
    return key if len(key) <= MAX_KEY_LENGTH else "#" + hashlib.sha256(key.encode()).hexdigest()


@lru_cache(maxsize=1 << 15)
def parse_labels(key: str) -> Labels | None:
    """Return the labels that a key requires; None for a hash."""
    if key.startswith("#"):
        return None
    labels: Labels = json.loads(key).get("labels", {})
    return labels


def fill(connection: Connection) -> None:
    """Set the key of every run that may still wait; rows of older revisions have none."""
    found = [
        {"org": row.org, "id": row.id, "key": build_key(_read_tolerations(row.document))}
        for row in connection.execute(_UNFILLED)
    ]
    if found:
        connection.execute(_FILL, found)


def _read_tolerations(document: bytes) -> Labels:
    found: Any = json.loads(bytes(document))["spec"]["flow"].get("tolerations")
    return found if isinstance(found, dict) else {}
