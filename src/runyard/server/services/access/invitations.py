"""Invitations of machines, and how a machine joins with one.

A token is ``ryjn_`` + invitation id (16) + secret (48), in base 62. An admin creates it; it is
valid for a time and for a number of machines. The machine generates its own key and writes it to
disk before it sends it, so that a lost response costs nothing: the same machine repeats the request
with the same key, and nothing is used up twice.
"""

import hmac
from typing import Any

import msgspec
from sqlalchemy import Connection

from runyard import protocol
from runyard.limits import clean_text
from runyard.security import key_format
from runyard.security.key_format import generate_characters
from runyard.server.services import membership
from runyard.server.services.access.bootstrap import add_key
from runyard.server.services.access.keys import Rejection
from runyard.server.services.access.sessions import secret_mac
from runyard.server.services.context import Actor, Services
from runyard.server.services.errors import Refusal, not_found
from runyard.server.services.machines import REMOVED
from runyard.server.services.validation import LONGEST_HOST, check_id, check_text
from runyard.store.access import machines as rows
from runyard.store.requirements import Labels
from runyard.store.tables import AnyRow
from runyard.version import VERSION
from vi.api.resources.machines.responses import Invitation

PREFIX, ID_LENGTH, SECRET_LENGTH = "ryjn_", 16, 48
LENGTH = len(PREFIX) + ID_LENGTH + SECRET_LENGTH
INVALID = "invalid invitation"


async def create(
    services: Services, actor: Actor, *, labels: Labels, uses: int, lifetime_ms: int
) -> Invitation:
    """Create an invitation; its token is in what this returns and nowhere else.

    Raises:
        Refusal: RoleForbidden.
    """
    membership.check_operator(services, actor)
    now_ms = services.clock.now_ms()
    invitation_id = generate_characters(ID_LENGTH)
    secret = generate_characters(SECRET_LENGTH)
    expires = now_ms + lifetime_ms

    def write(tx: Connection) -> None:
        rows.remove_ended_invitations(tx, now_ms=now_ms)
        rows.add_invitation(
            tx,
            {
                "id": invitation_id,
                "org": actor.org,
                "secret_mac": secret_mac(services.pepper, "invitation", secret),
                "labels": msgspec.json.encode(labels),
                "uses_left": uses,
                "expires": expires,
                "created_by": actor.name,
                "time_created": now_ms,
            },
        )
        services.audit(actor, "invite machines", f"{invitation_id} ({uses})")(tx)

    await services.store.write(write)
    return Invitation(
        invitation_id=invitation_id,
        token=PREFIX + invitation_id + secret,
        uses=uses,
        expires=expires,
        labels={name: list(values) for name, values in labels.items()},
    )


async def revoke(services: Services, actor: Actor, invitation_id: str) -> None:
    """Revoke an invitation; machines that have joined with it stay.

    Raises:
        Refusal: NotFound.
    """

    def write(tx: Connection) -> None:
        if not rows.remove_invitation(tx, org=actor.org, invitation_id=invitation_id):
            raise not_found("invitation", invitation_id)
        services.audit(actor, "revoke invitation", invitation_id)(tx)

    await services.store.write(write)


async def join(
    services: Services, request: protocol.JoinRequest, *, address: str
) -> protocol.Joined:
    """Let a machine join; repeats of the same request change nothing.

    Raises:
        Refusal: Unauthorized (the invitation is unknown, used up or has expired), TooManyRequests,
            IncompatibleVersion, MachineTaken, InvalidBody, InvalidId.
    """
    check_protocol(request.protocol, request.version)
    check_id("machine", request.machine_id)
    check_text("host", request.host, most=LONGEST_HOST)
    check_text("name", request.name, most=LONGEST_HOST)
    parts = key_format.parse(request.key)
    if parts is None:
        raise Refusal("InvalidBody", "the machine's key is malformed; try: join again")
    now_ms = services.clock.now_ms()
    # Read without the writer first: anybody may send this request.
    if services.store.read(lambda tx: _find(services, tx, request.token)) is None:
        raise _reject(services, address)

    def write(tx: Connection) -> tuple[AnyRow, list[AnyRow]]:
        invitation = _find(services, tx, request.token)
        row = rows.get(tx, machine_id=request.machine_id)
        if invitation is None or invitation.expires <= now_ms:
            raise InvalidInvitation
        if row is not None and row.key_id == parts.key_id and row.state != REMOVED:
            return row, []
        if not rows.use_invitation(tx, invitation_id=invitation.id):
            raise InvalidInvitation
        keys = _replace_key(services, tx, row, request, now_ms=now_ms)
        membership.add_machine(
            tx,
            machine_id=request.machine_id,
            org=invitation.org,
            name=membership.choose_name(
                tx, request.name or request.host, machine_id=request.machine_id
            ),
            key_id=parts.key_id,
            host=clean_text(request.host),
            labels=msgspec.json.decode(invitation.labels),
            version=clean_text(request.version)[:64],
            boot_id=request.boot_id,
            invited_by=invitation.created_by,
            now_ms=now_ms,
        )
        actor = Actor(
            org=invitation.org,
            name=f"invitation {invitation.id}",
            role="invitation",
            address=address,
        )
        services.audit(actor, "join machine", request.machine_id)(tx)
        joined = rows.get(tx, machine_id=request.machine_id)
        assert joined is not None  # noqa: S101 - it was just added
        return joined, keys

    try:
        row, keys = await services.store.write(write)
    except InvalidInvitation:
        raise _reject(services, address) from None
    services.memberships.put([row])
    services.keyring.put(keys)
    return protocol.Joined(
        machine_id=row.id, name=row.name, version=VERSION, protocol=protocol.PROTOCOL
    )


def check_protocol(number: int, version: str) -> None:
    """Check that a machine speaks this server's protocol.

    Raises:
        Refusal: IncompatibleVersion.
    """
    if number != protocol.PROTOCOL:
        raise Refusal(
            "IncompatibleVersion",
            f"this machine runs Runyard {version[:64]} (protocol {number}), the server {VERSION} "
            f"(protocol {protocol.PROTOCOL}); try: install Runyard {VERSION} on the machine",
        )


class InvalidInvitation(Exception):
    """The token is unknown, used up, or has expired."""


def _find(services: Services, tx: Connection, token: str) -> AnyRow | None:
    if len(token) != LENGTH or not token.startswith(PREFIX):
        return None
    start = len(PREFIX)
    invitation_id, secret = token[start : start + ID_LENGTH], token[start + ID_LENGTH :]
    row = rows.get_invitation(tx, invitation_id=invitation_id)
    mac = secret_mac(services.pepper, "invitation", secret)
    is_right = hmac.compare_digest(mac, bytes(32) if row is None else bytes(row.secret_mac))
    return row if is_right else None


def _replace_key(
    services: Services,
    tx: Connection,
    row: AnyRow | None,
    request: protocol.JoinRequest,
    *,
    now_ms: int,
) -> list[AnyRow]:
    """Insert the machine's key, and revoke the one with which it joined before.

    Raises:
        Refusal: MachineTaken (another machine uses the id).
    """
    changed: list[Any] = []
    if row is not None:
        if _is_connected_elsewhere(services, row, request):
            raise Refusal(
                "MachineTaken",
                f"the id {request.machine_id!r} belongs to {row.name} ({row.host}), which is "
                "connected; try: if this data folder is a copy of that machine's, remove the "
                "folder machine in it, and join again",
            )
        changed.append(membership.revoke_key(tx, row.key_id, now_ms=now_ms))
    key_id = add_key(
        tx,
        request.key,
        services.pepper,
        org=None,
        role="machine",
        name=f"machine {request.machine_id}",
        now_ms=now_ms,
        created_by="invitation",
    )
    changed.append(membership.get_key(tx, key_id))
    return [key for key in changed if key is not None]


def _is_connected_elsewhere(services: Services, row: AnyRow, request: protocol.JoinRequest) -> bool:
    """Return whether a machine with the same id, but not the same boot, reports at present.

    The id of the instance's own machine is never given away.
    """
    if row.invited_by == membership.OWN_INVITATION:
        return True
    connected = services.machines.list_connected_by_id(uptime_s=services.clock.monotonic_s())
    is_known = any(machine_id == row.id for machine_id, _ in connected)
    return is_known and row.state != REMOVED and row.boot_id != request.boot_id


def _reject(services: Services, address: str) -> Refusal:
    clock = services.clock
    refusal = services.wrong_keys.reject(
        address,
        Rejection(org=None, key_id=None, reason=INVALID),
        now_ms=clock.now_ms(),
        now_s=clock.monotonic_s(),
    )
    if refusal.code == "TooManyRequests":
        return refusal
    return Refusal(
        "Unauthorized",
        "the invitation is unknown, used up, revoked or has expired; try: runyard machines invite "
        "on the server, for a new one",
    )
