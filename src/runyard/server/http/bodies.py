"""Request bodies: strict, since a field that is silently ignored is a mistake nobody notices.

Everything a caller may set stands here; what is absent cannot be set. A run's PATCH takes its training project, its
attributes, and ``killedAt`` as a wish whose time the server stamps itself.
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType


class Body(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Base of every request body: camelCase, nothing unknown."""


class NewMetadata(Body):
    attributes: dict[str, str] = {}


class ChangedMetadata(Body):
    """Given attributes replace, null removes one."""

    attributes: dict[str, str | None] = {}


class NewResumeFrom(Body):
    """``checkpoint`` is an id, ``latest`` or ``best``."""

    run_id: str
    checkpoint: str = "latest"


class NewRunSpec(Body):
    """``flow`` is a recipe (see the flow schema), ``flowId`` a saved one; neither is the default recipe."""

    flow: dict[str, Any] | None = None
    flow_id: str | None = None
    training_project: str | None = None
    resume_from: NewResumeFrom | None = None


class NewRun(Body):
    spec: NewRunSpec = msgspec.field(default_factory=NewRunSpec)
    metadata: NewMetadata | None = None


class ChangedRunSpec(Body):
    training_project: str | UnsetType | None = UNSET
    killed_at: int | UnsetType = UNSET
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | UnsetType | None = UNSET


class ChangedRun(Body):
    spec: ChangedRunSpec | None = None
    metadata: ChangedMetadata | None = None


class NewFlow(Body):
    """``spec`` is checked by the recipe language, which names every problem in it."""

    spec: dict[str, Any]
    metadata: NewMetadata | None = None


class ChangedFlow(Body):
    """Given fields of the spec replace those of the flow."""

    spec: dict[str, Any] | None = None
    metadata: ChangedMetadata | None = None


class NewProjectSpec(Body):
    name: str = "Untitled"
    description: str | None = None
    type: str | None = None
    dataset_id: str | None = None


class NewProject(Body):
    spec: NewProjectSpec = msgspec.field(default_factory=NewProjectSpec)
    metadata: NewMetadata | None = None


class ChangedProjectSpec(Body):
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    dataset_id: str | UnsetType | None = UNSET


class ChangedProject(Body):
    spec: ChangedProjectSpec | None = None
    metadata: ChangedMetadata | None = None


def attributes_of(metadata: Any) -> dict[str, Any]:
    """The attributes in a body, none if it has no metadata."""
    return {} if metadata is None else dict(metadata.attributes)
