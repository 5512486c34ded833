"""Training projects: a named group of flows and runs over the same data."""

import msgspec

from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.server.services.documents import DocumentKind
from runyard.server.services.errors import Problem, Refusal
from runyard.store.tables import training_projects
from vi.api.resources.training_projects.responses import TrainingProject, TrainingProjectSpec

TYPES = ("vqa", "phrase-grounding", "freeform")

TRAINING_PROJECT = DocumentKind(
    "training project",
    "trainingProject",
    "trainingProjects",
    training_projects,
    TrainingProject,
    lambda org, id: TrainingProject(
        organization_id=org,
        training_project_id=id,
        self_link=f"/workspaces/{org}/trainingProjects/{id}",
    ),
)


def check_spec(spec: TrainingProjectSpec) -> TrainingProjectSpec:
    """Return the spec, if type and dataset exist.

    Raises:
        Refusal: InvalidBody.
    """
    for path, given, allowed in (
        ("/spec/type", spec.type, TYPES),
        ("/spec/datasetId", spec.dataset_id, tuple(BUILT_IN_DATASETS)),
    ):
        if given is not None and given not in allowed:
            words = ", ".join(allowed)
            message = f"{path} is {given!r}; expected one of {words}, or omit it"
            raise Refusal(
                "InvalidBody",
                message,
                problems=[Problem(path=path, given=given, allowed=words, message=message)],
            )
    return spec


def merge_spec(old: TrainingProjectSpec, changes: dict[str, object]) -> TrainingProjectSpec:
    """Return the spec after a PATCH.

    ``changes`` has been checked to hold known fields of the right types.
    """
    return check_spec(msgspec.convert(msgspec.to_builtins(old) | changes, TrainingProjectSpec))
