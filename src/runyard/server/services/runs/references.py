"""What a flow refers to and only the server can look up: datasets, training projects, registered models.

The recipe language checks everything inside a flow. Its problems and ours go out together, so that a caller hears of
all mistakes at once; therefore ``broken`` walks the flow as it was sent, however damaged the rest of it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import limits
from runyard.flows import FlowProblems, resolve, validate
from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.flows.weights import BASE_PREFIX, form_of
from runyard.ids import MODEL_REFERENCE
from runyard.limits import Limit
from runyard.model_folders import SETTING
from runyard.rundir import MODEL_ADAPTER, MODEL_FULL
from runyard.server.services.context import Services
from runyard.server.services.datasets import versions
from runyard.server.services.errors import Problem, Refusal
from runyard.store import blobs as blob_rows
from runyard.store import datasets, documents, outputs, runs
from runyard.store import versions as version_rows
from runyard.store.tables import AnyRow, training_projects
from vi.api.resources.flows.responses import FlowBlock, FlowSpec
from vi.api.resources.runs.responses import ResumeFrom
from vi.api.resources.training_projects.responses import TrainingProject

LATEST, BEST = "latest", "best"
MOST_BLOCKS = 100  # a flow with more is rejected as a whole, so their references need no look-up
LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Pin:
    """The version of a dataset that a run is pinned to."""

    dataset_id: str
    version: str


def checked_flow(services: Services, org: str, flow: object, *, training_project: str | None = None) -> FlowSpec:
    """The flow with its gaps filled, every reference known to exist.

    ``training_project`` is the one named beside the flow; it counts before the flow's own.

    Raises:
        Refusal: InvalidFlow, with every problem.
    """
    problems: list[Problem] = []
    spec: FlowSpec | None = None
    try:
        spec = validate(flow)
    except FlowProblems as error:
        problems += [
            Problem(path=found.path, given=found.given, allowed=found.allowed, message=found.message)
            for found in error.problems
        ]
    else:
        problems += _too_large(spec)
    known_paths = {problem.path for problem in problems}
    problems += [found for found in broken(services, org, flow, training_project) if found.path not in known_paths]
    if problems or spec is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        sentences = "; ".join(problem.message for problem in problems[:5])
        raise Refusal("InvalidFlow", f"the flow has {count}: {sentences}", problems=problems)
    return spec


def _too_large(spec: FlowSpec) -> list[Problem]:
    """Return a problem for each style above its limit; else one for a flow that is too large as a whole."""
    problems = []
    for index, block in enumerate(spec.blocks):
        size_bytes = len(msgspec.json.encode(block.style))
        if size_bytes > limits.FLOW_STYLE.value:
            problems.append(_oversize(f"/blocks/{index}/style", size_bytes, limits.FLOW_STYLE))
    if not problems and (size_bytes := len(msgspec.json.encode(spec))) > limits.FLOW.value:
        problems.append(_oversize("", size_bytes, limits.FLOW))
    return problems


def _oversize(path: str, size_bytes: int, limit: Limit) -> Problem:
    allowed = f"at most {limit.value:,} bytes of JSON"
    name = path or "the flow"
    message = f"{name} has {size_bytes:,} bytes of JSON; at most {limit.value:,} are allowed; try: leave out styles"
    return Problem(path=path, given=None, allowed=allowed, message=message)


def broken(services: Services, org: str, flow: object, training_project: str | None = None) -> list[Problem]:
    """A problem for each reference to something that does not exist."""
    problems = []
    named = training_project
    if isinstance(flow, dict):
        named = named or flow.get("trainingProject")
        blocks = flow.get("blocks")
        for index, block in enumerate(blocks[:MOST_BLOCKS] if isinstance(blocks, list) else []):
            problems += _broken_in_block(services, org, index, block)
    if isinstance(named, str) and not is_training_project(services, org, named):
        problems.append(
            Problem(
                path="/trainingProject",
                given=named[:LONGEST_SHOWN],
                allowed=f"the id of a training project, or one of {', '.join(BUILT_IN_DATASETS)}",
                message=f"training project {named[:LONGEST_SHOWN]!r} does not exist; create it first, or leave it out",
            )
        )
    return problems


def is_training_project(services: Services, org: str, id: str) -> bool:
    """Whether ``id`` may stand in ``trainingProject``: a project, or a dataset."""
    if id in BUILT_IN_DATASETS or is_dataset(services, org, id):
        return True
    return services.store.read(lambda connection: documents.exists(connection, training_projects, org=org, id=id))


def is_dataset(services: Services, org: str, id: str) -> bool:
    """Whether this is an uploaded dataset of the organisation."""
    row = services.store.read(partial(datasets.get, org=org, dataset_id=id))
    return row is not None and not row.deleted


def dataset_of(services: Services, org: str, training_project: str | None) -> str | None:
    """The dataset that a training project stands for, if any."""
    if training_project is None or training_project in BUILT_IN_DATASETS:
        return training_project
    if is_dataset(services, org, training_project):
        return training_project
    row = services.store.read(
        lambda connection: documents.get(connection, training_projects, org=org, id=training_project)
    )
    return msgspec.json.decode(row.document, type=TrainingProject).spec.dataset_id if row else None


def checkpoint_of(
    connection: Connection, org: str, run_id: str, checkpoint: str
) -> tuple[ResumeFrom, Sequence[AnyRow]]:
    """The checkpoint that a new run wants to go on from, by id, ``latest`` or ``best``, and its files.

    Raises:
        Refusal: NotFound, with the field that names what is not there.
    """
    run = runs.get(connection, org=org, run_id=run_id)
    if run is None or run.deleted:
        raise _nothing_to_resume("runId", run_id, f"run {run_id!r} was not found", "the id of a run that is listed")
    found = _chosen(outputs.list_by_run(connection, org=org, run_id=run_id), checkpoint)
    if found is None:
        message = f"checkpoint {checkpoint!r} of run {run_id!r} was not found"
        raise _nothing_to_resume("checkpoint", checkpoint, message, "one of the run's models, latest, or best")
    files = outputs.list_files(connection, org=org, run_id=run_id, output_id=found.id)
    return ResumeFrom(run_id=run_id, checkpoint=found.id, step=found.step, epoch=found.epoch), files


def _chosen(listed: Sequence[AnyRow], checkpoint: str) -> AnyRow | None:
    """Return the checkpoint that an id, ``latest`` or ``best`` names, of those listed from the oldest on."""
    if checkpoint == BEST:
        listed = [row for row in listed if row.is_best] or listed
    elif checkpoint != LATEST:
        listed = [row for row in listed if row.id == checkpoint]
    return listed[-1] if listed else None


def weights_of(flow: FlowSpec) -> str | None:
    """Return what the flow names as weights, in whichever form."""
    architecture = _architecture(flow)
    return None if architecture is None else architecture["weights"]


def pin_weights(connection: Connection, *, org: str, run_id: str, flow: FlowSpec) -> None:
    """Freeze which checkpoint of another run the new run begins from, and keep its files, in one transaction with it.

    Raises:
        Refusal: InvalidFlow (the checkpoint does not exist, or no longer).
    """
    named = MODEL_REFERENCE.fullmatch(weights_of(flow) or "")
    architecture = _architecture(flow)
    if named is None or architecture is None:
        return
    found = _source(connection, org, named[1], named[2])
    if found is None:
        at = next(index for index, block in enumerate(flow.blocks) if "model" in block.block)
        problem = _unknown_source(at, named[0])
        raise Refusal("InvalidFlow", f"the flow has 1 problem: {problem.message}", problems=[problem])
    files = outputs.list_files(connection, org=org, run_id=named[1], output_id=found.id)
    blob_rows.keep_weights(connection, org=org, run_id=run_id, files=only_weights(files))
    architecture["weights"] = f"run:{named[1]}/{found.id}"


def only_weights(files: Sequence[AnyRow]) -> list[AnyRow]:
    """Return the files of a checkpoint that another run begins from: base model and adapter."""
    return [file for file in files if file.path.startswith((f"{MODEL_FULL}/", f"{MODEL_ADAPTER}/"))]


def _architecture(flow: FlowSpec) -> dict[str, Any] | None:
    """The settings that name the weights; None for a flow that names none."""
    for block in flow.blocks:
        found = block.settings.get("architecture") if "model" in block.block else None
        if isinstance(found, dict) and isinstance(found.get("weights"), str):
            return found
    return None


def _source(connection: Connection, org: str, run_id: str, checkpoint: str) -> AnyRow | None:
    run = runs.get(connection, org=org, run_id=run_id)
    if run is None or run.deleted:
        return None
    return _chosen(outputs.list_by_run(connection, org=org, run_id=run_id), checkpoint)


def _nothing_to_resume(field: str, given: str, what: str, allowed: str) -> Refusal:
    message = f"{what}, so nothing can go on from it; list what there is, or leave resumeFrom out"
    problem = Problem(path=f"/spec/resumeFrom/{field}", given=given[:80], allowed=allowed, message=message)
    return Refusal("NotFound", message, problems=[problem])


def with_dataset(flow: FlowSpec, dataset_id: str | None) -> FlowSpec:
    """The flow with the project's dataset written into it, unless it names its own; the trainer asks no database."""
    if dataset_id is None:
        return flow
    for block in flow.blocks:
        if "dataset" in block.block:
            block.settings.setdefault("datasetId", dataset_id)
            return flow
    flow.blocks.insert(0, FlowBlock(block="vi-dataset", settings={"datasetId": dataset_id}))
    return flow


async def pinned(services: Services, org: str, flow: FlowSpec) -> Pin | None:
    """Pin a flow whose dataset is known to a version of it, the newest unless it names one; None for built-in data.

    ``datasetVersion`` and ``projectKind`` are written into the flow.

    Raises:
        Refusal: InvalidFlow (there is no such version, the dataset has no records, or it is for another task).
    """
    found = _dataset_block(flow)
    if found is None:
        return None
    index, settings = found
    dataset_id, wanted = settings["datasetId"], settings.get("datasetVersion")
    if dataset_id in BUILT_IN_DATASETS:
        return None
    place: Any = {"org": org, "dataset_id": dataset_id}
    row = services.store.read(partial(datasets.get, **place))
    if row is None or row.deleted:
        raise _invalid(f"/blocks/{index}/settings/datasetId", dataset_id, _unknown(services, org), "does not exist")
    settings.setdefault("projectKind", row.type)
    try:
        resolve(flow, dataset_kind=row.type)
    except FlowProblems as error:
        problems = [
            Problem(path=fault.path, given=fault.given, allowed=fault.allowed, message=fault.message)
            for fault in error.problems
        ]
        sentences = "; ".join(problem.message for problem in problems[:5])
        raise Refusal("InvalidFlow", f"the flow does not fit its dataset: {sentences}", problems=problems) from error
    if wanted is None:
        version = await versions.current(services, **place)
        if version is None:
            allowed = "a dataset with records; import some first"
            raise _invalid(f"/blocks/{index}/settings/datasetId", dataset_id, allowed, "has nothing to learn from")
        wanted = settings["datasetVersion"] = version.id
    elif services.store.read(partial(version_rows.get, **place, version=wanted)) is None:
        allowed = f"a version of dataset {dataset_id}, or null for the newest"
        raise _invalid(f"/blocks/{index}/settings/datasetVersion", wanted, allowed, "does not exist, or no longer")
    return Pin(dataset_id, wanted)


def pin(connection: Connection, *, org: str, run_id: str, to: Pin) -> None:
    """Keep the version for the run, in the transaction that makes the run.

    Raises:
        Refusal: NotFound (it has just been deleted).
    """
    dataset = datasets.get(connection, org=org, dataset_id=to.dataset_id)
    version = version_rows.get(connection, org=org, dataset_id=to.dataset_id, version=to.version)
    if dataset is None or dataset.deleted or version is None:
        raise Refusal("NotFound", f"version {to.version} of dataset {to.dataset_id!r} was deleted just now; try again")
    version_rows.pin_run(connection, org=org, run_id=run_id, dataset_id=to.dataset_id, version=to.version)


def _dataset_block(flow: FlowSpec) -> tuple[int, dict[str, Any]] | None:
    """Place and settings of the block that names a dataset."""
    for index, block in enumerate(flow.blocks):
        if "dataset" in block.block and isinstance(block.settings.get("datasetId"), str):
            return index, block.settings
    return None


def _invalid(path: str, given: str, allowed: str, what: str) -> Refusal:
    name = path.rpartition("/")[2]
    message = f"{name} {given!r} {what}; give {allowed}"
    problem = Problem(path=path, given=given, allowed=allowed, message=message)
    return Refusal("InvalidFlow", f"the flow has 1 problem: {message}", problems=[problem])


def _unknown(services: Services, org: str) -> str:
    """What may stand for a dataset."""
    listed = services.store.read(partial(datasets.page, org=org, after=None, limit=5))
    known = ", ".join([*BUILT_IN_DATASETS, *(row.id for row in listed)])
    return f"a dataset of this organisation: {known}{' ...' if len(listed) == 5 else ''}"


def _broken_in_block(services: Services, org: str, index: int, block: Any) -> list[Problem]:
    if not isinstance(block, dict) or not isinstance(block.get("settings"), dict):
        return []
    name, settings = str(block.get("block")), block["settings"]
    dataset_id = settings.get("datasetId")
    is_unknown = isinstance(dataset_id, str) and dataset_id not in BUILT_IN_DATASETS
    if "dataset" in name and is_unknown and not is_dataset(services, org, dataset_id):
        allowed = _unknown(services, org)
        return [
            Problem(
                path=f"/blocks/{index}/settings/datasetId",
                given=dataset_id,
                allowed=allowed,
                message=f"dataset {dataset_id!r} does not exist; there are {allowed.partition(': ')[2]}",
            )
        ]
    architecture = settings.get("architecture")
    weights = architecture.get("weights") if isinstance(architecture, dict) else None
    problem = _broken_weights(services, org, index, weights) if isinstance(weights, str) else None
    return [] if problem is None else [problem]


def _broken_weights(services: Services, org: str, index: int, weights: str) -> Problem | None:
    """The problem with weights that do not exist or may not be read; None where there is none, or only their form."""
    folders, path = services.settings.models, f"/blocks/{index}/settings/architecture/weights"
    if named := MODEL_REFERENCE.fullmatch(weights):
        found = services.store.read(lambda connection: _source(connection, org, named[1], named[2]))
        return _unknown_source(index, weights) if found is None else None
    match form_of(weights):
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
                message=f"weights {weights!r} is not inside a folder of the server's setting {SETTING}; try: runyard "
                "models add FOLDER --name NAME on the server's machine, then weights base:NAME",
            )
    return None


def _unknown_source(index: int, weights: str) -> Problem:
    return Problem(
        path=f"/blocks/{index}/settings/architecture/weights",
        given=weights,
        allowed="run:RUN_ID/CHECKPOINT of a checkpoint that exists; CHECKPOINT may be latest or best",
        message=f"model {weights!r} does not exist; list the run's models to see which there are",
    )
