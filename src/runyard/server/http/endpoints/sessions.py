"""Routes of browser sessions, for admins. Browsers begin them on the pages."""

from runyard.server.http.request import Id, Query, Request, get_actor, get_services
from runyard.server.http.responses import Response, empty_response, json_response
from runyard.server.services.access import session_lifecycle


async def list_sessions(request: Request, org: Id) -> Response:
    return json_response(
        await session_lifecycle.page(
            get_services(request), org=org, page_request=Query(request).page("sessions")
        )
    )


async def delete_session(request: Request, org: Id, session_id: Id) -> Response:
    await session_lifecycle.revoke(get_services(request), get_actor(request), session_id)
    return empty_response()
