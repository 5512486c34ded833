"""Offsets up to which the server has received the streams of an attempt."""

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from runyard.store.tables import stream_offsets

# Built once: every message with lines runs these, and building a statement costs more than running
# it.
_AT = (
    stream_offsets.c.org == bindparam("of_org"),
    stream_offsets.c.run_id == bindparam("of_run"),
    stream_offsets.c.attempt == bindparam("of_attempt"),
    stream_offsets.c.stream == bindparam("of_stream"),
)
_OFFSET = select(stream_offsets.c.offset).where(*_AT)
_ADVANCE = update(stream_offsets).where(*_AT)
_BEGIN = insert(stream_offsets)


def get_offset(connection: Connection, *, org: str, run_id: str, attempt: int, stream: str) -> int:
    """Return the offset up to which the server has received a stream."""
    value = connection.execute(_OFFSET, _offset_key(org, run_id, attempt, stream)).scalar()
    return value or 0


def advance_offset(
    connection: Connection, *, org: str, run_id: str, attempt: int, stream: str, to: int
) -> None:
    changed = connection.execute(
        _ADVANCE, {**_offset_key(org, run_id, attempt, stream), "offset": to}
    )
    if changed.rowcount == 0:
        row = {"org": org, "run_id": run_id, "attempt": attempt, "stream": stream, "offset": to}
        connection.execute(_BEGIN, row)


def _offset_key(org: str, run_id: str, attempt: int, stream: str) -> dict[str, Any]:
    return {"of_org": org, "of_run": run_id, "of_attempt": attempt, "of_stream": stream}
