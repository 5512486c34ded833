"""The Vi JSONL reader: one record per line, as defined in ``runyard.datasets.records``.

``id`` may be a string or an integer. A line is decoded directly into a record; only an invalid line
is examined again, to report what is wrong with it.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_size
from runyard.datasets.readers.lines import read_head, read_lines
from runyard.datasets.records import (
    AssetRef,
    Box,
    Contents,
    DatasetType,
    GroundedPhrase,
    Interaction,
    Record,
    Turn,
)
from runyard.datasets.sources import Source
from runyard.datasets.splits import parse_split

ENDINGS = (".jsonl", ".ndjson", ".json")


class _Line(msgspec.Struct, rename="camel"):
    """A record whose ``id`` is a string or integer, and whose asset may lack a size."""

    asset: "_Asset"
    contents: Contents
    id: str | int | None = None
    category: str | None = None
    split: Any = None


class _Asset(msgspec.Struct, rename="camel"):
    filename: Annotated[str, msgspec.Meta(min_length=1)]
    width: int | float | None = None
    height: int | float | None = None


_decode = msgspec.json.Decoder(_Line, strict=True).decode


class ViJsonlReader:
    """The reader of Vi JSONL; see ``base.Reader``."""

    name = "ViJsonl"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        return [
            path
            for path in source.paths()
            if path.lower().endswith(ENDINGS) and _is_vi_jsonl(read_head(source, path))
        ]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        for path in files:
            for number, line in read_lines(source, path, report):
                if not line.strip():
                    continue
                try:
                    row = _build_row(_decode(line), path, number)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    _report_why(line, path, number, str(error), report)
                else:
                    yield row


def _is_vi_jsonl(head: bytes) -> bool:
    """Return whether the first line is, or begins like, an object with an asset and contents."""
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0]
    return (
        first.startswith(b"{")
        and b'"asset"' in first
        and (b'"contents"' in first or len(first) > 900)
    )


def _build_row(line: _Line, path: str, number: int) -> Row:
    asset = line.asset
    frame = None
    if asset.width is not None and asset.height is not None:
        # A size that no image has is compared too, and reported.
        frame = parse_size(asset.width, asset.height) or (int(asset.width), int(asset.height))
    record = Record(
        id=f"{path}:{number}" if line.id is None else str(line.id),
        asset=AssetRef(filename=asset.filename, width=0, height=0),
        contents=line.contents,
        category=line.category,
        split=parse_split(line.split),
    )
    return Row(record, path, number, "contents", frame)


def _report_why(line: bytes, path: str, number: int, error: str, report: ReportFinding) -> None:
    """Report why a line is not a record, with the field."""

    def report_line(code: str, cause: str, field: str | None = None, value: object = None) -> None:
        report(make_finding(code, file=path, line=number, field=field, cause=cause, value=value))

    if not _is_utf8(line):
        report_line("EncodingWrong", "the line is not UTF-8")
        return
    try:
        document = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as malformed:
        if _has_unwritable_numbers(line):
            report_line(
                "BoxNotFinite", "NaN and Infinity are not valid JSON numbers", value=_text(line)
            )
        else:
            report_line("RowInvalid", f"not JSON: {malformed}", value=_text(line))
        return
    if not isinstance(document, dict):
        report_line("RowInvalid", "the line is not a JSON object", value=_text(line))
        return
    cause, _, index = error.partition(" - at `$")
    field = _fill_indexes(document, index.rstrip("`").lstrip(".")) or None
    if "missing required field" in error:
        name = error.split("`")[1]
        report_line(
            "FieldMissing", f"the field {name!r} is missing", f"{field}.{name}" if field else name
        )
    else:
        report_line("FieldInvalid", _lower_first(cause), field, _get_value(document, field))


def _has_unwritable_numbers(line: bytes) -> bool:
    """Return whether the line is JSON except for NaN or Infinity, which Python writes but JSON does
    not allow.
    """
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fill_indexes(document: Any, field: str) -> str:
    """Replace each ``[...]`` that msgspec writes by the index of the first invalid element."""
    types: list[Any] = [GroundedPhrase, Box, float]
    for name, element in ((".interactions[", Interaction), (".turns[", Turn), (".images[", str)):
        if name in field:
            types = [element]
    while "[...]" in field and types:
        elements, expected = _get_value(document, field.partition("[...]")[0]), types.pop(0)
        unfit = (
            index for index, element in enumerate(elements or []) if not _fits(element, expected)
        )
        field = field.replace("[...]", f"[{next(unfit, 0)}]", 1)
    return field


def _fits(value: Any, expected: Any) -> bool:
    try:
        msgspec.convert(value, expected)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _get_value(document: Any, field: str | None) -> Any:
    """Return the value at a path such as ``contents.interactions[0].order``.

    Return None if there is none.
    """
    for part in (field or "").replace("[", ".[").split("."):
        if part.startswith("["):
            index = part[1:-1]
            is_there = isinstance(document, list) and index.isdigit() and int(index) < len(document)
            document = document[int(index)] if is_there else None
        elif part:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def _lower_first(cause: str) -> str:
    return cause[:1].lower() + cause[1:]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
