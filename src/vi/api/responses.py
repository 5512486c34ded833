"""Common parts of all API documents: metadata, conditions, deletions.

The structs below ``vi.api`` are the only definition of Runyard's documents. The SDK decodes
responses into them, the server encodes its responses from them, and the OpenAPI document is
generated from them. Decoding is lenient: unknown fields are ignored and nearly every field has a
default, so that a newer or another server does not break a script. Names are camelCase on the wire
and snake_case in Python; times are integer epoch milliseconds.
"""

import enum
from typing import Any, Literal

import msgspec


class Document(msgspec.Struct, rename="camel", kw_only=True):
    """Base class of API documents: camelCase on the wire, keyword-only in Python."""

    def to_dict(self) -> dict[str, Any]:
        """Return the document as on the wire: camelCase names, and values that JSON has."""
        document: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        return document

    def _to_record(self) -> dict[str, Any]:
        """Return the document as one row of a data frame."""
        from vi.api._frames import flatten_document

        return flatten_document(self)

    def _to_table_row(self) -> dict[str, Any]:
        """Return the document as one row of a table in a notebook."""
        return {
            name: value
            for name, value in self._to_record().items()
            if not isinstance(value, list | dict)
        }


class OpenEnum(enum.StrEnum):
    """Enumeration of strings on the wire that accepts unknown values.

    A member equals its string, prints as it, and has its hash. An unknown string becomes a new
    member, so that ``.value`` is always what the server sent, and equal strings decode to equal
    members.
    """

    @classmethod
    def _missing_(cls, value: object) -> "OpenEnum | None":
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper(), value
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]


class ConditionKind(OpenEnum):
    """States of a run; the last four are final."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERROR = "Error"
    CANCELLED = "Cancelled"

    @property
    def is_final(self) -> bool:
        """True if no other state follows."""
        return self in FINAL_CONDITIONS


FINAL_CONDITIONS = frozenset(
    {ConditionKind.SUCCEEDED, ConditionKind.FAILED, ConditionKind.ERROR, ConditionKind.CANCELLED}
)


class ConditionStatus(OpenEnum):
    """Status of a condition: pending, reached or failed."""

    WAITING = "Waiting"
    REACHED = "Reached"
    FAILED_REACH = "FailedReach"


class ResourceCondition(Document):
    """One transition in the history of a resource; lists have the newest last."""

    condition: ConditionKind
    status: ConditionStatus = ConditionStatus.REACHED
    last_transition_time: int = 0
    reason: str | None = None
    message: str | None = None


class ResourceMetadata(Document):
    """Times of creation and last change, and the attributes set by the caller."""

    time_created: int = 0
    last_updated: int = 0
    generation: int = 1
    attributes: dict[str, str] = {}


class RunSuggestion(Document):
    """What to try: a text, and the setting to change as ``--set`` names it, if it is one."""

    text: str
    setting: str | None = None
    value: Any = None

    def __str__(self) -> str:
        if self.setting is None:
            return self.text
        value = self.value if isinstance(self.value, str) else msgspec.json.encode(self.value)
        text = value if isinstance(value, str) else value.decode()
        return f"{self.text} (--set {self.setting}={text})"


class RunFinding(Document):
    """Something that people should know about a run, whatever its condition, and what to try.

    ``code`` is ``TinyImages`` (the model sees little of the images) or ``NothingLearned``.
    """

    code: str
    message: str
    suggestions: list[RunSuggestion] = []


class DeletedResource(Document):
    """Result of ``delete``: the id of the deleted resource."""

    id: str
    deleted: Literal[True] = True
