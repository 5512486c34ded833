"""From ``runyard up`` to the receipt of a deleted run, as a new user goes, with a real training."""

import re
from pathlib import Path

from playwright.sync_api import Browser, expect

from runyard.processes import ATTEMPT_MARK, find_marked
from tests.browser.conftest import PAGE_TIMEOUT_MS, Console
from tests.support.first_run import REAL_TIMEOUT_MS, fill_form, start_instance, wait_for_curve


def test_a_new_user_starts_watches_kills_and_deletes_a_run(
    chromium: Browser, console: Console, tmp_path: Path
) -> None:
    context = chromium.new_context()
    context.set_default_timeout(PAGE_TIMEOUT_MS)
    with start_instance(tmp_path) as instance:
        page = context.new_page()
        console.watch(page)
        page.goto(instance.link)
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        assert "#" not in page.url

        # Few samples: an evaluation comes soon. Many epochs: it still trains when it is killed.
        page.get_by_role("link", name="New run").first.click()
        fill_form(page, "my first run", epochs=10_000, samples=64)
        page.get_by_role("button", name="Start run").click()
        expect(page).to_have_url(re.compile(r"/ui/runs/[0-9a-f]{32}$"))
        address, run_id = page.url, page.url.rpartition("/")[2]
        expect(page.locator("h1")).to_have_text("my first run")

        first = wait_for_curve(page, "loss", points=3)
        later = wait_for_curve(page, "loss", points=len(first) + 5)
        assert later[: len(first)] == first
        expect(page.locator("#now .answers")).to_be_visible(timeout=REAL_TIMEOUT_MS)
        page.get_by_role("link", name="Predictions", exact=True).click()
        expect(page.locator("[data-tile]").first).to_be_visible()
        expect(page.locator(".answers")).to_contain_text("Truth")

        # Nothing is loaded again from here to the receipt.
        page.goto(address)
        page.evaluate("() => { window.isSamePage = true; }")
        head = page.locator("#run-head")
        expect(head.locator(".facts")).to_contain_text("±", timeout=REAL_TIMEOUT_MS)
        expect(page.locator("#checkpoints")).to_contain_text("epoch-", timeout=REAL_TIMEOUT_MS)
        page.get_by_role("button", name="Kill…").click()
        page.get_by_role("button", name="Kill it").click()
        expect(head.locator(".badge")).to_contain_text("Cancelled", timeout=REAL_TIMEOUT_MS)
        expect(head).to_contain_text("No process of this run is left.")
        assert find_marked(ATTEMPT_MARK, lambda mark: f"/{run_id}/" in mark) == []
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("button", name="Delete it").click()
        receipt = page.locator(".receipt")
        expect(receipt).to_contain_text("my first run")
        expect(receipt).to_contain_text("no row, no file and no process of it is left")
        assert page.evaluate("() => window.isSamePage")
        page.get_by_role("link", name="Go to the runs").click()
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        context.close()
