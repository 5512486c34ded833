"""What every service function works with: the open store, secrets, clock, and who is asking."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from runyard import processes
from runyard.blobs import FolderBlobs, Holds
from runyard.ids import resolve_folder
from runyard.server.clock import Clock
from runyard.server.services.access.keys import Keyring
from runyard.server.services.access.signing import Signer
from runyard.server.services.access.wrong_keys import WrongKeys
from runyard.server.services.jobs import Jobs
from runyard.server.services.machines import Explained, Machines
from runyard.server.services.notifications import Changes
from runyard.settings import Settings
from runyard.store import Store
from runyard.store import audit as audit_rows


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who is asking: an organisation's key, the controller, or the supervisor of one attempt."""

    org: str
    name: str
    role: str
    address: str


@dataclass(kw_only=True)
class Services:
    """Opened with the application, closed with it."""

    settings: Settings
    store: Store
    clock: Clock
    keyring: Keyring
    signer: Signer
    pepper: bytes
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
    changes: Changes = field(default_factory=Changes)
    # Held while blobs are checked and referred to, and while unreferred ones are removed: between a supervisor's
    # "the server has this hash" and the row that needs it, a deletion must not take the bytes away.
    blob_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # What a backup reads, or a restore has brought, for longer than anybody could wait for that lock.
    blob_holds: Holds = field(default_factory=Holds)
    restore_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    jobs: Jobs = field(default_factory=Jobs)
    machines: Machines = field(default_factory=Machines)
    boot_id: str = field(default_factory=processes.boot_id)
    explained: Explained = field(default_factory=Explained)
    # Which blobs hold a version's pictures, by organisation and version; asked for anew when one is missing.
    packs_of_versions: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def blobs(self, org: str) -> FolderBlobs:
        """An organisation's bytes. Apart from each other's, so that a known hash opens nobody else's file."""
        return FolderBlobs(resolve_folder(self.settings.blobs_dir, org), holds=self.blob_holds)

    def audit(self, actor: Actor, action: str, target: str) -> Callable[[Connection], None]:
        """The row that belongs into the transaction of a mutation."""

        def add(connection: Connection) -> None:
            audit_rows.add(
                connection,
                org=actor.org,
                time_ms=self.clock.now_ms(),
                actor=actor.name,
                address=actor.address,
                action=action,
                target=target,
            )

        return add
