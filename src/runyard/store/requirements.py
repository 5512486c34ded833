"""What a run requires of a machine, as a key: claims look runs up by it and read no document of those that do not fit.

Equal requirements have equal keys. A key is the requirement itself, as JSON; one that is too long for an index is a
hash, and what it stands for is read from the document of any run that has it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, text

NOTHING = "{}"
LONGEST_KEY = 512
Labels = Mapping[str, Sequence[str]]

_UNFILLED = text(
    "SELECT org, id, document FROM runs WHERE requirements IS NULL AND condition IN ('Pending', 'Running')"
)
_FILL = text("UPDATE runs SET requirements = :key WHERE org = :org AND id = :id")


def key_of(tolerations: Labels) -> str:
    """The key of a flow's tolerations. A label with no values requires nothing."""
    labels = {name: sorted(set(values)) for name, values in sorted(tolerations.items()) if values}
    if not labels:
        return NOTHING
    key = json.dumps({"labels": labels}, separators=(",", ":"))
    return key if len(key) <= LONGEST_KEY else "#" + hashlib.sha256(key.encode()).hexdigest()


@lru_cache(maxsize=1 << 15)
def labels_of(key: str) -> Labels | None:
    """The labels that a key requires; None for a hash."""
    if key.startswith("#"):
        return None
    labels: Labels = json.loads(key).get("labels", {})
    return labels


def fill(connection: Connection) -> None:
    """Give every run that may still wait its key: rows written before there were keys have none."""
    found = [
        {"org": row.org, "id": row.id, "key": key_of(_tolerations(row.document))}
        for row in connection.execute(_UNFILLED)
    ]
    if found:
        connection.execute(_FILL, found)


def _tolerations(document: bytes) -> Labels:
    found: Any = json.loads(bytes(document))["spec"]["flow"].get("tolerations")
    return found if isinstance(found, dict) else {}
