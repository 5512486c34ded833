"""The uploaded datasets of a flow, and the versions that a run is pinned to.

A flow names a dataset, further ones that it is mixed with, and one that is held out as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from runyard.flows import FlowProblems, resolve
from runyard.flows.blocks import BUILT_IN_DATASETS
from runyard.server.services.context import Services
from runyard.server.services.datasets import versions
from runyard.server.services.errors import Problem, Refusal
from runyard.store.datasets import datasets
from runyard.store.datasets import versions as version_rows
from runyard.store.tables import AnyRow
from vi.api.resources.flows.responses import FlowBlock, FlowSpec


@dataclass(frozen=True)
class Pin:
    """The version of a dataset that a run is pinned to."""

    dataset_id: str
    version: str


@dataclass(frozen=True)
class UsedDataset:
    """An uploaded dataset of a flow: the path and the settings that name it, and its row.

    ``is_held_out`` says that all of it is.
    """

    path: str
    settings: dict[str, Any]
    row: AnyRow
    is_held_out: bool = False


def is_dataset(services: Services, org: str, id: str) -> bool:
    """Return whether this is an uploaded dataset of the organization."""
    row = services.store.read(partial(datasets.get, org=org, dataset_id=id))
    return row is not None and not row.deleted


def fill_in_dataset(flow: FlowSpec, dataset_id: str | None) -> FlowSpec:
    """Return the flow with the project's dataset written into it, unless it names its own.

    The trainer has no database to look it up in.
    """
    if dataset_id is None:
        return flow
    for block in flow.blocks:
        if "dataset" in block.block:
            block.settings.setdefault("datasetId", dataset_id)
            return flow
    flow.blocks.insert(0, FlowBlock(block="vi-dataset", settings={"datasetId": dataset_id}))
    return flow


def find_unknown_datasets(
    services: Services, org: str, path: str, settings: dict[str, Any]
) -> list[Problem]:
    """Return a problem for each dataset in a block's settings, as sent, that does not exist."""
    problems = []
    for at, named in _list_named(path, settings):
        id = named.get("datasetId")
        if not isinstance(id, str) or id in BUILT_IN_DATASETS or is_dataset(services, org, id):
            continue
        allowed = _describe_known_datasets(services, org)
        message = f"dataset {id!r} does not exist; there are {allowed.partition(': ')[2]}"
        problems.append(Problem(path=f"{at}/datasetId", given=id, allowed=allowed, message=message))
    return problems


async def resolve_versions(services: Services, org: str, flow: FlowSpec) -> tuple[Pin, ...]:
    """Resolve the version of each dataset of the flow: the newest unless the flow names one.

    Return nothing for built-in data. ``datasetVersion`` and ``projectKind`` are written into the
    flow.

    Raises:
        Refusal: InvalidFlow (there is no such version, a dataset has no records, or is for another
            task).
    """
    pins = []
    for used in check_datasets(services, org, flow):
        dataset_id, requested = used.row.id, used.settings.get("datasetVersion")
        if requested is None:
            version = await versions.ensure_current(services, org=org, dataset_id=dataset_id)
            if version is None:
                raise _build_empty(used)
            requested = used.settings["datasetVersion"] = version.id
        pins.append(Pin(dataset_id, requested))
    return tuple(pins)


def check_datasets(services: Services, org: str, flow: FlowSpec) -> list[UsedDataset]:
    """Return the uploaded datasets that a flow names, its own first; none for built-in data.

    ``projectKind`` is written into the flow.

    Raises:
        Refusal: InvalidFlow (there is no such dataset or version, one has no records, or is for
            another task).
    """
    found = _find_dataset_block(flow)
    if found is None:
        return []
    path, settings = found
    if settings.get("datasetId") in (None, *BUILT_IN_DATASETS):
        _check_built_in_alone(path, settings)
        return []
    own = _find_row(services, org, path, settings)
    settings.setdefault("projectKind", own.type)
    try:
        resolve(flow, dataset_kind=own.type)
    except FlowProblems as error:
        sentences = "; ".join(problem.message for problem in error.problems[:5])
        message = f"the flow does not fit its dataset: {sentences}"
        raise Refusal("InvalidFlow", message, problems=error.problems) from error
    used = []
    for at, named in _list_named(path, settings):
        row = own if named is settings else _find_row(services, org, at, named)
        one = UsedDataset(at, named, row, is_held_out=at == f"{path}/validationDataset")
        _check_kind(one, own)
        _check_version(services, org, one)
        used.append(one)
    return used


def pin_version(tx: Connection, *, org: str, run_id: str, to: Pin) -> None:
    """Keep the version for the run, in the transaction that inserts the run.

    Raises:
        Refusal: NotFound (it has just been deleted).
    """
    dataset = datasets.get(tx, org=org, dataset_id=to.dataset_id)
    version = version_rows.get(tx, org=org, dataset_id=to.dataset_id, version=to.version)
    if dataset is None or dataset.deleted or version is None:
        raise Refusal(
            "NotFound",
            f"version {to.version} of dataset {to.dataset_id!r} was just deleted; try: repeat the "
            "request",
        )
    version_rows.pin_run(tx, org=org, run_id=run_id, dataset_id=to.dataset_id, version=to.version)


def _find_dataset_block(flow: FlowSpec) -> tuple[str, dict[str, Any]] | None:
    """Return the path and the settings of the block of the datasets."""
    for index, block in enumerate(flow.blocks):
        if "dataset" in block.block:
            return f"/blocks/{index}/settings", block.settings
    return None


def _list_named(path: str, settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the path and the settings of each dataset in a block's settings."""
    yield path, settings
    mixture = settings.get("mixture")
    for index, mixed in enumerate(mixture if isinstance(mixture, list) else []):
        if isinstance(mixed, dict):
            yield f"{path}/mixture/{index}", mixed
    if isinstance(held_out := settings.get("validationDataset"), dict):
        yield f"{path}/validationDataset", held_out


def _check_built_in_alone(path: str, settings: dict[str, Any]) -> None:
    """Check that a built-in dataset is neither mixed nor validated with others.

    A flow is checked for this before the dataset of its training project is known.
    """
    if settings.get("mixture") or settings.get("validationDataset"):
        dataset_id = str(settings.get("datasetId", "digits"))
        allowed = "an uploaded dataset, to go with a mixture or a validation dataset"
        raise _build_invalid(f"{path}/datasetId", dataset_id, allowed, "is built in")


def _find_row(services: Services, org: str, path: str, settings: dict[str, Any]) -> AnyRow:
    dataset_id = settings["datasetId"]
    row = services.store.read(partial(datasets.get, org=org, dataset_id=dataset_id))
    if row is None or row.deleted:
        allowed = _describe_known_datasets(services, org)
        raise _build_invalid(f"{path}/datasetId", dataset_id, allowed, "does not exist")
    return row


def _check_kind(used: UsedDataset, own: AnyRow) -> None:
    if used.row.type != own.type:
        allowed = f"a dataset of kind {own.type}, as {own.id} is"
        path = f"{used.path}/datasetId"
        raise _build_invalid(path, used.row.id, allowed, f"is of kind {used.row.type}")


def _check_version(services: Services, org: str, used: UsedDataset) -> None:
    dataset_id, requested = used.row.id, used.settings.get("datasetVersion")
    if requested is None:
        if not used.row.record_count:
            raise _build_empty(used)
        return
    get_version = partial(version_rows.get, org=org, dataset_id=dataset_id, version=requested)
    if services.store.read(get_version) is None:
        allowed = f"a version of dataset {dataset_id}, or null for the newest"
        raise _build_invalid(f"{used.path}/datasetVersion", requested, allowed, "does not exist")


def _build_empty(used: UsedDataset) -> Refusal:
    allowed = "a dataset with records; try: import some first"
    return _build_invalid(f"{used.path}/datasetId", used.row.id, allowed, "has no records")


def _build_invalid(path: str, given: str, allowed: str, what: str) -> Refusal:
    name = path.rpartition("/")[2]
    message = f"{name} {given!r} {what}; expected {allowed}"
    problem = Problem(path=path, given=given, allowed=allowed, message=message)
    return Refusal("InvalidFlow", f"the flow has 1 problem: {message}", problems=[problem])


def _describe_known_datasets(services: Services, org: str) -> str:
    """Return a phrase that lists valid datasets."""
    listed = services.store.read(partial(datasets.page, org=org, after=None, limit=5))
    known = ", ".join([*BUILT_IN_DATASETS, *(row.id for row in listed)])
    return f"a dataset of this organization: {known}{' ...' if len(listed) == 5 else ''}"
