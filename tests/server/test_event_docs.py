"""The commands and programs of docs/events.md, against a real server process."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import vi
from tests.server.processes import ServerProcess, running_server
from tests.support.howtos import PYTHON, REPOSITORY, read_blocks
from tests.support.waiting import eventually

PAGE = REPOSITORY / "docs/events.md"
TIMEOUT_S = 60.0
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("events") / "data") as server:
        yield server


def connect(process: ServerProcess) -> vi.Client:
    return vi.Client(process.key, process.org, endpoint=f"http://{process.host}:{process.port}/")


def find_block(start: str) -> str:
    """Return the only block of the page that contains a text."""
    [found] = [block.text for block in read_blocks(PAGE) if start in block.text]
    return found


def build_environ(process: ServerProcess) -> dict[str, str]:
    endpoint = f"http://{process.host}:{process.port}"
    return {"PATH": "/usr/bin:/bin", "KEY": process.key, "ORG": process.org, "ENDPOINT": endpoint}


@needs_curl
def test_the_request_for_a_page_has_the_fields_that_the_docs_show(process: ServerProcess) -> None:
    command = find_block("wait=30")
    answer = subprocess.run(
        ["/bin/sh", "-c", command],
        env=build_environ(process),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    shown = json.loads(find_block('"reset": false'))
    assert json.loads(answer.stdout).keys() == shown.keys()


@needs_curl
def test_the_request_for_a_stream_prints_server_sent_events(process: ServerProcess) -> None:
    command = find_block("curl -N").replace("after=1204", "after=0")
    run_id = "streamed"
    with connect(process) as client:
        client.runs.create({}, run_id=run_id)
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        env=build_environ(process),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as curl:
        assert curl.stdout is not None
        assert read_until(curl.stdout, run_id).startswith("data: ")
        curl.kill()


@pytest.mark.parametrize("start", ["client.events.iterate", "client.runs.watch"])
def test_the_programs_print_each_event(process: ServerProcess, start: str, tmp_path: Path) -> None:
    [block] = [
        block
        for block in read_blocks(PAGE)
        if block.language == PYTHON and block.text.find(start) >= 0
    ]
    given = [process.key, process.org, f"http://{process.host}:{process.port}/"]
    program = tmp_path / "program.py"
    program.write_text(
        f"import vi\nclient = vi.Client({given[0]!r}, {given[1]!r}, endpoint={given[2]!r})\n"
        "last_number = 0\nprint('ready', flush=True)\n" + block.text.replace("...", "break")
    )
    with connect(process) as client:
        client.runs.create({}, run_id="my-run")
        with subprocess.Popen([sys.executable, "-u", program], stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            read_until(running.stdout, "ready")
            if start == "client.events.iterate":
                # The program has no event to print until it has asked once for the newest number.
                made = 0

                def has_printed() -> bool:
                    nonlocal made
                    made += 1
                    client.runs.create({}, run_id=f"seen-{made}")
                    return made > 3

                eventually(has_printed, timeout_s=TIMEOUT_S, what="runs are created")
                assert " run seen-" in read_until(running.stdout, " created ")
            else:
                read_until(running.stdout, "None")
                client.runs.kill("my-run")
                read_until(running.stdout, "KilledByUser")
            running.kill()


def read_until(stream: IO[bytes], word: str) -> str:
    """Return the first line with a word; fail at the end of the stream."""
    for line in stream:
        if word.encode() in line:
            return line.decode()
    raise AssertionError(f"the output ended without {word!r}")
