"""``runyard models``: the checkpoints runs have handed over, and asking them questions."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_NOT_FOUND, CommandFailed
from runyard.cli.output import age, json_option, number, one_line, print_fields, print_json, print_table

if TYPE_CHECKING:
    from PIL.Image import Image

    from vi.api.resources.models.responses import Model

DOWNLOADS = Path("models")


@click.group()
def models() -> None:
    """List and download checkpoints, and ask them questions."""


@models.command("list")
@click.argument("run_id")
@data_dir_option
@json_option
def list_models(run_id: str, data_dir: Path | None, as_json: bool) -> None:
    """List the checkpoints of a run, the newest last."""
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

    from runyard.trainer.predict import Predictor

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
