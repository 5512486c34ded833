"""How a machine joins a server: it generates its key, stores it, and registers it with a token.

The key is on disk before it is sent. So a crash or a lost response costs nothing: the next try
sends the same key with the same token, and the server answers as before.
"""

import os
import socket
from contextlib import closing

from runyard import processes, rundir
from runyard.controller import machine
from runyard.controller.api_client import ANSWER_TIMEOUT_S, ServerClient
from runyard.protocol import PROTOCOL, Joined, JoinRequest
from runyard.security import key_format
from runyard.security.transport import check_transport
from runyard.settings import Settings
from runyard.version import VERSION
from vi._http import NO_RETRY, Http, Trust
from vi.errors import ViAuthenticationError


class CannotJoin(Exception):
    """The machine cannot join; the message has the cause and the fix."""


def join(settings: Settings, *, endpoint: str, token: str, name: str = "") -> str | None:
    """Join a server, and write its address and this machine's key to the data folder.

    Return the machine's name; None if it has joined that server already and the token was not used.

    Raises:
        CannotJoin: the data folder belongs to an instance, or a controller runs with it.
        SettingError: the server is on another machine and has no TLS, which is not allowed.
        ViError: the server refuses the machine or cannot be reached.
    """
    if settings.credentials_file.exists():
        raise CannotJoin(
            f"{settings.data_dir} is the data folder of an instance, whose server has a machine "
            "already; try: another --data-dir"
        )
    check_transport(endpoint, insecure=settings.allows_plain_http)
    os.umask(0o077)  # only this user may read the key
    try:
        lock = machine.lock_machine(settings.machine_dir)
    except machine.MachineTaken as error:
        raise CannotJoin(str(error)) from error
    try:
        return _join(settings, endpoint=endpoint.rstrip("/"), token=token, name=name)
    finally:
        os.close(lock)


def _join(settings: Settings, *, endpoint: str, token: str, name: str) -> str | None:
    file, machine_id = settings.controller_file, machine.load_machine_id(settings.machine_dir)
    known = rundir.read_json(file) or {}
    is_same_server = known.get("endpoint") == endpoint
    if is_same_server and not known.get("isPending") and _is_valid(settings, machine_id):
        return None
    is_repeat = is_same_server and known.get("isPending") and "key" in known
    key = str(known["key"]) if is_repeat else key_format.new_key()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"endpoint": endpoint, "key": key} | ({"ca": settings.ca} if settings.ca else {})
    rundir.write_json(file, document | {"isPending": True})
    request = JoinRequest(
        token=token,
        machine_id=machine_id,
        key=key,
        boot_id=processes.boot_id(),
        host=socket.gethostname(),
        version=VERSION,
        protocol=PROTOCOL,
        name=name,
    )
    trust = Trust(ca=settings.ca)
    connected = Http(endpoint, timeout_s=ANSWER_TIMEOUT_S, retry=NO_RETRY, trust=trust)
    with closing(connected) as http:
        joined = http.call("POST", "/internal/v1/join", body=request, decode_as=Joined)
    rundir.write_json(file, document)
    return joined.name


def _is_valid(settings: Settings, machine_id: str) -> bool:
    """Return whether the server accepts the key that is stored here."""
    file = settings.controller_file
    client = ServerClient(file, ca=settings.ca, insecure=settings.allows_plain_http)
    try:
        client.list_placements(machine_id)
    except ViAuthenticationError:
        return False
    return True
