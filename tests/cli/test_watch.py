"""``runyard runs watch`` and ``runyard top`` in a real terminal, against a real server."""

import json
import os
import subprocess
import sys
import uuid

import pytest

from tests.support.commands import Runyard
from tests.support.instance import Instance, LongRuns
from tests.support.terminal import open_terminal
from vi import Client
from vi.api.resources.runs.responses import Run


def test_a_run_is_watched_killed_after_a_question_and_reported(
    instance: Instance, long_runs: LongRuns
) -> None:
    run_id = long_runs.running().run_id
    with open_terminal(
        "runs", "watch", run_id, "--exit-status", environ=instance.environ
    ) as terminal:
        terminal.expect("Running", run_id, "q leave")
        terminal.expect("loss", "│")
        terminal.resize(80, 20)
        terminal.press("k")
        terminal.expect(f"kill run {run_id}?")
        terminal.press("n")
        terminal.expect("not killed")
        terminal.press("k")
        terminal.expect("y/N")
        terminal.press("y")
        terminal.expect("Cancelled after")
        assert terminal.finish() == 12
        assert terminal.raw.rstrip().rpartition(b"\x1b[?1049l")[1]  # the screen was restored


def test_leaving_the_view_does_not_touch_the_run(
    instance: Instance, client: Client, long_runs: LongRuns
) -> None:
    run_id = long_runs.pending().run_id
    for key, exit_code in (("q", 0), ("\x03", 130)):
        with open_terminal("runs", "watch", run_id, environ=instance.environ) as terminal:
            terminal.expect("Pending", "q leave")
            terminal.press(key)
            assert terminal.finish() == exit_code
    assert client.runs.get(run_id).spec.killed_at is None


def test_all_runs_are_shown_one_is_opened_and_another_killed(
    instance: Instance, client: Client, long_runs: LongRuns
) -> None:
    running, pending = long_runs.running().run_id, long_runs.pending().run_id
    with open_terminal("top", environ=instance.environ, columns=200) as terminal:
        terminal.expect("1 running", running, pending, "x kill")
        terminal.press("\r")
        terminal.expect("m next metric")
        terminal.press("q")
        terminal.expect("x kill")
        terminal.press("\x1b[B")
        terminal.press("x")
        terminal.expect(f"kill run {pending}?")
        terminal.press("y")
        terminal.expect("kill requested", "0 waiting")
        terminal.press("q")
        assert terminal.finish() == 0
    condition = client.runs.get(pending).condition
    assert condition is not None and condition.value == "Cancelled"


def test_without_a_terminal_the_log_and_the_state_are_lines(
    runyard: Runyard, instance: Instance, finished_run: Run
) -> None:
    data_dir = str(instance.data_dir)
    result = runyard("runs", "watch", finished_run.run_id, "--exit-status", "--data-dir", data_dir)
    assert result.exit_code == 0
    assert "Succeeded" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout
    listed = runyard("top", "--once", "--data-dir", data_dir)
    assert "running" in listed.stdout and "MACHINE" in listed.stdout


def test_with_json_each_change_is_one_document(
    runyard: Runyard, instance: Instance, finished_run: Run
) -> None:
    data_dir = str(instance.data_dir)
    result = runyard("runs", "watch", finished_run.run_id, "--json", "--data-dir", data_dir)
    assert [json.loads(line)["runId"] for line in result.stdout.splitlines()] == [
        finished_run.run_id
    ]
    listed = runyard("top", "--once", "--json", "--data-dir", data_dir)
    assert set(json.loads(listed.stdout)) == {"time", "items", "usage"}


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_watching_a_run_that_does_not_exist_is_not_found(
    runyard: Runyard, instance: Instance, arguments: list[str]
) -> None:
    missing = str(uuid.uuid4())
    result = runyard("runs", "watch", missing, *arguments, "--data-dir", str(instance.data_dir))
    assert result.exit_code == 4
    assert missing in result.stderr


def test_a_dumb_terminal_gets_lines(instance: Instance, finished_run: Run) -> None:
    environ = {**os.environ, **instance.environ, "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "runyard.cli", "runs", "watch", finished_run.run_id],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Succeeded" in done.stdout
