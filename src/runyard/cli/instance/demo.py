"""``runyard demo``: trains a model and shows its answers, in one command.

It does what a user's program would do: start an instance, create a run of the default flow through
the SDK, download its checkpoint, and query the model about every held-out image. The held-out
images come from the trainer's own split, so the model was not trained on any of them. The data
folder is kept.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect
from runyard.cli.drawing import AnsweredQuestion, draw_answers, select_evenly
from runyard.cli.failures import EXIT_TIME_UP, CommandFailed
from runyard.cli.instance.instance import (
    SHUTDOWN_TIMEOUT_S,
    live_endpoint,
    max_shutdown_s,
    read_log_tail,
)
from runyard.cli.output import format_duration, json_option, print_json
from runyard.cli.resources.flow_files import DEFAULT_FLOW
from runyard.rundir import read_json
from runyard.settings import Settings, get_source, read_settings

if TYPE_CHECKING:
    import vi
    from runyard.trainer.data.datasets import Sample
    from vi.api.resources.flows.responses import FlowSpec
    from vi.api.resources.runs.responses import Run

START_TIMEOUT_S = 90.0
TRAIN_TIMEOUT_S = 3600.0
SHOWN_EVENLY, SHOWN_WRONG = 18, 6  # images in the grid


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Finished run of the demo, and its duration."""

    run: "Run"
    train_s: float  # from the start of the attempt to Succeeded
    total_s: float  # from create to Succeeded, measured by this process


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data folder of the instance to use or start. [default: RUNYARD_DATA_DIR, else OUT/data]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the model and the image of its answers.",
)
@json_option
def demo(data_dir: Path | None, out: Path, as_json: bool) -> None:
    """Train a small model on this machine and show its answers.

    Trains a vision-language model with about 200,000 parameters on real handwritten digits,
    downloads it, queries it about every held-out image, and writes an image of some of its answers.
    Takes a minute or two on two cores.
    """
    if data_dir is None and get_source("data_dir") == "default":
        data_dir = out / "data"
    settings = read_settings(data_dir=data_dir)

    def say(sentence: str) -> None:
        click.echo(sentence, err=as_json)

    with (
        _handle_sigterm_as_interrupt(),
        running_instance(settings, say=say),
        connect(settings.data_dir, is_patient=True) as client,
    ):
        trained = train(client, say=say)
        run_id = trained.run.run_id
        model_dir = client.models.download(
            run_id, save_dir=out, show_progress=not as_json
        ).model_path
    asked = answer_held_out(model_dir, trained.run.spec.flow, say=say)
    accuracy = sum(item.is_right for item in asked) / len(asked)
    sheet, example = out / run_id / "answers.png", out / run_id / "held-out.png"
    draw_answer_sheet(asked, path=sheet)
    asked[0].image.save(example)
    for line in format_report(
        trained, asked, model_dir=model_dir, sheet=sheet, example=example, settings=settings
    ):
        say(line)
    if as_json:
        print_json(
            {
                "runId": run_id,
                "accuracy": accuracy,
                "heldOut": len(asked),
                "trainSeconds": round(trained.train_s, 3),
                "totalSeconds": round(trained.total_s, 3),
                "modelDir": str(model_dir.absolute()),
                "picture": str(sheet.absolute()),
                "dataDir": str(settings.data_dir),
            }
        )


@contextmanager
def running_instance(settings: Settings, *, say: Callable[[str], None]) -> Iterator[None]:
    """Use the running instance of a data folder, or run a private one during the block."""
    endpoint = live_endpoint(settings)
    if endpoint is not None:
        say(f"Using the instance at {endpoint}")
        yield
        return
    say(f"Starting a private instance with the data folder {_shorten_path(settings.data_dir)}")
    settings.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = settings.logs_dir / "up.log"
    # If this process is killed, the instance reads the end of its standard input and stops, too.
    # Its own process group keeps Ctrl-C from it, because this process must end the run first.
    with open(log_path, "wb") as log:
        command = [
            "up",
            "--data-dir",
            str(settings.data_dir),
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--end-with-stdin",
        ]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runyard.cli", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        _wait_until_up(settings, process, log_path)
        yield
    finally:
        _stop_instance(process, timeout_s=max_shutdown_s(settings) + SHUTDOWN_TIMEOUT_S)


def train(client: "vi.Client", *, say: Callable[[str], None]) -> Trained:
    """Run the default flow to its end; on an interrupt the run is killed.

    Raises:
        vi.ViRunFailedError: the run wait_for_end, and not in Succeeded.
    """
    from runyard.cli.resources.runs import follow_run

    started_s = time.monotonic()
    run = client.runs.create(flow=DEFAULT_FLOW, metadata={"made-by": "runyard demo"})
    say(f"Training a vision-language model on real handwritten digits, run {run.run_id}")
    try:
        run = follow_run(client, run.run_id, timeout_s=TRAIN_TIMEOUT_S)
    except KeyboardInterrupt:
        _kill(client, run.run_id)
        raise
    total_s = time.monotonic() - started_s
    return Trained(run=run, train_s=measure_training_s(run), total_s=total_s)


def measure_training_s(run: "Run") -> float:
    """Return the seconds from the start of the newest attempt to the end of the run."""
    began = [each for each in run.status.conditions if each.condition.value == "Running"]
    if not began:
        return 0.0
    return (run.status.conditions[-1].last_transition_time - began[-1].last_transition_time) / 1000


def answer_held_out(
    model_dir: Path, flow: "FlowSpec", *, say: Callable[[str], None]
) -> list[AnsweredQuestion]:
    """Query the model about every held-out image of its flow."""
    samples = load_held_out(flow)
    say(f"Querying the model about {len(samples)} held-out images")

    from runyard.trainer.answers import is_same_text
    from runyard.trainer.export.predict import Predictor

    answers = Predictor(model_dir).predict_all(
        [(sample.image, sample.question) for sample in samples]
    )
    return [
        AnsweredQuestion(
            image=sample.image,
            question=sample.question,
            truth=sample.truth.text,
            given=answer.text,
            is_right=is_same_text(answer.text, sample.truth.text),
        )
        for sample, answer in zip(samples, answers, strict=True)
    ]


def load_held_out(flow: "FlowSpec") -> "Sequence[Sample]":
    """Return the held-out samples of a flow, split by the trainer's own function."""
    from runyard.flows import resolve
    from runyard.trainer.data.datasets import load_dataset

    resolved = resolve(flow)
    dataset = load_dataset(
        resolved.dataset.dataset_id,
        seed=resolved.settings.seed,
        validation_fraction=resolved.dataset.validation_fraction,
    )
    return dataset.validation


def draw_answer_sheet(asked: Sequence[AnsweredQuestion], *, path: Path) -> None:
    """Write an image of evenly spaced answers, followed by some wrong ones."""
    evenly = select_evenly(asked, SHOWN_EVENLY)
    drawn = {id(item) for item in evenly}
    wrong = [item for item in asked if not item.is_right and id(item) not in drawn][:SHOWN_WRONG]
    right = sum(item.is_right for item in asked)
    title = (
        f"{right} of {len(asked)} held-out images correct ({right / len(asked):.1%}): "
        f"{len(evenly)} evenly spaced"
    )
    if wrong:
        title += f", then {len(wrong)} wrong ones"
    draw_answers([*evenly, *wrong], title=title, path=path)


def format_report(
    trained: Trained,
    asked: Sequence[AnsweredQuestion],
    *,
    model_dir: Path,
    sheet: Path,
    example: Path,
    settings: Settings,
) -> list[str]:
    """Return accuracy, paths of the results, and commands to try next."""
    right = sum(item.is_right for item in asked)
    runyard, data_dir = _get_script_name(), _shorten_path(settings.data_dir)
    return [
        "",
        f"Held-out accuracy {right / len(asked):.4f}: {right} of {len(asked)} images that were not "
        "trained on.",
        f"Training took {format_duration(trained.train_s)}, create to Succeeded "
        f"{format_duration(trained.total_s)}.",
        "",
        f"  model    {_shorten_path(model_dir)}",
        f"  image    {_shorten_path(sheet)}",
        f"  data     {data_dir}",
        "",
        "Next steps:",
        "",
        f"  {runyard} models predict {_shorten_path(model_dir)} {_shorten_path(example)} "
        f'"{asked[0].question}"',
        f"  {runyard} up --data-dir {data_dir}",
        f"  {runyard} runs create --data-dir {data_dir} --set vi-model.hyperparameters.epochs=30 "
        "--wait",
        "",
        "(run the last command in a second terminal while the instance is up)",
    ]


def _wait_until_up(settings: Settings, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    # The client reads the address from the credentials file, which the server updates after it
    # listens.
    while (
        not (endpoint := live_endpoint(settings)) or read_credentials_endpoint(settings) != endpoint
    ):
        if process.poll() is not None:
            raise CommandFailed(f"the private instance did not start:\n{read_log_tail(log_path)}")
        if time.monotonic() > deadline_s:
            raise CommandFailed(
                f"the private instance is not up after {START_TIMEOUT_S:g} s:\n"
                f"{read_log_tail(log_path)}",
                exit_code=EXIT_TIME_UP,
            )
        time.sleep(0.05)


def read_credentials_endpoint(settings: Settings) -> object:
    """Return the endpoint in the credentials of a data folder; None if there are none yet."""
    return (read_json(settings.credentials_file) or {}).get("endpoint")


def _stop_instance(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> None:
    """Stop the private instance: request a shutdown, wait for it, and kill it after the timeout."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill(client: "vi.Client", run_id: str) -> None:
    from runyard.cli.resources.runs import wait_for_end
    from vi import ViError

    click.echo("Interrupted: killing the run", err=True)
    with suppress(ViError):  # the instance stops in any case, and the interrupt must be reported
        client.runs.kill(run_id)
        wait_for_end(client, run_id)


@contextmanager
def _handle_sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that the run and the private instance are stopped."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _get_script_name() -> str:
    """Return the command to call this script from the current folder."""
    script = Path(sys.argv[0])
    return _shorten_path(script) if script.name == "runyard" and script.is_file() else "runyard"


def _shorten_path(path: Path) -> str:
    """Return a path relative to the current folder if it is below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
