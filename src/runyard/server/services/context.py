"""The context of every service function: the open store, secrets, clock, and the acting key."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from runyard import processes
from runyard.blobs import FolderBlobs, Holds
from runyard.ids import resolve_folder
from runyard.server.clock import AsyncClock
from runyard.server.services.access.keys import Keyring
from runyard.server.services.access.sessions import SessionCache
from runyard.server.services.access.signing import Signer
from runyard.server.services.access.wrong_keys import WrongKeys
from runyard.server.services.base_models import BaseModels
from runyard.server.services.hints import Hints
from runyard.server.services.jobs import Jobs
from runyard.server.services.machines import Machines, Memberships, WaitingReasonsState
from runyard.server.services.notifications import Notifier
from runyard.settings import Settings
from runyard.store import Store
from runyard.store import audit as audit_rows


@dataclass(frozen=True, kw_only=True)
class Actor:
    """The sender of a request: an organization's key, the controller, or a supervisor."""

    org: str
    name: str
    role: str
    address: str
    machine_id: str | None = None  # of the machine whose key it is


@dataclass(kw_only=True)
class Services:
    """Everything that services share, opened with the application and closed with it."""

    settings: Settings
    store: Store
    clock: AsyncClock
    keyring: Keyring
    signer: Signer
    pepper: bytes
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
    sessions: SessionCache = field(default_factory=SessionCache)
    notifier: Notifier = field(default_factory=Notifier)
    hints: Hints = field(default_factory=Hints)
    # Held while blobs are checked and referenced, and while unreferenced ones are removed.
    # Once the server has reported to a supervisor that it has a hash, nothing may delete the bytes
    # before the row that needs them exists.
    blob_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # Blobs that a backup reads or a restore brought, for longer than the lock above may be held.
    blob_holds: Holds = field(default_factory=Holds)
    restore_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    jobs: Jobs = field(default_factory=Jobs)
    machines: Machines = field(default_factory=Machines)
    memberships: Memberships = field(default_factory=Memberships)
    # The self-test that each machine has reported last: a repeated report does not count again.
    self_tests: dict[str, str] = field(default_factory=dict)
    base_models: BaseModels = field(default_factory=BaseModels)
    boot_id: str = field(default_factory=processes.boot_id)
    waiting_reasons: WaitingReasonsState = field(default_factory=WaitingReasonsState)
    # Those whose short pages are too large for the event loop, see ``paging``.
    orgs_with_large_items: set[str] = field(default_factory=set)
    # Small curves of runs by organization and run, each with the version of the run.
    curves: dict[tuple[str, str], tuple[str, list[float]]] = field(default_factory=dict)
    # Blobs that hold a version's images, by organization and version; reloaded when one is missing.
    packs_of_versions: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def blobs(self, org: str) -> FolderBlobs:
        """Return an organization's blobs.

        They are separate, so that a known hash opens no file of another organization.
        """
        return FolderBlobs(resolve_folder(self.settings.blobs_dir, org), holds=self.blob_holds)

    def audit(self, actor: Actor, action: str, target: str) -> Callable[[Connection], None]:
        """Return the function that inserts the audit row, for the transaction of the change."""

        def insert_audit_row(tx: Connection) -> None:
            audit_rows.add(
                tx,
                org=actor.org,
                time_ms=self.clock.now_ms(),
                actor=actor.name,
                address=actor.address,
                action=action,
                target=target,
            )

        return insert_audit_row
