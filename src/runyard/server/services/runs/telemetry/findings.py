"""Findings of a trainer: what people should know about a run, whatever its condition.

A trainer's event ``finding`` has the fields of ``RunFinding``. The run's status keeps one of each
code, so that a repeated event changes nothing.
"""

from typing import Any

import msgspec

from runyard import limits
from vi.api.responses import RunFinding

MOST_FINDINGS = 20  # of one run


def parse_finding(event: dict[str, Any]) -> RunFinding | None:
    """Return the finding in an event; None if it is not well-formed, or too large."""
    if len(msgspec.json.encode(event)) > limits.FINDING.value:
        return None
    try:
        return msgspec.convert(limits.clean_json(event), RunFinding)
    except msgspec.ValidationError:
        return None


def add_finding(findings: list[RunFinding], new: RunFinding) -> list[RunFinding]:
    """Return the findings with a new one, in place of one with the same code."""
    return [*(each for each in findings if each.code != new.code), new][-MOST_FINDINGS:]


def format_finding(finding: RunFinding) -> str:
    """Return a finding as a line of the log."""
    suggestions = "".join(f"; try: {each}" for each in finding.suggestions)
    return f"warning: {finding.message}{suggestions}"
