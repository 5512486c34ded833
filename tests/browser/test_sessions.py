"""Signing in and out in a browser."""

from playwright.sync_api import Page, expect


def test_the_page_of_runs_is_live(signed_in_page: Page) -> None:
    expect(signed_in_page.locator("#live-text")).to_have_text("live")
