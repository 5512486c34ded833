"""Routes of our own import sessions. Packs themselves go to a signed address, see ``uploads``."""

import asyncio

from runyard.datasets.report import page
from runyard.server.http import bodies, compat
from runyard.server.http.request import (
    MOST_ITEMS_OF_LISTS,
    Answer,
    Asked,
    Id,
    Query,
    actor_of,
    answer,
    fitted,
    json_answer,
    json_body,
    origin_of,
    services_of,
)
from runyard.server.http.responses import Response
from runyard.server.services.errors import not_found
from runyard.server.services.imports import imports, sessions
from runyard.store.tables import AnyRow

SEVERITIES = ("error", "warning")


async def post_import(request: Asked, org: Id, dataset: Id) -> Answer:
    services = services_of(request)
    _, value = await json_body(request)
    given = fitted(value, bodies.NewImport)
    row = await imports.create(
        services,
        actor_of(request),
        compat.dataset_id(org, dataset),
        kind=sessions.KIND,
        spec=given.spec,
        deadline_ms=services.clock.now_ms() + int(imports.IMPORT_HOURS * 3600_000),
        attributes=bodies.attributes_of(given.metadata),
    )
    return answer(sessions.document(services, row, origin=origin_of(request)), status=201)


async def list_imports(request: Asked, org: Id, dataset: Id) -> Answer:
    services, dataset_id = services_of(request), compat.dataset_id(org, dataset)
    page = await imports.listed(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=sessions.KIND,
        told=lambda row: sessions.document(services, row, origin=None),
        wanted=Query(request).page(f"imports {dataset_id}"),
    )
    return json_answer(page)


async def get_import(request: Asked, org: Id, dataset: Id, import_id: Id) -> Answer:
    row = _row(request, org, dataset, import_id)
    return answer(sessions.document(services_of(request), row, origin=origin_of(request)))


async def act_on_import(request: Asked, org: Id, dataset: Id, import_id: Id) -> Answer:
    """Do what follows the id: ``finish`` or ``cancel``, the actions of its route."""
    services, actor = services_of(request), actor_of(request)
    id, _, action = import_id.partition(":")
    row = _row(request, org, dataset, id)
    if action == "finish":
        _, value = await json_body(request, most_items=MOST_ITEMS_OF_LISTS)
        row = await imports.finish(services, actor, row, packs=fitted(value, bodies.FinishedImport).packs)
    elif action == "cancel":
        row = await imports.cancel(services, actor, row)
    else:
        raise not_found("import", import_id)
    return answer(sessions.document(services, row, origin=None))


async def list_findings(request: Asked, org: Id, dataset: Id, import_id: Id) -> Answer:
    query, row = Query(request), _row(request, org, dataset, import_id)
    severity, code = query.one_of("severity", SEVERITIES), query.text("code")
    wanted = query.page(f"findings {import_id} {severity} {code}")
    page = await sessions.findings(services_of(request), row, severity=severity, code=code, wanted=wanted)
    return json_answer(page)


async def get_report(request: Asked, org: Id, dataset: Id, import_id: Id) -> Answer:
    report = await asyncio.to_thread(sessions.report, services_of(request), _row(request, org, dataset, import_id))
    if "text/html" in request.headers.get("accept", ""):
        outcome = (
            f"Refused: {report.why}" if report.why else f"Version {report.version}" if report.version else "Under way"
        )
        html = page(report, title=f"Import {import_id}", outcome=outcome)
        return Response(html.encode(), media_type=b"text/html; charset=utf-8")
    return answer(report)


def _row(request: Asked, org: str, dataset: str, import_id: str) -> AnyRow:
    return imports.get(
        services_of(request),
        org=org,
        dataset_id=compat.dataset_id(org, dataset),
        import_id=import_id,
        kind=sessions.KIND,
    )
