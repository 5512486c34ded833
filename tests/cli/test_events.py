"""``runyard events`` against a separate server."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vi
from tests.server.processes import ServerProcess, running_server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("events") / "data") as server:
        yield server


def test_events_are_listed_selected_and_followed(server: ServerProcess, runyard: Any) -> None:
    """One test, since each start of a server takes seconds."""
    data_dir = server.log_file.parent
    where = ("--data-dir", str(data_dir))
    with vi.Client(config_file=data_dir / "credentials.json") as client:
        client.runs.create({"name": "x"}, run_id="r1")
        client.flows.create({"name": "x"}, flow_id="f1")
        client.runs.update("r1", metadata={"owner": "kim\x1b[31m"})
        listed = runyard("events", *where)
        assert listed.exit_code == 0, listed.output
        lines = listed.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["1", "2", "3"]
        assert "run r1  created  Pending Queued" in lines[0]
        assert "flow f1  created" in lines[1]
        assert "changed attributes" in lines[2]
        assert "\x1b" not in listed.stdout

        last = runyard("events", "--last", "1", "--json", *where)
        assert [json.loads(line)["number"] for line in last.stdout.splitlines()] == [3]
        of_run = runyard("events", "--run", "r1", *where)
        assert [line.split()[0] for line in of_run.stdout.splitlines()] == ["1", "3"]
        of_kind = runyard("events", "--kind", "flow", "--after", "0", *where)
        assert [line.split()[0] for line in of_kind.stdout.splitlines()] == ["2"]
        assert runyard("events", "--after", "9999", *where).stdout.count("are lost") == 1
        assert runyard("events", "--last", "1", "--after", "1", *where).exit_code == 2

        command = [sys.executable, "-m", "runyard.cli", "events", "--follow", "--after", "2"]
        with subprocess.Popen(
            [*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as following:
            assert following.stdout is not None
            assert following.stdout.readline().split()[0] == "3"
            client.runs.delete("r1")
            while "deleted" not in following.stdout.readline():
                pass
            following.send_signal(signal.SIGINT)
            assert following.wait(30) == 130
            assert following.stderr is not None
            assert following.stderr.read() == "Interrupted.\n"


def test_the_server_is_not_asked_for_what_makes_no_sense(runyard: Any, tmp_path: Path) -> None:
    for wrong in (("--kind", "key"), ("--last", "5000"), ("--run", "r", "--last", "1")):
        assert runyard("events", *wrong, "--data-dir", str(tmp_path)).exit_code == 2, wrong
