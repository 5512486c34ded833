"""Runs: created once, changed little, killed, deleted.

A create is repeated by every client whose answer got lost, with the same id and the same bytes; therefore the hash of
the body as sent decides whether a PUT is that repeat (the same run again) or somebody else's idea (a conflict). The
flow is checked, completed and frozen at that moment: later changes of a flow or a project do not touch its runs.

``killedAt`` is an intent with the server's own time. A run nobody works on is Cancelled in the same transaction; one
that trains becomes so when its attempt is proven closed (see ``leases``).
"""

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from runyard.server.services import etags, notifications, pages
from runyard.server.services.context import Actor, Services
from runyard.server.services.documents import merged_attributes
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.notifications import run_topic
from runyard.server.services.pages import PageRequest
from runyard.server.services.runs import conditions, references, waiting
from runyard.server.services.runs.conditions import Move
from runyard.server.services.validation import check_id
from runyard.store import attempts as attempt_rows
from runyard.store import blobs as blob_rows
from runyard.store import documents as document_rows
from runyard.store import requirements, tombstones
from runyard.store import runs as rows
from runyard.store.runs import RunFilter
from runyard.store.tables import AnyRow
from runyard.store.tables import flows as flows_table
from vi.api.resources.flows.responses import Flow, FlowSpec
from vi.api.resources.runs.responses import Run, RunSpec, RunStatus
from vi.api.responses import ConditionKind, ResourceMetadata

NO_FLOW: dict[str, object] = {}


def get(services: Services, *, org: str, run_id: str) -> tuple[bytes, str]:
    """The stored JSON and its etag."""
    row = services.store.read(lambda connection: rows.get_document(connection, org=org, run_id=run_id))
    if row is None:
        raise not_found("run", run_id)
    return row.document, row.etag


async def page(services: Services, *, org: str, filter: RunFilter, wanted: PageRequest) -> bytes:
    def fetch(connection: Connection, after: Any, limit: int) -> Sequence[AnyRow]:
        return rows.page(connection, org=org, filter=filter, after=after, limit=limit)

    return await pages.read(services, wanted, org=org, fetch=fetch)


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
) -> tuple[bytes, str, bool]:
    """Make a run, or return the one that the same body made; (JSON, etag, whether it is new).

    Weights of another run are frozen likewise: the checkpoint's id is written into the flow, and its files are kept.
    ``resume_from`` is a run and a checkpoint of it, by id, ``latest`` or ``best``. Which one that is now, and its
    files, are frozen in the transaction that makes the run.

    Raises:
        Refusal: InvalidId, RunExists, IdDeleted, InvalidFlow with all problems, NotFound for an unknown flow id or
            checkpoint.
    """
    check_id("run", run_id)
    org, body_sha256, now_ms = actor.org, hashlib.sha256(body).digest(), services.clock.now_ms()
    if row := services.store.read(lambda connection: rows.get(connection, org=org, run_id=run_id)):
        return *_repeated(row, run_id, body_sha256), False
    frozen, project = _frozen_flow(services, org, flow, flow_id, training_project)
    pin = await references.pinned(services, org, frozen)
    reason = waiting.first_move(services, frozen.tolerations)
    values = {
        "org": org,
        "id": run_id,
        "body_sha256": body_sha256,
        "condition": ConditionKind.PENDING.value,
        "flow_id": _flow_id(frozen),
        "training_project": project,
        "priority": int(frozen.settings.get("priority") or 0),
        "time_created": now_ms,
        "requirements": requirements.build_key(frozen.tolerations),
        "waits": waiting.code_of(reason),
    }

    def work(connection: Connection) -> tuple[bytes, str, bool]:
        if row := rows.get(connection, org=org, run_id=run_id):
            return *_repeated(row, run_id, body_sha256), False
        if tombstones.exists(connection, org=org, kind="run", id=run_id):
            raise _deleted(run_id)
        references.pin_weights(connection, org=org, run_id=run_id, flow=frozen)
        run = _new_run(org, run_id, frozen, project, attributes, now_ms)
        if resume_from is not None:
            origin, files = references.checkpoint_of(connection, org, *resume_from)
            run.spec.resume_from = origin
            blob_rows.keep_for_resume(connection, org=org, run_id=run_id, files=files)
        if pin is not None:
            references.pin(connection, org=org, run_id=run_id, to=pin)
        wait(run, reason, now_ms=now_ms)
        encoded, etag = etags.sealed(run)
        rows.add(connection, {**values, "document": encoded, "etag": etag}, attributes=attributes)
        services.audit(actor, "create run", run_id)(connection)
        return encoded, etag, True

    answer = await services.store.write(work)
    services.changes.tell(notifications.QUEUE)
    return answer


async def update(
    services: Services,
    actor: Actor,
    run_id: str,
    *,
    kill: bool,
    grace_s: float | None = None,
    training_project: str | UnsetType | None,
    attributes: Mapping[str, str | None],
    if_match: str | None,
) -> tuple[bytes, str]:
    """Change what may change: the training project, attributes, and the wish that the run shall end.

    Raises:
        Refusal: NotFound, EtagMismatch, RunFinished (kill of a run that has ended by itself), UnknownTrainingProject.
    """
    org, now_ms = actor.org, services.clock.now_ms()
    if isinstance(training_project, str) and not references.is_training_project(services, org, training_project):
        raise Refusal(
            "UnknownTrainingProject",
            f"training project {training_project!r} does not exist; create it first, or list what there is",
        )

    def work(connection: Connection) -> tuple[bytes, str]:
        return apply_update(
            services,
            connection,
            actor,
            run_id,
            kill=kill,
            grace_s=grace_s,
            training_project=training_project,
            attributes=attributes,
            if_match=if_match,
            now_ms=now_ms,
        )

    answer = await services.store.write(work)
    services.changes.tell(run_topic(org, run_id))
    return answer


def apply_update(
    services: Services,
    connection: Connection,
    actor: Actor,
    run_id: str,
    *,
    now_ms: int,
    kill: bool = False,
    grace_s: float | None = None,
    training_project: str | UnsetType | None = UNSET,
    attributes: Mapping[str, str | None] = MappingProxyType({}),
    if_match: str | None = None,
) -> tuple[bytes, str]:
    """Change a run within a transaction; arguments and refusals as of ``update``, raised before anything is written."""
    org = actor.org
    row = rows.get(connection, org=org, run_id=run_id)
    if row is None or row.deleted:
        raise not_found("run", run_id)
    etags.check(if_match, row.etag)
    run = decoded(row.document)
    columns: dict[str, Any] = {}
    if training_project is not UNSET and training_project != run.spec.training_project:
        run.spec.training_project = columns["training_project"] = training_project
        run.metadata.generation += 1
        # Nothing has to act on where a run is filed, so it is observed with the change itself.
        run.status.observed_generation += 1
    merged = merged_attributes(run.metadata.attributes, attributes)
    if merged != run.metadata.attributes:
        run.metadata.attributes = merged
        rows.set_attributes(connection, org=org, run_id=run_id, attributes=merged)
        columns["attributes_changed"] = True
    if kill:
        columns |= _kill(connection, run, now_ms, grace_s=grace_s)
    if not columns:
        return row.document, row.etag
    columns.pop("attributes_changed", None)
    run.metadata.last_updated = now_ms
    services.audit(actor, "kill run" if kill else "update run", run_id)(connection)
    return save(connection, run, columns)


def decoded(document: bytes) -> Run:
    """A stored run."""
    return msgspec.json.decode(document, type=Run)


def save(connection: Connection, run: Run, columns: Mapping[str, Any] | None = None) -> tuple[bytes, str]:
    """Write a changed run back, its condition into the column that lists filter by; returns (JSON, etag)."""
    encoded, etag = etags.sealed(run)
    newest = run.status.conditions[-1]
    values = {"document": encoded, "etag": etag, "condition": newest.condition.value}
    if newest.reason not in conditions.WAITING:
        values["waits"] = ""
    rows.change(connection, org=run.organization_id, run_id=run.run_id, values={**values, **(columns or {})})
    return encoded, etag


def move(run: Run, step: Move, *, now_ms: int) -> None:
    """Let a run go where ``step`` says; a run that has ended stays as it is. Only a running one has time left."""
    run.status.conditions = conditions.moved(run.status.conditions, step, now_ms=now_ms)
    if run.condition is not conditions.RUNNING and run.status.progress is not None:
        run.status.progress.seconds_left = None
    run.metadata.last_updated = now_ms


def wait(run: Run, reason: Move, *, now_ms: int) -> None:
    """Let a run say why it waits; one that is only queued also says where it continues from."""
    origin, message = run.spec.resume_from, reason.message
    if origin is not None and reason.reason == "Queued":
        message = f"{message}, to go on from run {origin.run_id}, checkpoint {origin.checkpoint}, step {origin.step}"
    move(run, Move(reason.kind, reason.reason, message), now_ms=now_ms)


def _kill(connection: Connection, run: Run, now_ms: int, *, grace_s: float | None) -> dict[str, Any]:
    """Stamp the intent. Killing twice is killing once."""
    if run.spec.killed_at is not None:
        return {}
    if run.condition is not None and run.condition.is_final:
        raise finished(run.run_id, run.condition.value)
    run.spec.killed_at, run.spec.grace_seconds = now_ms, grace_s
    run.metadata.generation += 1
    attempt_rows.reopen_unproven(connection, org=run.organization_id, run_id=run.run_id)
    if attempt_rows.has_open(connection, org=run.organization_id, run_id=run.run_id):
        kind = run.condition or conditions.PENDING
        move(run, Move(kind, "Stopping", "killed; waiting until no process of it is left"), now_ms=now_ms)
    else:
        move(run, Move(conditions.CANCELLED, "KilledByUser", "killed before it began"), now_ms=now_ms)
        run.status.observed_generation = run.metadata.generation
    return {"killed": True}


def finished(run_id: str, condition: str) -> Refusal:
    """The answer to a kill of a run that has ended by itself."""
    return Refusal("RunFinished", f"run {run_id!r} has already ended ({condition}); nothing to kill")


def _repeated(row: Any, run_id: str, body_sha256: bytes) -> tuple[bytes, str]:
    if row.deleted:
        raise _deleted(run_id)
    if row.body_sha256 != body_sha256:
        raise Refusal(
            "RunExists",
            f"run {run_id!r} exists and was made from another body; a run's flow cannot be replaced, "
            "so create a run with a new id, or PATCH this one",
        )
    return row.document, row.etag


def _deleted(run_id: str) -> Refusal:
    return Refusal("IdDeleted", f"run {run_id!r} was deleted and its id stays unused; create a run with a new id")


def _frozen_flow(
    services: Services, org: str, flow: object, flow_id: str | None, training_project: str | None
) -> tuple[FlowSpec, str | None]:
    """The flow as this run will always have it, and the training project it is filed under."""
    if flow_id is not None:
        flow = _saved_flow(services, org, flow_id)
    spec = references.checked_flow(services, org, NO_FLOW if flow is None else flow, training_project=training_project)
    project = training_project or spec.training_project
    return references.with_dataset(spec, references.dataset_of(services, org, project)), project


def _saved_flow(services: Services, org: str, flow_id: str) -> dict[str, Any]:
    row = services.store.read(lambda connection: document_rows.get(connection, flows_table, org=org, id=flow_id))
    if row is None:
        raise not_found("flow", flow_id)
    flow = msgspec.json.decode(row.document, type=Flow)
    return with_origin(msgspec.to_builtins(flow.spec), flow)


def with_origin(spec: dict[str, Any], flow: Flow) -> dict[str, Any]:
    """A flow's spec that says which flow, and which generation of it, it was taken from."""
    origin = {"id": flow.flow_id, "generation": flow.metadata.generation}
    return spec | {"settings": spec["settings"] | {"flow": origin}}


def _flow_id(flow: FlowSpec) -> str | None:
    origin = flow.settings.get("flow")
    return str(origin["id"]) if isinstance(origin, dict) and "id" in origin else None


def _new_run(
    org: str, run_id: str, flow: FlowSpec, project: str | None, attributes: Mapping[str, str], now_ms: int
) -> Run:
    link = f"/workspaces/{org}/runs/{run_id}"
    run = Run(
        organization_id=org,
        run_id=run_id,
        spec=RunSpec(flow=flow, training_project=project),
        status=RunStatus(log=f"{link}/logs"),
        metadata=ResourceMetadata(time_created=now_ms, last_updated=now_ms, generation=1, attributes=dict(attributes)),
        self_link=link,
    )
    return run
