"""Responses of the logs and metrics endpoints: a slice, and the number to continue from."""

from vi.api.resources.runs.responses import LogLine, MetricPoint
from vi.api.responses import Document


class LogSlice(Document):
    """Log lines of one run, oldest first; ``ended`` is True if no further line will follow.

    ``previous`` is the number before which earlier lines are; None at the top. ``has_more`` is None
    for a server that does not say whether there are further lines.
    """

    items: list[LogLine] = []
    next: int | None = None
    ended: bool = False
    previous: int | None = None
    has_more: bool | None = None


class SampleSteps(Document):
    """The steps of the evaluations that have samples."""

    evaluations: list[int] = []


class MetricSlice(Document):
    """Metric points of one run, oldest first."""

    items: list[MetricPoint] = []
    next: int | None = None
