"""Summaries of complete blocks of log lines: written with their last line, used by searches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection

from runyard.server.services.runs.telemetry import log_search
from runyard.server.services.runs.telemetry.levels import derive_level
from runyard.server.services.runs.telemetry.log_search import Search
from runyard.store.tables import AnyRow
from runyard.store.telemetry import log_blocks, logs
from runyard.store.telemetry.log_blocks import LINES
from runyard.store.telemetry.logs import LineFilter


def add_complete_blocks(
    tx: Connection, *, org: str, run_id: str, count_before: int, count: int
) -> None:
    """Summarize the blocks that the lines after ``count_before`` have completed."""
    blocks = range(count_before // LINES, count // LINES)
    log_blocks.add_blocks(tx, [_summarize(tx, org, run_id, block) for block in blocks])


def _summarize(tx: Connection, org: str, run_id: str, block: int) -> dict[str, Any]:
    lines = logs.list_lines(
        tx,
        org=org,
        run_id=run_id,
        above=block * LINES,
        up_to=(block + 1) * LINES,
        filter=LineFilter(),
        newest_first=False,
        limit=LINES,
    )
    levels = 0
    for line in lines:
        levels |= 1 << derive_level(line.stream, line.text)
    return {
        "org": org,
        "run_id": run_id,
        "block": block,
        "time_min": min((line.time for line in lines), default=0),
        "time_max": max((line.time for line in lines), default=0),
        "levels": levels,
        "signature": log_search.build_signature(line.text for line in lines),
    }


@dataclass(frozen=True, kw_only=True)
class BlockFilter:
    """What a block is checked for before its lines are read."""

    time_from: int | None
    time_to: int | None
    level: int | None
    search: Search | None

    @cached_property
    def _bits(self) -> list[list[int]]:
        literals = () if self.search is None else self.search.literals
        return [log_search.list_bits(literal) for literal in literals]

    def list_candidates(
        self, tx: Connection, *, org: str, run_id: str, above: int, up_to: int
    ) -> list[tuple[int, int]]:
        """Return the ranges (above, up_to] in which lines may match, in order, apart."""
        first, last = above // LINES, (up_to - 1) // LINES
        rows = log_blocks.list_blocks(
            tx, org=org, run_id=run_id, first=first, last=last, with_signatures=bool(self._bits)
        )
        skipped = {row.block for row in rows if not self._may_match(row)}
        return list(_join_blocks(first, last, skipped, above, up_to))

    def _may_match(self, block: AnyRow) -> bool:
        if self.time_from is not None and block.time_max < self.time_from:
            return False
        if self.time_to is not None and block.time_min > self.time_to:
            return False
        if self.level is not None and not block.levels >> self.level:
            return False
        return not self._bits or log_search.may_match(block.signature, self._bits)


def _join_blocks(
    first: int, last: int, skipped: set[int], above: int, up_to: int
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of lines of the blocks that are not skipped, within (above, up_to]."""
    begin: int | None = None
    for block in range(first, last + 2):
        if block <= last and block not in skipped:
            begin = block if begin is None else begin
        elif begin is not None:
            yield max(above, begin * LINES), min(up_to, block * LINES)
            begin = None


def order_ranges(
    ranges: Sequence[tuple[int, int]], *, most_lines: int, newest_first: bool
) -> list[tuple[int, int]]:
    """Cut ranges into parts of at most ``most_lines``; return them in the order of reading."""
    parts = [
        (start, min(end, start + most_lines))
        for above, end in ranges
        for start in range(above, end, most_lines)
    ]
    return parts[::-1] if newest_first else parts
