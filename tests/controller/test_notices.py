"""Notices of a machine's end: a file, or an address that begins to answer with success."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from runyard.controller import notices

ROOT = Path(__file__).parents[2]


class Metadata(HTTPServer):
    """A metadata service of a cloud, whose answer a test chooses."""

    status = 404


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = Metadata(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_announces_the_end_only_with_success(metadata: Metadata) -> None:
    source = f"http://127.0.0.1:{metadata.server_port}/latest/meta-data/spot/instance-action"
    for metadata.status in (404, 500, 403):
        assert not notices.is_announced(source)
    metadata.status = 200
    assert notices.is_announced(source)
    assert not notices.is_announced("http://127.0.0.1:1/unreachable")


def test_a_file_announces_the_end_once(tmp_path: Path) -> None:
    file, seen = tmp_path / "machine-ends", threading.Semaphore(0)
    stop = notices.watch(str(file), seen.release, every_s=0.01)
    assert not seen.acquire(timeout=0.1)
    file.touch()
    assert seen.acquire(timeout=10)
    assert not seen.acquire(timeout=0.1)
    stop()


def test_the_page_shows_a_file_and_an_address() -> None:
    page = (ROOT / "docs/machines.md").read_text()
    shown = [line.split()[-1] for line in page.splitlines() if "worker --notice" in line]
    assert len(shown) == 2
    assert any(source.startswith("http://") for source in shown)
    assert any(Path(source).is_absolute() for source in shown)
