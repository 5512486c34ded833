"""Templates: one frozen struct for each, passed as ``page``, and nothing else but four globals.

The globals are ``asset`` (the address of a static file), ``version``, and per request ``me`` (who
looks, and where). A name that a template uses and nobody passes is an error, and every value is
escaped. Jinja2 is imported with the first page, not with the server.
"""

import functools
import gzip
from pathlib import Path
from typing import Any

import msgspec

from runyard.server.http.request import ACTOR, HEADERS, SERVICES, Request, get_actor, get_services
from runyard.server.http.responses import Headers, Response
from runyard.server.pages import assets
from runyard.server.pages.views import Me
from runyard.server.services import events
from runyard.version import VERSION

FOLDER = Path(__file__).parent / "templates"
EVENT = "runyard.event"  # of a page's scope: the newest event before it was read
HTML = b"text/html; charset=utf-8"
MIN_COMPRESSED_BYTES = 1024
MISSING = (
    "The pages' browser libraries are not installed. Run scripts/assets (or make setup) in the "
    "checkout, then restart the server."
)


@functools.cache
def get_environment() -> Any:
    """Return the environment of all templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(asset=assets.build_url, version=VERSION)
    return environment


def render_page(
    request: Request,
    template: str,
    page: msgspec.Struct | None,
    *,
    status: int = 200,
    headers: Headers = (),
) -> Response:
    """Return a whole page; without the browser libraries, one sentence instead."""
    if not assets.load().are_complete:
        return Response(MISSING.encode(), media_type=b"text/plain; charset=utf-8", status=503)
    return render_fragment(request, template, page, status=status, headers=headers)


def render_fragment(
    request: Request,
    template: str,
    page: msgspec.Struct | None,
    *,
    status: int = 200,
    headers: Headers = (),
) -> Response:
    """Return a part of a page, from the same template that the page includes."""
    text = render_text(template, page, me=describe_caller(request))
    body, further = text.encode(), [*headers, (b"vary", b"accept-encoding, cookie, hx-request")]
    if len(body) >= MIN_COMPRESSED_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 5, mtime=0)
        further.append((b"content-encoding", b"gzip"))
    return Response(body, media_type=HTML, status=status, headers=further)


def render_text(template: str, page: msgspec.Struct | None, *, me: Me) -> str:
    """Render a template."""
    return str(get_environment().get_template(template).render(page=page, me=me))


def is_fragment(request: Request) -> bool:
    """Return whether htmx asks for a part of the page, as opposed to a browser for the page."""
    return "hx-request" in request.headers and "hx-history-restore-request" not in request.headers


def note_event_number(scope: Any) -> None:
    """Note the newest event before a page is read: what changes later, the page fetches again."""
    if ACTOR in scope and scope["method"] == "GET" and b"hx-request" not in scope[HEADERS]:
        services, actor = scope[SERVICES], scope[ACTOR]
        scope[EVENT] = events.read_newest_number(services, org=actor.org)


def describe_caller(request: Request) -> Me:
    """Return who looks, and where; a public page has nobody."""
    parts = request.scope["path"].split("/")
    section = parts[2] if len(parts) > 2 else ""
    if ACTOR not in request.scope:
        return Me(section=section)
    actor, services = get_actor(request), get_services(request)
    return Me(
        section=section,
        org=actor.org,
        name=actor.name,
        role=actor.role,
        now_ms=services.clock.now_ms(),
        event=request.scope.get(EVENT, 0),
        is_signed_in=True,
    )
