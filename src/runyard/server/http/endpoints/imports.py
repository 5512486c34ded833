"""Routes of import sessions. Packs are uploaded to a signed address, see ``uploads``."""

import asyncio

from runyard.datasets.report import render_page
from runyard.server.http import compat
from runyard.server.http.endpoints import bodies
from runyard.server.http.request import (
    MAX_LIST_ITEMS,
    Id,
    Query,
    Request,
    convert_body,
    get_actor,
    get_origin,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, encode_response, json_response
from runyard.server.services.errors import not_found
from runyard.server.services.imports import imports, sessions
from runyard.store.tables import AnyRow

SEVERITIES = ("error", "warning")


async def post_import(request: Request, org: Id, dataset: Id) -> Response:
    services = get_services(request)
    _, value = await parse_json_body(request)
    given = convert_body(value, bodies.NewImport)
    row = await imports.create(
        services,
        get_actor(request),
        compat.parse_dataset_id(org, dataset),
        kind=sessions.KIND,
        spec=given.spec,
        deadline_ms=services.clock.now_ms() + int(imports.IMPORT_HOURS * 3600_000),
        attributes=bodies.get_attributes(given.metadata),
    )
    return encode_response(
        sessions.to_document(services, row, origin=get_origin(request)), status=201
    )


async def list_imports(request: Request, org: Id, dataset: Id) -> Response:
    services, dataset_id = get_services(request), compat.parse_dataset_id(org, dataset)
    page = await imports.page(
        services,
        org=org,
        dataset_id=dataset_id,
        kind=sessions.KIND,
        to_document=lambda row: sessions.to_document(services, row, origin=None),
        page_request=Query(request).page(f"imports {dataset_id}"),
    )
    return json_response(page)


async def get_import(request: Request, org: Id, dataset: Id, import_id: Id) -> Response:
    row = _get_row(request, org, dataset, import_id)
    return encode_response(
        sessions.to_document(get_services(request), row, origin=get_origin(request))
    )


async def act_on_import(request: Request, org: Id, dataset: Id, import_id: Id) -> Response:
    """Apply the action that follows the id: ``finish`` or ``cancel``."""
    services, actor = get_services(request), get_actor(request)
    id, _, action = import_id.partition(":")
    row = _get_row(request, org, dataset, id)
    if action == "finish":
        _, value = await parse_json_body(request, most_items=MAX_LIST_ITEMS)
        row = await imports.finish(
            services, actor, row, packs=convert_body(value, bodies.FinishedImport).packs
        )
    elif action == "cancel":
        row = await imports.cancel(services, actor, row)
    else:
        raise not_found("import", import_id)
    return encode_response(sessions.to_document(services, row, origin=None))


async def list_findings(request: Request, org: Id, dataset: Id, import_id: Id) -> Response:
    query, row = Query(request), _get_row(request, org, dataset, import_id)
    severity, code = query.one_of("severity", SEVERITIES), query.text("code")
    page_request = query.page(f"findings {import_id} {severity} {code}")
    page = await sessions.read_findings(
        get_services(request), row, severity=severity, code=code, page_request=page_request
    )
    return json_response(page)


async def get_report(request: Request, org: Id, dataset: Id, import_id: Id) -> Response:
    report = await asyncio.to_thread(
        sessions.build_report, get_services(request), _get_row(request, org, dataset, import_id)
    )
    if "text/html" in request.headers.get("accept", ""):
        outcome = (
            f"Refused: {report.why}"
            if report.why
            else f"Version {report.version}"
            if report.version
            else "Under way"
        )
        html = render_page(report, title=f"Import {import_id}", outcome=outcome)
        return Response(html.encode(), media_type=b"text/html; charset=utf-8")
    return encode_response(report)


def _get_row(request: Request, org: str, dataset: str, import_id: str) -> AnyRow:
    return imports.get(
        get_services(request),
        org=org,
        dataset_id=compat.parse_dataset_id(org, dataset),
        import_id=import_id,
        kind=sessions.KIND,
    )
