"""What a controller says to the server, with the controller key.

Key and endpoint stand in a file that the server writes when it starts; it is read for every call, because a restarted
server may listen elsewhere.
"""

from contextlib import closing
from pathlib import Path

from runyard import rundir
from runyard.protocol import Assignment, Claim, Claimed, MachineReport, Placed
from vi._http import NO_RETRY, Http

ANSWER_TIMEOUT_S = 10.0


class NoKey(Exception):
    """The server has not written the controller key yet."""


class Server:
    """The server, from the controller's side. Each call makes its own connection, so any thread may call."""

    def __init__(self, key_file: Path):
        self._key_file = key_file
        self.endpoint = ""

    def claim(self, claim: Claim) -> Assignment | None:
        timeout_s = claim.wait_s + ANSWER_TIMEOUT_S
        with closing(self._open()) as http:
            path = "/internal/v1/claims"
            return http.call("POST", path, body=claim, decode_as=Claimed, timeout_s=timeout_s).assignment

    def placed(self, machine_id: str) -> list[Assignment]:
        with closing(self._open()) as http:
            return http.call("GET", f"/internal/v1/machines/{machine_id}", decode_as=Placed).attempts

    def report(self, machine_id: str, report: MachineReport) -> None:
        with closing(self._open()) as http:
            http.call("PUT", f"/internal/v1/machines/{machine_id}", body=report)

    def _open(self) -> Http:
        """Raises NoKey while there is no key to speak with."""
        document = rundir.read_json(self._key_file) or {}
        endpoint, key = document.get("endpoint"), document.get("key")
        if not isinstance(endpoint, str) or not isinstance(key, str):
            raise NoKey(f"{self._key_file} is not there yet; the server writes it when it starts")
        self.endpoint = endpoint
        return Http(endpoint, headers={"Authorization": f"Bearer {key}"}, timeout_s=ANSWER_TIMEOUT_S, retry=NO_RETRY)
