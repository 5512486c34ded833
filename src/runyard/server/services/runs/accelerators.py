"""Whether a run of a flow fits into the accelerators there are now.

``runyard.flows.memory`` judges; here is found what only the server knows: which accelerators machines have reported,
what a model of an earlier run is, and what an earlier run of the same recipe has predicted from its own data and model.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.flows import FlowProblems, Recipe, resolve
from runyard.flows.memory import CPU, GIB, Accelerator, Measured, judge
from runyard.ids import MODEL_REFERENCE
from runyard.protocol import Accelerator as Reported
from runyard.server.services import etags
from runyard.server.services.context import Services
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.machines import Machine
from runyard.server.services.runs import flows, references, waiting
from runyard.server.services.runs.runs import decoded
from runyard.store import runs as rows
from runyard.store.runs import RunFilter
from vi.api.resources.flows.responses import (
    AcceleratorConfiguration,
    Flow,
    FlowAccelerator,
    FlowAcceleratorList,
    FlowRequirements,
    FlowSpec,
    TrainingAccelerator,
    TrainingAcceleratorSpec,
)
from vi.api.resources.runs.responses import Run
from vi.api.responses import ResourceMetadata

LOOK_AT_OF_FLOW = 20  # runs with a prediction, not runs
LOOK_AT_OF_ALL = 200
PAGE = 200


@dataclass(frozen=True)
class Kind:
    """Equal accelerators of all machines."""

    reported: Reported
    machines: Sequence[Machine]

    @property
    def id(self) -> str:
        """Made of name and memory, so that it stays the same while machines come and go."""
        memory_gib = self.reported.memory_gib
        return (
            f"{_word(self.reported.name)}-{'unknown' if memory_gib is None else f'{memory_gib:g}gib'.replace('.', '-')}"
        )

    @property
    def count(self) -> int:
        return sum(
            reported.count
            for machine in self.machines
            for reported in machine.report.accelerators
            if _is_same(reported, self.reported)
        )


async def of_flow(services: Services, *, org: str, flow_id: str) -> FlowAcceleratorList:
    """The verdict on each kind of accelerator, those with most memory first.

    Raises:
        Refusal: NotFound; InvalidFlow for a flow that can no longer be read.
    """
    document, _ = flows.get(services, org=org, flow_id=flow_id)
    flow = msgspec.json.decode(document, type=Flow)
    recipe = _recipe(services, org, flow.spec)

    def look(connection: Connection) -> tuple[Measured | None, int | None]:
        measured = _measured(connection, org, flow, recipe)
        return measured, _parameters(connection, org, recipe)

    measured, parameters = await services.store.read_in_thread(look)
    kinds = _kinds(services.machines.living(lived_s=services.clock.monotonic_s()))
    items, needed = [], []
    for kind in kinds:
        configuration, needed_bytes = _verdict(kind, flow.spec, recipe, measured, parameters)
        items.append(FlowAccelerator(accelerator=_document(kind, org), configurations=[configuration]))
        needed += [] if needed_bytes is None else [needed_bytes]
    requirements = FlowRequirements()
    if needed:
        requirements.minimum_single_unit_resources = {"memoryGiB": round(min(needed) / GIB, 2)}
    return FlowAcceleratorList(organization_id=org, flow_id=flow_id, flow_requirements=requirements, items=items)


def _recipe(services: Services, org: str, spec: FlowSpec) -> Recipe:
    try:
        return resolve(spec, dataset_id=references.dataset_of(services, org, spec.training_project))
    except FlowProblems as error:
        problems = [
            Problem(path=found.path, given=found.given, allowed=found.allowed, message=found.message)
            for found in error.problems
        ]
        sentences = "; ".join(problem.message for problem in problems[:5])
        raise Refusal("InvalidFlow", f"the flow can no longer run: {sentences}", problems=problems) from error


def _kinds(machines: Sequence[Machine]) -> list[Kind]:
    found: dict[tuple[str, float | None], Kind] = {}
    for machine in machines:
        for reported in machine.report.accelerators:
            known = found.get((reported.name, reported.memory_gib))
            having = [*known.machines, machine] if known else [machine]
            found[reported.name, reported.memory_gib] = Kind(known.reported if known else reported, having)
    return sorted(found.values(), key=lambda kind: (-(kind.reported.memory_gib or 0), kind.reported.name))


def _verdict(
    kind: Kind, spec: FlowSpec, recipe: Recipe, measured: Measured | None, parameters: int | None
) -> tuple[AcceleratorConfiguration, int | None]:
    """For one accelerator, since a trainer uses one."""
    name, memory_gib = kind.reported.name, kind.reported.memory_gib
    memory_bytes = None if memory_gib is None else round(memory_gib * GIB)
    outlook = judge(recipe, Accelerator(name=name, memory_bytes=memory_bytes), parameters=parameters, measured=measured)
    if not any(waiting.fits(spec.tolerations, machine.report.labels) for machine in kind.machines):
        wanted = "; ".join(f"{key}: {' or '.join(values)}" for key, values in spec.tolerations.items())
        reason = f"the flow's tolerations ask for {wanted}, which no machine with {name} offers"
        return AcceleratorConfiguration(action="Deny", reason=reason), outlook.needed_bytes
    return AcceleratorConfiguration(action=outlook.action, reason=outlook.reason), outlook.needed_bytes


def _document(kind: Kind, org: str) -> TrainingAccelerator:
    reported = kind.reported
    labels = {"accelerator": reported.name} | ({"model": reported.model} if reported.model else {})
    resources: dict[str, float] = {"count": kind.count}
    if reported.memory_gib is not None:
        resources["memoryGiB"] = reported.memory_gib
    made = TrainingAccelerator(
        organization_id=org,
        training_accelerator_id=kind.id,
        spec=TrainingAcceleratorSpec(enabled=True, labels=labels, resources=resources),
        metadata=ResourceMetadata(
            time_created=min(machine.first_ms for machine in kind.machines),
            last_updated=max(machine.last_ms for machine in kind.machines),
        ),
        self_link=f"/workspaces/{org}/trainingAccelerators/{kind.id}",
    )
    etags.sealed(made)
    return made


def _measured(connection: Connection, org: str, flow: Flow, recipe: Recipe) -> Measured | None:
    """What the newest run of this very flow has predicted, else of the same model and data under any name."""
    origin = {"id": flow.flow_id, "generation": flow.metadata.generation}
    of_flow = _predicted(connection, org, RunFilter(flow_id=flow.flow_id), most=LOOK_AT_OF_FLOW)
    for run, measured in of_flow:
        if run.spec.flow.settings.get("flow") == origin:
            return measured
    for run, measured in _predicted(connection, org, RunFilter(), most=LOOK_AT_OF_ALL):
        if _is_alike(run, recipe):
            return measured
    return None


def _predicted(connection: Connection, org: str, wanted: RunFilter, *, most: int) -> Iterator[tuple[Run, Measured]]:
    """The newest runs whose plan has a prediction, at most ``most``, however many newer ones have none."""
    after: tuple[int, str] | None = None
    while page := rows.page(connection, org=org, filter=wanted, after=after, limit=PAGE):
        for row in page:
            if b'"memory"' not in row.document:
                continue  # most have none, and need not be read
            run = decoded(row.document)
            plan = run.status.plan or {}
            peak, size, parameters = (_planned(plan, name) for name in ("memory", "microBatchSize", "parameters"))
            if peak and size and parameters:
                is_cpu = _value(plan, "device") == CPU
                yield (
                    run,
                    Measured(
                        peak_bytes=peak, run_id=run.run_id, is_cpu=is_cpu, micro_batch_size=size, parameters=parameters
                    ),
                )
                most -= 1
                if most == 0:
                    return
        after = (page[-1].time_created, page[-1].id)


def _is_alike(run: Run, recipe: Recipe) -> bool:
    """Whether a run trained this model in this way on this data; runs are pinned to a version, flows need not be."""
    try:
        other = resolve(run.spec.flow)
    except FlowProblems:
        return False
    dataset = other.dataset
    if recipe.dataset.dataset_version is None:
        dataset = msgspec.structs.replace(dataset, dataset_version=None)
    return other.model == recipe.model and dataset == recipe.dataset


def _parameters(connection: Connection, org: str, recipe: Recipe) -> int | None:
    """Of a model that an earlier run has made: what that run has counted."""
    weights = recipe.model.architecture.weights
    found = MODEL_REFERENCE.fullmatch(weights or "")
    if found is None:
        return None
    row = rows.get_document(connection, org=org, run_id=found[1])
    return None if row is None else _planned(decoded(row.document).status.plan or {}, "parameters")


def _planned(plan: dict[str, Any], name: str) -> int | None:
    """A whole number of a plan, which a trainer has written: anything may stand there."""
    value = _value(plan, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _value(plan: dict[str, Any], name: str) -> Any:
    entry = plan.get(name)
    return entry.get("value") if isinstance(entry, dict) else None


def _is_same(one: Reported, other: Reported) -> bool:
    return (one.name, one.memory_gib) == (other.name, other.memory_gib)


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
