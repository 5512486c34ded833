"""Event documents: what happened in an organization, numbered in order."""

from typing import Any

from vi.api.responses import Document


class Event(Document):
    """One change, which every watcher sees once and in order.

    ``kind`` is ``run``, ``dataset``, ``import``, ``flow`` or ``trainingProject``, ``target`` the id
    of what has changed, ``what`` the change, such as ``created`` or ``condition``. ``actor`` is the
    key that made it; it is empty for changes by the platform. ``details`` depends on ``what``.
    """

    number: int = 0
    time: int = 0
    kind: str = ""
    target: str = ""
    what: str = ""
    actor: str = ""
    details: dict[str, Any] = {}


class EventPage(Document):
    """Events in order. ``next`` is the number to continue after.

    ``reset`` is True if events after the requested number are missing: they were removed for their
    age, or a backup was restored. Read again what you follow, then continue after ``next``.
    """

    items: list[Event] = []
    next: int = 0
    reset: bool = False


class RunHint(Document):
    """Sign that a run has new log lines, metrics or progress. Hints may be lost; events are not.

    ``points`` and ``lines`` count what the server has, ``step`` and ``total_steps`` are the
    progress of training. A changed ``etag`` means that the run itself has changed.
    """

    run: str = ""
    points: int = 0
    lines: int = 0
    step: int = 0
    total_steps: int = 0
    etag: str = ""
