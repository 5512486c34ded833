"""Training projects: a named place for flows and runs over the same data."""

import msgspec

from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.server.services.documents import Kind
from runyard.server.services.errors import Problem, Refusal
from runyard.store.tables import training_projects
from vi.api.resources.training_projects.responses import TrainingProject, TrainingProjectSpec

TYPES = ("vqa", "phrase-grounding", "freeform")

TRAINING_PROJECT = Kind(
    "training project",
    "trainingProjects",
    training_projects,
    TrainingProject,
    lambda org, id: TrainingProject(
        organization_id=org, training_project_id=id, self_link=f"/workspaces/{org}/trainingProjects/{id}"
    ),
)


def checked_spec(spec: TrainingProjectSpec) -> TrainingProjectSpec:
    """The spec, if type and dataset exist.

    Raises:
        Refusal: InvalidBody.
    """
    for path, given, allowed in (
        ("/spec/type", spec.type, TYPES),
        ("/spec/datasetId", spec.dataset_id, tuple(BUILT_IN_DATASETS)),
    ):
        if given is not None and given not in allowed:
            words = ", ".join(allowed)
            message = f"{path} is {given!r}; it must be one of {words}, or be left out"
            raise Refusal(
                "InvalidBody", message, problems=[Problem(path=path, given=given, allowed=words, message=message)]
            )
    return spec


def merged_spec(old: TrainingProjectSpec, changes: dict[str, object]) -> TrainingProjectSpec:
    """The spec after a PATCH; ``changes`` has been checked to hold known fields of the right types."""
    return checked_spec(msgspec.convert(msgspec.to_builtins(old) | changes, TrainingProjectSpec))
