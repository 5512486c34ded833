"""The budgets of the pages, in a browser, with a store full of runs.

Times are not asserted, since they depend on the machine: ``make bench-pages`` measures them
(``benchmarks/pages_cost.py``) and prints them with their targets. The other files of this folder
test the rest of what a page does.

| budget | where |
|---|---|
| G1 time until a page is there | ``make bench-pages`` |
| G2 bytes of the first screen | ``test_the_first_screen_is_small`` |
| G3 cost of an open page | ``test_an_open_page_asks_for_nothing_by_itself``, \
``test_hidden_tabs_ask_for_nothing_until_they_are_shown``; processor: ``make bench-pages`` |
| G4 size and time of responses | ``test_no_response_is_large``; times: ``make bench-pages``; \
statements: ``tests/pages/test_statements.py`` |
| G5 feedback to a click | ``test_a_click_is_answered_before_the_server_is``; time: \
``make bench-pages`` |
| G6 nothing moves | ``test_nothing_moves_while_a_run_trains``; \
``test_runs_page.py::test_rows_change_in_place_while_somebody_works`` |
| G7 Back and addresses | ``test_back_and_a_copied_address_show_the_same_view``; both pages' tests |
| G8 outage | ``test_a_restart_keeps_dialogs_texts_and_selections``; \
``test_frame.py::test_a_restart_of_the_server_is_shown_and_survived``; times: ``make bench-pages`` |
| G9 accessibility | axe: the tests of each page; ``test_half_the_width_of_a_screen_is_enough``, \
``test_every_control_is_reached_by_keyboard`` |
| G10 states are explained | ``test_times_are_exact_on_hover_and_ids_are_copied``; causes: \
``test_run_page.py`` |
| G11 as Python, as command | ``test_every_action_is_offered_as_python_and_as_command`` |
| G12 one connection | ``test_frame.py::test_ten_tabs_share_one_connection`` |
| G13 console and policy | the fixture ``console``, in every test |
| G14 every event once | ``test_a_page_that_reconnects_has_every_event_once``; \
``tests/server/test_reconnects.py`` |

``make test-slow`` runs these tests. ``make budgets`` (RUNYARD_BUDGETS=1) is the long form: 100,000
runs, a minute of a real training, 1,000 reconnects, every tab.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import vi
from runyard.server.pages import assets
from tests.browser.conftest import Console, PageOf, Site, find_violations
from tests.browser.test_run_page import (
    CURVE,
    TABS,
    Trainers,
    fill_run,
    report_evaluation,
    report_steps,
)
from tests.support.crowded import create_instance
from tests.support.fake_trainer import FakeTrainer
from tests.support.waiting import eventually

IS_LONG = os.environ.get("RUNYARD_BUDGETS") == "1"
RUNS = 100_000 if IS_LONG else 10_000
WATCHED_S = 60 if IS_LONG else 5
RECONNECTS = 1_000 if IS_LONG else 10
RUN_PARTS = ("/{run}", "/{run}/timeline", "/{run}/log", "/{run}/start?how=branch")
SCREENS = ("list", "new", *(TABS if IS_LONG else ("", "/log")))
KIB = 1024
EMPTY = "/ui/sessions"  # a page without any file
DESKTOP: Any = {"width": 1440, "height": 900}
WAIT_MS = 120_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose store has many runs; nothing trains them."""
    yield from _start_crowded(tmp_path_factory, "runyard.server")


@pytest.fixture(scope="module")
def crowded_training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """``runyard up`` with as many runs."""
    yield from _start_crowded(tmp_path_factory, "runyard.cli", "up")


def _start_crowded(factory: pytest.TempPathFactory, *program: str) -> Iterator[Site]:
    data_dir = factory.mktemp("crowded") / "data"
    create_instance(data_dir, RUNS)
    environ = {
        **os.environ,
        "HOME": str(data_dir.parent),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_THREADS": "1",
    }
    site = Site(data_dir, environ, program=program)
    site.start()
    yield site
    if site.process is not None:
        site.stop()


@pytest.fixture(scope="module")
def client(crowded: Site) -> Iterator[vi.Client]:
    with crowded.client() as client:
        yield client


@pytest.fixture
def trainers(crowded: Site, client: vi.Client) -> Iterator[Trainers]:
    trainers = Trainers(crowded, client)
    yield trainers
    trainers.end()


@pytest.fixture(scope="module")
def rich(crowded: Site, client: vi.Client) -> Iterator[FakeTrainer]:
    """A run with many points, lines, predictions and events."""
    trainers = Trainers(crowded, client)
    trainer = fill_run(trainers)
    report_steps(trainer, 61, 3_000)
    for first in range(0, 6_000, 1_000):
        lines = [f"{number} {'read a sample ' * 8}" for number in range(first, first + 1_000)]
        trainer.write("stdout", *lines)
    for step in range(100, 3_001, 100):
        report_evaluation(trainer, step)
    for number in range(100):
        trainer.report("warning", message=f"slow input {number}: " + "waited long " * 20)
    yield trainer
    trainers.end()


class Traffic:
    """What a page has received, in bytes on the wire."""

    def __init__(self, page: Page) -> None:
        self.responses: list[tuple[str, int]] = []
        self._addresses: dict[str, str] = {}
        session = page.context.new_cdp_session(page)
        session.on("Network.requestWillBeSent", self._begin)
        session.on("Network.loadingFinished", self._end)
        session.send("Network.enable")

    def count(self, suffix: str = "") -> int:
        """Return the bytes of all responses whose path ends so."""
        return sum(size for path, size in self.responses if path.endswith(suffix))

    def _begin(self, event: dict[str, Any]) -> None:
        self._addresses[event["requestId"]] = event["request"]["url"].partition("?")[0]

    def _end(self, event: dict[str, Any]) -> None:
        address = self._addresses.get(event["requestId"], "")
        self.responses.append((address, int(event["encodedDataLength"])))


IS_QUIET = """() => {
  const count = performance.getEntriesByType("resource").length;
  if (window.fetched !== count) [window.fetched, window.since] = [count, performance.now()];
  return performance.now() - window.since > 300 && document.readyState === "complete";
}"""


def wait_until_quiet(page: Page) -> None:
    """Wait until the page is live and has fetched what it shows."""
    expect(page.locator("#live-text")).to_have_text("live")
    page.wait_for_function(IS_QUIET)


@pytest.mark.parametrize("tab", SCREENS)
def test_the_first_screen_is_small(
    page_of: PageOf, crowded: Site, rich: FakeTrainer, console: Console, tab: str
) -> None:
    path = {"list": "/ui/runs", "new": "/ui/runs/new"}.get(tab, f"/ui/runs/{rich.run_id}{tab}")
    page = page_of(crowded, EMPTY, viewport=DESKTOP)
    console.expect("favicon")
    traffic = Traffic(page)
    page.goto(f"{crowded.endpoint}{path}")
    wait_until_quiet(page)
    fonts, charts = traffic.count(".woff2"), traffic.count("/uplot.js")
    assert fonts > 0
    limit = (71 if charts else 60) * KIB  # a third is the library that draws charts
    assert traffic.count() - fonts <= limit, traffic.responses
    assert traffic.count() <= 140 * KIB, traffic.responses
    assert 0 < traffic.count(path) <= 30_000


def test_own_scripts_are_small() -> None:
    sizes = {
        name: len(asset.gzipped or b"")
        for name, asset in assets.load().files.items()
        if name.endswith(".js") and not name.startswith("vendor/")
    }
    assert 0 < sum(sizes.values()) <= 60_000, sizes


def test_no_response_is_large(
    page_of: PageOf, crowded: Site, rich: FakeTrainer, console: Console
) -> None:
    console.expect("favicon")
    page = page_of(crowded, EMPTY, viewport=DESKTOP)
    traffic, base = Traffic(page), f"{crowded.endpoint}/ui/runs"
    for path in (
        "",
        "?sort=-metric.validation%2Fiou",
        "?q=lora",
        "?q=condition%3AFailed+owner=kim",
    ):
        page.goto(base + path)
        wait_until_quiet(page)
    page.goto(f"{base}/new")
    wait_until_quiet(page)
    for tab in TABS:
        page.goto(f"{base}/{rich.run_id}{tab}")
        wait_until_quiet(page)
        page.keyboard.press("End")
        wait_until_quiet(page)
    page.goto(f"{base}/{rich.run_id}/start?how=branch")
    wait_until_quiet(page)
    large = [(path, size) for path, size in traffic.responses if size > 100 * KIB]
    assert large == []
    assert len(traffic.responses) > 30
    assert [size for address, size in traffic.responses if address == base and size]


def test_an_open_page_asks_for_nothing_by_itself(
    page_of: PageOf, crowded: Site, rich: FakeTrainer
) -> None:
    pages = [
        page_of(crowded, path, viewport=DESKTOP)
        for path in ("/ui/runs", "/ui/runs/new", f"/ui/runs/{rich.run_id}")
    ]
    asked: list[str] = []
    for page in pages:
        wait_until_quiet(page)
        page.wait_for_timeout(500)  # what the events of the run before have started
        page.on("request", lambda request: asked.append(request.url))
    pages[0].wait_for_timeout(WATCHED_S * 400)
    assert asked == []


def test_hidden_tabs_ask_for_nothing_until_they_are_shown(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start()
    first = page_of(trainers.site, f"/ui/runs/{trainer.run_id}")
    wait_until_quiet(first)
    front = first.context.new_page()
    front.goto(f"{trainers.site.endpoint}/ui/runs")
    wait_until_quiet(front)
    front.bring_to_front()
    if not first.evaluate("() => document.hidden"):
        first.evaluate(
            """() => {
              Object.defineProperty(document, "hidden", { value: true, configurable: true });
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
    asked: list[str] = []
    first.on("request", lambda request: asked.append(request.url))
    report_steps(trainer, 1, 50)
    trainers.client.runs.update(trainer.run_id, name="renamed meanwhile")
    expect(front.locator(f"#run-{trainer.run_id}")).to_contain_text("renamed meanwhile")
    assert asked == []
    first.bring_to_front()
    first.evaluate("() => delete document.hidden")
    first.evaluate("() => document.dispatchEvent(new Event('visibilitychange'))")
    expect(first.locator("h1")).to_have_text("renamed meanwhile")
    wait_until_quiet(first)  # before its run is removed


def test_a_click_is_answered_before_the_server_is(
    page_of: PageOf, trainers: Trainers, console: Console
) -> None:
    trainer = trainers.start()
    page = page_of(trainers.site, f"/ui/runs?q=id:{trainer.run_id}")
    wait_until_quiet(page)
    held: list[Any] = []
    page.route("**/ui/runs:*", lambda route: held.append(route))
    page.locator("#all-rows").check()
    for name in ("Kill…", "Tag…", "Delete…"):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#action")).to_contain_text("Checking…")
        page.keyboard.press("Escape")
        expect(page.locator("#action")).to_be_hidden()
    page.goto(f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}")
    wait_until_quiet(page)
    console.expect("ERR_FAILED|Failed to fetch")
    for route in held:
        route.abort()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name, effect in (("Kill…", "saves a checkpoint"), ("Delete…", "cannot be restored")):
        page.get_by_role("button", name=name).click()
        expect(page.locator("dialog[open]")).to_contain_text(effect)
        page.keyboard.press("Escape")
    assert [url for url in asked if "/kill" in url or "/delete" in url] == []
    run = trainers.client.runs.get(trainer.run_id)
    assert run.condition == "Running"


@dataclass
class Training:
    """A run that changes every second: really, or as a test reports."""

    site: Site
    run_id: str
    advance: Callable[[int], None]


@pytest.fixture
def training(request: pytest.FixtureRequest) -> Iterator[Training]:
    if not IS_LONG:
        trainers: Trainers = request.getfixturevalue("trainers")
        trainer = trainers.start(steady="yes")
        report_steps(trainer, 1, 200)
        report_evaluation(trainer, 200)
        trainer.save("step-200", step=200)

        def advance(second: int) -> None:
            report_steps(trainer, 201 + 20 * second, 220 + 20 * second)
            trainer.write("stdout", *[f"line {second} {number}" for number in range(50)])
            if second % 2:
                report_evaluation(trainer, 220 + 20 * second)
            else:
                trainer.report("warning", message=f"slow at {second}")

        yield Training(trainers.site, trainer.run_id, advance)
        return
    site: Site = request.getfixturevalue("crowded_training")
    settings = {
        "hyperparameters": {"epochs": 10_000, "batchSize": 16},
        "validation": {"every": {"steps": 50}, "maxSamples": 8},
        "checkpoint": {"every": {"steps": 100}},
    }
    blocks = [
        {"block": "vi-dataset", "settings": {"datasetId": "digits", "maxSamples": 64}},
        {"block": "vi-model", "settings": settings},
    ]
    with site.client() as client:
        client.runs.kill(filter={"condition": "Pending"})
        run_id = client.runs.create({"name": "real", "blocks": blocks}).run_id
        eventually(
            lambda: [point for point in client.runs.metrics(run_id) if point.step >= 100],
            timeout_s=WAIT_MS / 1000,
            what="the training takes steps",
        )
        yield Training(site, run_id, lambda second: None)
        client.runs.delete(run_id)


WATCH_SHIFT = """() => {
  [window.shift, window.moved] = [0, []];
  new PerformanceObserver((list) => {
    for (const { value, sources } of list.getEntries()) {
      window.shift += value;
      for (const { node, previousRect, currentRect } of sources) {
        const text = (node?.outerHTML ?? node?.textContent ?? "").slice(0, 100);
        window.moved.push([text, JSON.stringify(previousRect), JSON.stringify(currentRect)]);
      }
    }
  }).observe({ type: "layout-shift" });
}"""


def test_nothing_moves_while_a_run_trains(page_of: PageOf, training: Training) -> None:
    site, base = training.site, f"/ui/runs/{training.run_id}"
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 500}}
    rows, open_dialog, reading = (
        page_of(site, path, **options) for path in ("/ui/runs", base, base)
    )
    # So tall that all of a page is in view.
    options["viewport"] = {"width": 1280, "height": 2400}
    whole = page_of(site, base, **options)
    watched = (rows, open_dialog, reading, whole)
    for page in watched:
        wait_until_quiet(page)
    box = rows.locator("#rows input[name=run]").nth(12)
    box.check()
    rows.locator("#rows .c-name a").nth(11).focus()
    open_dialog.get_by_role("button", name="Kill…").click()
    open_dialog.get_by_label("Seconds to save and stop").fill("17")
    last_step = "() => document.querySelector('ry-chart').curves[0]?.series.step.at(-1)"
    for page in (open_dialog, reading):
        page.wait_for_function(last_step)
    reading.evaluate(
        """() => {
          scrollTo(0, 220);
          document.querySelector("select[name=y]").focus({ preventScroll: true });
          getSelection().selectAllChildren(document.querySelector("#checkpoints h2"));
        }"""
    )
    state = """() => ({
      scroll: scrollY,
      focused: document.activeElement?.outerHTML.slice(0, 60) ?? "",
      selected: getSelection().toString().slice(0, 40),
      dialogs: document.querySelectorAll("dialog[open]").length,
    })"""
    pages = (rows, open_dialog, reading)
    before = [page.evaluate(state) for page in pages]
    assert before[0]["scroll"] > 0 and before[2]["selected"] and before[1]["dialogs"] == 1
    begun = reading.evaluate(last_step)
    for page in watched:
        page.evaluate(WATCH_SHIFT)
    for second in range(WATCHED_S):
        training.advance(second)
        reading.wait_for_timeout(1000)
    eventually(lambda: reading.evaluate(last_step) > begun, timeout_s=10, what="the curve grows")
    assert [page.evaluate(state) for page in pages] == before
    expect(box).to_be_checked()
    expect(open_dialog.get_by_label("Seconds to save and stop")).to_have_value("17")
    for page in watched:
        assert page.evaluate("() => window.shift") <= 0.001, page.evaluate("() => window.moved")


def read_view(page: Page) -> list[str]:
    """Return what a list of runs shows, without what passes with time."""
    wait_until_quiet(page)
    expect(page.locator("#rows tr").first).to_be_visible()
    return [
        *page.locator("th").all_inner_texts(),
        *page.locator("#rows .c-name").all_inner_texts(),
        page.locator("#q").input_value(),
    ]


def test_back_and_a_copied_address_show_the_same_view(
    page_of: PageOf, crowded: Site, rich: FakeTrainer
) -> None:
    page = page_of(crowded, "/ui/runs", viewport=DESKTOP)
    page.locator("#chip-failed").click()
    expect(page).to_have_url(re.compile("Failed"))
    page.locator("th a", has_text="Took").click()
    expect(page).to_have_url(re.compile("sort="))
    for _ in range(2):
        address = page.url
        page.locator(".pager a[rel=next]").click()
        expect(page).not_to_have_url(address)
    view, address = read_view(page), page.url
    assert len(address) <= 2000
    page.locator("#rows .c-name a").nth(3).click()
    page.get_by_role("link", name="Log", exact=True).click()
    expect(page).to_have_url(re.compile("/log"))
    for _ in range(2):
        wait_until_quiet(page)  # a page that the browser kept reloads itself
        page.go_back()
    expect(page).to_have_url(address)
    assert read_view(page) == view
    other = page_of(crowded, address.removeprefix(crowded.endpoint), viewport=DESKTOP)
    assert read_view(other) == view

    other.goto(f"{crowded.endpoint}/ui/runs/{rich.run_id}?x=epoch&smooth=0.9&y=log&from=1&to=2")
    expect(other.locator("select[name=x]")).to_have_value("epoch")
    expect(other.locator("select[name=y]")).to_have_value("log")
    expect(other.get_by_label("Smooth")).to_have_value("0.9")
    expect(other.get_by_role("button", name="Reset zoom")).to_be_enabled()
    other.get_by_role("link", name="Timeline").click()
    expect(other).to_have_url(re.compile("/timeline"))
    other.go_back()
    expect(other.locator("select[name=x]")).to_have_value("epoch")


def test_a_restart_keeps_dialogs_texts_and_selections(
    page_of: PageOf, trainers: Trainers, console: Console
) -> None:
    trainer = trainers.start("before the restart")
    site = trainers.site
    run = page_of(site, f"/ui/runs/{trainer.run_id}")
    rows = page_of(site, f"/ui/runs?q=id:{trainer.run_id}")
    for page in (run, rows):
        wait_until_quiet(page)
    run.get_by_role("button", name="Kill…").click()
    run.get_by_label("Seconds to save and stop").fill("17")
    rows.locator("#rows input[name=run]").check()
    rows.get_by_role("button", name="Tag…").click()
    rows.get_by_label("Key", exact=True).fill("half a na")
    console.expect("ERR_|Failed to load resource|Failed to fetch")
    port = site.stop()
    for page in (run, rows):
        expect(page.locator("#live-text")).to_contain_text("not live · last")
    site.start(port)
    trainers.client.runs.update(trainer.run_id, name="after the restart")
    expect(run.locator("h1")).to_have_text("after the restart")
    expect(rows.locator(f"#run-{trainer.run_id}")).to_contain_text("after the restart")
    for page in (run, rows):
        expect(page.locator("#live-text")).to_have_text("live")
    expect(run.locator("#kill")).to_be_visible()
    expect(run.get_by_label("Seconds to save and stop")).to_have_value("17")
    expect(rows.get_by_label("Key", exact=True)).to_have_value("half a na")
    expect(rows.locator("#rows input[name=run]")).to_be_checked()
    rows.get_by_role("button", name="Tag 1 run").click()
    expect(rows.locator("#action")).to_contain_text("1 run")
    run.get_by_role("button", name="Kill it").click()
    expect(run.locator("#run-head")).to_contain_text("waiting for processes to exit")
    tags = trainers.client.runs.get(trainer.run_id).metadata.attributes
    assert tags == {"half a na": ""}


def test_half_the_width_of_a_screen_is_enough(
    page_of: PageOf, crowded: Site, rich: FakeTrainer
) -> None:
    """As with a zoom of 200 % on a screen of 1,280 x 900."""
    page = page_of(
        crowded,
        viewport={"width": 640, "height": 450},
        device_scale_factor=2,
        reduced_motion="reduce",
    )
    for path in ("", "/new", *RUN_PARTS):
        page.goto(f"{crowded.endpoint}/ui/runs{path.format(run=rich.run_id)}")
        expect(page.locator("#live-text")).to_have_text("live")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 640, path
        if IS_LONG or not path:
            assert find_violations(page) == [], path


CONTROLS = """() => {
  const all = document.querySelectorAll("a[href], button, input, select, textarea, summary");
  const isControl = (one) => !one.disabled && one.tabIndex >= 0 && one.type !== "hidden"
    && one.checkVisibility({ visibilityProperty: true });
  const controls = [...all].filter(isControl);
  controls.forEach((one, index) => (one.dataset.control = index));
  window.reached = new Set();
  window.unmarked = new Set();
  addEventListener("focusin", ({ target }) => {
    if (target.dataset.control === undefined) return;
    window.reached.add(target.dataset.control);
    const { outlineStyle, boxShadow } = getComputedStyle(target);
    if (outlineStyle === "none" && boxShadow === "none") {
      window.unmarked.add(target.outerHTML.slice(0, 200));
    }
  });
  return controls.map((one) => one.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize("tab", SCREENS)
def test_every_control_is_reached_by_keyboard(
    page_of: PageOf, trainers: Trainers, tab: str
) -> None:
    trainer = fill_run(trainers)
    paths = {"list": f"?q=id:{trainer.run_id}", "new": "/new"}
    page = page_of(trainers.site, f"/ui/runs{paths.get(tab, f'/{trainer.run_id}{tab}')}")
    wait_until_quiet(page)
    controls = page.evaluate(CONTROLS)
    assert len(controls) > 5
    for _ in range(2 * len(controls) + 20):
        page.keyboard.press("Tab")
        if page.evaluate("() => window.reached.size") >= len(controls):
            break
    # A group of radio buttons is one stop. A chart that is scrolled into view may turn out empty.
    missed = """() => [...document.querySelectorAll("[data-control]:not([type=radio])")]
      .filter((one) => one.checkVisibility() && !window.reached.has(one.dataset.control))
      .map((one) => one.outerHTML)"""
    assert page.evaluate(missed) == []
    assert page.evaluate("() => [...window.unmarked]") == []


def test_times_are_exact_on_hover_and_ids_are_copied(
    page_of: PageOf, crowded: Site, rich: FakeTrainer
) -> None:
    page = page_of(
        crowded,
        f"/ui/runs?q=id:{rich.run_id}",
        permissions=["clipboard-read", "clipboard-write"],
        viewport=DESKTOP,
    )
    for path in ("", "/timeline", "/files"):
        if path or "?" not in page.url:
            page.goto(f"{crowded.endpoint}/ui/runs/{rich.run_id}{path}")
        times = page.locator("time").evaluate_all(
            "(all) => all.map((one) => [one.title, one.getAttribute('datetime')])"
        )
        assert times and all(re.search(r"\d\d:\d\d:\d\d", title) for title, _ in times), path
        assert all(moment.endswith("Z") or "+" in moment for _, moment in times), path
        page.locator(f"[data-copy='{rich.run_id}']").first.click()
        expect(page.locator("#toasts")).to_contain_text("Copied.")
        assert page.evaluate("() => navigator.clipboard.readText()") == rich.run_id


def test_every_action_is_offered_as_python_and_as_command(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = fill_run(trainers)
    page = page_of(trainers.site, f"/ui/runs/{trainer.run_id}")
    for name in ("Kill…", "Delete…", "Rename the run", "Edit tags"):
        page.get_by_role("button", name=name).click()
        check_commands(page, "dialog[open] pre", trainer.run_id, name)
        page.keyboard.press("Escape")
    for how in ("again", "branch", "resume"):
        page.goto(f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}/start?how={how}")
        check_commands(page, "#preview pre", trainer.run_id, how)
    page.goto(f"{trainers.site.endpoint}/ui/runs?q=id:{trainer.run_id}")
    page.locator("#all-rows").check()
    for name in ("Kill…", "Tag…", "Delete…"):
        page.get_by_role("button", name=name).click()
        check_commands(page, "#action code", trainer.run_id, name)
        page.keyboard.press("Escape")


def check_commands(page: Page, selector: str, run_id: str, action: str) -> None:
    expect(page.locator(selector)).to_have_count(2)
    python, command = page.locator(selector).all_text_contents()
    assert run_id in python and "client." in python, action
    assert run_id in command and command.startswith("runyard "), action


RECORD = """
  delete window.SharedWorker;  // the tab then holds the connection itself
  window.streams = [];
  const EventSource = window.EventSource;
  window.EventSource = class extends EventSource {
    constructor(...all) { super(...all); window.streams.push(this); }
  };
  const wait = window.setTimeout;
  window.setTimeout = (run, ms, ...all) => wait(run, ms === 1500 ? 10 : ms, ...all);
  window.heard = [];
  document.addEventListener("live", ({ detail }) => window.heard.push(
    detail.kind === "change" ? detail.change.number : detail.kind));
"""


def test_a_page_that_reconnects_has_every_event_once(
    page_of: PageOf, trainers: Trainers, console: Console
) -> None:
    """What a connection has missed is fetched again by the next one."""
    console.expect("ERR_|favicon")
    trainer = trainers.start()
    site, path = trainers.site, f"/ui/runs/{trainer.run_id}"
    page = page_of(site, EMPTY)
    page.context.add_init_script(RECORD)
    page.goto(f"{site.endpoint}{path}")
    expect(page.locator("#live-text")).to_have_text("live")
    first = int(page.locator("body").get_attribute("data-event") or "")
    head = page.locator("h1")
    for number in range(RECONNECTS):
        trainers.client.runs.update(trainer.run_id, name=f"first {number}")
        if number % 3:
            expect(head).to_have_text(f"first {number}")
        page.evaluate("() => streams.at(-1).dispatchEvent(new Event('error'))")
        trainers.client.runs.update(trainer.run_id, name=f"second {number}")
        page.wait_for_function("(count) => streams.length > count", arg=number + 1)
        report_steps(trainer, 1 + number, 1 + number)
        trainers.client.runs.update(trainer.run_id, name=f"third {number}")
        expect(head).to_have_text(f"third {number}")
    eventually(
        lambda: page.evaluate(CURVE, "loss")["columns"][0][-1] == RECONNECTS,
        timeout_s=10,
        what="the curve has the last step",
    )
    heard = page.evaluate("() => heard")
    numbers = [each for each in heard if isinstance(each, int)]
    assert numbers == sorted(set(numbers)), "events came twice or out of order"
    assert heard.count("all") >= RECONNECTS
    last = first
    for each in heard:
        if each == "all":
            last = -1  # everything is fetched
        elif each != "hint":
            assert last in (-1, each - 1), f"{each} follows {last}, and nothing was fetched again"
            last = each
    page.reload()
    expect(head).to_have_text(f"third {RECONNECTS - 1}")
