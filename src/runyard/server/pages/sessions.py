"""Sign in and out: the page, one-time codes, sessions.

The code of a link is in its fragment, which browsers send to nobody: ``enter.js`` removes it from
the address and posts it. A preview of the link cannot use it up.
"""

from typing import Literal

import msgspec

from runyard.server.http import browser
from runyard.server.http.request import (
    ADDRESS,
    KEY_ID,
    SESSION,
    Request,
    convert_body,
    get_actor,
    get_services,
    parse_json_body,
)
from runyard.server.http.responses import Response, encode_response
from runyard.server.pages import templates
from runyard.server.services.access import session_lifecycle
from runyard.server.services.access.sessions import Session, name_cookie
from runyard.server.services.errors import Refusal
from vi.api.resources.sessions.responses import SignInCode

ENTER = "/ui/enter"


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a sign-in: the code of a link, or a secret key."""

    code: str = ""
    key: str = ""


class SignedIn(msgspec.Struct, rename="camel"):
    """Whether the browser has a session."""

    signed_in: bool
    kind: Literal["SignedIn"] = "SignedIn"


async def get_enter(request: Request) -> Response:
    """Show the form, whose script also handles the code of a link."""
    return templates.render_page(request, "enter.html", None)


async def post_code(request: Request) -> Response:
    """Create a one-time code with a key. A session cannot: it would outlive its own end."""
    key_id = request.scope.get(KEY_ID)
    if not isinstance(key_id, str):
        raise Refusal(
            "Unauthorized", "a link to sign in needs a key; try: runyard open, or send the key"
        )
    code, expires = await session_lifecycle.create_code(
        get_services(request), get_actor(request), key_id
    )
    return encode_response(
        SignInCode(code=code, path=f"{ENTER}#{code}", expires=expires), status=201
    )


async def get_session(request: Request) -> Response:
    """Return whether the browser is signed in.

    A link from another site arrives without the cookie; the page that follows has it.
    """
    session = await browser.find_session(get_services(request), request.scope)
    return encode_response(SignedIn(session is not None))


async def post_session(request: Request) -> Response:
    """Begin a session with a code or a key, and set its cookie."""
    _, value = await parse_json_body(request)
    given = convert_body(value, SignIn)
    services, scope = get_services(request), request.scope
    address = str(scope.get(ADDRESS, ""))
    agent = request.headers.get("user-agent", "")
    if given.code:
        begun = await session_lifecycle.begin_with_code(
            services, given.code, address=address, agent=agent
        )
    else:
        begun = await session_lifecycle.begin_with_key(
            services, given.key, address=address, agent=agent
        )
    secret, session = begun
    age_s = max(0, (session.expires - services.clock.now_ms()) // 1000)
    response = encode_response(SignedIn(True), status=201)
    response.headers.append(_build_cookie(request, session, secret, age_s))
    return response


async def leave(request: Request) -> Response:
    """End the session of this browser."""
    session = request.scope.get(SESSION)
    response = Response(status=303, headers=[(b"location", ENTER.encode())])
    if isinstance(session, Session):
        await session_lifecycle.revoke(get_services(request), get_actor(request), session.id)
        response.headers.append(_build_cookie(request, session, "", 0))
    return response


def _build_cookie(
    request: Request, session: Session, secret: str, age_s: int
) -> tuple[bytes, bytes]:
    is_secure = browser.is_secure(request.scope)
    name = name_cookie(session.org, is_secure=is_secure)
    attributes = f"Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict"
    secure = "; Secure" if is_secure else ""
    return b"set-cookie", f"{name}={secret}; {attributes}{secure}".encode()
