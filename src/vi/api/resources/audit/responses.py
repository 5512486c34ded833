"""Audit log documents."""

from vi.api.responses import Document


class AuditEntry(Document):
    """One action: actor, time (epoch milliseconds), address, action and target.

    ``actor`` is ``key`` and the id of the key, ``operator`` (access to the data folder) or
    ``nobody`` (a rejected key). ``count`` is the number of requests that an entry on rejected keys
    stands for.
    """

    number: int = 0
    time: int = 0
    actor: str = ""
    address: str = ""
    action: str = ""
    target: str = ""
    count: int = 1
