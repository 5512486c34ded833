"""Vi JSONL in: one record a line, as ``runyard.datasets.records`` says. ``id`` may be a string or an integer.

A line is decoded at once into a record; only one that does not fit is looked at again, to say what is wrong with it.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from runyard.datasets.findings import Say, finding
from runyard.datasets.readers import Row
from runyard.datasets.readers.lines import head_of, lines_of
from runyard.datasets.records import AssetRef, Box, Contents, DatasetType, GroundedPhrase, Interaction, Record
from runyard.datasets.sources import Source

ENDINGS = (".jsonl", ".ndjson", ".json")


class _Line(msgspec.Struct, rename="camel"):
    """A record whose ``id`` is of either kind, and whose asset need not tell a size."""

    asset: "_Asset"
    contents: Contents
    id: str | int | None = None
    category: str | None = None


class _Asset(msgspec.Struct, rename="camel"):
    filename: Annotated[str, msgspec.Meta(min_length=1)]
    width: int | None = None
    height: int | None = None


_decode = msgspec.json.Decoder(_Line, strict=True).decode


class ViJsonl:
    """Records as they are; see ``readers.Reader``."""

    name = "ViJsonl"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        return [path for path in source.paths() if path.lower().endswith(ENDINGS) and _is_ours(head_of(source, path))]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        for path in files:
            for number, line in lines_of(source, path, say):
                if not line.strip():
                    continue
                try:
                    row = _row(_decode(line), path, number)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    _say_why(line, path, number, str(error), say)
                else:
                    yield row


def _is_ours(head: bytes) -> bool:
    """Whether the first line is, or begins like, an object with an asset and contents."""
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0]
    return first.startswith(b"{") and b'"asset"' in first and (b'"contents"' in first or len(first) > 900)


def _row(line: _Line, path: str, number: int) -> Row:
    asset = line.asset
    frame = (asset.width, asset.height) if asset.width is not None and asset.height is not None else None
    record = Record(
        id=f"{path}:{number}" if line.id is None else str(line.id),
        asset=AssetRef(filename=asset.filename, width=asset.width or 0, height=asset.height or 0),
        contents=line.contents,
        category=line.category,
    )
    return Row(record, path, number, "contents", frame)


def _say_why(line: bytes, path: str, number: int, error: str, say: Say) -> None:
    """Find out why a line is no record, and say it with the field."""

    def tell(code: str, cause: str, field: str | None = None, value: object = None) -> None:
        say(finding(code, file=path, line=number, field=field, cause=cause, value=value))

    if not _is_utf8(line):
        tell("EncodingWrong", "the line is not UTF-8")
        return
    try:
        document = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as malformed:
        if _has_unwritable_numbers(line):
            tell("BoxNotFinite", "NaN and Infinity are no numbers of JSON", value=_text(line))
        else:
            tell("RowInvalid", f"not JSON: {malformed}", value=_text(line))
        return
    if not isinstance(document, dict):
        tell("RowInvalid", "it is no JSON object", value=_text(line))
        return
    cause, _, place = error.partition(" - at `$")
    field = _numbered(document, place.rstrip("`").lstrip(".")) or None
    if "missing required field" in error:
        name = error.split("`")[1]
        tell("FieldMissing", f"there is no field {name!r}", f"{field}.{name}" if field else name)
    else:
        tell("FieldInvalid", _plain(cause), field, _at(document, field))


def _has_unwritable_numbers(line: bytes) -> bool:
    """Whether the line is JSON but for NaN or Infinity, which Python writes and JSON does not know."""
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


def _numbered(document: Any, field: str) -> str:
    """The field with the place of each element, where msgspec writes ``[...]`` for any: the first that does not fit."""
    types: list[Any] = [Interaction] if ".interactions[" in field else [GroundedPhrase, Box, float]
    while "[...]" in field and types:
        elements, wanted = _at(document, field.partition("[...]")[0]), types.pop(0)
        unfit = (place for place, element in enumerate(elements or []) if not _fits(element, wanted))
        field = field.replace("[...]", f"[{next(unfit, 0)}]", 1)
    return field


def _fits(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _at(document: Any, field: str | None) -> Any:
    """The value at a path such as ``contents.interactions[0].order``; None where there is none."""
    for part in (field or "").replace("[", ".[").split("."):
        if part.startswith("["):
            place = part[1:-1]
            is_there = isinstance(document, list) and place.isdigit() and int(place) < len(document)
            document = document[int(place)] if is_there else None
        elif part:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def _plain(cause: str) -> str:
    return cause[:1].lower() + cause[1:]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
