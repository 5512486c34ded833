"""Layout of a downloaded checkpoint on disk.

    <save_dir>/<run id>/<checkpoint id>/model_full/       weights, processor, run.json
    <save_dir>/<run id>/<checkpoint id>/model_adapter/    if the checkpoint has an adapter
    <save_dir>/<run id>/.<checkpoint id>.tar              archive; .part and .part.json if partial

Each checkpoint has its own folder, so that checkpoints of one run never mix.
"""

from pathlib import Path

from vi.api._arguments import check_id, parse_local_path
from vi.api._folders import resolve_inside
from vi.api.resources.models.responses import DownloadedModel, Model
from vi.errors import ViDownloadError

DEFAULT_SAVE_DIR = "~/.datature/vi/models"


def checkpoint_folder(model: Model, *, save_dir: str | Path | None) -> Path:
    """Return the folder of a checkpoint.

    Ids come from a server and are checked before use in paths.

    Raises:
        ViInvalidParameterError: The server sent an invalid id.
    """
    root = parse_local_path(
        DEFAULT_SAVE_DIR if save_dir is None else save_dir, name="save_dir"
    ).absolute()
    return resolve_inside(
        root, check_id(model.run_id, name="runId"), check_id(model.model_id, name="runOutputId")
    )


def archive_path(folder: Path) -> Path:
    """Return the path of the archive of a checkpoint during the download."""
    return folder.with_name(f".{folder.name}.tar")


def describe_downloaded_model(folder: Path, model: Model) -> DownloadedModel:
    """Return the paths of a downloaded checkpoint.

    Raises:
        ViDownloadError: The folder is not a checkpoint.
    """
    adapter, config = folder / "model_adapter", folder / "model_full" / "run.json"
    if not config.is_file():
        raise ViDownloadError(
            f"{folder} is not a checkpoint: {config.relative_to(folder)} is missing",
            suggestion="try: download it again with overwrite=True",
        )
    return DownloadedModel(
        run_id=model.run_id,
        model_id=model.model_id,
        model_path=folder / "model_full",
        adapter_path=adapter if adapter.is_dir() else None,
        run_config_path=config,
    )
