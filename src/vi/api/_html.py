"""Cards and tables as HTML for notebooks: static, escaped, at most 20 KiB.

A notebook keeps what a cell printed, sends it to viewers that run no scripts and remove style
sheets, and shows it on light and on dark pages. The markup therefore has neither, only inline
styles: text has the color of the page, lines are translucent, and the colors of conditions are
readable on both. Color never stands alone; every condition has a shape and a word. ``Html`` marks
text that is markup already; any other value is escaped and cut off.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isfinite

from vi._text import to_single_line
from vi.api._display import CONDITION_SHAPES

MAX_BYTES = 20 * 1024
_TABLE_BYTES = 19 * 1024  # leaves space for the frame and the last line
_MAX_TEXT = 120

_LINE = "1px solid rgba(128,128,128,.35)"
_CARD = f"border:{_LINE};border-radius:6px;padding:10px 14px;max-width:640px;font-size:13px"
_CELL = "padding:3px 10px;text-align:left;white-space:nowrap"
_MUTED = "opacity:.7"
# Between the luminances at which a shape has a contrast of 3:1 on white and on #111.
CONDITION_COLORS = {
    "Pending": "#9a7b1c",
    "Running": "#1f7fd1",
    "Succeeded": "#2c8f4a",
    "Failed": "#d1454b",
    "Error": "#c2562a",
    "Cancelled": "#7d7f86",
}
_UNKNOWN_SHAPE, _UNKNOWN_COLOR = "○", "#7d7f86"


class Html(str):
    """Markup that needs no escaping."""

    __slots__ = ()


def render_text(value: object, *, longest: int = _MAX_TEXT) -> Html:
    """Return a value as escaped text without control characters, cut off at ``longest``."""
    if isinstance(value, Html):
        return value
    text = "" if value is None else str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return Html(escape(to_single_line(text)))


def render_condition(condition: str | None, reason: str | None = None) -> Html:
    """Return a condition as shape, word and reason."""
    name = condition or "no condition yet"
    shape = CONDITION_SHAPES.get(name, _UNKNOWN_SHAPE)
    color = CONDITION_COLORS.get(name, _UNKNOWN_COLOR)
    why = f' <span style="{_MUTED}">{render_text(reason)}</span>' if reason else ""
    return Html(
        f'<span style="color:{color};font-weight:bold" aria-hidden="true">{shape}</span> '
        f"{render_text(name)}{why}"
    )


def render_progress(done: float, total: float, *, text: str) -> Html:
    """Return a bar with its text; the text alone if the total is unknown."""
    if not (isfinite(done) and isfinite(total)) or total <= 0:
        return render_text(text)
    percent = min(100.0, max(0.0, 100 * done / total))
    return Html(
        f'<span role="img" aria-label="{percent:.0f} %" style="display:inline-block;width:120px;'
        'height:8px;border-radius:4px;background:rgba(128,128,128,.3);vertical-align:middle">'
        f'<span style="display:block;width:{percent:.1f}%;height:8px;border-radius:4px;'
        f'background:{CONDITION_COLORS["Running"]}"></span></span> {render_text(text)}'
    )


def render_sparkline(
    values: Sequence[float | None], *, label: str, width: int = 160, height: int = 32
) -> Html:
    """Return a curve as SVG with at most 200 points; gaps where a value is missing.

    ``label`` is read out in place of the curve.
    """
    shown = _thin_out(values, count=200)
    known = [value for value in shown if value is not None and isfinite(value)]
    if not known:
        return render_text("no values yet")
    low, high = min(known), max(known)
    parts, starts = [], True
    for index, value in enumerate(shown):
        if value is None or not isfinite(value):
            starts = True
            continue
        x = 2 + (width - 4) * index / max(1, len(shown) - 1)
        y = height / 2 if high == low else 2 + (height - 4) * ((high - value) / (high - low))
        parts.append(f"{'M' if starts else 'L'}{x:.1f} {y:.1f}")
        starts = False
    path = "".join(parts)
    return Html(
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{render_text(label)}" style="vertical-align:middle">'
        f"<title>{render_text(label)}</title>"
        f'<path d="{path}" fill="none" stroke="{CONDITION_COLORS["Running"]}" '
        'stroke-width="1.5" stroke-linecap="round"/></svg>'
    )


def render_card(title: str, badge: object, fields: Iterable[tuple[str, object]]) -> str:
    """Return a card: a title, the condition after it, and named values.

    Fields that do not fit into the limit are counted instead of shown.
    """
    head = (
        f'<div style="{_CARD}"><div style="margin-bottom:6px"><b>{render_text(title)}</b>'
        f"&emsp;{render_text(badge)}</div><table style='border-collapse:collapse'>"
    )
    rows = [
        f'<tr><td style="{_CELL};{_MUTED};vertical-align:top">{render_text(name)}</td>'
        f'<td style="{_CELL};white-space:normal;word-break:break-word">'
        f"{render_text(value, longest=400)}</td></tr>"
        for name, value in fields
    ]
    return head + _join_within_limit(rows, used=head, columns=2, noun="field") + "</table></div>"


def render_table(rows: Sequence[Mapping[str, object]], *, title: str) -> str:
    """Return a table with the columns of all rows.

    Rows that do not fit into the limit are counted instead of shown.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))[:12]
    headings = "".join(
        f'<th style="{_CELL};border-bottom:{_LINE}">{render_text(name, longest=40)}</th>'
        for name in columns
    )
    head = (
        f'<div style="overflow-x:auto;font-size:13px"><div style="{_MUTED}">{render_text(title)}'
        f'</div><table style="border-collapse:collapse"><tr>{headings}</tr>'
    )
    lines = [
        "<tr>"
        + "".join(
            f'<td style="{_CELL}">{render_text(row.get(name), longest=60)}</td>' for name in columns
        )
        + "</tr>"
        for row in rows
    ]
    body = _join_within_limit(lines, used=head, columns=len(columns), noun="row")
    return head + body + "</table></div>"


def _join_within_limit(lines: list[str], *, used: str, columns: int, noun: str) -> str:
    left, shown = _TABLE_BYTES - len(used.encode()), []
    for line in lines:
        left -= len(line.encode())
        if left < 0:
            break
        shown.append(line)
    if len(shown) < len(lines):
        missing = len(lines) - len(shown)
        shown.append(
            f'<tr><td colspan="{columns}" style="{_CELL};{_MUTED}">and {missing:,} '
            f"{noun}{'' if missing == 1 else 's'} more</td></tr>"
        )
    return "".join(shown)


def _thin_out(values: Sequence[float | None], *, count: int) -> list[float | None]:
    """Return at most ``count`` values, keeping the smallest and largest of each part."""
    if len(values) <= count:
        return list(values)
    parts = count // 2
    thinned: list[float | None] = []
    for index in range(parts):
        part = values[index * len(values) // parts : (index + 1) * len(values) // parts]
        known = [
            (value, place)
            for place, value in enumerate(part)
            if value is not None and isfinite(value)
        ]
        ends = sorted({min(known), max(known)}, key=lambda end: end[1]) if known else []
        thinned += [value for value, _ in ends] or [None]
    return thinned
