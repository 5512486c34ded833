"""The tab *Files*: what the server holds of a run, with sizes and downloads."""

from collections.abc import Sequence

import msgspec

from runyard.rundir import TRAINING_STATE
from runyard.server.pages.views import format_bytes
from runyard.server.services.runs.deletion import RunContents
from vi.api.resources.models.responses import Model


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a checkpoint."""

    path: str
    size: str
    sha256: str
    is_downloaded: bool


class CheckpointFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint with its files, and the link to all of them as one archive."""

    id: str
    size: str
    href: str
    rows: list[FileRow]


class FilesTab(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that belongs to a run."""

    total: str
    log_lines: str
    log_size: str
    log_href: str
    points: str
    points_href: str
    checkpoints: list[CheckpointFiles]
    document_href: str


def build_files(contents: RunContents, models: Sequence[Model], *, api: str) -> FilesTab:
    """Return the tab."""
    links = {
        model.model_id: model.status.contents.download_url.url
        for model in models
        if model.status.contents is not None
    }
    return FilesTab(
        total=format_bytes(contents.checkpoint_bytes + contents.log_bytes),
        log_lines=f"{contents.log_lines:,}",
        log_size=format_bytes(contents.log_bytes),
        log_href=f"{api}/logs/file",
        points=f"{contents.metric_points:,}",
        points_href=f"{api}/metrics:series",
        document_href=api,
        checkpoints=[
            CheckpointFiles(
                id=checkpoint.id,
                size=format_bytes(checkpoint.size_bytes),
                href=links.get(checkpoint.id, ""),
                rows=[
                    FileRow(
                        path=path,
                        size=format_bytes(size_bytes),
                        sha256=sha256,
                        is_downloaded=not path.startswith(f"{TRAINING_STATE}/"),
                    )
                    for path, size_bytes, sha256 in checkpoint.files
                ],
            )
            for checkpoint in reversed(contents.checkpoints)
        ],
    )
