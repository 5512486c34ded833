"""A report of findings: a summary as JSON, and a self-contained HTML page.

Only the first few findings of each code are kept, so the size of a report does not grow with the
number of findings. Findings quote untrusted data: the page escapes all of it and loads nothing.
"""

import html
from collections.abc import Iterable
from typing import Any

import msgspec

from runyard.datasets.findings import Finding, Tally
from runyard.datasets.splits import format_counts

FIRST = 5  # findings kept per code


class Report:
    """Counts by code, and the first findings of each."""

    def __init__(self, findings: Iterable[Finding] = (), *, first: int = FIRST) -> None:
        self.tally = Tally()
        self._first = first
        self._by_code: dict[str, list[Finding]] = {}
        for found in findings:
            self.add(found)

    def add(self, found: Finding) -> None:
        self.tally.add(found)
        kept = self._by_code.setdefault(found.code, [])
        if len(kept) < self._first:
            kept.append(found)

    def codes(self) -> list[str]:
        """List the codes that occurred: errors first, then by frequency."""
        counts = self.tally.by_code
        return sorted(
            counts,
            key=lambda code: (self._by_code[code][0].severity != "error", -counts[code], code),
        )

    def document(self) -> dict[str, Any]:
        """Return the summary as a JSON document."""
        return {
            **self.tally.document(),
            "codes": [
                {
                    "code": code,
                    "severity": self._by_code[code][0].severity,
                    "count": self.tally.by_code[code],
                    "cure": self._by_code[code][0].fix,
                    "first": [msgspec.to_builtins(found) for found in self._by_code[code]],
                }
                for code in self.codes()
            ],
        }


def format_location(found: Any) -> str:
    """Format file, line and field of a finding on one line."""
    location = found.file if found.line is None else f"{found.file}:{found.line}"
    return f"{location} {found.field}" if found.field else location


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em;
       color: #1c1e21; }
h1 { font-size: 1.5em; }
h2 { font-size: 1.1em; margin: 2em 0 .3em; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3em .8em .3em 0;
         border-bottom: 1px solid #dde1e6; }
td { overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.error { color: #b3261e; }
.warning { color: #8a5a00; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #e4e6e9; }
  td, th { border-color: #33373d; }
  .error { color: #ff8a80; }
  .warning { color: #ffc36b; }
}
""".strip()


def render_page(report: Any, *, title: str, outcome: str) -> str:
    """Render the report as an HTML page.

    Args:
        report: an object with the fields of ``ImportReport``, which the server and ``runyard
            datasets check`` produce.
        title: the headline.
        outcome: the decision about the import, in a few words.
    """
    accepted = f"{report.images:,} images and {report.rows_kept:,} of {report.rows:,} rows accepted"
    if rejected := report.rows - report.rows_kept:
        accepted += f", {rejected:,} rejected"
    summary = f"{outcome}. {accepted}; {report.errors:,} errors and {report.warnings:,} warnings."
    if counts := format_counts(report.splits):
        summary += f" Split: {counts}."
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        # Nothing is loaded and nothing runs, even if an escape were missing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p>",
    ]
    if report.groups:
        parts.append("<table><tr><th>Finding</th><th class=number>Count</th><th>Fix</th></tr>")
        parts += map(_render_count, report.groups)
        parts.append("</table>")
    return "\n".join([*parts, *map(_render_first, report.groups), "</body></html>", ""])


def _render_count(group: Any) -> str:
    code = html.escape(group.code)
    name = f'<a class="{html.escape(group.severity)}" href="#{code}">{code}</a>'
    return (
        f"<tr><td>{name}</td><td "
        f"class=number>{group.count:,}</td><td>{html.escape(group.cure)}</td></tr>"
    )


def _render_first(group: Any) -> str:
    shown = len(group.first)
    how_many = (
        f"the first {shown} of {group.count:,}" if group.count > shown else f"{group.count:,}"
    )
    rows = [
        f"<tr><td><code>{html.escape(format_location(found))}</code></td>"
        f"<td>{html.escape(found.cause)}{_render_fix(found, group)}</td>"
        f"<td><code>{html.escape(found.value or '')}</code></td>"
        f"<td>{html.escape(found.action)}</td></tr>"
        for found in group.first
    ]
    head = "<tr><th>Location</th><th>Cause</th><th>Value</th><th>Action</th></tr>"
    name = html.escape(group.code)
    return f'<h2 id="{name}">{name} ({how_many})</h2><table>{head}{"".join(rows)}</table>'


def _render_fix(found: Any, group: Any) -> str:
    """Return the fix of a finding that differs from that of its group."""
    return "" if found.cure == group.cure else f"<br>Fix: {html.escape(found.cure)}"
