"""What the settings of a flow ask of a machine, read before the flow is resolved.

A number that is not valid counts as not given; the trainer, or the check of the flow, reports it.
"""

from collections.abc import Mapping
from typing import Any

MOST_WORKERS = 64  # of one run, all on one machine


def count_accelerators(settings: Mapping[str, Any]) -> int:
    """Return how many accelerators of one machine a run needs to itself; 0 where none is named."""
    return _read_count(settings, "accelerators")


def count_ranks(settings: Mapping[str, Any]) -> int:
    """Return how many processes train a run: one for each accelerator or worker."""
    return max(1, count_accelerators(settings), _read_count(settings, "workers"))


def _read_count(settings: Mapping[str, Any], name: str) -> int:
    resources = settings.get("resources")
    count = resources.get(name) if isinstance(resources, Mapping) else None
    is_valid = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST_WORKERS
    return count if is_valid and isinstance(count, int) else 0
