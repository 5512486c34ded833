"""References of a flow that only the server can resolve: datasets, training projects, checkpoints.

``runyard.flows`` validates everything inside a flow. Its problems and those found here are returned
together, so that a caller learns of all mistakes at once. Therefore ``find_dangling`` walks the
flow as it was sent, however invalid the rest of it is.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.base_models import (
    ModelMissing,
    UnreadableModel,
    get_base_weights,
    list_model_files,
    locate_model,
)
from runyard.flows import FlowProblems, resolve, validate
from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.flows.weights import BASE_PREFIX, classify_weights
from runyard.ids import MODEL_REFERENCE
from runyard.limits import Limit
from runyard.model_folders import SETTING
from runyard.rundir import MODEL_ADAPTER, MODEL_FULL
from runyard.server.services.context import Services
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.runs.dataset_references import (
    Pin,
    fill_in_dataset,
    find_unknown_datasets,
    is_dataset,
    resolve_versions,
)
from runyard.store import blobs as blob_rows
from runyard.store import documents, outputs, runs
from runyard.store.tables import AnyRow, training_projects
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import ResumeFrom
from vi.api.resources.training_projects.responses import TrainingProject

LATEST, BEST = "latest", "best"
MOST_BLOCKS = 100  # a flow with more is rejected as a whole, so further references need no lookup
LONGEST_SHOWN = 80


@dataclass(frozen=True)
class ResolvedRun:
    """The frozen flow of a new run, with everything that it refers to."""

    flow: FlowSpec
    training_project: str | None
    pins: tuple[Pin, ...]


async def resolve_run(
    services: Services,
    org: str,
    flow: object,
    *,
    training_project: str | None = None,
    is_resumed: bool = False,
) -> ResolvedRun:
    """Validate the flow of a new run, and resolve its training project, dataset and version.

    ``is_resumed``: it loads a checkpoint, and needs no base model.

    Raises:
        Refusal: InvalidFlow, with every problem.
    """
    spec = check_flow(services, org, flow, training_project=training_project)
    if not is_resumed:
        await check_base_model(services, spec)
    project = training_project or spec.training_project
    spec = fill_in_dataset(spec, find_dataset(services, org, project))
    return ResolvedRun(spec, project, await resolve_versions(services, org, spec))


def check_flow(
    services: Services, org: str, flow: object, *, training_project: str | None = None
) -> FlowSpec:
    """Return the flow with its defaults filled in, if every reference exists.

    ``training_project`` is the one named outside the flow; it takes precedence over the flow's own.

    Raises:
        Refusal: InvalidFlow, with every problem.
    """
    problems: list[Problem] = []
    spec: FlowSpec | None = None
    try:
        spec = validate(flow)
    except FlowProblems as error:
        problems += error.problems
    else:
        problems += _find_oversize(spec)
    known_paths = {problem.path for problem in problems}
    problems += [
        found
        for found in find_dangling(services, org, flow, training_project)
        if found.path not in known_paths
    ]
    if problems or spec is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        sentences = "; ".join(problem.message for problem in problems[:5])
        raise Refusal("InvalidFlow", f"the flow has {count}: {sentences}", problems=problems)
    return spec


async def check_base_model(services: Services, flow: FlowSpec) -> None:
    """Check that the server's machine has the base model that a run of this flow loads.

    Machines that lack it fetch it from there.

    Raises:
        Refusal: InvalidFlow.
    """
    at = next((index for index, block in enumerate(flow.blocks) if "model" in block.block), None)
    if at is None or not (architecture := flow.blocks[at].settings.get("architecture")):
        return  # the built-in model
    folders = services.settings.models
    try:
        weights = get_base_weights(resolve(flow).model.architecture)
        if weights is not None:
            parts = await asyncio.to_thread(locate_model, weights, folders)
            await asyncio.to_thread(list_model_files, parts, folders)
        return
    except FlowProblems:
        return  # of a dataset that is checked later
    except ModelMissing as error:
        message = f"{error} of the server's machine; {_suggest_adding(error.weights)}"
    except UnreadableModel as error:
        message = f"model {weights!r} cannot be used: {error}; try: add it again"
    known = ", ".join(f"{BASE_PREFIX}{name}" for name in folders.list_names()) or "none yet"
    problem = Problem(
        path=f"/blocks/{at}/settings/architecture",
        given=json.dumps(architecture)[:LONGEST_SHOWN],
        allowed=f"a model in the folders of the server's setting {SETTING}: {known}",
        message=message,
    )
    raise Refusal("InvalidFlow", f"the flow has 1 problem: {message}", problems=[problem])


def _suggest_adding(weights: str) -> str:
    """Return the command that adds a missing model."""
    if classify_weights(weights) == "folder":
        return "try: runyard models add FOLDER --name NAME there, then weights base:NAME"
    return f"try: runyard models add FOLDER --name {weights.removeprefix(BASE_PREFIX)} there"


def _find_oversize(spec: FlowSpec) -> list[Problem]:
    """Return a problem for each style above its limit, or for a flow too large as a whole."""
    problems = []
    for index, block in enumerate(spec.blocks):
        size_bytes = len(msgspec.json.encode(block.style))
        if size_bytes > limits.FLOW_STYLE.value:
            problems.append(
                _build_oversize(f"/blocks/{index}/style", size_bytes, limits.FLOW_STYLE)
            )
    if not problems and (size_bytes := len(msgspec.json.encode(spec))) > limits.FLOW.value:
        problems.append(_build_oversize("", size_bytes, limits.FLOW))
    return problems


def _build_oversize(path: str, size_bytes: int, limit: Limit) -> Problem:
    allowed = f"at most {limit.value:,} bytes of JSON"
    name = path or "the flow"
    message = (
        f"{name} has {size_bytes:,} bytes of JSON; at most {limit.value:,} are allowed; try: leave "
        "out styles"
    )
    return Problem(path=path, given=None, allowed=allowed, message=message)


def find_dangling(
    services: Services, org: str, flow: object, training_project: str | None = None
) -> list[Problem]:
    """Return a problem for each reference to something that does not exist."""
    problems = []
    named = training_project
    if isinstance(flow, dict):
        named = named or flow.get("trainingProject")
        blocks = flow.get("blocks")
        for index, block in enumerate(blocks[:MOST_BLOCKS] if isinstance(blocks, list) else []):
            problems += _find_dangling_in_block(services, org, index, block)
    if isinstance(named, str) and not is_training_project(services, org, named):
        problems.append(
            Problem(
                path="/trainingProject",
                given=named[:LONGEST_SHOWN],
                allowed=f"the id of a training project, or one of {', '.join(BUILT_IN_DATASETS)}",
                message=f"training project {named[:LONGEST_SHOWN]!r} does not exist; try: create "
                "it first, or omit it",
            )
        )
    return problems


def is_training_project(services: Services, org: str, id: str) -> bool:
    """Return whether ``id`` is valid as ``trainingProject``: a project, or a dataset."""
    if id in BUILT_IN_DATASETS or is_dataset(services, org, id):
        return True
    return services.store.read(lambda tx: documents.exists(tx, training_projects, org=org, id=id))


def find_dataset(services: Services, org: str, training_project: str | None) -> str | None:
    """Return the dataset that a training project stands for, if any."""
    if training_project is None or training_project in BUILT_IN_DATASETS:
        return training_project
    if is_dataset(services, org, training_project):
        return training_project
    row = services.store.read(
        lambda tx: documents.get(tx, training_projects, org=org, id=training_project)
    )
    return msgspec.json.decode(row.document, type=TrainingProject).spec.dataset_id if row else None


def resolve_checkpoint(
    tx: Connection, org: str, run_id: str, checkpoint: str
) -> tuple[ResumeFrom, Sequence[AnyRow]]:
    """Return the checkpoint that a new run resumes from, and its files.

    ``checkpoint`` is an id, ``latest`` or ``best``.

    Raises:
        Refusal: NotFound, with the field that names what is not there.
    """
    run = runs.get(tx, org=org, run_id=run_id)
    if run is None or run.deleted:
        raise _build_resume_refusal(
            "runId", run_id, f"run {run_id!r} was not found", "the id of a run that is listed"
        )
    found = _choose_checkpoint(outputs.list_by_run(tx, org=org, run_id=run_id), checkpoint)
    if found is None:
        message = f"checkpoint {checkpoint!r} of run {run_id!r} was not found"
        raise _build_resume_refusal(
            "checkpoint", checkpoint, message, "one of the run's models, latest, or best"
        )
    files = outputs.list_files(tx, org=org, run_id=run_id, output_id=found.id)
    return ResumeFrom(run_id=run_id, checkpoint=found.id, step=found.step, epoch=found.epoch), files


def _choose_checkpoint(listed: Sequence[AnyRow], checkpoint: str) -> AnyRow | None:
    """Return the listed checkpoint (oldest first) that an id, ``latest`` or ``best`` names."""
    if checkpoint == BEST:
        listed = [row for row in listed if row.is_best] or listed
    elif checkpoint != LATEST:
        listed = [row for row in listed if row.id == checkpoint]
    return listed[-1] if listed else None


def get_weights(flow: FlowSpec) -> str | None:
    """Return the weights that the flow names, in whichever form."""
    architecture = _get_architecture(flow)
    return None if architecture is None else architecture["weights"]


def pin_weights(tx: Connection, *, org: str, run_id: str, flow: FlowSpec) -> bool:
    """Resolve and keep the checkpoint that a new run starts from, in the run's transaction.

    Return whether it starts from one; then its id is written into the flow.

    Raises:
        Refusal: InvalidFlow (the checkpoint does not exist, or no longer).
    """
    named = MODEL_REFERENCE.fullmatch(get_weights(flow) or "")
    architecture = _get_architecture(flow)
    if named is None or architecture is None:
        return False
    found = _find_source(tx, org, named[1], named[2])
    if found is None:
        at = next(index for index, block in enumerate(flow.blocks) if "model" in block.block)
        problem = _build_unknown_source(at, named[0])
        raise Refusal(
            "InvalidFlow", f"the flow has 1 problem: {problem.message}", problems=[problem]
        )
    files = outputs.list_files(tx, org=org, run_id=named[1], output_id=found.id)
    blob_rows.keep_weights(tx, org=org, run_id=run_id, files=select_weight_files(files))
    architecture["weights"] = f"run:{named[1]}/{found.id}"
    return True


def select_weight_files(files: Sequence[AnyRow]) -> list[AnyRow]:
    """Return the files of a checkpoint that another run starts from: base model and adapter."""
    return [file for file in files if file.path.startswith((f"{MODEL_FULL}/", f"{MODEL_ADAPTER}/"))]


def _get_architecture(flow: FlowSpec) -> dict[str, Any] | None:
    """Return the settings that name the weights; None for a flow that names none."""
    for block in flow.blocks:
        found = block.settings.get("architecture") if "model" in block.block else None
        if isinstance(found, dict) and isinstance(found.get("weights"), str):
            return found
    return None


def _find_source(tx: Connection, org: str, run_id: str, checkpoint: str) -> AnyRow | None:
    run = runs.get(tx, org=org, run_id=run_id)
    if run is None or run.deleted:
        return None
    return _choose_checkpoint(outputs.list_by_run(tx, org=org, run_id=run_id), checkpoint)


def _build_resume_refusal(field: str, given: str, what: str, allowed: str) -> Refusal:
    message = f"{what}, so no run can resume from it; try: list what exists, or omit resumeFrom"
    problem = Problem(
        path=f"/spec/resumeFrom/{field}", given=given[:80], allowed=allowed, message=message
    )
    return Refusal("NotFound", message, problems=[problem])


def _find_dangling_in_block(services: Services, org: str, index: int, block: Any) -> list[Problem]:
    if not isinstance(block, dict) or not isinstance(block.get("settings"), dict):
        return []
    name, settings = str(block.get("block")), block["settings"]
    if "dataset" in name:
        return find_unknown_datasets(services, org, f"/blocks/{index}/settings", settings)
    architecture = settings.get("architecture")
    weights = architecture.get("weights") if isinstance(architecture, dict) else None
    problem = (
        _find_dangling_weights(services, org, index, weights) if isinstance(weights, str) else None
    )
    return [] if problem is None else [problem]


def _find_dangling_weights(
    services: Services, org: str, index: int, weights: str
) -> Problem | None:
    """Return the problem with weights that do not exist or may not be read.

    Return None if there is none, or if only their form is wrong, which ``runyard.flows`` reports.
    """
    folders, path = services.settings.models, f"/blocks/{index}/settings/architecture/weights"
    if named := MODEL_REFERENCE.fullmatch(weights):
        found = services.store.read(lambda tx: _find_source(tx, org, named[1], named[2]))
        return _build_unknown_source(index, weights) if found is None else None
    match classify_weights(weights):
        case "base" if folders.find(weights.removeprefix(BASE_PREFIX)) is None:
            known = ", ".join(f"{BASE_PREFIX}{name}" for name in folders.list_names()) or "none yet"
            return Problem(
                path=path,
                given=weights,
                allowed=f"a model in the folders of the server's setting {SETTING}: {known}",
                message=f"model {weights!r} does not exist; there are: {known}; "
                "try: runyard models add FOLDER --name NAME on the server's machine",
            )
        case "folder" if folders.resolve(weights) is None:
            return Problem(
                path=path,
                given=weights,
                allowed=f"base:NAME, or a path inside a folder of the server's setting {SETTING}",
                message=f"weights {weights!r} is not inside a folder of the server's setting "
                f"{SETTING}; try: runyard models add FOLDER --name NAME on the server's machine, "
                "then weights base:NAME",
            )
    return None


def _build_unknown_source(index: int, weights: str) -> Problem:
    return Problem(
        path=f"/blocks/{index}/settings/architecture/weights",
        given=weights,
        allowed="run:RUN_ID/CHECKPOINT of a checkpoint that exists; CHECKPOINT may be latest or "
        "best",
        message=f"model {weights!r} does not exist; try: list the run's models",
    )
