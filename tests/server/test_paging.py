"""Pages end at a number of bytes as well as of items, in every list route."""

import asyncio
import json
import re
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from runyard import limits
from runyard.server.http.request import Query
from runyard.server.http.routes import ROUTES
from runyard.server.services import paging
from runyard.server.services.imports import exports, import_jobs
from runyard.store.datasets import assets, versions
from runyard.store.tables import assets as assets_table
from runyard.store.tables import dataset_versions, records
from tests.server.test_joining import join_machine
from tests.support import attempts
from tests.support.server import TestServer

COUNT = 3
OWN_PAGE = {"sec-fetch-site": "same-origin"}
LISTS = [route for route in ROUTES if route.is_page and not route.path.endswith("/collaborators")]


def row_of(table: Any, **values: Any) -> dict[str, Any]:
    """Return a row with a value in every column."""
    kinds = {int: 1, str: "x", bytes: b"{}", bool: False, float: 1.0}
    return {column.name: kinds[column.type.python_type] for column in table.columns} | values


async def fill_every_list(server: TestServer) -> dict[str, str]:
    """Create three of each listed resource; return the ids that paths need."""
    api = await server.api()
    attempt = await attempts.start(server, "r0")
    for number in range(COUNT):
        await attempt.checkpoint(f"epoch-{number + 1}")
        documents = (f"flows/f{number}", f"trainingProjects/p{number}", f"views/v{number}")
        for path in (f"runs/r{number + 1}", *documents):
            assert (await api.put(server.path(path), json={"spec": {}})).status_code == 201
        made = await api.post(server.path("datasets"), json={"name": f"d{number}"})
    dataset = made.json()["datasetId"]
    base = server.path(f"datasets/{dataset}")
    later = server.clock.now_ms() + 3_600_000
    for number in range(COUNT):
        for path, spec in {
            "imports": {},
            "datasetExports": {},
            "deleteManyAssetsSessions": {"filter": "nothing"},
            "assetSources/managed/datature/default/assetIngestionSessions": {
                "assets": [{"filename": f"{number}.png", "size": 1}]
            },
            "annotationImportSessions": {"uploadBefore": later},
        }.items():
            made = await api.post(f"{base}/{path}", json={"spec": spec})
            assert made.status_code == 201, made.text
    ids = {"org": server.org, "dataset": dataset, "run_id": "r0", "asset_id": "a0"}
    for name, path in (("import_id", "imports"), ("session_id", "annotationImportSessions")):
        ids[name] = (
            (await api.get(f"{base}/{path}")).json()["items"][0]["selfLink"].rpartition("/")[2]
        )
        folder = import_jobs.get_folder(server.services, server.org, ids[name])
        folder.mkdir(parents=True)
        found = {
            "severity": "error",
            "code": "RowUnreadable",
            "action": "Rejected",
            "cause": "x",
            "cure": "y",
        }
        lines = [json.dumps({**found, "file": f"{number}.jsonl"}) + "\n" for number in range(COUNT)]
        (folder / import_jobs.FINDINGS).write_text("".join(lines))
    await server.services.store.write(partial(_fill_dataset, org=server.org, dataset=dataset))
    for number in range(COUNT):
        await api.post(server.path("keys"), json={"spec": {"name": str(number)}})
        await join_machine(server, f"machine-{number}")
        signed_in = await api.post("/ui/sessions", json={"key": server.key}, headers=OWN_PAGE)
        assert signed_in.status_code == 201, signed_in.text
    return ids


def _fill_dataset(connection: Connection, *, org: str, dataset: str) -> None:
    place = {"org": org, "dataset_id": dataset}
    caption = {
        "type": "PhraseGrounding",
        "caption": "a box",
        "groundedPhrases": [
            {
                "phrase": "box",
                "startTokenIndex": 1,
                "endTokenIndex": 2,
                "bounds": [[0, 0, 1, 1]] * 2,
            }
        ],
    }
    contents = msgspec.json.encode(caption)
    assets.add(
        connection,
        [row_of(assets_table, **place, id=f"a{n}", filename=f"{n}.png") for n in range(COUNT)],
    )
    assets.add_records(
        connection,
        [
            row_of(records, **place, number=n + 1, id=str(n), asset_id="a0", contents=contents)
            for n in range(COUNT)
        ],
    )
    for number in range(COUNT):
        versions.add(
            connection,
            row_of(dataset_versions, **place, id=f"v{number}", number=number, sha256="0" * 64),
        )


async def read_all_pages(api: Any, url: str, **query: Any) -> tuple[list[Any], list[int]]:
    """Return every item of a list, and the number of items of each page."""
    items: list[Any] = []
    sizes: list[int] = []
    token = None
    while token is not None or not sizes:
        answer = await api.get(url, params={**query, **({"p": token} if token else {})})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items, sizes, token = items + page["items"], [*sizes, len(page["items"])], page["nextPage"]
        assert len(sizes) < 50
    return items, sizes


async def test_every_list_is_cut_by_bytes_and_continues_at_the_cut(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, threads, of_long_pages = Query.page, watch_threads(monkeypatch), set[str]()
    monkeypatch.setattr(exports, "start", lambda *_: None)  # so that no process writes a file
    ids, api = await fill_every_list(server), await server.api()
    for route in LISTS:
        url = re.sub(r"\{(\w+):str\}", lambda found: ids[found[1]], route.path)
        monkeypatch.setattr(Query, "page", plain)
        whole, sizes = await read_all_pages(api, url, s=1000)
        assert len(whole) >= COUNT, url
        assert sizes == [len(whole)], url
        of_long_pages |= threads
        assert (await read_all_pages(api, url, s=2))[0] == whole, url
        threads.clear()
        monkeypatch.setattr(
            Query, "page", lambda self, question: replace(plain(self, question), most_bytes=1)
        )
        assert await read_all_pages(api, url, s=1000) == (whole, [1] * len(whole)), url
        of_long_pages |= threads
        threads.clear()
    # They were encoded outside the event loop.
    assert threading.current_thread().name not in of_long_pages
    assert of_long_pages


@pytest.mark.parametrize("kind", ["runs", "flows", "trainingProjects", "views"])
async def test_a_short_page_is_read_on_the_event_loop_unless_its_items_are_large(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    api, here = await server.api(), threading.current_thread().name
    for number in range(COUNT):
        created = await api.put(server.path(f"{kind}/x{number}"), json={"spec": {}})
        assert created.status_code == 201
    threads, pages = watch_threads(monkeypatch), []
    for most_bytes in (paging.SHORT_BYTES, 300, paging.SHORT_BYTES):
        monkeypatch.setattr(paging, "SHORT_BYTES", most_bytes)
        threads.clear()
        pages.append((await api.get(server.path(kind), params={"s": 2})).json())
        # Once items were large, later pages go to a thread at once.
        assert (threads == {here}) is (len(pages) == 1)
    assert pages[0] == pages[1] == pages[2]
    assert len(pages[0]["items"]) == 2
    assert pages[0]["nextPage"]


async def test_a_short_page_with_a_filter_is_read_on_a_thread(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, threads = await server.api(), watch_threads(monkeypatch)
    for query in ({"filter": "x"}, {"condition": "Failed"}, {"orderBy": "name"}):
        assert (await api.get(server.path("runs"), params=query)).json()["items"] == []
    assert threading.current_thread().name not in threads
    assert threads


def watch_threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the threads that encode pages from now on."""
    threads, join = set[str](), paging.join

    def watched(*args: Any) -> bytes:
        threads.add(threading.current_thread().name)
        return join(*args)

    monkeypatch.setattr(paging, "join", watched)
    return threads


async def test_a_bulk_deletion_takes_more_names_than_one_query_may_have(
    server: TestServer,
) -> None:
    api = await server.api()
    dataset = (await api.post(server.path("datasets"), json={"name": "d"})).json()["datasetId"]
    names = [f"{number:04}.png" for number in range(2 * assets.BATCH_SIZE + 10)]
    rows = [
        row_of(assets_table, org=server.org, dataset_id=dataset, id=f"a{name}", filename=name)
        for name in names
    ]
    await server.services.store.write(lambda connection: assets.add(connection, rows))
    url = server.path(f"datasets/{dataset}/deleteManyAssetsSessions")
    for filenames, left in (([], len(names)), (names[1:], 1)):
        begun = (await api.post(url, json={"spec": {"filter": {"filenames": filenames}}})).json()
        condition = begun["status"]["conditions"][0]
        while condition["status"] != "Reached":
            await asyncio.sleep(0.01)
            condition = (await api.get(begun["selfLink"].replace(f"{server.org}_", ""))).json()[
                "status"
            ]["conditions"][0]
        listed = (
            await api.get(server.path(f"datasets/{dataset}/assets"), params={"s": 1000})
        ).json()
        assert len(listed["items"]) == min(left, 1000)
    many = {"filenames": ["x"] * (limits.FILES.value + 1)}
    assert (await api.post(url, json={"spec": {"filter": many}})).json()["code"] == "InvalidBody"


async def test_a_page_of_large_runs_ends_before_the_limit(server: TestServer) -> None:
    api = await server.api()
    attributes = {f"k{number}": "x" * limits.ATTRIBUTE_VALUE.value for number in range(15)}
    style = {"style": {"x": "y" * 16_000}}
    blocks = [{"block": name, **style} for name in ("vi-dataset", "vi-model", "vi-system-prompt")]
    body = {"spec": {"flow": {"blocks": blocks}}, "metadata": {"attributes": attributes}}
    for number in range(60):
        assert (await api.put(server.path(f"runs/r{number:02}"), json=body)).status_code == 201
    answer = await api.get(server.path("runs"), params={"s": 1000})
    assert limits.PAGE.value / 2 < len(answer.content) < limits.PAGE.value + 1000
    items, sizes = await read_all_pages(api, server.path("runs"), s=1000)
    assert [run["runId"] for run in items] == [f"r{number:02}" for number in reversed(range(60))]
    assert len(sizes) == 2


async def test_pages_of_logs_and_metrics_end_before_the_limit(server: TestServer) -> None:
    attempt, api = await attempts.start(server), await server.api()
    for _ in range(2):
        shipped = await attempt.ship(*["x" * limits.LOG_LINE.value] * 200, stream="stdout")
        assert shipped.status_code == 200
    await attempt.finish(64)
    since, numbers, ended = 0, list[int](), False
    while not ended:
        answer = await api.get(server.path("runs/r1/logs"), params={"since": since})
        assert len(answer.content) < limits.PAGE.value + 1000
        page = answer.json()
        numbers += [line["number"] for line in page["items"]]
        since, ended = page["next"], page["ended"]
    assert numbers == list(range(1, 401))


async def test_a_list_of_models_too_long_for_one_response_contains_the_newest(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, api = await attempts.start(server), await server.api()
    for number in (1, 2, 3):
        await attempt.checkpoint(f"epoch-{number}")
    url = server.path("runs/r1/outputs")
    whole = (await api.get(url)).json()["items"]
    assert [model["spec"]["epoch"] for model in whole] == [1, 2, 3]
    defaults = paging.gather.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "most_bytes", 2 * len(json.dumps(whole[0])))
    assert (await api.get(url)).json() == {"items": whole[1:], "nextPage": None, "prevPage": None}


@pytest.mark.parametrize("size", [1, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("most_bytes", [1, 50, 10_000])
@pytest.mark.parametrize("count", [0, 1, 32, 33, 99])
def test_collecting_a_page_reads_little_more_than_it_needs(
    size: int, most_bytes: int, count: int
) -> None:
    rows, read = list(range(count)), 0

    def fetch(after: int | None, limit: int) -> list[int]:
        nonlocal read
        begin = 0 if after is None else after + 1
        read += len(rows[begin : begin + limit])
        return rows[begin : begin + limit]

    shown, after, has_more = list[int](), None, True
    while has_more:
        items, after, has_more = paging.gather(
            fetch,
            after=after,
            size=size,
            encode=lambda row: b"%09d" % row,
            get_position=lambda row: row,
            most_bytes=most_bytes,
        )
        assert len(items) <= size
        assert len(items) == 1 or sum(map(len, items)) <= most_bytes
        assert not has_more or items
        shown += map(int, items)
        if most_bytes == 1:
            assert read <= paging.FIRST_CHUNK
            read = 0
    assert shown == rows
