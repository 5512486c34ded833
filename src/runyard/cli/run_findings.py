"""Findings of runs on a terminal: a warning and what to try, on stderr."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from runyard.cli.output import to_single_line

if TYPE_CHECKING:
    from vi.api.responses import RunFinding


def print_findings(findings: "Iterable[RunFinding]", *, prefix: str = "") -> None:
    """Print findings and their suggestions on stderr; results on stdout stay as they are."""
    for finding in findings:
        click.echo(to_single_line(f"{prefix}warning: {finding.message}"), err=True)
        for suggestion in finding.suggestions:
            click.echo(to_single_line(f"{prefix}  try: {suggestion}"), err=True)
