"""``runyard runs watch`` and ``runyard top`` in a real terminal, against a real server.

Nothing trains: the tests say what the trainer reports.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import vi
from tests.server.datasets import make_vqa_files
from tests.support.commands import Runyard
from tests.support.fake_trainer import FakeTrainer, claim_run
from tests.support.terminal import open_terminal
from tests.support.waiting import eventually

START_TIMEOUT_S = 60


@dataclass(frozen=True)
class LoneServer:
    """A server without a controller, in its own process."""

    data_dir: Path
    client: vi.Client

    @property
    def environ(self) -> dict[str, str]:
        return {"RUNYARD_DATA_DIR": str(self.data_dir), "HOME": str(self.data_dir.parent)}

    def train(self, name: str, *, steps: int = 50) -> FakeTrainer:
        """Start a run that has made these steps."""
        self.client.runs.create(flow={"name": name})
        trainer = claim_run(self.client.endpoint, self.data_dir)
        steps_made = range(1, steps + 1)
        for number in steps_made:
            trainer.step(number, 100, loss=2 / number, seconds_left=90.0)
        trainer.write("stdout", "epoch begins", "\x1b[2Jsmuggled")
        return trainer


@pytest.fixture(scope="module")
def lone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneServer]:
    data_dir = tmp_path_factory.mktemp("watched") / "data"
    environ = {**os.environ, "RUNYARD_DATA_DIR": str(data_dir), "RUNYARD_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "runyard.server", "--end-with-stdin"],
        env=environ,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def is_up() -> bool:
        assert process.poll() is None
        return (data_dir / "server.json").exists()

    try:
        eventually(is_up, timeout_s=START_TIMEOUT_S, what="the server is up")
        with vi.Client(config_file=data_dir / "credentials.json") as client:
            yield LoneServer(data_dir, client)
    finally:
        process.terminate()
        process.communicate(timeout=START_TIMEOUT_S)


def test_a_run_is_watched_killed_after_a_question_and_reported(lone_server: LoneServer) -> None:
    trainer = lone_server.train("shelf")
    run_id = trainer.run_id
    with open_terminal(
        "runs", "watch", run_id, "--exit-status", environ=lone_server.environ
    ) as terminal:
        terminal.expect("● Running", "shelf", "step 50/100", "1m 30s left", "loss", "│", "smuggled")
        trainer.step(51, 100, loss=0.01)
        terminal.expect("step 51/100")
        terminal.resize(80, 20)
        terminal.press("k")
        terminal.expect(f"kill run {run_id}? y/N")
        terminal.press("n")
        terminal.expect("not killed")
        terminal.press("k")
        terminal.expect("y/N")
        terminal.press("y")
        terminal.expect("kill requested")
        trainer.finish(143)
        terminal.expect("Cancelled after")
        assert terminal.finish() == 12
    assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") == 1
    assert b"\x1b[2Jsmuggled" not in terminal.raw
    trainer.close()


def test_leaving_the_view_does_not_touch_the_run(lone_server: LoneServer) -> None:
    run_id = lone_server.client.runs.create(flow={"name": "waits"}).run_id
    for key, exit_code in (("q", 0), ("\x03", 130)):
        with open_terminal("runs", "watch", run_id, environ=lone_server.environ) as terminal:
            terminal.expect("◷ Pending", "no metrics yet", "q leave")
            terminal.press(key)
            assert terminal.finish() == exit_code
    assert lone_server.client.runs.get(run_id).spec.killed_at is None
    lone_server.client.runs.delete(run_id)


def test_all_runs_are_shown_one_is_opened_and_another_killed(lone_server: LoneServer) -> None:
    trainer = lone_server.train("trains")
    pending = lone_server.client.runs.create(flow={"name": "waits"}).run_id
    with open_terminal("top", environ=lone_server.environ, columns=200) as terminal:
        terminal.expect("1 running   1 waiting", trainer.run_id, pending, "x kill", "50%")
        terminal.press("\r")
        terminal.expect("m next metric", "step 50/100")
        terminal.press("q")
        terminal.expect("x kill")
        terminal.press("\x1b[B")
        terminal.press("x")
        terminal.expect(f"kill run {pending}? y/N")
        terminal.press("y")
        terminal.expect("0 waiting")
        terminal.press("q")
        assert terminal.finish() == 0
    condition = lone_server.client.runs.get(pending).condition
    assert condition is not None and condition.value == "Cancelled"
    trainer.finish(64, outcome="Failed", reason="TrainerError", message="diverged")
    trainer.close()


@pytest.fixture
def ended_run(lone_server: LoneServer) -> str:
    trainer = lone_server.train("ended", steps=3)
    trainer.finish(64, outcome="Failed", reason="TrainerError", message="diverged")
    trainer.close()
    return trainer.run_id


def test_without_a_terminal_the_log_and_the_state_are_lines(
    runyard: Runyard, lone_server: LoneServer, ended_run: str
) -> None:
    where = ("--data-dir", str(lone_server.data_dir))
    result = runyard("runs", "watch", ended_run, "--exit-status", *where)
    assert result.exit_code == 10
    assert "epoch begins" in result.stdout.splitlines()
    assert "Failed, TrainerError" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout
    assert runyard("runs", "watch", ended_run, *where).exit_code == 0
    listed = runyard("top", "--once", *where)
    assert "running" in listed.stdout and "MACHINE" in listed.stdout


def test_with_json_each_change_is_one_document(
    runyard: Runyard, lone_server: LoneServer, ended_run: str
) -> None:
    where = ("--data-dir", str(lone_server.data_dir))
    result = runyard("runs", "watch", ended_run, "--json=id,condition", *where)
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [ended_run]
    listed = runyard("top", "--once", "--json", *where)
    assert set(json.loads(listed.stdout)) == {"time", "items", "usage"}


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_watching_a_run_that_does_not_exist_is_not_found(
    runyard: Runyard, lone_server: LoneServer, arguments: list[str]
) -> None:
    missing = str(uuid.uuid4())
    where = ("--data-dir", str(lone_server.data_dir))
    result = runyard("runs", "watch", missing, *arguments, *where)
    assert result.exit_code == 4
    assert missing in result.stderr
    assert "request " in result.stderr  # the id that the server's log names


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(
    lone_server: LoneServer, ended_run: str
) -> None:
    environ = {**lone_server.environ, "TERM": "dumb"}
    with open_terminal("runs", "watch", ended_run, environ=environ) as terminal:
        assert terminal.finish() == 0
    assert "epoch begins" in terminal.text
    assert b"\x1b[?1049h" not in terminal.raw


def test_several_runs_are_waited_for(
    runyard: Runyard, lone_server: LoneServer, ended_run: str
) -> None:
    trainer = lone_server.train("good", steps=1)
    trainer.finish(0, outcome="Succeeded", reason="Completed", message="")
    trainer.close()
    where = ("--data-dir", str(lone_server.data_dir))
    result = runyard("runs", "wait", trainer.run_id, ended_run, "-q", *where)
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [trainer.run_id, ended_run]


def test_flows_are_shown_before_they_are_deleted(runyard: Runyard, lone_server: LoneServer) -> None:
    flow = lone_server.client.flows.create({"name": "kept"})
    where = ("--data-dir", str(lone_server.data_dir))
    shown = runyard("flows", "rm", flow.flow_id, "--dry-run", *where)
    assert shown.stdout == f"would delete {flow.flow_id} kept\n"
    asked = runyard("flows", "rm", flow.flow_id, *where)
    assert asked.exit_code == 2 and "--yes" in asked.stderr
    assert lone_server.client.flows.get(flow.flow_id).flow_id == flow.flow_id
    assert runyard("flows", "rm", flow.flow_id, "--yes", *where).exit_code == 0


def test_a_run_on_own_images_says_what_the_tiny_model_sees_and_that_it_learned_nothing(
    lone_server: LoneServer, runyard: Runyard, tmp_path: Path
) -> None:
    here = ("--data-dir", str(lone_server.data_dir))
    for name, content in make_vqa_files(3).items():
        path = tmp_path / "shelves" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    imported = runyard("datasets", "import", str(tmp_path / "shelves"), *here)
    own = ("--set", f"vi-dataset.datasetId={imported.stdout.split()[-1]}")

    planned = runyard("flows", "plan", *own)
    assert "warning: tiny: images become 32 x 32" in planned.stderr
    assert "tiny: images" not in runyard("flows", "plan", "--json", *own).output
    created = runyard("runs", "create", *own, *here)
    run_id = str(uuid.UUID(created.stdout.strip()))
    assert "warning: tiny: images become 32 x 32" in created.stderr
    assert "runyard models add" in created.stderr
    repeated = runyard("runs", "create", "--json", "--run-id", run_id, *own, *here)
    [finding] = json.loads(repeated.stdout)["status"]["findings"]
    assert (finding["code"], repeated.stderr) == ("TinyImages", "")

    trainer = claim_run(lone_server.client.endpoint, lone_server.data_dir)
    suggestion = {"text": "train longer", "setting": "settings.seed", "value": 3}
    message = "nothing was learned: 0.1"
    trainer.report("finding", code="NothingLearned", message=message, suggestions=[suggestion])
    trainer.save("epoch-1", step=1)
    trainer.finish(outcome="Succeeded", reason="Completed", message="1 steps")
    waited = runyard("runs", "wait", run_id, *here)
    assert (waited.exit_code, waited.stderr.count("Warning")) == (0, 0)
    assert message in waited.stdout and "(--set settings.seed=3)" in waited.stdout
    several = runyard("runs", "wait", run_id, run_id, *here)
    assert message not in several.stdout and message in several.stderr
    with open_terminal("runs", "watch", run_id, environ=lone_server.environ) as terminal:
        terminal.expect("! nothing was learned")
        terminal.press("q")
        terminal.finish()
    trainer.close()
