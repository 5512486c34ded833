"""The route of the audit log; for admins."""

import re

from runyard.server.http.request import Answer, Asked, Id, Query, bad_query, json_answer, services_of
from runyard.server.services.operations import audit
from runyard.server.services.operations.audit import AuditFilter

WORD = re.compile(r"[ -~]{1,255}")


async def list_audit(request: Asked, org: Id) -> Answer:
    query = Query(request)
    filter = AuditFilter(
        actor=_word(query, "actor"),
        action=_word(query, "action"),
        since=query.integer("since"),
        until=query.integer("until"),
    )
    page = await audit.page(services_of(request), org=org, filter=filter, wanted=query.page(f"audit {filter}"))
    return json_answer(page)


def _word(query: Query, name: str) -> str | None:
    given = query.text(name)
    if given is not None and not WORD.fullmatch(given):
        raise bad_query(name, given, "1 to 255 printable ASCII characters")
    return given
