# Generated from _async.py by scripts/unasync: change that file, then run the script.
"""``client.machines``: the machines that train runs; changes are for admins."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vi._http._sync import Http
from vi.api._arguments import check_id
from vi.api._pages._sync import PaginatedResponse, fetch_page
from vi.api.resources.machines.responses import Invitation, Machine, MachineState
from vi.api.responses import DeletedResource
from vi.api.types import PaginationParams


class Machines:
    """Machines of the instance; iteration yields all of them."""

    def __init__(self, http: Http, organization_id: str) -> None:
        self._http = http
        self._base = f"/workspaces/{organization_id}/machines"
        self._invitations = f"/workspaces/{organization_id}/machineInvitations"

    def list(
        self, pagination: PaginationParams | dict[str, Any] = PaginationParams()
    ) -> PaginatedResponse[Machine]:
        """Return a page of machines, newest first."""
        return fetch_page(self._http, self._base, item=Machine, pagination=pagination)

    def get(self, machine_id: str) -> Machine:
        """Return a machine.

        Raises:
            ViNotFoundError: No such machine has joined.
        """
        return self._http.call("GET", self._path(machine_id), decode_as=Machine)

    def invite(
        self,
        *,
        labels: Mapping[str, Sequence[str]] | None = None,
        uses: int = 1,
        lifetime_s: int = 3600,
    ) -> Invitation:
        """Create an invitation; the ``token`` of the result is not available again.

        Args:
            labels: Labels of the machines that join with it; runs request them as tolerations.
            uses: Number of machines that may join with it.
            lifetime_s: Seconds until it expires, at most a week.

        Raises:
            ViPermissionError: The key is not an admin's of the first organization.
        """
        spec = {
            "labels": {name: list(values) for name, values in (labels or {}).items()},
            "uses": uses,
            "lifetimeSeconds": lifetime_s,
        }
        return self._http.call("POST", self._invitations, body={"spec": spec}, decode_as=Invitation)

    def revoke_invitation(self, invitation_id: str) -> DeletedResource:
        """Revoke an invitation; machines that have joined with it stay.

        Raises:
            ViNotFoundError: The invitation does not exist, or it has expired.
        """
        path = f"{self._invitations}/{check_id(invitation_id, name='invitation_id')}"
        self._http.call("DELETE", path)
        return DeletedResource(id=invitation_id)

    def drain(self, machine_id: str, *, within_s: int | None = None, note: str = "") -> Machine:
        """Let a machine take no new run; its runs end by themselves.

        Args:
            machine_id: Id of the machine.
            within_s: Seconds after which its runs save, stop, and resume on other machines.
            note: Why, for people.

        Raises:
            ViNotFoundError: No such machine has joined.
        """
        return self._set_state(machine_id, "draining", within_s=within_s, note=note)

    def exclude(self, machine_id: str, *, note: str = "") -> Machine:
        """Let a machine take no new run until it is resumed, because something is wrong with it.

        Raises:
            ViNotFoundError: No such machine has joined.
        """
        return self._set_state(machine_id, "excluded", note=note)

    def resume(self, machine_id: str) -> Machine:
        """Let a drained or excluded machine take runs again.

        Raises:
            ViNotFoundError: No such machine has joined.
        """
        return self._set_state(machine_id, "joined")

    def remove(self, machine_id: str, *, force: bool = False) -> DeletedResource:
        """Remove a machine and revoke its key.

        Args:
            machine_id: Id of the machine.
            force: Remove it although it has runs. They resume on other machines and lose what they
                have not saved.

        Raises:
            ViNotFoundError: No such machine has joined.
            ViConflictError: It has runs, and ``force`` is not given.
        """
        params = {"force": "true"} if force else {}
        self._http.call("DELETE", self._path(machine_id), params=params)
        return DeletedResource(id=machine_id)

    def _set_state(
        self, machine_id: str, state: MachineState, *, within_s: int | None = None, note: str = ""
    ) -> Machine:
        spec = {"state": state, "withinSeconds": within_s, "note": note}
        return self._http.call(
            "PATCH", self._path(machine_id), body={"spec": spec}, decode_as=Machine
        )

    def __iter__(self) -> Iterator[Machine]:
        yield from (self.list(PaginationParams(page_size=100))).all_items()

    def __call__(self) -> Iterator[Machine]:
        return self.__iter__()

    def _path(self, machine_id: str) -> str:
        return f"{self._base}/{check_id(machine_id, name='machine_id')}"
