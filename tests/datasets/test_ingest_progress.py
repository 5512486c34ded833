"""The time left is estimated only once enough is done."""

import pytest

from runyard.datasets.ingest import IngestProgress, Phase


class FakeTime:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def estimate(
    phase: Phase, *, elapsed_s: float, files_done: int = 0, share: float = 0.0
) -> tuple[float | None, float | None]:
    """Return rate and time left of a phase with 1000 files, or a share of the rows' bytes."""
    clock = FakeTime()
    progress = IngestProgress(now_s=clock, files=1000, fraction_read=lambda: share)
    progress.begin(phase)
    clock.now_s, progress.files_done, progress.rows = elapsed_s, files_done, files_done
    document = progress.document()
    return document["perSecond"], document["secondsLeft"]


@pytest.mark.parametrize("phase", ["Receiving", "Inspecting", "Reading"])
def test_the_time_left_is_unknown_in_the_first_seconds(phase: Phase) -> None:
    assert estimate(phase, elapsed_s=0.0, files_done=500, share=0.5) == (None, None)
    assert estimate(phase, elapsed_s=1.9, files_done=500, share=0.5) == (None, None)
    assert estimate(phase, elapsed_s=2.0, files_done=500, share=0.5) == (250.0, 2.0)


@pytest.mark.parametrize("phase", ["Receiving", "Inspecting", "Reading"])
def test_the_time_left_is_unknown_before_two_percent_are_done(phase: Phase) -> None:
    assert estimate(phase, elapsed_s=10.0, files_done=19, share=0.019) == (1.9, None)
    assert estimate(phase, elapsed_s=10.0, files_done=20, share=0.02) == (2.0, 490.0)
    assert estimate(phase, elapsed_s=10.0, files_done=1000, share=1.0) == (100.0, 0.0)


@pytest.mark.parametrize("phase", ["Checking", "Done"])
def test_rows_of_an_earlier_phase_give_no_rate(phase: Phase) -> None:
    assert estimate(phase, elapsed_s=10.0, files_done=500, share=1.0) == (None, None)
