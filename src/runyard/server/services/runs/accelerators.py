"""Decide whether a run of a flow fits on the accelerators that are connected now.

``runyard.flows.memory`` makes the decision. This module supplies what only the server knows: the
accelerators that machines have reported, the size of a model from an earlier run, and the memory
that an earlier run of the same flow has predicted from its own data and model.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard.flows import FlowProblems, ResolvedFlow, resolve
from runyard.flows.memory import CPU, GIB, MeasuredPeak, RunAccelerator, predict_fit
from runyard.ids import MODEL_REFERENCE
from runyard.protocol import Accelerator as Reported
from runyard.server.services import etags
from runyard.server.services.context import Services
from runyard.server.services.errors import Refusal
from runyard.server.services.machines import ReportedMachine
from runyard.server.services.runs import flows, listing, placement, references
from runyard.server.services.runs.runs import decode_run
from runyard.store import runs as rows
from runyard.store.lists.run_filter import RunFilter
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

MOST_OF_FLOW = 20  # runs with a prediction; others do not count
MOST_OF_ALL = 200
PAGE = 200


@dataclass(frozen=True)
class AcceleratorKind:
    """Equal accelerators of all machines."""

    reported: Reported
    machines: Sequence[ReportedMachine]

    @property
    def id(self) -> str:
        """Return an id made of name and memory, which stays the same while machines come and go."""
        memory_gib = self.reported.memory_gib
        memory = "unknown" if memory_gib is None else f"{memory_gib:g}gib".replace(".", "-")
        return f"{_slugify(self.reported.name)}-{memory}"

    @property
    def count(self) -> int:
        return sum(
            reported.count
            for machine in self.machines
            for reported in machine.report.accelerators
            if _is_same(reported, self.reported)
        )


async def list_for_flow(services: Services, *, org: str, flow_id: str) -> FlowAcceleratorList:
    """Return the verdict on each kind of accelerator, those with most memory first.

    Raises:
        Refusal: NotFound; InvalidFlow for a flow that can no longer be read.
    """
    document, _ = flows.get(services, org=org, flow_id=flow_id)
    flow = msgspec.json.decode(document, type=Flow)
    resolved = _resolve_flow(services, org, flow.spec)
    return await list_for_resolved(services, org, resolved, flow)


async def list_for_resolved(
    services: Services, org: str, resolved: ResolvedFlow, flow: Flow
) -> FlowAcceleratorList:
    """Return the verdict on each kind of accelerator; the id of ``flow`` is empty if not saved."""

    def read_measurements(tx: Connection) -> tuple[MeasuredPeak | None, int | None]:
        measured = _find_measured(tx, org, flow, resolved)
        return measured, _find_parameters(tx, org, resolved)

    measured, parameters = await services.store.read_in_thread(read_measurements)
    kinds = _group_accelerators(
        services.machines.list_connected(uptime_s=services.clock.monotonic_s())
    )
    items, needed = [], []
    for kind in kinds:
        configuration, needed_bytes = _judge_accelerator(
            kind, flow.spec, resolved, measured, parameters
        )
        items.append(
            FlowAccelerator(accelerator=_to_document(kind, org), configurations=[configuration])
        )
        needed += [] if needed_bytes is None else [needed_bytes]
    requirements = FlowRequirements()
    if needed:
        requirements.minimum_single_unit_resources = {"memoryGiB": round(min(needed) / GIB, 2)}
    return FlowAcceleratorList(
        organization_id=org, flow_id=flow.flow_id, flow_requirements=requirements, items=items
    )


def _resolve_flow(services: Services, org: str, spec: FlowSpec) -> ResolvedFlow:
    try:
        return resolve(
            spec, dataset_id=references.find_dataset(services, org, spec.training_project)
        )
    except FlowProblems as error:
        sentences = "; ".join(problem.message for problem in error.problems[:5])
        message = f"the flow is no longer valid: {sentences}"
        raise Refusal("InvalidFlow", message, problems=error.problems) from error


def _group_accelerators(machines: Sequence[ReportedMachine]) -> list[AcceleratorKind]:
    found: dict[tuple[str, float | None], AcceleratorKind] = {}
    for machine in machines:
        for reported in machine.report.accelerators:
            known = found.get((reported.name, reported.memory_gib))
            having = [*known.machines, machine] if known else [machine]
            found[reported.name, reported.memory_gib] = AcceleratorKind(
                known.reported if known else reported, having
            )
    return sorted(
        found.values(), key=lambda kind: (-(kind.reported.memory_gib or 0), kind.reported.name)
    )


def _judge_accelerator(
    kind: AcceleratorKind,
    spec: FlowSpec,
    resolved: ResolvedFlow,
    measured: MeasuredPeak | None,
    parameters: int | None,
) -> tuple[AcceleratorConfiguration, int | None]:
    """Return the verdict and the bytes needed, for one accelerator, since a trainer uses one."""
    name, memory_gib = kind.reported.name, kind.reported.memory_gib
    memory_bytes = None if memory_gib is None else round(memory_gib * GIB)
    verdict = predict_fit(
        resolved,
        RunAccelerator(name=name, memory_bytes=memory_bytes),
        parameters=parameters,
        measured=measured,
    )
    if not any(
        placement.fits(spec.tolerations, machine.report.labels) for machine in kind.machines
    ):
        requested = "; ".join(
            f"{key}: {' or '.join(values)}" for key, values in spec.tolerations.items()
        )
        reason = f"the flow's tolerations request {requested}, which no machine with {name} offers"
        return AcceleratorConfiguration(action="Deny", reason=reason), verdict.needed_bytes
    count = resolved.settings.resources.accelerators or 1
    most = max(machine.accelerators for machine in kind.machines)
    if count > max(1, most):
        reason = (
            f"the flow needs {count} accelerators of one machine, and no machine with {name} has "
            f"more than {most}"
        )
        return AcceleratorConfiguration(action="Deny", reason=reason), verdict.needed_bytes
    return AcceleratorConfiguration(
        action=verdict.action, reason=verdict.reason
    ), verdict.needed_bytes


def _to_document(kind: AcceleratorKind, org: str) -> TrainingAccelerator:
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
    etags.seal(made)
    return made


def _find_measured(
    tx: Connection, org: str, flow: Flow, resolved: ResolvedFlow
) -> MeasuredPeak | None:
    """Return the prediction of the newest run of this flow.

    If it has none, return that of a run with the same model and data under any name.
    """
    origin = {"id": flow.flow_id, "generation": flow.metadata.generation}
    saved = RunFilter(flow_id=flow.flow_id)
    of_flow = _iter_predicted(tx, org, saved, most=MOST_OF_FLOW) if flow.flow_id else ()
    for run, measured in of_flow:
        if run.spec.flow.settings.get("flow") == origin:
            return measured
    for run, measured in _iter_predicted(tx, org, RunFilter(), most=MOST_OF_ALL):
        if _is_alike(run, resolved):
            return measured
    return None


def _iter_predicted(
    tx: Connection, org: str, requested: RunFilter, *, most: int
) -> Iterator[tuple[Run, MeasuredPeak]]:
    """Yield at most ``most`` of the newest runs whose plan has a prediction.

    Runs without a prediction do not count, however many there are.
    """
    for row in listing.iter_newest(tx, org, requested, size=PAGE):
        if b'"memory"' not in row.document:
            continue  # most have none, and need not be decoded
        run = decode_run(row.document)
        plan = run.status.plan or {}
        peak, size, parameters = (
            _get_planned_number(plan, name) for name in ("memory", "microBatchSize", "parameters")
        )
        if peak and size and parameters:
            is_cpu = _get_planned(plan, "device") == CPU
            yield (
                run,
                MeasuredPeak(
                    peak_bytes=peak,
                    run_id=run.run_id,
                    is_cpu=is_cpu,
                    micro_batch_size=size,
                    parameters=parameters,
                ),
            )
            most -= 1
            if most == 0:
                return


def _is_alike(run: Run, resolved: ResolvedFlow) -> bool:
    """Return whether a run trained this model in this way on this data.

    Runs are pinned to a version; flows need not be.
    """
    try:
        other = resolve(run.spec.flow)
    except FlowProblems:
        return False
    dataset = other.dataset
    if resolved.dataset.dataset_version is None:
        dataset = msgspec.structs.replace(dataset, dataset_version=None)
    return other.model == resolved.model and dataset == resolved.dataset


def _find_parameters(tx: Connection, org: str, resolved: ResolvedFlow) -> int | None:
    """Return the parameter count of a model from an earlier run, as that run counted it."""
    weights = resolved.model.architecture.weights
    found = MODEL_REFERENCE.fullmatch(weights or "")
    if found is None:
        return None
    row = rows.get_document(tx, org=org, run_id=found[1])
    return (
        None
        if row is None
        else _get_planned_number(decode_run(row.document).status.plan or {}, "parameters")
    )


def _get_planned_number(plan: dict[str, Any], name: str) -> int | None:
    """Return a positive whole number of a plan. A trainer wrote the plan, so any type may occur."""
    value = _get_planned(plan, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _get_planned(plan: dict[str, Any], name: str) -> Any:
    entry = plan.get(name)
    return entry.get("value") if isinstance(entry, dict) else None


def _is_same(one: Reported, other: Reported) -> bool:
    return (one.name, one.memory_gib) == (other.name, other.memory_gib)


def _slugify(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
