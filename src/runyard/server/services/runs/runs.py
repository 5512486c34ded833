"""Runs: created once, changed little, killed, deleted.

Every client whose response got lost repeats a create with the same id and the same bytes. Therefore
the hash of the body decides whether a PUT is such a repeat (the same run is returned) or another
request (a conflict). The flow is validated, completed and frozen at that moment: later changes of a
flow or a project do not affect its runs.

``killedAt`` is an intent with the server's own time. A run that has no attempt is Cancelled in the
same transaction; one that trains becomes so when its attempt is proven closed (see ``leases``).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from runyard.flows import resolve
from runyard.flows.resources import count_accelerators
from runyard.flows.tiny import find_tiny_images
from runyard.server.services import etags, notifications, run_changes
from runyard.server.services.context import Actor, Services
from runyard.server.services.documents import merge_attributes
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.notifications import run_topic
from runyard.server.services.run_changes import StoredRun
from runyard.server.services.runs import conditions, placement, references
from runyard.server.services.runs.conditions import Transition
from runyard.server.services.runs.dataset_references import Pin, pin_version
from runyard.server.services.validation import check_id
from runyard.store import attempts as attempt_rows
from runyard.store import blobs as blob_rows
from runyard.store import documents as document_rows
from runyard.store import requirements, tombstones
from runyard.store import runs as rows
from runyard.store.lists import run_list
from runyard.store.lists.duration import encode_duration
from runyard.store.tables import flows as flows_table
from vi.api.resources.flows.responses import Flow, FlowSpec
from vi.api.resources.runs.responses import Run, RunMetadata, RunSpec, RunStatus
from vi.api.responses import ConditionKind, RunFinding

NO_FLOW: dict[str, object] = {}


def get(services: Services, *, org: str, run_id: str) -> tuple[bytes, str]:
    """Return the stored JSON and its etag.

    Raises:
        Refusal: NotFound.
    """
    row = services.store.read(lambda tx: rows.get_document(tx, org=org, run_id=run_id))
    if row is None:
        raise not_found("run", run_id)
    return row.document, row.etag


async def create(
    services: Services,
    actor: Actor,
    run_id: str,
    *,
    body: bytes,
    flow: object = None,
    flow_id: str | None = None,
    training_project: str | None = None,
    resume_from: tuple[str, str] | None = None,
    attributes: Mapping[str, str],
    name: str | None = None,
) -> tuple[bytes, str, bool]:
    """Create a run, or return the one that the same body created; (JSON, etag, whether it is new).

    Weights of another run are frozen as well: the checkpoint's id is written into the flow, and its
    files are kept. ``resume_from`` is a run and a checkpoint of it, by id, ``latest`` or ``best``.
    The transaction that inserts the run resolves the checkpoint and keeps its files. Without a name
    the run has that of its flow.

    Raises:
        Refusal: InvalidId, RunExists, IdDeleted, InvalidFlow with all problems, NotFound for an
            unknown flow id or checkpoint.
    """
    check_id("run", run_id)
    org, body_sha256, now_ms = actor.org, hashlib.sha256(body).digest(), services.clock.now_ms()
    if row := services.store.read(lambda tx: rows.find_origin(tx, org=org, run_id=run_id)):
        return *_check_repeat(row, run_id, body_sha256), False
    if flow_id is not None:
        flow = _load_flow(services, org, flow_id)
    resolved = await references.resolve_run(
        services,
        org,
        NO_FLOW if flow is None else flow,
        training_project=training_project,
        is_resumed=resume_from is not None,
    )
    reason = placement.explain_new_run(services, placement.read_requirements(resolved.flow))
    run = _build_run(org, run_id, resolved, attributes, now_ms, name=name)
    new = _build_rows(run, body_sha256, reason)  # here, since the writer has more to do

    answer = await services.store.write(
        lambda tx: _insert_run(
            services,
            tx,
            actor,
            run,
            new,
            pins=resolved.pins,
            resume_from=resume_from,
        )
    )
    services.notifier.notify(notifications.QUEUE)
    services.notifier.notify(run_topic(org, run_id))
    return answer


def _insert_run(
    services: Services,
    tx: Connection,
    actor: Actor,
    run: Run,
    new: "_NewRows",
    *,
    pins: Iterable[Pin],
    resume_from: tuple[str, str] | None,
) -> tuple[bytes, str, bool]:
    """Insert a run with everything it keeps, unless the same body has already created it."""
    org, run_id, flow = run.organization_id, run.run_id, run.spec.flow
    if row := rows.find_origin(tx, org=org, run_id=run_id):
        return *_check_repeat(row, run_id, new.body_sha256), False
    if tombstones.exists(tx, org=org, kind="run", id=run_id):
        raise _id_deleted(run_id)
    is_changed = references.pin_weights(tx, org=org, run_id=run_id, flow=flow)
    if resume_from is not None:
        run.spec.resume_from, files = references.resolve_checkpoint(tx, org, *resume_from)
        blob_rows.keep_for_resume(tx, org=org, run_id=run_id, files=files)
        is_changed = True
    for pin in pins:
        pin_version(tx, org=org, run_id=run_id, to=pin)
    if is_changed:
        new = _build_rows(run, new.body_sha256, new.reason)
    rows.add(tx, new.values, attributes=run.metadata.attributes, listed=new.listed)
    run_changes.record_creation(tx, run, actor=actor.name)
    services.audit(actor, "create run", run_id)(tx)
    return new.values["document"], new.values["etag"], True


@dataclass(frozen=True)
class _NewRows:
    """The rows of a new run: in the table of runs, and in the list."""

    body_sha256: bytes
    reason: Transition
    values: Mapping[str, Any]
    listed: Mapping[str, Any]


def _build_rows(run: Run, body_sha256: bytes, reason: Transition) -> _NewRows:
    flow = run.spec.flow
    set_waiting_reason(run, reason, now_ms=run.metadata.time_created)
    encoded, etag = etags.seal(run)
    values = {
        "org": run.organization_id,
        "id": run.run_id,
        "document": encoded,
        "etag": etag,
        "body_sha256": body_sha256,
        "condition": ConditionKind.PENDING.value,
        "flow_id": _get_flow_id(flow),
        "training_project": run.spec.training_project,
        "priority": int(flow.settings.get("priority") or 0),
        "time_created": run.metadata.time_created,
        "requirements": requirements.build_key(flow.tolerations, count_accelerators(flow.settings)),
        "waits": placement.hash_reason(reason),
    }
    listed = run_list.build_row(
        values,
        name=run.metadata.name,
        flow_name=flow.name,
        attributes=run.metadata.attributes,
    )
    return _NewRows(body_sha256, reason, values, listed)


async def update(
    services: Services,
    actor: Actor,
    run_id: str,
    *,
    kill: bool,
    grace_s: float | None = None,
    training_project: str | UnsetType | None,
    attributes: Mapping[str, str | None],
    name: str | UnsetType | None = UNSET,
    if_match: str | None,
) -> tuple[bytes, str]:
    """Change the name, training project or attributes of a run, or kill it.

    Without its own name (None) a run has that of its flow.

    Raises:
        Refusal: NotFound, EtagMismatch, RunFinished (kill of a run that has ended by itself),
            UnknownTrainingProject.
    """
    org, now_ms = actor.org, services.clock.now_ms()
    if isinstance(training_project, str) and not references.is_training_project(
        services, org, training_project
    ):
        raise Refusal(
            "UnknownTrainingProject",
            f"training project {training_project!r} does not exist; try: create it first, or list "
            "what exists",
        )

    def update_run(tx: Connection) -> tuple[bytes, str]:
        return apply_update(
            services,
            tx,
            actor,
            run_id,
            kill=kill,
            grace_s=grace_s,
            training_project=training_project,
            attributes=attributes,
            name=name,
            if_match=if_match,
            now_ms=now_ms,
        )

    answer = await services.store.write(update_run)
    services.notifier.notify(run_topic(org, run_id))
    return answer


def apply_update(
    services: Services,
    tx: Connection,
    actor: Actor,
    run_id: str,
    *,
    now_ms: int,
    kill: bool = False,
    grace_s: float | None = None,
    training_project: str | UnsetType | None = UNSET,
    attributes: Mapping[str, str | None] = MappingProxyType({}),
    name: str | UnsetType | None = UNSET,
    if_match: str | None = None,
) -> tuple[bytes, str]:
    """Change a run within a transaction.

    Arguments and refusals are those of ``update``; refusals are raised before anything is written.
    """
    org = actor.org
    row = rows.get(tx, org=org, run_id=run_id)
    if row is None or row.deleted:
        raise not_found("run", run_id)
    etags.check(if_match, row.etag)
    run = decode_run(row.document)
    columns: dict[str, Any] = {}
    if training_project is not UNSET and training_project != run.spec.training_project:
        run.spec.training_project = columns["training_project"] = training_project
        run.metadata.generation += 1
        # No process acts on a run's project, so the change is observed at once.
        run.status.observed_generation += 1
    is_described = _describe(tx, run, name=name, attributes=attributes)
    if kill:
        columns |= _mark_killed(tx, run, now_ms, grace_s=grace_s)
    if not columns and not is_described:
        return row.document, row.etag
    run.metadata.last_updated = now_ms
    services.audit(actor, "kill run" if kill else "update run", run_id)(tx)
    return save(tx, run, columns, actor=actor.name)


def _describe(
    tx: Connection,
    run: Run,
    *,
    name: str | UnsetType | None,
    attributes: Mapping[str, str | None],
) -> bool:
    """Change name and attributes of a run, and its row in the list; return whether any differs."""
    new_name = run.metadata.name if name is UNSET else name or run.spec.flow.name
    merged = merge_attributes(run.metadata.attributes, attributes)
    if merged == run.metadata.attributes and new_name == run.metadata.name:
        return False
    run.metadata.attributes, run.metadata.name = merged, new_name
    run_list.describe(
        tx,
        org=run.organization_id,
        run_id=run.run_id,
        name=new_name,
        flow_name=run.spec.flow.name,
        attributes=merged,
    )
    return True


def decode_run(document: bytes) -> StoredRun:
    """Decode a stored run, and remember its state for ``save``."""
    run = _decode_run(document)
    run_changes.remember(run)
    return run


_decode_run = msgspec.json.Decoder(StoredRun).decode


def save(
    tx: Connection, run: StoredRun, columns: Mapping[str, Any] | None = None, *, actor: str = ""
) -> tuple[bytes, str]:
    """Write a changed run back, with its condition in the column that lists filter by.

    Record events of what has changed, by ``actor``; without one, by the platform. Return (JSON,
    etag).
    """
    run_changes.record_changes(tx, run, actor=actor)
    encoded, etag = etags.seal(run)
    newest = run.status.conditions[-1]
    values = {
        "document": encoded,
        "etag": etag,
        "condition": newest.condition.value,
        "duration": _measure_duration(run),
    }
    if newest.reason not in conditions.WAITING:
        values["waits"] = ""
    rows.change(
        tx, org=run.organization_id, run_id=run.run_id, values={**values, **(columns or {})}
    )
    return encoded, etag


def _measure_duration(run: Run) -> int:
    attempts, newest = run.status.attempts, run.status.conditions[-1]
    return encode_duration(
        started_ms=attempts[0].time_started if attempts else None,
        ended_ms=newest.last_transition_time if newest.condition.is_final else None,
    )


def transition(run: Run, to: Transition, *, now_ms: int) -> None:
    """Apply a transition to a run; one that has ended stays as it is.

    Only a running run keeps its estimate of the time left.
    """
    run.status.conditions = conditions.apply_transition(run.status.conditions, to, now_ms=now_ms)
    if run.condition is not conditions.RUNNING and run.status.progress is not None:
        run.status.progress.seconds_left = None
    run.metadata.last_updated = now_ms


def set_waiting_reason(run: Run, reason: Transition, *, now_ms: int) -> None:
    """Set why a run waits; the message of a queued run also names what it resumes from."""
    origin, message = run.spec.resume_from, reason.message
    if origin is not None and reason.reason == "Queued":
        message = (
            f"{message}, to resume from run {origin.run_id}, checkpoint {origin.checkpoint}, step "
            f"{origin.step}"
        )
    transition(run, Transition(reason.kind, reason.reason, message), now_ms=now_ms)


def _mark_killed(tx: Connection, run: Run, now_ms: int, *, grace_s: float | None) -> dict[str, Any]:
    """Record the intent to kill. A second kill changes nothing."""
    if run.spec.killed_at is not None:
        return {}
    if run.condition is not None and run.condition.is_final:
        raise run_finished(run.run_id, run.condition.value)
    run.spec.killed_at, run.spec.grace_seconds = now_ms, grace_s
    run.metadata.generation += 1
    attempt_rows.reopen_unproven(tx, org=run.organization_id, run_id=run.run_id)
    if attempt_rows.has_open(tx, org=run.organization_id, run_id=run.run_id):
        kind = run.condition or conditions.PENDING
        transition(
            run,
            Transition(kind, "Stopping", "stopping: waiting for processes to exit"),
            now_ms=now_ms,
        )
    else:
        transition(
            run,
            Transition(conditions.CANCELLED, "KilledByUser", "killed before it started"),
            now_ms=now_ms,
        )
        run.status.observed_generation = run.metadata.generation
    return {"killed": True}


def run_finished(run_id: str, condition: str) -> Refusal:
    """Build the refusal of a kill of a run that has ended by itself."""
    return Refusal(
        "RunFinished", f"run {run_id!r} has already ended ({condition}); nothing to kill"
    )


def _check_repeat(
    row: tuple[bytes, str, bytes, bool], run_id: str, body_sha256: bytes
) -> tuple[bytes, str]:
    """Return the existing run, if the same body created it.

    Raises:
        Refusal: IdDeleted, RunExists.
    """
    document, etag, created_by, is_deleted = row
    if is_deleted:
        raise _id_deleted(run_id)
    if created_by != body_sha256:
        raise Refusal(
            "RunExists",
            f"run {run_id!r} exists and was created from another body; a run's flow cannot be "
            "replaced; try: create a run with a new id, or PATCH this one",
        )
    return document, etag


def _id_deleted(run_id: str) -> Refusal:
    return Refusal(
        "IdDeleted",
        f"run {run_id!r} was deleted and its id cannot be used again; try: create a run with a new "
        "id",
    )


def _load_flow(services: Services, org: str, flow_id: str) -> dict[str, Any]:
    row = services.store.read(lambda tx: document_rows.get(tx, flows_table, org=org, id=flow_id))
    if row is None:
        raise not_found("flow", flow_id)
    flow = msgspec.json.decode(row.document, type=Flow)
    return add_flow_origin(msgspec.to_builtins(flow.spec), flow)


def add_flow_origin(spec: dict[str, Any], flow: Flow) -> dict[str, Any]:
    """Return a flow's spec with the id and generation of the flow it was taken from."""
    origin = {"id": flow.flow_id, "generation": flow.metadata.generation}
    return spec | {"settings": spec["settings"] | {"flow": origin}}


def _get_flow_id(flow: FlowSpec) -> str | None:
    origin = flow.settings.get("flow")
    return str(origin["id"]) if isinstance(origin, dict) and "id" in origin else None


def _list_findings(resolved: references.ResolvedRun) -> list[RunFinding]:
    """Return what people should know of a run before it trains."""
    if not resolved.pins:
        return []
    finding = find_tiny_images(resolve(resolved.flow), is_uploaded=True)
    return [] if finding is None else [finding]


def _build_run(
    org: str,
    run_id: str,
    resolved: references.ResolvedRun,
    attributes: Mapping[str, str],
    now_ms: int,
    *,
    name: str | None,
) -> Run:
    link = f"/workspaces/{org}/runs/{run_id}"
    return Run(
        organization_id=org,
        run_id=run_id,
        spec=RunSpec(flow=resolved.flow, training_project=resolved.training_project),
        status=RunStatus(log=f"{link}/logs", findings=_list_findings(resolved)),
        metadata=RunMetadata(
            time_created=now_ms,
            last_updated=now_ms,
            generation=1,
            attributes=dict(attributes),
            name=name or resolved.flow.name,
        ),
        self_link=link,
    )
