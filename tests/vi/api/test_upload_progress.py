"""The progress of an upload: rate and time left."""

from vi.api.resources.datasets.imports._upload_progress import UploadProgress
from vi.api.resources.datasets.responses import DatasetImport, ImportProgress


class FakeTime:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def measure(*, elapsed_s: float, sent_bytes: int, found_bytes: int = 0) -> ImportProgress:
    """Return the progress of an upload of 1000 bytes."""
    clock = FakeTime()
    progress = UploadProgress(files=10, size_bytes=1000, clock=clock)
    clock.now_s += elapsed_s
    if found_bytes:
        progress.record_stored("ff", found_bytes, files=1, was_stored=True)
    progress.record_sent("00", sent_bytes)
    return progress.apply_to(DatasetImport()).status.progress


def test_the_time_left_is_unknown_until_enough_was_sent() -> None:
    assert measure(elapsed_s=1.9, sent_bytes=500).seconds_left is None
    assert measure(elapsed_s=9.0, sent_bytes=19).seconds_left is None
    assert measure(elapsed_s=9.0, sent_bytes=0).seconds_left is None
    assert measure(elapsed_s=2.0, sent_bytes=500).seconds_left == 2.0


def test_bytes_that_the_server_had_do_not_count_as_sent() -> None:
    assert measure(elapsed_s=5.0, sent_bytes=0, found_bytes=500).seconds_left is None
    progress = measure(elapsed_s=5.0, sent_bytes=100, found_bytes=500)
    assert (progress.per_second, progress.seconds_left) == (20.0, 20.0)
