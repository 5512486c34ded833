"""Pages of a server with TLS: the printed link signs in, and the live list follows changes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

import vi
from runyard.cli.resources.sessions import create_link
from tests.browser.conftest import PageOf, Site
from tests.support.certificates import make_certificate


@pytest.fixture
def secure_site(tmp_path: Path) -> Iterator[Site]:
    """A server with a certificate for localhost, which the browser does not know."""
    pair = make_certificate(tmp_path, names="DNS:localhost")
    variables = {
        "RUNYARD_DATA_DIR": str(tmp_path / "data"),
        "RUNYARD_TLS_CERT": str(pair.certificate),
        "RUNYARD_TLS_KEY": str(pair.key),
    }
    site = Site(tmp_path / "data", os.environ | variables)
    site.start()
    yield site
    site.stop()


def test_a_link_signs_in_over_tls_and_the_list_is_live(secure_site: Site, page_of: PageOf) -> None:
    with vi.Client(config_file=secure_site.data_dir / "credentials.json") as client:
        link = create_link(client)
        assert link.url.startswith("https://localhost:")
        page = page_of(secure_site, "/ui/enter", is_signed_in=False, ignore_https_errors=True)
        page.goto(link.url)
        page.wait_for_url("**/ui/runs")
        [cookie] = page.context.cookies()
        assert cookie["secure"]
        assert cookie["name"].startswith("__Host-runyard_")
        run = client.runs.create({"name": "Over TLS", "blocks": []})
        page.get_by_role("button", name="1 new").click()
        expect(page.get_by_text("Over TLS").first).to_be_visible()
        client.runs.kill(run.run_id)
        expect(page.get_by_text("Cancelled").first).to_be_visible()
