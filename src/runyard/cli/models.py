"""``runyard models``: the checkpoints runs have handed over, asking them questions, and models to begin from."""

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_NOT_FOUND, CommandFailed
from runyard.cli.output import age, json_option, number, one_line, print_fields, print_json, print_table, size
from runyard.cli.progress import WorkLine

if TYPE_CHECKING:
    from PIL.Image import Image

    from runyard.trainer.export.export import Form
    from vi.api.resources.models.responses import Model

DOWNLOADS = Path("models")
FORMS, DTYPES = ("merged", "adapter", "full"), ("float32", "bfloat16", "float16")


@click.group()
def models() -> None:
    """List, download, export and query checkpoints; add models to begin from."""


@models.command("add")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What flows call it: base:NAME, or base:OWNER/NAME.")
@click.option("--link", is_flag=True, help="Make hard links instead of copies; the folder has to be on the same disk.")
@data_dir_option
@json_option
def add_model(folder: Path, name: str, link: bool, data_dir: Path | None, as_json: bool) -> None:
    """Add a model folder of this machine, so that flows can begin from it as `base:NAME`.

    FOLDER holds config.json and safetensors weights, or is a downloaded checkpoint. It is checked, then copied into the
    first of the folders of RUNYARD_MODEL_FOLDERS. Run the command on each machine that trains.
    """
    from runyard.cli import base_models
    from runyard.settings import read_settings

    settings = read_settings(data_dir=data_dir)
    with WorkLine() as progress:
        path = base_models.add(
            settings.models,
            folder,
            name,
            link=link,
            spare_bytes=settings.free_disk_mib << 20,
            on_progress=_nothing if as_json else progress.update,
        )
    if as_json:
        print_json({"name": name, "weights": f"base:{name}", "folder": str(path)})
    else:
        click.echo(f"base:{name}")


@models.command("remove")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@data_dir_option
def remove_model(name: str, yes: bool, data_dir: Path | None) -> None:
    """Remove a model that was added on this machine, for good."""
    from runyard.cli import base_models
    from runyard.settings import read_settings

    if not yes:
        click.confirm(f"Remove {name}? Runs that have not begun from it yet will fail.", abort=True)
    base_models.remove(read_settings(data_dir=data_dir).models, name.removeprefix("base:"))
    click.echo(f"removed base:{name.removeprefix('base:')}")


@models.command("list")
@click.argument("run_id", required=False)
@click.option("--base", is_flag=True, help="List the models of this machine that flows can begin from.")
@data_dir_option
@json_option
def list_models(run_id: str | None, base: bool, data_dir: Path | None, as_json: bool) -> None:
    """List the checkpoints of a run, the newest last; with --base the models that were added on this machine."""
    if base == (run_id is not None):
        raise click.UsageError("give the id of a run, or --base")
    if run_id is None:
        _list_base(data_dir, as_json=as_json)
        return
    with connect(data_dir) as client:
        found = list(client.models.list(run_id).all_items())
    if as_json:
        print_json({"items": found})
    else:
        # Each that was the best of its time carries the mark; people mean the last of them.
        best = next((model for model in reversed(found) if model.spec.is_best), None)
        rows = [_row(model, is_best=model is best) for model in found]
        print_table(("CHECKPOINT", "EPOCH", "STEP", "AGE", "BEST", "HELD OUT"), rows)


@models.command("download")
@click.argument("run_id")
@click.argument("checkpoint", default="latest")
@click.option("--out", type=click.Path(path_type=Path), default=DOWNLOADS, show_default=True, help="Folder to fill.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier download left there.")
@data_dir_option
@json_option
def download_model(
    run_id: str, checkpoint: str, out: Path, overwrite: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Download a checkpoint (an id from `models list`, `latest` or `best`)."""
    with connect(data_dir, is_patient=True) as client:
        model = client.models.download(run_id, checkpoint, save_dir=out, overwrite=overwrite, show_progress=not as_json)
    if as_json:
        print_json(model)
    else:
        click.echo(model.model_path)


@models.command("predict")
@click.argument("model", metavar="FOLDER|RUN_ID[/CHECKPOINT]")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="PNG to draw the boxes of a grounding on.")
@data_dir_option
@json_option
def predict(model: str, image: Path, question: str, out: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Ask a model a question about an image.

    MODEL is a downloaded folder, or a run's id, optionally with a checkpoint; that is downloaded into ./models first. A
    grounding comes with a picture of its boxes, beside the image's name in the current folder unless --out says where.
    """
    picture = _open(image)
    folder = _model_folder(model, data_dir)

    from runyard.trainer.export.predict import Predictor

    answer = Predictor(folder).ask(picture, question)
    boxes = [(item.phrase, box) for item in answer.groundings for box in item.boxes]
    drawn = out or (Path(f"{image.stem}-boxes.png") if boxes else None)
    if drawn is not None:
        from runyard.cli.picture import draw_boxes

        draw_boxes(picture, boxes, path=drawn)
    if as_json:
        grounded = [{"phrase": phrase, "box": box} for phrase, box in boxes]
        print_json({"answer": answer.text, "groundings": grounded, "raw": answer.raw, "picture": drawn and str(drawn)})
        return
    click.echo(one_line(answer.text))
    if drawn is not None:
        print_fields([*((phrase, " ".join(map(str, box))) for phrase, box in boxes), ("picture", drawn)])


@models.command("export")
@click.argument("model", metavar="FOLDER|RUN_ID[/CHECKPOINT]")
@click.option("--form", type=click.Choice(FORMS), help="[default: merged where there is an adapter, else full]")
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to make.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Format of merged weights. [default: the base's own]")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with the held-out pictures, where neither this machine nor the server has them.",
)
@click.option("--no-replay", is_flag=True, help="Export without asking the stored questions again: unproven.")
@click.option(
    "--tolerate",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of answers that may be others than the stored ones.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that folder.")
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
    """Write a checkpoint out for elsewhere, and prove that it answers as it did.

    MODEL is a downloaded folder, or a run's id, optionally with a checkpoint; that is downloaded into ./models first.
    The form `merged` is one model folder with the adapter in its weights, `adapter` the adapter alone, `full` all as it
    was trained. The exported files are loaded and asked every held-out question again: unless each answer is the one
    stored with the checkpoint, the command fails and leaves nothing.
    """
    folder = _model_folder(model, data_dir)

    from runyard.trainer.export.export import export_model

    with contextlib.ExitStack() as held:
        if pictures is None and not no_replay:
            pictures = _pictures(folder, data_dir, held, show_progress=not as_json)
        progress = held.enter_context(WorkLine())
        written = export_model(
            folder,
            out,
            form=form,
            dtype=dtype,
            pictures=pictures,
            with_replay=not no_replay,
            tolerate=tolerate,
            overwrite=overwrite,
            told=_nothing if as_json else progress.update,
        )
    if as_json:
        print_json({"path": str(out), **written})
    else:
        if not written["replayed"]:
            click.echo("Not proven: the stored predictions were not replayed.", err=True)
        click.echo(out)


def _list_base(data_dir: Path | None, *, as_json: bool) -> None:
    from runyard.cli import base_models
    from runyard.settings import read_settings

    found = base_models.listed(read_settings(data_dir=data_dir).models)
    if as_json:
        print_json({"items": found})
    else:
        rows = [(f"base:{item['name']}", item["modelType"], size(item["sizeBytes"]), item["folder"]) for item in found]
        print_table(("WEIGHTS", "MODEL TYPE", "SIZE", "FOLDER"), rows)


def _nothing(doing: str, done: int, total: int) -> None:
    pass


def _pictures(folder: Path, data_dir: Path | None, held: contextlib.ExitStack, *, show_progress: bool) -> Path | None:
    """Where the held-out pictures lie: a version's folder on this machine, else fetched for as long as ``held``."""
    from runyard.ids import resolve_folder
    from runyard.rundir import is_complete
    from runyard.settings import read_settings
    from runyard.trainer.export.replay import read_asked
    from vi.errors import ViError

    asked = read_asked(folder.parent if folder.name == "model_full" else folder)
    if asked.is_built_in:
        return None
    settings = read_settings(data_dir=data_dir)
    names = (asked.run.organization_id or "none", str(asked.plan.get("datasetVersion")))  # read from the model's folder
    version = resolve_folder(settings.datasets_dir, *names)
    if is_complete(version):
        return version
    fetched = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="runyard-pictures-")))
    try:
        with connect(data_dir, is_patient=True) as client:
            return client.assets.download(asked.dataset["datasetId"], fetched, show_progress=show_progress).save_path
    except (CommandFailed, ViError) as error:  # the export says what to do without them
        click.echo(f"The pictures cannot be fetched: {error}", err=True)
        return None


def _open(path: Path) -> "Image":
    """The picture in a file; read before anything that takes long, so that a wrong name is said at once."""
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise CommandFailed(f"there is no image {path}", exit_code=EXIT_NOT_FOUND)
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except UnidentifiedImageError as error:
        raise CommandFailed(f"{path} is no image that can be read; JPEG, PNG, WebP, BMP, GIF and TIFF can") from error


def _model_folder(given: str, data_dir: Path | None) -> Path:
    """The folder with the model's files: one on this disk, or a checkpoint fetched from the server."""
    folder = Path(given)
    if folder.is_dir():
        return folder / "model_full" if (folder / "model_full").is_dir() else folder
    run_id, _, checkpoint = given.partition("/")
    with connect(data_dir, is_patient=True) as client:
        return client.models.download(run_id, checkpoint or None, save_dir=DOWNLOADS).model_path


def _row(model: "Model", *, is_best: bool) -> tuple[object, ...]:
    scores = model.spec.evaluation_metrics or {}
    shown = ", ".join(f"{name} {number(value)}" for name, value in scores.items() if isinstance(value, int | float))
    return (
        model.model_id,
        model.spec.epoch,
        model.spec.step,
        age(model.metadata.time_created),
        "best" if is_best else "",
        shown,
    )
