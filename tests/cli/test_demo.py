"""The parts of the demo around the training; tests/e2e runs the complete demo."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from runyard.cli.drawing import AnsweredQuestion
from runyard.cli.failures import CommandFailed
from runyard.cli.instance import demo as module
from runyard.cli.instance.demo import (
    Trained,
    draw_answer_sheet,
    format_report,
    load_held_out,
    measure_training_s,
    running_instance,
)
from runyard.cli.instance.instance import live_endpoint, parse_port
from runyard.settings import read_settings
from vi.api.resources.flows.responses import FlowSpec
from vi.api.resources.runs.responses import Run, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition


def run_with(*history: tuple[ConditionKind, int]) -> Run:
    conditions = [
        ResourceCondition(condition=kind, last_transition_time=at) for kind, at in history
    ]
    return Run(run_id="r", status=RunStatus(conditions=conditions))


def make_answers(*verdicts: bool) -> list[AnsweredQuestion]:
    image = Image.new("RGB", (8, 8))
    return [
        AnsweredQuestion(
            image=image, question="Which?", truth="7", given="7" if right else "1", is_right=right
        )
        for right in verdicts
    ]


def test_training_time_counts_from_the_newest_attempt_to_the_end() -> None:
    pending, running, succeeded = (
        ConditionKind.PENDING,
        ConditionKind.RUNNING,
        ConditionKind.SUCCEEDED,
    )
    retried = run_with(
        (pending, 1000), (running, 2000), (pending, 9000), (running, 10_000), (succeeded, 25_500)
    )
    assert measure_training_s(retried) == 15.5


def test_held_out_images_are_those_of_the_trainer() -> None:
    from runyard.trainer.data.datasets import load_dataset

    kept = load_dataset("digits", seed=7, validation_fraction=0.2)
    trained_on = {sample.image.tobytes() for sample in kept.train}
    samples = load_held_out(FlowSpec())
    assert [sample.image.tobytes() for sample in samples] == [
        sample.image.tobytes() for sample in kept.validation
    ]
    assert len(samples) > 300
    assert not trained_on & {sample.image.tobytes() for sample in samples}


def test_another_seed_holds_out_other_images() -> None:
    one, other = (
        load_held_out(FlowSpec(settings={"seed": 1})),
        load_held_out(FlowSpec(settings={"seed": 2})),
    )
    assert [sample.image.tobytes() for sample in one] != [
        sample.image.tobytes() for sample in other
    ]


def test_the_sheet_adds_wrong_answers_to_an_even_choice_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []
    monkeypatch.setattr(
        module, "draw_answers", lambda items, *, title, path: sheets.append((items, title))
    )
    answers = make_answers(*[True] * 97, *[False] * 3)
    draw_answer_sheet(answers, path=tmp_path / "a.png")
    ((shown, title),) = sheets
    assert title == "97 of 100 held-out images correct (97.0%): 18 evenly spaced, then 3 wrong ones"
    assert [item.is_right for item in shown] == [True] * 18 + [False] * 3


def test_the_report_names_accuracy_paths_and_three_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = Trained(run=run_with(), train_s=21.2, total_s=30.0)
    places = {
        "model_dir": tmp_path / "demo/r/model_full",
        "sheet": tmp_path / "a.png",
        "example": tmp_path / "h.png",
    }
    settings = read_settings({}, data_dir=tmp_path / "demo/data")
    text = "\n".join(format_report(trained, make_answers(True, False), **places, settings=settings))
    assert "Held-out accuracy 0.5000: 1 of 2 images" in text
    assert "demo/r/model_full" in text and "a.png" in text and "demo/data" in text
    assert 'models predict demo/r/model_full h.png "Which?"' in text
    assert "up --data-dir demo/data" in text
    assert "runs create --data-dir demo/data" in text


def test_a_running_instance_is_used_and_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "live_endpoint", lambda settings: "http://127.0.0.1:7878/")
    monkeypatch.setattr(subprocess, "Popen", None)  # starting anything would fail
    messages: list[str] = []
    with running_instance(read_settings({}, data_dir=tmp_path), say=messages.append):
        pass
    assert messages == ["Using the instance at http://127.0.0.1:7878/"]


@contextmanager
def a_file_in_the_way(path: Path) -> Iterator[None]:
    path.mkdir(parents=True)
    (path / "instance.lock").mkdir()
    yield


def test_a_private_instance_that_does_not_start_reports_why(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with (
        a_file_in_the_way(data_dir),
        pytest.raises(
            CommandFailed, match=r"(?s)the private instance did not start.*instance\.lock"
        ),
        running_instance(read_settings({}, data_dir=data_dir), say=lambda sentence: None),
    ):
        pass


def test_the_private_instance_takes_a_free_port_and_ends_with_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNYARD_WARM", "0")
    settings = read_settings({}, data_dir=tmp_path / "data")
    with running_instance(settings, say=lambda sentence: None):
        endpoint = live_endpoint(settings)
        assert endpoint is not None
        address = ("127.0.0.1", parse_port(endpoint))
        socket.create_connection(address).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address).close()


class InterruptedRuns:
    """``client.runs`` of a user who presses Ctrl-C while waiting."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def create(self, **_: object) -> Run:
        return Run(run_id="r1")

    def wait(self, run_id: str, **_: object) -> Run:
        if self.killed:
            return run_with((ConditionKind.CANCELLED, 1))
        raise KeyboardInterrupt

    def kill(self, run_id: str) -> None:
        self.killed.append(run_id)


def test_an_interrupted_demo_kills_its_run() -> None:
    runs = InterruptedRuns()
    with pytest.raises(KeyboardInterrupt):
        client: Any = SimpleNamespace(runs=runs)
        module.train(client, say=lambda sentence: None)
    assert runs.killed == ["r1"]
