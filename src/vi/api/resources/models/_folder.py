"""Where a downloaded checkpoint lies: names only.

    <save_dir>/<run id>/<checkpoint id>/model_full/       weights, processor, run.json
    <save_dir>/<run id>/<checkpoint id>/model_adapter/    if the checkpoint has one
    <save_dir>/<run id>/.<checkpoint id>.tar              while it is unpacked; .part and .part.json while it arrives

Each checkpoint has a folder of its own, so two of one run never mix.
"""

from pathlib import Path

from vi.api._arguments import check_id, local_path
from vi.api._folders import path_below
from vi.api.resources.models.responses import DownloadedModel, Model
from vi.errors import ViDownloadError

DEFAULT_SAVE_DIR = "~/.datature/vi/models"


def folder_of(model: Model, *, save_dir: str | Path | None) -> Path:
    """Return the checkpoint's folder. Ids come from a server, so they are checked before they become names of files.

    Raises:
        ViInvalidParameterError: the server sent an id that is not valid.
    """
    root = local_path(DEFAULT_SAVE_DIR if save_dir is None else save_dir, name="save_dir").absolute()
    return path_below(root, check_id(model.run_id, name="runId"), check_id(model.model_id, name="runOutputId"))


def archive_of(folder: Path) -> Path:
    """Where the checkpoint's archive is put together."""
    return folder.with_name(f".{folder.name}.tar")


def model_in(folder: Path, model: Model) -> DownloadedModel:
    """What lies in the folder.

    Raises:
        ViDownloadError: it is no checkpoint.
    """
    adapter, config = folder / "model_adapter", folder / "model_full" / "run.json"
    if not config.is_file():
        raise ViDownloadError(
            f"{folder} holds no model: {config.relative_to(folder)} is missing",
            suggestion="Fetch it again with overwrite=True.",
        )
    return DownloadedModel(
        run_id=model.run_id,
        model_id=model.model_id,
        model_path=folder / "model_full",
        adapter_path=adapter if adapter.is_dir() else None,
        run_config_path=config,
    )
