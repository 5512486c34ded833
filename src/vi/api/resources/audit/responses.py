"""The audit log on the wire."""

from vi.api.responses import Document


class AuditEntry(Document):
    """Who did what, when, and from where.

    ``actor`` is ``key`` and the key's id, ``operator`` (access to the data folder), or ``nobody`` (a rejected key);
    ``count`` says for how many requests an entry on rejected keys stands.
    """

    number: int = 0
    time: int = 0
    actor: str = ""
    address: str = ""
    action: str = ""
    target: str = ""
    count: int = 1
