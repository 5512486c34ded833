"""Rows of text tables: a header, and cells between commas, semicolons, tabs or bars.

    image,caption                                   CSV
    image_name| comment_number| comment             Flickr30k; quotes have no meaning here
    1.jpg#0<tab>A tin on a shelf.                   Flickr8k, without a header

A row that cannot be read is reported with its line, and the others are read.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from runyard.datasets.images import is_image_name
from runyard.datasets.readers.lines import BOM, open_text, read_head
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.sources import Source

if TYPE_CHECKING:
    import _csv

ENDINGS = (".csv", ".tsv", ".txt", ".token")
DELIMITERS = ",;\t|"
_MAX_CELL_CHARACTERS = 16 << 20
_TOKEN_LINE = re.compile(r"([^\t#]+\.\w{3,4})(?:#\w+)?\t(.+)$")
_SAMPLED_LINES = 20

csv.field_size_limit(_MAX_CELL_CHARACTERS)

LocatedRow = tuple[SourceLocation, dict[str, str]]


class TableForm(NamedTuple):
    """What the beginning of a text table shows.

    ``has_header`` is False for lines of an image's name, a tab and a text. ``first`` is the first
    row.
    """

    delimiter: str
    columns: list[str]
    has_header: bool
    first: dict[str, str]


def sniff_table(source: Source, path: str) -> TableForm | None:
    """Return the form of a text table; None for another file."""
    if not path.lower().endswith(ENDINGS):
        return None
    lines = _read_first_lines(source, path)
    if not lines:
        return None
    if tokens := _match_tokens(lines):
        return TableForm("\t", ["image", "text"], False, tokens)
    delimiter = max(DELIMITERS, key=lines[0].count)
    if delimiter not in lines[0]:
        return None
    try:
        rows = list(_make_reader(lines, delimiter))
    except csv.Error:
        rows = list(csv.reader(lines[:1], delimiter=delimiter))
    columns = [name.strip() for name in rows[0]] if rows else []
    first = dict(zip(columns, rows[1], strict=False)) if len(rows) > 1 else {}
    return TableForm(delimiter, columns, True, first)


def lists_images(source: Source, path: str) -> bool:
    """Return whether the lines of a text file begin with the names of images."""
    lines = _read_first_lines(source, path) if path.lower().endswith(ENDINGS) else []
    words = [re.split(r"[\s,;|#]", line.strip().strip('"'), maxsplit=1) for line in lines]
    return bool(words) and all(len(word) > 1 and is_image_name(word[0]) for word in words)


def read_csv_rows(
    source: Source, location: SourceLocation, form: TableForm
) -> Iterator[LocatedRow]:
    """Yield the rows of a table with their locations; report those that cannot be read."""
    with (
        open_text(source, location.file) as file,
        # Bytes that are not UTF-8 become surrogates, so that only their rows are left out.
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        rows = (
            _read_cells(text, location, form) if form.has_header else _read_tokens(text, location)
        )
        for row_location, row in rows:
            broken = next((value for value in row.values() if not _is_utf8(value)), None)
            if broken is None:
                yield row_location, row
            else:
                raw = broken.encode(errors="surrogateescape")
                row_location.report("EncodingWrong", "the row is not UTF-8", value=repr(raw)[2:-1])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_cells(
    text: io.TextIOWrapper, location: SourceLocation, form: TableForm
) -> Iterator[LocatedRow]:
    rows = _make_reader(text, form.delimiter)
    columns = None
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            _report_bad_quote(location, line, rows.line_num, error)
            continue
        if cells is None:
            return
        if columns is None:
            columns = [cell.strip() for cell in cells]
        elif cells and cells != [""]:
            row_location = location.at(line=line)
            if len(cells) == len(columns):
                yield row_location, dict(zip(columns, cells, strict=True))
            else:
                _report_cells(row_location, cells, columns, form.delimiter)


def _report_cells(
    location: SourceLocation, cells: list[str], columns: list[str], delimiter: str
) -> None:
    cause = (
        f"the row has {len(cells)} cells, but the header has {len(columns)} columns: "
        f"{', '.join(columns[:12])}"
    )
    fix = None
    if len(cells) > len(columns):
        fix = f"put a text that contains {delimiter!r} between double quotes"
    location.report("RowInvalid", cause, value=delimiter.join(cells), fix=fix)


def _report_bad_quote(location: SourceLocation, first: int, last: int, error: csv.Error) -> None:
    lines = f"line {first}" if last <= first else f"lines {first} to {last}"
    location.at(line=first).report(
        "RowInvalid",
        f"a double quote is not closed or not doubled ({error}); {lines} are not read",
        fix='write a double quote within a text as ""',
        rows=max(1, last - first + 1),
    )


def _read_tokens(text: io.TextIOWrapper, location: SourceLocation) -> Iterator[LocatedRow]:
    number = 0
    while line := text.readline(_MAX_CELL_CHARACTERS):
        number += 1
        if not line.strip():
            continue
        row_location = location.at(line=number)
        found = _TOKEN_LINE.match(line.strip("\r\n"))
        if found is None:
            row_location.report(
                "RowInvalid", "the line is not a name, a tab and a text", value=line.strip()
            )
        else:
            yield row_location, {"image": found[1], "text": found[2]}


def _make_reader(lines: Iterable[str], delimiter: str) -> "_csv.Reader":
    if delimiter == "|":
        return csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE, skipinitialspace=True)
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _read_first_lines(source: Source, path: str) -> list[str]:
    head = read_head(source, path)
    text = head.removeprefix(BOM).decode(errors="replace")
    lines = text.splitlines(keepends=True)
    if len(lines) > 1 and not text.endswith("\n"):
        lines.pop()
    return [line for line in lines if line.strip()][:_SAMPLED_LINES]


def _match_tokens(lines: list[str]) -> dict[str, str] | None:
    """Return the first row if all lines are an image's name, a tab and a text."""
    found = [_TOKEN_LINE.match(line.strip("\r\n")) for line in lines]
    if any(one is None or not is_image_name(one[1]) for one in found) or found[0] is None:
        return None
    return {"image": found[0][1], "text": found[0][2]}
