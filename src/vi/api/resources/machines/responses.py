"""Machine documents: the machines that train runs, and invitations with which machines join."""

from typing import Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata

MachineState = Literal["joined", "draining", "excluded"]


class MachineAccelerator(Document):
    """Accelerators of one kind; ``memory_gib`` is the memory of one of them."""

    name: str = ""
    count: int = 1
    memory_gib: float | None = None


class MachineSpec(Document):
    """Name and labels of a machine, and why it is in its state."""

    name: str = ""
    labels: dict[str, list[str]] = msgspec.field(default_factory=dict)
    note: str | None = None


class MachineStatus(Document):
    """State of a machine: ``joined``, ``draining``, ``suspect`` or ``excluded``.

    Times are epoch milliseconds. ``drain_by`` is when the runs of a draining machine are stopped,
    ``running`` the number of its runs of all organizations, ``runs`` the ids of the caller's own.
    What the machine itself reports is None or empty while it is not connected.
    """

    state: str = "joined"
    is_connected: bool = msgspec.field(name="connected", default=False)
    last_heard: int | None = None
    host: str = ""
    version: str = ""
    slots: int | None = None
    accelerators: list[MachineAccelerator] = msgspec.field(default_factory=list)
    lacks_disk: bool = False
    running: int = 0
    runs: list[str] = msgspec.field(default_factory=list)
    drain_by: int | None = None
    invited_by: str = ""


class Machine(Document):
    """Machine that trains runs."""

    kind: Literal["Machine"] = "Machine"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    machine_id: str = ""
    spec: MachineSpec = msgspec.field(default_factory=MachineSpec)
    status: MachineStatus = msgspec.field(default_factory=MachineStatus)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""


class Invitation(Document):
    """Invitation with its token, which the server does not store and cannot show again.

    ``expires`` is epoch milliseconds, ``uses`` the number of machines that may join with it.
    """

    kind: Literal["Invitation"] = "Invitation"
    invitation_id: str = ""
    token: str = ""
    uses: int = 1
    expires: int = 0
    labels: dict[str, list[str]] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Invitation(invitation_id={self.invitation_id!r}, token=<hidden>)"
