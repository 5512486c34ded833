"""The frame of all pages: live state, theme, layout, accessibility."""

import json
import re
import time
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Console, PageOf, Site, find_violations
from tests.support.waiting import eventually

PAGES = ("/ui/enter?stay", "/ui/runs/new", "/ui/runs/none")
STREAM = '"/ui/stream"'  # in a line of the server's log
WIDTHS = (360, 768, 1440)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_accessibility_violation_and_no_sideways_scrolling(
    page_of: PageOf, site: Site, console: Console, path: str
) -> None:
    console.expect("status of 404")
    page = page_of(site, path, is_signed_in="enter" not in path)
    if "new" in path:
        expect(page.locator("#verdict")).to_contain_text("No problems")
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if width != 768:  # its layout is that of 1,440
                assert find_violations(page) == [], (theme, width)
            overflow = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, (path, width)


def test_the_whole_form_has_no_accessibility_violation(page_of: PageOf, site: Site) -> None:
    page = page_of(site, "/ui/runs/new", viewport={"width": 360, "height": 900})
    expect(page.locator("#verdict")).to_contain_text("No problems")
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert find_violations(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_theme_is_kept(signed_in_page: Page) -> None:
    page = signed_in_page
    page.emulate_media(color_scheme="light")
    background = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Switch between light and dark").click()
    dark = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == dark


def test_ten_tabs_share_one_connection(page_of: PageOf, site: Site) -> None:
    begun_ms = time.time() * 1000
    first = page_of(site)
    tabs = [first, *(first.context.new_page() for _ in range(9))]
    for tab in tabs[1:]:
        tab.goto(f"{site.endpoint}/ui/runs")
    for tab in tabs:
        expect(tab.locator("#live-text")).to_have_text("live")
        tab.evaluate("() => document.addEventListener('live', () => (document.title = 'heard'))")
    with site.client() as client:
        client.flows.create({"name": "x", "schema": "v1", "blocks": []})
    for tab in tabs:
        # Those in the background notice it when they are shown.
        tab.bring_to_front()
        expect(tab).to_have_title("heard")
    first.context.close()

    def count_streams() -> int:
        """Return how many have begun here and ended, which is when they are logged."""
        found = [json.loads(line) for line in site.log.read_text().splitlines() if STREAM in line]
        return sum(line["time"] - line["ms"] >= begun_ms for line in found)

    eventually(count_streams, timeout_s=10, what="the stream ends with its tabs")
    assert count_streams() == 1


def test_a_restart_of_the_server_is_shown_and_survived(
    page_of: PageOf, site: Site, console: Console
) -> None:
    page = page_of(site, "/ui/runs/new")
    expect(page.locator("#live-text")).to_have_text("live")
    page.get_by_label("Name of the run").fill("typed before the restart")
    console.expect("ERR_|Failed to load resource")
    port = site.stop()
    expect(page.locator("#live-text")).to_contain_text("not live · last", timeout=2000)
    site.start(port)
    expect(page.locator("#live-text")).to_have_text("live")
    expect(page.get_by_label("Name of the run")).to_have_value("typed before the restart")


def test_a_page_of_an_older_version_offers_to_reload(page_of: PageOf, site: Site) -> None:
    page = page_of(site, "/ui/runs/new")

    def pretend(route: Any) -> None:
        response = route.fetch()
        body = re.sub(r"/ui/static/[0-9a-f]+/", "/ui/static/000000000000/", response.text())
        route.fulfill(response=response, body=body)

    page.route("**/ui/runs", pretend)
    page.goto(f"{site.endpoint}/ui/runs")
    expect(page.locator("#toasts")).to_contain_text("is running now")
