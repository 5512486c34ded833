"""A download is resumed after its process has died."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vi._http import Http
from vi._http.downloads._sync import download_file

BEGIN = """
import sys
from pathlib import Path
from vi._http import Http
from vi._http.downloads._sync import download_file
endpoint, url, target, size, sha256 = sys.argv[1:]
download_file(
    Http(endpoint), url, Path(target), size_bytes=int(size), sha256=sha256,
    on_progress=lambda arrived: None,
)
"""


def test_the_partial_file_of_a_killed_process_is_resumed(byte_server: Any, tmp_path: Path) -> None:
    target, part = tmp_path / "model.tar", tmp_path / "model.tar.part"
    size, half = len(byte_server.content), len(byte_server.content) // 2
    byte_server.faults = ["hold"]
    arguments = [byte_server.endpoint, byte_server.url, str(target), str(size), byte_server.sha256]
    with subprocess.Popen([sys.executable, "-c", BEGIN, *arguments]) as process:
        deadline = time.monotonic() + 20
        while (
            not (part.exists() and part.stat().st_size > half // 2) and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        process.kill()
    arrived = part.stat().st_size
    assert 0 < arrived <= half
    assert not target.exists()
    http = Http(byte_server.endpoint)
    download_file(
        http,
        byte_server.url,
        target,
        size_bytes=size,
        sha256=byte_server.sha256,
        on_progress=lambda arrived: None,
    )
    http.close()
    assert byte_server.ranges == ["bytes=0-", f"bytes={arrived}-"]
    assert target.read_bytes() == byte_server.content
