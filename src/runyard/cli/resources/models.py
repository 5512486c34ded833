"""``runyard models``: checkpoints of runs, predictions, exports and base models."""

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_NOT_FOUND, CommandFailed
from runyard.cli.global_options import get_global_options
from runyard.cli.groups import NounGroup
from runyard.cli.ids import complete_runs
from runyard.cli.output import (
    format_age,
    format_number,
    format_size,
    json_option,
    print_fields,
    print_json,
    print_table,
    to_single_line,
)
from runyard.cli.progress import WorkLine
from runyard.cli.resources.selection import confirm
from runyard.rundir import CheckpointDir

if TYPE_CHECKING:
    from PIL.Image import Image

    from runyard.trainer.export.export import Form
    from runyard.trainer.export.replay import ImageFolders
    from vi.api.resources.models.responses import Model

DOWNLOADS = Path("models")
FORMS, DTYPES = ("merged", "adapter", "full"), ("float32", "bfloat16", "float16")


@click.group(cls=NounGroup)
def models() -> None:
    """List, download, export and query checkpoints; add base models."""


@models.command("add")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--name",
    required=True,
    help="Name of the model, NAME or OWNER/NAME; flows refer to it as base:NAME.",
)
@click.option(
    "--link", is_flag=True, help="Create hard links instead of copies; requires the same disk."
)
@data_dir_option
@json_option
def add_model(folder: Path, name: str, link: bool, data_dir: Path | None, as_json: bool) -> None:
    """Add a base model to this machine, which flows refer to as `base:NAME`.

    FOLDER contains config.json and safetensors weights, or is a downloaded checkpoint. It is
    validated, then copied to the first folder of RUNYARD_MODEL_FOLDERS. Run the command on the
    server's machine; other machines fetch the model from there.
    """
    from runyard.cli.resources import base_models
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    with WorkLine() as progress:
        path = base_models.add(
            settings.models,
            folder,
            name,
            link=link,
            spare_bytes=settings.free_disk_mib << 20,
            on_progress=_ignore_progress if as_json else progress.update,
        )
    if as_json:
        print_json({"name": name, "weights": f"base:{name}", "folder": str(path)})
    else:
        click.echo(f"base:{name}")


@models.command("remove")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@data_dir_option
def remove_model(name: str, yes: bool, data_dir: Path | None) -> None:
    """Delete a base model from this machine permanently."""
    from runyard.cli.resources import base_models
    from runyard.settings import read_settings

    if not yes:
        confirm(f"Delete {name}? Runs that use it and have not started will fail.")
    base_models.remove(read_settings(data_dir=data_dir).models, name.removeprefix("base:"))
    click.echo(f"removed base:{name.removeprefix('base:')}")


@models.command("list")
@click.argument("run_id", shell_complete=complete_runs, required=False)
@click.option("--base", is_flag=True, help="List the base models of this machine.")
@data_dir_option
@json_option
def list_models(run_id: str | None, base: bool, data_dir: Path | None, as_json: bool) -> None:
    """List the checkpoints of a run, newest last; with --base, the base models of this machine."""
    if base == (run_id is not None):
        raise click.UsageError("expected: either a run id or --base")
    if run_id is None:
        _list_base_models(data_dir, as_json=as_json)
        return
    with connect(data_dir) as client:
        found = list(client.models.list(run_id).all_items())
    if as_json:
        print_json({"items": found})
    else:
        # is_best marks each checkpoint that was the best so far; the last of them is the best.
        best = next((model for model in reversed(found) if model.spec.is_best), None)
        rows = [_row(model, is_best=model is best) for model in found]
        print_table(("CHECKPOINT", "EPOCH", "STEP", "AGE", "BEST", "HELD OUT"), rows)


@models.command("download")
@click.argument("run_id", shell_complete=complete_runs)
@click.argument("checkpoint", default="latest")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=DOWNLOADS,
    show_default=True,
    help="Target folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing download.")
@data_dir_option
@json_option
def download_model(
    run_id: str, checkpoint: str, out: Path, overwrite: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Download a checkpoint (an id from `models list`, `latest` or `best`)."""
    with connect(data_dir, is_patient=True) as client:
        model = client.models.download(
            run_id, checkpoint, save_dir=out, overwrite=overwrite, show_progress=not as_json
        )
    if as_json:
        print_json(model)
    else:
        click.echo(model.model_path)


@models.command("predict")
@click.argument("model", metavar="FOLDER|RUN_ID[/CHECKPOINT]")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PNG file for the image with the boxes of a grounding.",
)
@data_dir_option
@json_option
def predict(
    model: str, image: Path, question: str, out: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Query a model with a question about an image.

    MODEL is a downloaded folder, or a run id with an optional checkpoint, which is downloaded to
    ./models first. For a grounding, an image with its boxes is written, by default to
    IMAGE-boxes.png in the current folder.
    """
    opened = _open_image(image)
    folder = _model_folder(model, data_dir)

    from runyard.trainer.export.predict import Predictor

    answer = Predictor(folder).predict(opened, question)
    boxes = [(item.phrase, box) for item in answer.groundings for box in item.boxes]
    drawn = out or (Path(f"{image.stem}-boxes.png") if boxes else None)
    if drawn is not None:
        from runyard.cli.drawing import draw_boxes

        draw_boxes(opened, boxes, path=drawn)
    if as_json:
        grounded = [{"phrase": phrase, "box": box} for phrase, box in boxes]
        print_json(
            {
                "answer": answer.text,
                "groundings": grounded,
                "raw": answer.raw,
                "picture": drawn and str(drawn),
            }
        )
        return
    click.echo(to_single_line(answer.text))
    if drawn is not None:
        print_fields(
            [*((phrase, " ".join(map(str, box))) for phrase, box in boxes), ("image", drawn)]
        )


@models.command("export")
@click.argument("model", metavar="FOLDER|RUN_ID[/CHECKPOINT]")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    help="Form of the export. [default: merged if there is an adapter, else full]",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to create.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Data type of merged weights. [default: that of the base model]",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with the held-out images, if neither this machine nor the server has them.",
)
@click.option("--no-replay", is_flag=True, help="Export without verifying the stored answers.")
@click.option(
    "--tolerate",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of answers that may differ: from the stored ones, or merged by more than rounding.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing export.")
@data_dir_option
@json_option
def export(
    model: str,
    form: "Form | None",
    out: Path,
    dtype: str | None,
    pictures: Path | None,
    no_replay: bool,
    tolerate: float,
    overwrite: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Export a checkpoint for use elsewhere, and verify its answers.

    MODEL is a downloaded folder, or a run id with an optional checkpoint, which is downloaded to
    ./models first. The form `merged` is a model folder with the adapter merged into the weights,
    `adapter` the adapter alone, `full` everything as trained. The exported files are loaded and
    queried with every held-out question. If an answer differs from the one stored with the
    checkpoint, the command fails and deletes the export. Merged weights are rounded, so they are
    compared by likelihood: answers that were nearly tied may flip, and are listed.
    """
    folder = _model_folder(model, data_dir)

    from runyard.trainer.export.export import export_model

    with contextlib.ExitStack() as held:
        images: ImageFolders | None = pictures
        if pictures is None and not no_replay:
            images = _find_images(folder, data_dir, held, show_progress=not as_json)
        progress = held.enter_context(WorkLine())
        written = export_model(
            folder,
            out,
            form=form,
            dtype=dtype,
            images=images,
            with_replay=not no_replay,
            tolerate=tolerate,
            overwrite=overwrite,
            on_progress=_ignore_progress if as_json else progress.update,
        )
    if as_json:
        print_json({"path": str(out), **written})
    else:
        if not written["replayed"]:
            click.echo("Not verified: the stored predictions were not replayed.", err=True)
        if "comparison" in written and get_global_options().format != "quiet":
            _print_comparison(written["comparison"])
        click.echo(out)


def _print_comparison(comparison: dict[str, Any]) -> None:
    """Print how the merged weights differ from the adapter, and the answers that flip."""
    answers, flips = comparison["answers"], comparison["flips"]
    print_fields(
        [
            ("answers compared", len(answers)),
            ("largest difference", f"{comparison['largestShare']:.1%} of its tolerance"),
            ("tolerance", f"{comparison['tolerance']:.2g} nats a token (from the data types)"),
            ("outside of it", len(comparison["outside"])),
            ("answers that flip", len(flips)),
        ]
    )
    if flips:
        rows = [
            (
                flip["index"],
                to_single_line(flip["question"]),
                to_single_line(flip["recorded"]),
                to_single_line(flip["merged"]),
                flip["token"],
                f"{flip['margin']:.2g}",
                f"{flip['mergedMargin']:.2g}",
            )
            for flip in flips
        ]
        print_table(("SAMPLE", "QUESTION", "STORED", "MERGED", "TOKEN", "MARGIN", "AFTER"), rows)


def _list_base_models(data_dir: Path | None, *, as_json: bool) -> None:
    from runyard.cli.resources import base_models
    from runyard.settings import read_settings

    found = base_models.list_base_models(read_settings(data_dir=data_dir).models)
    if as_json:
        print_json({"items": found})
    else:
        rows = [
            (
                f"base:{item['name']}",
                item["modelType"],
                format_size(item["sizeBytes"]),
                item["folder"],
            )
            for item in found
        ]
        print_table(("WEIGHTS", "MODEL TYPE", "SIZE", "FOLDER"), rows)


def _ignore_progress(doing: str, done: int, total: int) -> None:
    pass


def _find_images(
    folder: Path, data_dir: Path | None, held: contextlib.ExitStack, *, show_progress: bool
) -> dict[str, Path] | None:
    """Return the folder of each dataset with held-out images; None for built-in data.

    A download is deleted when ``held`` closes.
    """
    from runyard.ids import resolve_folder
    from runyard.rundir import is_complete
    from runyard.settings import read_settings
    from runyard.trainer.export.replay import read_replay_context
    from vi.errors import ViError

    asked = read_replay_context(folder.parent if folder.name == "model_full" else folder)
    if asked.is_built_in:
        return None
    settings = read_settings(data_dir=data_dir)
    folders = {
        # Names read from the model's folder.
        dataset: resolve_folder(settings.datasets_dir, asked.run.organization_id or "none", version)
        for dataset, version in asked.versions.items()
    }
    missing = [dataset for dataset, version in folders.items() if not is_complete(version)]
    try:
        for dataset in missing:
            with connect(data_dir, is_patient=True) as client:
                fetched = Path(
                    held.enter_context(tempfile.TemporaryDirectory(prefix="runyard-pictures-"))
                )
                folders[dataset] = client.assets.download(
                    dataset, fetched, show_progress=show_progress
                ).save_path
    except (CommandFailed, ViError) as error:  # the export reports what to do without images
        click.echo(f"The held-out images cannot be downloaded: {error}", err=True)
        return None
    return folders


def _open_image(path: Path) -> "Image":
    """Return the image in a file as training sees it; called first to report a wrong name at once.

    Raises:
        CommandFailed: The file is missing or not an image.
    """
    from runyard.datasets.pixels import BrokenImage, decode_image

    if not path.is_file():
        raise CommandFailed(f"image {path} does not exist", exit_code=EXIT_NOT_FOUND)
    try:
        return decode_image(path.read_bytes())
    except BrokenImage as error:
        raise CommandFailed(
            f"cannot read {path} as an image ({error}; supported: JPEG, PNG, WebP, BMP, GIF, TIFF)"
        ) from error


def _model_folder(given: str, data_dir: Path | None) -> Path:
    """Return the folder of a model on disk, or of a checkpoint downloaded from the server."""
    folder = Path(given)
    if folder.is_dir():
        return CheckpointDir(folder).model
    run_id, _, checkpoint = given.partition("/")
    with connect(data_dir, is_patient=True) as client:
        return client.models.download(run_id, checkpoint or None, save_dir=DOWNLOADS).model_path


def _row(model: "Model", *, is_best: bool) -> tuple[object, ...]:
    scores = model.spec.evaluation_metrics or {}
    shown = ", ".join(
        f"{name} {format_number(value)}"
        for name, value in scores.items()
        if isinstance(value, int | float)
    )
    return (
        model.model_id,
        model.spec.epoch,
        model.spec.step,
        format_age(model.metadata.time_created),
        "best" if is_best else "",
        shown,
    )
