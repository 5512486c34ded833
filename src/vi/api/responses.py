"""What every document on the wire shares: metadata, conditions, deletions.

The structs below ``vi.api`` are the only definition of Runyard's documents. The SDK decodes answers into them, the
server encodes its answers from them, and the OpenAPI document is generated from them. They decode leniently: unknown
fields are ignored and nearly every field has a default, so that a newer or a foreign server does not break a script.
Names are camelCase on the wire and snake_case in Python; times are integer epoch milliseconds.
"""

import enum
from typing import Literal

import msgspec


class Document(msgspec.Struct, rename="camel", kw_only=True):
    """Base of every document: camelCase on the wire, keyword-only in Python."""


class OpenEnum(enum.StrEnum):
    """Words of the wire. Each member equals its word, prints as it, and hashes like it.

    A word this version does not know becomes a member of its own, so that ``.value`` is always what the server sent and
    two decoded members of the same word are equal.
    """

    @classmethod
    def _missing_(cls, value: object) -> "OpenEnum | None":
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper(), value
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]


class ConditionKind(OpenEnum):
    """The states of a run. The last four are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERROR = "Error"
    CANCELLED = "Cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after this state."""
        return self in FINAL_CONDITIONS


FINAL_CONDITIONS = frozenset(
    {ConditionKind.SUCCEEDED, ConditionKind.FAILED, ConditionKind.ERROR, ConditionKind.CANCELLED}
)


class ConditionStatus(OpenEnum):
    """Whether a condition has been reached."""

    WAITING = "Waiting"
    REACHED = "Reached"
    FAILED_REACH = "FailedReach"


class ResourceCondition(Document):
    """One transition in a resource's history; lists of them have the most recent last."""

    condition: ConditionKind
    status: ConditionStatus = ConditionStatus.REACHED
    last_transition_time: int = 0
    reason: str | None = None
    message: str | None = None


class ResourceMetadata(Document):
    """When a resource was made and changed, and the caller's own attributes."""

    time_created: int = 0
    last_updated: int = 0
    generation: int = 1
    attributes: dict[str, str] = {}


class DeletedResource(Document):
    """What ``delete`` returns: the id that is gone."""

    id: str
    deleted: Literal[True] = True
