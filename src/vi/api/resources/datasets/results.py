"""Results of ``client.datasets.import_folder`` and ``client.datasets.download``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vi.api._display import format_count, format_rows
from vi.api.resources.datasets.responses import Dataset, DatasetImport, DatasetVersion, Finding


@dataclass(frozen=True)
class FolderImport:
    """Result of ``import_folder``.

    Attributes:
        dataset: The dataset after the import.
        session: The import; its ``status`` counts files, rows and findings.
        version: The new version; None without waiting, or if nothing was accepted.
        findings: The first findings, at most 1000, starting with skipped files such as links that
            lead outside the folder. ``client.datasets.findings`` returns all findings of the
            server.
        skipped: The findings about files that were not sent.
    """

    dataset: Dataset
    session: DatasetImport
    version: DatasetVersion | None = None
    findings: Sequence[Finding] = field(default=())
    skipped: Sequence[Finding] = field(default=())

    @property
    def dataset_id(self) -> str:
        return self.dataset.dataset_id

    @property
    def import_id(self) -> str:
        return self.session.import_id

    @property
    def is_accepted(self) -> bool:
        """True if the import has ended and accepted data."""
        return self.session.is_over and not self.session.has_failed

    def summary(self) -> str:
        """Return a one-line summary."""
        progress, found = self.session.status.progress, self.session.status.findings
        rows = format_rows(progress.rows_kept, progress.rows)
        counts = f"{format_count(progress.images, 'image')}, {rows}"
        kind = f"{self.session.status.format or 'no annotations'}, {self.dataset.type}"
        defects = (
            f"{format_count(found.errors, 'error')}, {format_count(found.warnings, 'warning')}"
        )
        return f"{self.dataset.name}: {counts} ({kind}); {defects}"


@dataclass(frozen=True)
class DatasetDownloadResult:
    """Downloaded dataset.

    ``save_path`` contains ``dump/``, or ``training/`` and ``validation/``.
    """

    dataset_id: str
    save_dir: str

    @property
    def save_path(self) -> Path:
        return Path(self.save_dir)

    @property
    def splits(self) -> list[str]:
        """Those of ``dump``, ``training`` and ``validation`` that exist."""
        return [
            name for name in ("dump", "training", "validation") if (self.save_path / name).is_dir()
        ]

    @property
    def asset_count(self) -> int:
        """Number of downloaded images."""
        return sum(1 for path in self.save_path.rglob("images/**/*") if path.is_file())

    @property
    def size_mb(self) -> float:
        return (
            sum(path.stat().st_size for path in self.save_path.rglob("*") if path.is_file()) / 1e6
        )

    def summary(self) -> str:
        """Return a one-line summary."""
        return (
            f"{self.dataset_id}: {self.asset_count} images, {self.size_mb:.1f} MB in "
            f"{self.save_path}"
        )
