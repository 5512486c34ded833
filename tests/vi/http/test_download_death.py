"""A download outlives the process that began it."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vi._http import Http
from vi._http.transfer._sync import download

BEGIN = """
import sys
from pathlib import Path
from vi._http import Http
from vi._http.transfer._sync import download
endpoint, url, target, size, sha256 = sys.argv[1:]
download(Http(endpoint), url, Path(target), size_bytes=int(size), sha256=sha256, on_progress=lambda arrived: None)
"""


def test_a_killed_process_leaves_a_part_that_the_next_one_goes_on_from(byte_server: Any, tmp_path: Path) -> None:
    target, part = tmp_path / "model.tar", tmp_path / "model.tar.part"
    size, half = len(byte_server.content), len(byte_server.content) // 2
    byte_server.faults = ["hold"]
    arguments = [byte_server.endpoint, byte_server.url, str(target), str(size), byte_server.sha256]
    with subprocess.Popen([sys.executable, "-c", BEGIN, *arguments]) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size > half // 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    arrived = part.stat().st_size
    assert 0 < arrived <= half
    assert not target.exists()
    http = Http(byte_server.endpoint)
    download(
        http, byte_server.url, target, size_bytes=size, sha256=byte_server.sha256, on_progress=lambda arrived: None
    )
    http.close()
    assert byte_server.ranges == ["bytes=0-", f"bytes={arrived}-"]
    assert target.read_bytes() == byte_server.content
