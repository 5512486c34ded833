"""What the longer calls of ``client.datasets`` return: several documents of the server in one hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vi.api.resources.datasets.responses import Dataset, DatasetImport, DatasetVersion, Finding


@dataclass(frozen=True)
class FolderImport:
    """What became of ``import_folder``.

    Attributes:
        dataset: the dataset as it is afterwards.
        session: the import; its ``status`` counts files, rows and findings.
        version: what the dataset holds now, for good; None when nothing was waited for or taken.
        findings: the first of the findings, at most 1000; ``client.datasets.findings`` has all of them. Files that were
            not even sent, such as links that lead out of the folder, come first.
    """

    dataset: Dataset
    session: DatasetImport
    version: DatasetVersion | None = None
    findings: Sequence[Finding] = field(default=())

    @property
    def dataset_id(self) -> str:
        return self.dataset.dataset_id

    @property
    def import_id(self) -> str:
        return self.session.import_id

    @property
    def is_accepted(self) -> bool:
        """Whether it is over and something was taken."""
        return self.session.is_over and not self.session.has_failed

    def summary(self) -> str:
        """One line for people."""
        progress, found = self.session.status.progress, self.session.status.findings
        counts = f"{counted(progress.images, 'picture')}, {progress.rows_kept} of {counted(progress.rows, 'row')}"
        kind = f"{self.session.status.format or 'no annotations'}, {self.dataset.type}"
        defects = f"{counted(found.errors, 'error')}, {counted(found.warnings, 'warning')}"
        return f"{self.dataset.name}: {counts} ({kind}); {defects}"


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class DatasetDownloadResult:
    """A dataset on this machine. ``save_path`` is its folder, with ``dump/`` or ``training/`` and ``validation/``."""

    dataset_id: str
    save_dir: str

    @property
    def save_path(self) -> Path:
        return Path(self.save_dir)

    @property
    def splits(self) -> list[str]:
        """Which of ``dump``, ``training`` and ``validation`` are there."""
        return [name for name in ("dump", "training", "validation") if (self.save_path / name).is_dir()]

    @property
    def asset_count(self) -> int:
        """How many pictures came along."""
        return sum(1 for path in self.save_path.rglob("images/**/*") if path.is_file())

    @property
    def size_mb(self) -> float:
        return sum(path.stat().st_size for path in self.save_path.rglob("*") if path.is_file()) / 1e6

    def summary(self) -> str:
        """One line for people."""
        return f"{self.dataset_id}: {self.asset_count} pictures, {self.size_mb:.1f} MB in {self.save_path}"
