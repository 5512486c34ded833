"""The page Runs as the server renders it: states of the list, forms, export, hostile texts."""

import csv
import io
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runyard.server.pages import assets
from tests.support import attempts
from tests.support.server import TestServer, open_server

pytestmark = pytest.mark.anyio
HTMX = {"hx-request": "true"}


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestServer]:
    monkeypatch.setattr(assets, "REQUIRED", ())
    async with open_server(tmp_path / "data") as server:
        yield server


@pytest.fixture
async def api(server: TestServer) -> httpx2.AsyncClient:
    return await server.api()


async def add_run(server: TestServer, run_id: str, name: str = "shelf", **tags: str) -> None:
    api = await server.api()
    made = await api.put(
        server.path(f"runs/{run_id}"),
        json={"spec": {"flow": {"name": name}}, "metadata": {"attributes": tags}},
    )
    assert made.status_code == 201, made.text


async def test_an_empty_list_teaches_how_to_start_a_run(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    page = (await api.get("/ui/runs")).text
    for text in ("No runs yet", "Start the built-in run", "runyard runs create"):
        assert text in page
    assert "client.runs.create(flow={})" in page
    started = await api.post("/ui/runs:start")
    assert started.status_code == 303
    run_id = started.headers["location"].rpartition("/")[2]
    assert (await api.get(server.path(f"runs/{run_id}"))).status_code == 200


async def test_a_filter_without_a_match_offers_the_way_back(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1")
    page = (await api.get("/ui/runs", params={"q": "owner=nobody"})).text
    assert "No run matches" in page
    assert "owner=nobody" in page
    assert 'href="/ui/runs"' in page


async def test_an_invalid_filter_is_marked_and_keeps_the_list(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1")
    query = {"q": "owner=kim condition:Fialed"}
    part = await api.get("/ui/runs", params=query, headers=HTMX)
    assert part.status_code == 200
    assert "<mark>condition:Fialed</mark>" in part.text
    assert "did you mean Failed?" in part.text
    assert 'id="list"' not in part.text
    assert "<mark>condition:Fialed</mark>" in (await api.get("/ui/runs", params=query)).text


async def test_htmx_gets_the_parts_and_a_browser_the_page(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1", owner="kim")
    page = await api.get("/ui/runs")
    part = await api.get("/ui/runs", headers=HTMX)
    assert page.text.startswith("<!doctype html>")
    assert "<!doctype" not in part.text
    row = find_row(page.text, "r1")
    assert row == find_row(part.text, "r1")
    fresh = await api.get("/ui/runs:rows", params={"id": ["r1", "gone"]})
    assert find_row(fresh.text, "r1") == row
    assert "This run was deleted." in find_row(fresh.text, "gone")


async def test_a_row_follows_the_training_of_its_run(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1")
    attempt = await attempts.claim(server)
    await attempt.start()
    curves = []
    for step in range(1, 5):
        await attempt.event("step", step=step, totalSteps=8, values={"loss": 1.0 / step})
        row = find_row((await api.get("/ui/runs:rows", params={"id": "r1"})).text, "r1")
        assert f"step {step} of 8" in row
        curves.append(re.findall(r'<path d="([^"]+)"', row))
    assert [len(found) for found in curves] == [0, 1, 1, 1]
    assert len({found[0] for found in curves[1:]}) == 3
    for value in (0.5, 0.9, 0.7):
        await attempt.event(
            "evaluation", step=4, metricName="iou", values={"validation/iou": value}
        )
    row = find_row((await api.get("/ui/runs")).text, "r1")
    assert re.search(r'<td class="c-metric">0.9<span class="note">iou</span>', row)


def find_row(page: str, run_id: str) -> str:
    found = re.search(rf'<tr id="run-{run_id}".*?</tr>', page, re.DOTALL)
    assert found is not None
    return found[0]


async def test_new_runs_are_counted_if_the_filter_matches_them(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1", owner="kim")
    await add_run(server, "r2", owner="noor")
    new = {"count": "true", "new": ["r1", "r2"]}
    assert ">2 new · show<" in (await api.get("/ui/runs:rows", params=new)).text
    matching = (await api.get("/ui/runs:rows", params={"q": "owner=kim", **new})).text
    assert ">1 new · show<" in matching
    assert "Pending <b>1</b>" in matching
    missed = {"count": "true", "shown": "0", "q": "owner=noor"}
    assert ">1 new · show<" in (await api.get("/ui/runs:rows", params=missed)).text
    uncounted = (await api.get("/ui/runs:rows", params={"id": "r1"})).text
    assert "chips" not in uncounted


async def test_pages_lead_to_older_runs_and_back(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    for number in range(110):
        await add_run(server, f"r{number:03}", name=f"n{number:03}")

    async def visit(url: str) -> list[str]:
        page = (await api.get(url)).text
        links = re.findall(r'<a class="button" rel="(next|prev)" href="([^"]+)"', page)
        seen.update({name: link.replace("&amp;", "&") for name, link in links})
        for name in {"next", "prev"} - {name for name, _ in links}:
            seen.pop(name, None)
        return re.findall(r'<tr id="run-(r\d+)"', page)

    for sort, numbers in (("", range(109, -1, -1)), ("name", range(110))):
        seen: dict[str, str] = {}
        ids = [f"r{number:03}" for number in numbers]
        assert await visit(f"/ui/runs?sort={sort}") == ids[:50]
        assert "prev" not in seen
        assert await visit(seen["next"]) == ids[50:100]
        assert await visit(seen["next"]) == ids[100:]
        assert "next" not in seen
        assert await visit(seen["prev"]) == ids[50:100]
        assert await visit(seen["next"]) == ids[100:]
        await visit(seen["prev"])
        assert await visit(seen["prev"]) == ids[:50]
        assert "prev" not in seen


async def test_a_page_of_fifty_runs_is_small(api: httpx2.AsyncClient, server: TestServer) -> None:
    for number in range(50):
        await add_run(
            server, f"0b9a5e1c-52f1-4d1b-9f00-{number:012}", name=f"shelf-count r{number} lr2e-4",
            owner=("kim", "noor")[number % 2], experiment=f"warm-up {number}", note="x",
        )  # fmt: skip
    page = await api.get("/ui/runs", headers={"accept-encoding": "identity"})
    rows = page.text[page.text.index("<tbody") : page.text.index("</tbody>")]
    assert rows.count("<tr") == 50
    assert len(rows.encode()) <= 64 << 10
    packed = await api.get("/ui/runs", headers={"accept-encoding": "gzip"})
    assert int(packed.headers["content-length"]) <= 30 << 10


async def test_each_action_says_first_what_it_will_do(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    for run_id in ("r1", "r2", "r3"):
        await add_run(server, run_id, owner="kim")
    attempt = await attempts.claim(server)
    await attempt.start()
    await api.patch(server.path("runs/r3"), json={"spec": {"killedAt": 1}})
    selected = {"run": ["r1", "r2", "r3", "none"]}
    dialog = (await api.post("/ui/runs:kill", data=selected)).text
    for text in (
        "Kill 2 runs?",
        "1 run is running",
        "1 run waits and is canceled at once",
        "1 run already ended and stays so; 1 run is refused",
        "client.runs.kill([&#34;r1&#34;, &#34;r2&#34;])",
        "runyard runs kill r1 r2",
    ):
        assert text in dialog
    assert await read_condition(api, server, "r2") == "Pending"
    done = await api.post("/ui/runs:kill", data={**selected, "confirmed": "true", "grace": "30"})
    assert "2 runs killed" in done.text or "3 runs killed" in done.text
    assert done.headers["hx-trigger"] == "acted"
    assert await read_condition(api, server, "r2") == "Cancelled"
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["spec"]["graceSeconds"] == 30

    every = {"all": "true", "q": "owner=kim"}
    dialog = (await api.post("/ui/runs:delete", data=every)).text
    assert "Delete 3 runs?" in dialog
    assert "1 run of them has not ended" in dialog
    assert "client.runs.delete(filter=&#34;owner=kim&#34;)" in dialog
    done = await api.post("/ui/runs:delete", data={**every, "confirmed": "true"})
    assert "3 runs deleted" in done.text
    assert (await api.get(server.path("runs"))).json()["items"] == []


async def read_condition(api: httpx2.AsyncClient, server: TestServer, run_id: str) -> Any:
    run = (await api.get(server.path(f"runs/{run_id}"))).json()
    return run["status"]["conditions"][-1]["condition"]


async def test_a_tag_is_set_and_removed(api: httpx2.AsyncClient, server: TestServer) -> None:
    await add_run(server, "r1", owner="kim")
    form = {"run": "r1", "confirmed": "true", "key": "stage", "value": "a=b <i>"}
    await api.post("/ui/runs:tag", data=form)
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["metadata"]["attributes"] == {"owner": "kim", "stage": "a=b <i>"}
    await api.post("/ui/runs:tag", data={**form, "remove": "true"})
    run = (await api.get(server.path("runs/r1"))).json()
    assert run["metadata"]["attributes"] == {"owner": "kim"}


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({}, "InvalidBody"),
        ({"run": "../x"}, "InvalidId"),
        ({"all": "true", "q": "condition:Fialed"}, "InvalidFilter"),
        ({"run": "r1", "grace": "-1"}, "InvalidBody"),
    ],
)
async def test_a_form_that_names_no_valid_runs_is_refused(
    api: httpx2.AsyncClient, form: dict[str, str], code: str
) -> None:
    refused = await api.post("/ui/runs:kill", data=form, headers=HTMX)
    assert (refused.status_code, refused.json()["code"]) == (400, code)


async def test_a_view_is_saved_from_the_page_and_deleted(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    form = {"name": "Failed", "q": "condition:Failed", "sort": "name", "columns": "tags,loss"}
    menu = (await api.post("/ui/runs:saveView", data=form)).text
    assert 'href="/ui/runs?q=condition%3AFailed&amp;sort=name&amp;columns=loss%2Ctags"' in menu
    (view,) = (await api.get(server.path("views"))).json()["items"]
    assert view["spec"] == {
        "name": "Failed", "filter": "condition:Failed", "orderBy": "name",
        "columns": ["loss", "tags"],
    }  # fmt: skip
    menu = (await api.post("/ui/runs:deleteView", data={"view": view["viewId"]})).text
    assert "No saved views yet" in menu


async def test_an_export_has_every_run_and_no_formula(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    await add_run(server, "r1", name="=cmd|' /C calc'!A0", owner="kim")
    await add_run(server, "r2", name='two\nlines, "quoted"', owner="kim")
    await add_run(server, "r3")
    exported = await api.get("/ui/runs:export", params={"q": "owner=kim", "sort": "created"})
    assert exported.headers["content-type"] == "text/csv; charset=utf-8"
    header, *rows = csv.reader(io.StringIO(exported.text))
    assert [row[header.index("id")] for row in rows] == ["r1", "r2"]
    assert rows[0][header.index("name")] == "'=cmd|' /C calc'!A0"
    assert rows[1][header.index("name")] == 'two\nlines, "quoted"'
    assert rows[0][header.index("tags")] == "owner=kim"


async def test_a_viewer_sees_no_actions(server: TestServer, api: httpx2.AsyncClient) -> None:
    await add_run(server, "r1")
    made = await api.post(server.path("keys"), json={"spec": {"name": "v", "role": "viewer"}})
    viewer = await server.client(made.json()["secretKey"])
    page = (await viewer.get("/ui/runs")).text
    assert find_row(page, "r1")
    for text in ('id="bulk"', "New run", "Kill…", 'type="checkbox" name="run"'):
        assert text not in page
    assert (await viewer.post("/ui/runs:kill", data={"run": "r1"})).status_code == 403


class Elements(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


async def test_hostile_texts_make_no_element_and_no_attribute(
    api: httpx2.AsyncClient, server: TestServer
) -> None:
    hostile = "\"><img src=x onerror=alert(1)>'</td><script>alert(1)</script>{{ 7*7 }}"
    await add_run(server, "r1", name="plain", key="value")
    await add_run(server, "r2", name=hostile, **{hostile: hostile})
    await api.post("/ui/runs:saveView", data={"name": hostile, "q": '"<b>" owner="<i>"'})
    plain = Elements((await api.get("/ui/runs", params={"q": "plain"})).text).found
    for query in ({"q": "img"}, {"q": hostile}, {"sort": "name", "columns": hostile}):
        page = await api.get("/ui/runs", params=query)
        assert page.status_code == 200
        found = Elements(page.text).found
        assert {tag for tag, _ in found} <= {tag for tag, _ in plain} | {"mark", "pre"}
        assert not {name for _, names in found for name in names if name.startswith("on")}
