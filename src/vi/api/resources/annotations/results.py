"""Result of ``client.annotations.upload``."""

from dataclasses import dataclass

from vi.api.resources.annotations.responses import AnnotationImportSession
from vi.api.resources.datasets._sessions import find_failure, is_finished


@dataclass(frozen=True)
class AnnotationUploadResult:
    """Result of an upload session of annotation files."""

    session: AnnotationImportSession

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def files_by_status(self) -> dict[str, int]:
        return self.session.status.files.status_count

    @property
    def annotations_by_status(self) -> dict[str, int]:
        return self.session.status.annotations.status_count

    @property
    def total_files(self) -> int:
        return sum(self.files_by_status.values())

    @property
    def total_annotations(self) -> int:
        return sum(self.annotations_by_status.values())

    @property
    def total_size_bytes(self) -> int:
        return self.session.status.files.total_size_bytes

    @property
    def is_complete(self) -> bool:
        """True if the session has ended and the annotations are in the dataset."""
        conditions = self.session.status.conditions
        return is_finished(conditions) and find_failure(conditions) is None

    def summary(self) -> str:
        """Return a one-line summary."""
        counts = ", ".join(
            f"{count} {status}" for status, count in sorted(self.annotations_by_status.items())
        )
        return f"{self.total_files} files; annotations: {counts or 'none'}"
