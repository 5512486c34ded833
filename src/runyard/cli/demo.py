"""``runyard demo``: from nothing to a trained model that answers questions, in one command.

Everything goes the way a user's own program would go: an instance, a run created through the SDK with the empty recipe,
its checkpoint downloaded, and the model asked about every held-out image. Held out is what the trainer's own split by
content says, so no image that is asked about was ever trained on. What the instance knows stays in its data folder.
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
from runyard.cli.failures import EXIT_TIME_UP, CommandFailed
from runyard.cli.instance import END_TIMEOUT_S, live_endpoint, longest_end_s, tail
from runyard.cli.output import duration, json_option, print_json
from runyard.cli.picture import Asked, draw_answers, evenly_spaced
from runyard.cli.recipes import EMPTY_RECIPE
from runyard.rundir import read_json
from runyard.settings import Settings, get_source, read_settings

if TYPE_CHECKING:
    import vi
    from runyard.trainer.data.datasets import Sample
    from vi.api.resources.flows.responses import FlowSpec
    from vi.api.resources.runs.responses import Run

START_TIMEOUT_S = 90.0
TRAIN_TIMEOUT_S = 3600.0
SHOWN_EVENLY, SHOWN_WRONG = 18, 6  # pictures in the grid


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run of the demo, and how long it took."""

    run: "Run"
    train_s: float  # from the moment an attempt held the run to Succeeded
    total_s: float  # from create to Succeeded, seen from here


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Use the instance over this data folder, or start one there. [default: RUNYARD_DATA_DIR, else OUT/data]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the model and the picture.",
)
@json_option
def demo(data_dir: Path | None, out: Path, as_json: bool) -> None:
    """Train a small model on this machine and show what it learned.

    Trains a vision-language model of about 200,000 parameters on real handwritten digits, downloads it, asks it about
    every held-out image, and draws a picture of some of its answers. Takes a minute or two on two cores.
    """
    if data_dir is None and get_source("data_dir") == "default":
        data_dir = out / "data"
    settings = read_settings(data_dir=data_dir)

    def say(sentence: str) -> None:
        click.echo(sentence, err=as_json)

    with (
        _sigterm_as_interrupt(),
        running_instance(settings, say=say),
        connect(settings.data_dir, is_patient=True) as client,
    ):
        trained = train(client, say=say)
        run_id = trained.run.run_id
        model_dir = client.models.download(run_id, save_dir=out, show_progress=not as_json).model_path
    asked = ask_held_out(model_dir, trained.run.spec.flow, say=say)
    accuracy = sum(item.is_right for item in asked) / len(asked)
    picture, example = out / run_id / "answers.png", out / run_id / "held-out.png"
    draw_sheet(asked, path=picture)
    asked[0].image.save(example)
    for line in report(trained, asked, model_dir=model_dir, picture=picture, example=example, settings=settings):
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
                "picture": str(picture.absolute()),
                "dataDir": str(settings.data_dir),
            }
        )


@contextmanager
def running_instance(settings: Settings, *, say: Callable[[str], None]) -> Iterator[None]:
    """The instance over a data folder: the one that is up there, or a private one that ends with this block."""
    endpoint = live_endpoint(settings)
    if endpoint is not None:
        say(f"Using the instance at {endpoint}")
        yield
        return
    say(f"Starting a private instance over {_short(settings.data_dir)}")
    settings.logs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = settings.logs_dir / "up.log"
    # Standard input is the private instance's lifeline: should this process die without a word, it reads the end of it
    # and ends too. A process group of its own keeps Ctrl-C for us, who end the run first.
    with open(log_path, "wb") as log:
        command = ["up", "--data-dir", str(settings.data_dir), "--host", "127.0.0.1", "--port", "0", "--end-with-stdin"]
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
        _end(process, timeout_s=longest_end_s(settings) + END_TIMEOUT_S)


def train(client: "vi.Client", *, say: Callable[[str], None]) -> Trained:
    """Run the empty recipe to its end; a run that is interrupted here is killed.

    Raises:
        vi.ViRunFailedError: the run ended, and not in Succeeded.
    """
    from runyard.cli.runs import follow

    started_s = time.monotonic()
    run = client.runs.create(flow=EMPTY_RECIPE, metadata={"made-by": "runyard demo"})
    say(f"Training a vision-language model on real handwritten digits, run {run.run_id}")
    try:
        run = follow(client, run.run_id, timeout_s=TRAIN_TIMEOUT_S)
    except KeyboardInterrupt:
        _kill(client, run.run_id)
        raise
    total_s = time.monotonic() - started_s
    return Trained(run=run, train_s=seconds_running(run), total_s=total_s)


def seconds_running(run: "Run") -> float:
    """Seconds from the newest attempt's start to the end of the run, by the server's clock."""
    began = [each for each in run.status.conditions if each.condition.value == "Running"]
    if not began:
        return 0.0
    return (run.status.conditions[-1].last_transition_time - began[-1].last_transition_time) / 1000


def ask_held_out(model_dir: Path, flow: "FlowSpec", *, say: Callable[[str], None]) -> list[Asked]:
    """Ask the model about every image that its flow held out."""
    samples = held_out(flow)
    say(f"Asking the model about {len(samples)} held-out images it has never seen")

    from runyard.trainer.answers import is_same_text
    from runyard.trainer.export.predict import Predictor

    answers = Predictor(model_dir).ask_all([(sample.image, sample.question) for sample in samples])
    return [
        Asked(
            image=sample.image,
            question=sample.question,
            truth=sample.truth.text,
            given=answer.text,
            is_right=is_same_text(answer.text, sample.truth.text),
        )
        for sample, answer in zip(samples, answers, strict=True)
    ]


def held_out(flow: "FlowSpec") -> "Sequence[Sample]":
    """What the trainer kept apart for a flow: same dataset, seed and fraction, split by the trainer's own function."""
    from runyard.flows import resolve
    from runyard.trainer.data.datasets import load_dataset

    recipe = resolve(flow)
    dataset = load_dataset(
        recipe.dataset.dataset_id,
        seed=recipe.settings.seed,
        validation_fraction=recipe.dataset.validation_fraction,
    )
    return dataset.validation


def draw_sheet(asked: Sequence[Asked], *, path: Path) -> None:
    """Draw some of the answers, spread evenly over all of them, and after them some of those that were wrong."""
    evenly = evenly_spaced(asked, SHOWN_EVENLY)
    drawn = {id(item) for item in evenly}
    wrong = [item for item in asked if not item.is_right and id(item) not in drawn][:SHOWN_WRONG]
    right = sum(item.is_right for item in asked)
    title = f"{right} of {len(asked)} held-out images right ({right / len(asked):.1%}): {len(evenly)} evenly spaced"
    if wrong:
        title += f", then {len(wrong)} more that were wrong"
    draw_answers([*evenly, *wrong], title=title, path=path)


def report(
    trained: Trained, asked: Sequence[Asked], *, model_dir: Path, picture: Path, example: Path, settings: Settings
) -> list[str]:
    """What came out, where it lies, and three ways to go on."""
    right = sum(item.is_right for item in asked)
    runyard, data_dir = _invoked_as(), _short(settings.data_dir)
    return [
        "",
        f"Held-out accuracy {right / len(asked):.4f}: {right} of {len(asked)} images it was never trained on.",
        f"Training took {duration(trained.train_s)}, create to Succeeded {duration(trained.total_s)}.",
        "",
        f"  model    {_short(model_dir)}",
        f"  picture  {_short(picture)}",
        f"  data     {data_dir}",
        "",
        "Go on:",
        "",
        f'  {runyard} models predict {_short(model_dir)} {_short(example)} "{asked[0].question}"',
        f"  {runyard} up --data-dir {data_dir}",
        f"  {runyard} runs create --data-dir {data_dir} --set vi-model.hyperparameters.epochs=30 --wait",
        "",
        "(the last one in a second terminal, while the one before is up)",
    ]


def _wait_until_up(settings: Settings, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    # The key file names the address too, and is what we connect with: both must say the same before it is of use.
    while not (endpoint := live_endpoint(settings)) or known_endpoint(settings) != endpoint:
        if process.poll() is not None:
            raise CommandFailed(f"the private instance did not start:\n{tail(log_path)}")
        if time.monotonic() > deadline_s:
            raise CommandFailed(
                f"the private instance is not up after {START_TIMEOUT_S:g} s:\n{tail(log_path)}", exit_code=EXIT_TIME_UP
            )
        time.sleep(0.05)


def known_endpoint(settings: Settings) -> object:
    """The address in the credentials of a data folder; None when there is none yet."""
    return (read_json(settings.credentials_file) or {}).get("endpoint")


def _end(process: "subprocess.Popen[bytes]", *, timeout_s: float) -> None:
    """End the private instance: ask, wait for its own orderly end, and only then kill."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill(client: "vi.Client", run_id: str) -> None:
    from runyard.cli.runs import ended
    from vi import ViError

    click.echo("Interrupted: killing the run", err=True)
    with suppress(ViError):  # the instance ends in any case, and the interrupt is what people shall see
        client.runs.kill(run_id)
        ended(client, run_id)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that the run and the private instance are ended on the way out."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _invoked_as() -> str:
    """How to call this command again from here: the path it was called by, or its bare name."""
    script = Path(sys.argv[0])
    return _short(script) if script.name == "runyard" and script.is_file() else "runyard"


def _short(path: Path) -> str:
    """A path as short as it can be said from the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
