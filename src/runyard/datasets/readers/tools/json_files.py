"""Common parts of the readers of JSON files."""

from typing import Any, TypeGuard

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.readers.json_stream import MalformedJson


def report_malformed(error: MalformedJson, path: str, report: ReportFinding) -> None:
    """Report a file that is not valid JSON, or not to its end."""
    report(
        make_finding(
            error.code, file=path, line=error.line, cause=str(error), action="FileRejected"
        )
    )


def has_keys(value: Any, *keys: str) -> TypeGuard[dict[str, Any]]:
    """Return whether a JSON value is an object with all of these keys."""
    return isinstance(value, dict) and all(key in value for key in keys)
