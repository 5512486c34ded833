"""The route of the audit log, for admins."""

import re

from runyard.server.http.request import Id, Query, Request, get_services, invalid_query
from runyard.server.http.responses import Response, json_response
from runyard.server.services.operations import audit
from runyard.server.services.operations.audit import AuditFilter

WORD = re.compile(r"[ -~]{1,255}")


async def list_audit(request: Request, org: Id) -> Response:
    query = Query(request)
    filter = AuditFilter(
        actor=_parse_word(query, "actor"),
        action=_parse_word(query, "action"),
        since=query.integer("since"),
        until=query.integer("until"),
    )
    page = await audit.page(
        get_services(request), org=org, filter=filter, page_request=query.page(f"audit {filter}")
    )
    return json_response(page)


def _parse_word(query: Query, name: str) -> str | None:
    given = query.text(name)
    if given is not None and not WORD.fullmatch(given):
        raise invalid_query(name, given, "1 to 255 printable ASCII characters")
    return given
