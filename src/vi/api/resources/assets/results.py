"""Results of ``client.assets.upload`` and ``client.assets.download``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vi.api.resources.assets.responses import AssetIngestionSession, IngestionError
from vi.api.resources.datasets._sessions import is_finished


@dataclass(frozen=True)
class AssetUploadResult:
    """Result of an upload, which consists of one or more sessions."""

    sessions: Sequence[AssetIngestionSession]

    @property
    def session_ids(self) -> list[str]:
        return [session.session_id for session in self.sessions]

    @property
    def total_files(self) -> int:
        return sum(session.status.progress_count.total for session in self.sessions)

    @property
    def total_succeeded(self) -> int:
        return sum(session.status.progress_count.succeeded for session in self.sessions)

    @property
    def total_failed(self) -> int:
        return sum(session.status.progress_count.errored for session in self.sessions)

    @property
    def success_rate(self) -> float:
        """Share of accepted files in percent."""
        return 100.0 * self.total_succeeded / self.total_files if self.total_files else 0.0

    @property
    def failed_files(self) -> dict[str, str]:
        """Rejected files, each with an error code such as ``ECORRUPT``."""
        events = [event for session in self.sessions for event in session.status.events]
        return {
            name: code
            for event in events
            if isinstance(event, IngestionError)
            for name, code in event.files.items()
        }

    @property
    def is_complete(self) -> bool:
        """True if every session has ended."""
        return all(is_finished(session.status.conditions) for session in self.sessions)

    def summary(self) -> str:
        """Return a one-line summary."""
        return (
            f"{self.total_succeeded} of {self.total_files} files accepted, {self.total_failed} "
            "rejected"
        )


@dataclass(frozen=True)
class AssetDownloadResult:
    """Downloaded images, below ``save_dir`` under their relative paths."""

    dataset_id: str
    count: int
    save_dir: str

    @property
    def save_path(self) -> Path:
        return Path(self.save_dir)

    @property
    def file_list(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.save_path))
            for path in self.save_path.rglob("*")
            if path.is_file()
        )

    @property
    def size_mb(self) -> float:
        return (
            sum(path.stat().st_size for path in self.save_path.rglob("*") if path.is_file()) / 1e6
        )

    def summary(self) -> str:
        """Return a one-line summary."""
        return f"{self.dataset_id}: {self.count} images in {self.save_path}"
