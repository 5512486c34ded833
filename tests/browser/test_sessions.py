"""Signing in and out in a browser."""

import json
import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Console, PageOf, Site


def open_link(site: Site, path: str = "/ui/runs") -> str:
    with site.client() as client:
        return client.sessions.create_link(path).url


def test_a_link_signs_a_browser_in_once(page_of: PageOf, site: Site, console: Console) -> None:
    link = open_link(site, "/ui/runs/new?dataset=digits-both")
    page = page_of(site, link.removeprefix(site.endpoint), is_signed_in=False)
    expect(page.get_by_role("heading", name="Start a run")).to_be_visible()
    assert page.url == f"{site.endpoint}/ui/runs/new?dataset=digits-both"
    page.go_back()
    assert "#" not in page.url  # the code is not in the history
    console.expect("status of 401")
    other = page_of(site, link.removeprefix(site.endpoint), is_signed_in=False)
    expect(other.get_by_role("alert")).to_contain_text("has been used")
    assert "#" not in other.url


def test_a_key_signs_a_browser_in_and_the_menu_signs_it_out(
    page_of: PageOf, site: Site, console: Console
) -> None:
    page = page_of(site, "/ui/runs?q=x", is_signed_in=False)
    expect(page).to_have_url(re.compile(r"/ui/enter\?next="))
    console.expect("status of 401")
    page.get_by_label("Secret key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("missing or wrong")
    page.get_by_label("Secret key").fill(site.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{site.endpoint}/ui/runs?q=x")
    cookies = page.context.cookies()
    assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]
    assert page.evaluate("() => document.cookie") == ""
    page.get_by_role("button", name="admin").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{site.endpoint}/ui/enter")
    page.goto(f"{site.endpoint}/ui/runs")
    expect(page).to_have_url(re.compile("/ui/enter"))


def test_a_signed_in_browser_goes_on_without_the_form(signed_in_page: Page, site: Site) -> None:
    signed_in_page.goto(f"{site.endpoint}/ui/enter?next=%2Fui%2Fruns%2Fnew")
    expect(signed_in_page).to_have_url(f"{site.endpoint}/ui/runs/new")


def test_the_form_to_sign_in_leads_to_no_other_site(signed_in_page: Page, site: Site) -> None:
    for target in ("https://evil.example/ui/runs", "//evil.example/ui", "/\\evil.example", "/x"):
        signed_in_page.goto(f"{site.endpoint}/ui/enter?next={target}")
        expect(signed_in_page).to_have_url(f"{site.endpoint}/ui/runs")


def test_a_revoked_session_leads_to_the_form_to_sign_in(
    page_of: PageOf, site: Site, console: Console
) -> None:
    page = page_of(site, open_link(site).removeprefix(site.endpoint), is_signed_in=False)
    expect(page.locator("#live-text")).to_have_text("live")
    console.expect("ERR_INCOMPLETE_CHUNKED_ENCODING|status of 401")
    with site.client() as client:
        newest = client.sessions.list().items[0]
        client.sessions.revoke(newest.session_id)
    expect(page).to_have_url(re.compile("/ui/enter"))


def test_a_foreign_page_reads_and_changes_nothing(
    page_of: PageOf, site: Site, console: Console
) -> None:
    """The page is on another port of the same host, so the browser sends it the cookie."""
    page = page_of(site)
    console.expect(".*")
    page.route(
        "http://127.0.0.1:9/",
        lambda route: route.fulfill(body="<title>evil</title>", content_type="text/html"),
    )
    page.goto("http://127.0.0.1:9/")
    path = f"{site.endpoint}/workspaces/{site.org}/flows/evil"
    body = json.dumps({"spec": {"name": "evil"}})
    for mode in ("no-cors", "cors"):
        outcome = page.evaluate(
            """async ([url, mode, body]) => {
              try {
                const method = mode === "cors" ? "PUT" : "POST";
                const init = { method, mode, credentials: "include", body };
                return (await fetch(url, init)).type;
              } catch (error) { return "failed"; }
            }""",
            [path, mode, body],
        )
        assert outcome in ("failed", "opaque")
    with site.client() as client:
        assert [flow.flow_id for flow in client.flows if flow.flow_id == "evil"] == []
