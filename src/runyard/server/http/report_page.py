"""The report of an import as one page: no script, no picture, nothing from elsewhere, every text escaped."""

from html import escape

from vi.api.resources.datasets.responses import Finding, FindingGroup, ImportReport

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "td,th{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "code{white-space:pre-wrap;overflow-wrap:anywhere}.error{color:#a40000}.warning{color:#7a5b00}"
)


def page(report: ImportReport) -> str:
    """The whole document."""
    outcome = f"Refused: {report.why}" if report.why else f"Version {report.version}" if report.version else "Under way"
    groups = "".join(map(_group, report.groups)) or "<p>Nothing was found.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Import report</title>'
        f"<style>{_STYLE}</style></head><body><h1>Import {escape(report.import_id)}</h1>"
        f"<p>{escape(outcome)}. Format {escape(report.format or 'unknown')}; {report.images} pictures, "
        f"{report.rows_kept} of {report.rows} rows taken; {report.errors} errors, {report.warnings} warnings.</p>"
        f"{groups}</body></html>"
    )


def _group(group: FindingGroup) -> str:
    rows = "".join(map(_finding, group.first))
    more = f"<p>and {group.count - len(group.first)} more</p>" if group.count > len(group.first) else ""
    return (
        f'<h2 class="{escape(group.severity)}">{escape(group.code)}: {group.count}</h2><p>{escape(group.cure)}</p>'
        f"<table><tr><th>Where<th>What<th>Value<th>Then</tr>{rows}</table>{more}"
    )


def _finding(found: Finding) -> str:
    place = (
        found.file + (f":{found.line}" if found.line is not None else "") + (f" {found.field}" if found.field else "")
    )
    return (
        f"<tr><td><code>{escape(place)}</code><td>{escape(found.cause)}<td><code>{escape(found.value or '')}</code>"
        f"<td>{escape(found.action)}</tr>"
    )
