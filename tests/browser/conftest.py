"""Chromium, a server in its own process, and pages that fail a test on any error in their console.

One browser and one server serve all tests of this folder. They are not kept for the whole session:
Playwright's synchronous API occupies the event loop of its thread, which other tests need. Without
Chromium these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

import vi
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or ""
SKIPPED = "needs Chromium: apt-get install chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_TIMEOUT_S, END_TIMEOUT_S = 30, 20
PAGE_TIMEOUT_MS = 10_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/browser/"):
            item.add_marker(pytest.mark.browser)
            if not CHROMIUM:
                item.add_marker(pytest.mark.skip(reason=SKIPPED))


@dataclass
class Site:
    """A server, alone or with a controller, and the key of its admin.

    Its process can be stopped and started again.
    """

    data_dir: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    cookies: list[dict[str, Any]] = field(default_factory=list)
    program: tuple[str, ...] = ("runyard.server",)  # module and arguments

    @property
    def log(self) -> Path:
        return self.data_dir.parent / "server.log"

    @property
    def credentials(self) -> dict[str, str]:
        document: dict[str, str] = json.loads((self.data_dir / "credentials.json").read_text())
        return document

    @property
    def endpoint(self) -> str:
        return self.credentials["endpoint"].rstrip("/")

    @property
    def org(self) -> str:
        return self.credentials["organization_id"]

    @property
    def key(self) -> str:
        return self.credentials["secret_key"]

    def client(self) -> vi.Client:
        return vi.Client(
            secret_key=self.key, organization_id=self.org, endpoint=f"{self.endpoint}/"
        )

    def start(self, port: int = 0) -> None:
        """Start the server, and wait until it answers."""
        environ = {**self.environ, "RUNYARD_PORT": str(port)}
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", *self.program, "--end-with-stdin"],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        server_file = self.data_dir / "server.json"
        process = self.process

        def is_up() -> bool:
            assert process.poll() is None, self.log.read_text()
            return server_file.exists()

        eventually(is_up, timeout_s=START_TIMEOUT_S, what="the server is up")

    def stop(self) -> int:
        """Stop the server; return its port, to start it there again."""
        assert self.process is not None
        port = int(self.endpoint.rpartition(":")[2])
        self.process.terminate()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(END_TIMEOUT_S)
        self.process = None
        return port


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser, one for all tests."""
    if not CHROMIUM:
        pytest.skip(SKIPPED)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server without a controller: its runs stay Pending."""
    data_dir = tmp_path_factory.mktemp("site") / "data"
    site = Site(data_dir, {**os.environ, "RUNYARD_DATA_DIR": str(data_dir)})
    site.start()
    yield site
    if site.process is not None:
        site.stop()


@dataclass
class Console:
    """What pages wrote to their console as errors, and what a test expects of that."""

    errors: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Accept errors that match a regular expression."""
        self.expected.append(pattern)

    def watch(self, page: Page) -> None:
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        self._note(message.type, f"{message.text} {message.location['url']}".strip())

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" or "Content Security Policy" in text:
            self.errors.append(text)

    def list_unexpected(self) -> list[str]:
        return [
            error
            for error in self.errors
            if not any(re.search(pattern, error) for pattern in self.expected)
        ]


@pytest.fixture
def console() -> Iterator[Console]:
    """Errors and policy violations in the pages of a test; unexpected ones fail it."""
    console = Console()
    yield console
    assert not console.list_unexpected()


PageOf = Callable[..., Page]


@pytest.fixture
def page_of(chromium: Browser, console: Console) -> Iterator[PageOf]:
    """Return a function that opens a page of a site, signed in, in a browser context of its own.

    ``page_of(site, "/ui/runs", viewport={...}, color_scheme="dark")``; further arguments are those
    of Playwright's ``new_context``.
    """
    with ExitStack() as ends:

        def open_page(
            site: Site, path: str = "/ui/runs", *, is_signed_in: bool = True, **options: Any
        ) -> Page:
            context = chromium.new_context(**options)
            context.set_default_timeout(PAGE_TIMEOUT_MS)
            ends.callback(context.close)
            if is_signed_in:
                _sign_in(context, site)
            page = context.new_page()
            console.watch(page)
            page.goto(f"{site.endpoint}{path}")
            return page

        yield open_page


def find_violations(page: Page) -> list[str]:
    """Return what axe finds on a page, of any level."""
    if not AXE.exists():
        pytest.skip("needs axe-core: run scripts/assets")
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{item['id']} ({item['impact']}): {node['target']} {node['failureSummary']}"
        for item in found["violations"]
        for node in item["nodes"]
    ]


@pytest.fixture
def signed_in_page(page_of: PageOf, site: Site) -> Page:
    """A page of the site that shows the runs."""
    return page_of(site)


def _sign_in(context: Any, site: Site) -> None:
    """Give a context the cookie of a session; one session serves all tests of a site."""
    if not site.cookies:
        response = context.request.post(
            f"{site.endpoint}/ui/sessions",
            data={"key": site.key},
            headers={"origin": site.endpoint},
        )
        assert response.status == 201, response.text()
        site.cookies = context.cookies()
    else:
        context.add_cookies(site.cookies)
