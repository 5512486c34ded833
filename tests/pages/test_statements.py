"""How many SQL statements the pages take: as many with a thousand runs as with a hundred."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from runyard.server.pages import assets
from tests.support.many_runs import insert_runs_async
from tests.support.server import open_server

pytestmark = pytest.mark.anyio
MOST = 12  # of any page
SEARCH = "/ui/runs?q=lora"  # reads what may match in parts
PATHS = (
    "/ui/runs",
    "/ui/runs?q=condition:Failed+owner%3Dkim",
    SEARCH,
    "/ui/runs?sort=-metric.validation/iou",
    "/ui/status",
    "/ui/runs/new",
    "/ui/runs/run-0000020",
    "/ui/runs/run-0000020/head",
    "/ui/runs/run-0000020/log",
    "/ui/runs/run-0000020/timeline",
    "/ui/runs/run-0000020/flow",
    "/ui/runs/run-0000020/files",
    "/ui/runs/run-0000020/predictions",
)


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Collect the statements that are executed meanwhile."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def test_pages_take_as_many_statements_with_many_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "REQUIRED", ())
    counts: dict[str, list[int]] = {path: [] for path in PATHS}
    for runs in (100, 1_000):
        async with open_server(tmp_path / f"{runs}") as server:
            await insert_runs_async(server.services.store, runs, org=server.org)
            api = await server.api()
            for path in PATHS:
                await api.get(path)
                with counted_statements() as statements:
                    assert (await api.get(path)).status_code == 200, path
                counts[path].append(len(statements))
    for path, (few, many) in counts.items():
        assert 0 < few <= many <= MOST, (path, few, many)
        assert many == few or path == SEARCH, (path, few, many)
