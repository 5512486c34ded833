"""Answers of the logs and metrics endpoints: a slice, and the number from which to go on."""

from vi.api.resources.runs.responses import LogLine, MetricPoint
from vi.api.responses import Document


class LogSlice(Document):
    """``ended`` says that the run is over, so that no line comes after the ones there are."""

    items: list[LogLine] = []
    next: int | None = None
    ended: bool = False


class MetricSlice(Document):
    """Points of one run, oldest first."""

    items: list[MetricPoint] = []
    next: int | None = None
