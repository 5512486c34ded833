"""Responses of the logs and metrics endpoints: a slice, and the number to continue from."""

from vi.api.resources.runs.responses import LogLine, MetricPoint
from vi.api.responses import Document


class LogSlice(Document):
    """Log lines of one run, oldest first; ``ended`` is True if no further line will follow."""

    items: list[LogLine] = []
    next: int | None = None
    ended: bool = False


class MetricSlice(Document):
    """Metric points of one run, oldest first."""

    items: list[MetricPoint] = []
    next: int | None = None
