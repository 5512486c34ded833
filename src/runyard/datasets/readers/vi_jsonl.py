"""Vi JSONL in: one record a line, as ``runyard.datasets.records`` says. ``id`` may be a string or an integer.

A line is decoded at once into a record; only one that does not fit is looked at again, to say what is wrong with it.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from runyard.datasets.findings import Say, finding
from runyard.datasets.readers import Row
from runyard.datasets.readers.lines import head_of, lines_of
from runyard.datasets.records import (
    AssetRef,
    Contents,
    DatasetType,
    Record,
)
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
    field: str | None
    cause, _, field = error.partition(" - at `$")
    field = field.rstrip("`").lstrip(".") or None
    value: Any = None
    if not _is_utf8(line):
        say(finding("EncodingWrong", file=path, line=number, cause="the line is not UTF-8", action="RowRejected"))
        return
    try:
        document = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as malformed:
        say(finding("RowInvalid", file=path, line=number, cause=f"not JSON: {malformed}", value=_text(line)))
        return
    if not isinstance(document, dict):
        say(finding("RowInvalid", file=path, line=number, cause="it is no JSON object", value=_text(line)))
        return
    if "missing required field" in error:
        name = error.split("`")[1]
        field = f"{field}.{name}" if field else name
        say(finding("FieldMissing", file=path, line=number, field=field, cause=f"there is no field {name!r}"))
        return
    value = _at(document, field)
    say(finding("FieldInvalid", file=path, line=number, field=field, cause=_plain(cause), value=value))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _at(document: Any, field: str | None) -> Any:
    """The value at a path such as ``contents.interactions[0].order``; msgspec writes ``[...]`` for any element."""
    for part in (field or "").replace("[", ".[").split("."):
        if part.startswith("[") or not isinstance(document, dict):
            return None
        document = document.get(part)
    return document


def _plain(cause: str) -> str:
    return cause[:1].lower() + cause[1:]


def _text(line: bytes) -> str:
    return line.decode(errors="replace").strip()
