"""Findings of a run as Python warnings, so that a program that never reads them shows them too."""

import warnings
from collections.abc import Iterable

from vi.api.resources.runs.responses import Run
from vi.api.responses import RunFinding

NOTHING_LEARNED = "NothingLearned"


class RunFindingWarning(UserWarning):
    """A finding of a run that was created or awaited."""


def warn_of_findings(findings: Iterable[RunFinding], *, stacklevel: int = 3) -> None:
    """Warn of each finding, in the line of the program that called the SDK's method."""
    for finding in findings:
        tries = "".join(f"; try: {suggestion}" for suggestion in finding.suggestions)
        warnings.warn(f"{finding.message}{tries}", RunFindingWarning, stacklevel=stacklevel)


def list_results(run: Run) -> list[RunFinding]:
    """Return the findings that a run has since its end, unlike those since its creation."""
    return [finding for finding in run.status.findings if finding.code == NOTHING_LEARNED]
