"""The controller's client of the server, authenticated with the controller key.

Key and endpoint are in a file that the server writes when it starts; on another machine, ``ca`` in
a copy of it may name the certificates to trust. The file is read for every call, because a
restarted server may have another endpoint, or another certificate.
"""

from contextlib import closing
from pathlib import Path

import msgspec

from runyard import rundir
from runyard.protocol import (
    PROTOCOL,
    PROTOCOL_HEADER,
    Assignment,
    Claim,
    ClaimResult,
    MachineInstructions,
    MachineReport,
    Placements,
)
from runyard.security.transport import check_transport
from runyard.version import VERSION
from vi._http import NO_RETRY, Http, Trust
from vi._http.response import decode
from vi.errors import ViError

ANSWER_TIMEOUT_S = 10.0
INVALID_BODY = "InvalidBody"
FIRST_REPORT_FIELDS = ("host", "labels", "accelerators", "slots")


class NoControllerKey(Exception):
    """The server has not written the controller key yet."""


class ServerClient:
    """A client of the server. Each call opens its own connection, so any thread may call."""

    def __init__(self, key_file: Path, *, ca: str = "", insecure: bool = False):
        """``ca`` is the file of certificates to trust if the key file names none.

        ``insecure`` allows an endpoint of plain HTTP on another machine.
        """
        self._key_file, self._ca, self._insecure = key_file, ca, insecure
        self.endpoint, self.trust = "", Trust()

    def claim_run(self, claim: Claim) -> Assignment | None:
        timeout_s = claim.wait_s + ANSWER_TIMEOUT_S
        with closing(self._connect()) as http:
            path = "/internal/v1/claims"
            return http.call(
                "POST", path, body=claim, decode_as=ClaimResult, timeout_s=timeout_s
            ).assignment

    def list_placements(self, machine_id: str) -> list[Assignment]:
        with closing(self._connect()) as http:
            return http.call(
                "GET", f"/internal/v1/machines/{machine_id}", decode_as=Placements
            ).attempts

    def report_machine(self, machine_id: str, report: MachineReport) -> MachineInstructions:
        """Report the machine and return what to do.

        A server of an earlier version has no instructions and rejects fields that it does not know,
        so it gets a report without them.
        """
        path = f"/internal/v1/machines/{machine_id}"
        with closing(self._connect()) as http:
            try:
                response = http.send("PUT", path, content=msgspec.json.encode(report))
            except ViError as error:
                if error.code != INVALID_BODY:
                    raise
                first = {name: getattr(report, name) for name in FIRST_REPORT_FIELDS}
                response = http.send("PUT", path, content=msgspec.json.encode(first))
        if not response.body:
            return MachineInstructions()
        return decode(response, MachineInstructions, request_name=f"PUT {path}")

    def _connect(self) -> Http:
        """Open a connection.

        Raises:
            NoControllerKey: the server has not written the key yet.
            SettingError: the key would cross a network in clear text.
        """
        document = rundir.read_json(self._key_file) or {}
        endpoint, key = document.get("endpoint"), document.get("key")
        if not isinstance(endpoint, str) or not isinstance(key, str):
            raise NoControllerKey(
                f"{self._key_file} does not exist yet; the server writes it when it starts"
            )
        check_transport(endpoint, insecure=self._insecure)
        self.endpoint = endpoint
        self.trust = Trust(
            ca=str(document.get("ca") or self._ca),
            certificate=str(document.get("certificate") or ""),
        )
        return Http(
            endpoint,
            headers={
                "Authorization": f"Bearer {key}",
                PROTOCOL_HEADER: f"{PROTOCOL} {VERSION}",
            },
            timeout_s=ANSWER_TIMEOUT_S,
            retry=NO_RETRY,
            trust=self.trust,
        )
