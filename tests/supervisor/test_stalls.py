"""Which rank the others wait for, decided from what is seen of them over time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runyard.beats import Activity, Beat, BeatWriter, read_beat
from runyard.supervisor.stalls import RankView, Stall, StallDetector

WAITING = RankView(Beat(8, 4, "waiting"), 10.0)
IN_STEP = RankView(Beat(7, 4, "step"), 10.0)
CHECK_EVERY_S = 2


def watch(views: Sequence[RankView], *, seconds: int, cpu_share: float = 0.0) -> list[Stall | None]:
    """Observe the same beats for a while; rank 0 uses a share of a CPU."""
    detector = StallDetector(name_after_s=30, end_after_s=45)
    first, *others = views
    return [
        detector.observe(
            [replace(first, cpu_s=None if first.cpu_s is None else cpu_share * now), *others], now
        )
        for now in range(0, seconds + 1, CHECK_EVERY_S)
    ]


def test_a_rank_within_a_step_that_uses_no_cpu_is_named_and_then_given_up() -> None:
    found = watch([IN_STEP, WAITING], seconds=46)
    assert found[:15] == [None] * 15
    assert found[15] == Stall(
        0, "rank 0 has not advanced in step 5 for over 30 s; the others wait", is_final=False
    )
    assert found[-1] == Stall(
        0,
        "rank 0 has not advanced in step 5 for over 45 s and uses no CPU; the others wait",
        is_final=True,
    )


def test_a_long_step_is_only_named() -> None:
    found = watch([IN_STEP, WAITING, WAITING], seconds=600, cpu_share=0.5)
    assert found[-1] is not None
    assert not any(stall.is_final for stall in found if stall is not None)


def test_a_process_without_known_use_is_only_named() -> None:
    unknown = replace(IN_STEP, cpu_s=None)
    found = watch([unknown, WAITING], seconds=600)
    assert found[-1] is not None
    assert not found[-1].is_final


def test_a_rank_that_saves_or_evaluates_is_not_named() -> None:
    apart = RankView(Beat(9, 4, "apart"), 10.0)
    assert watch([apart, WAITING], seconds=600)[-1] is None


def test_ranks_that_all_compute_are_not_named() -> None:
    assert watch([IN_STEP, IN_STEP, WAITING], seconds=600)[-1] is None


def test_a_stopped_rank_is_given_up_whatever_it_was_doing() -> None:
    for activity in ("apart", "waiting", "step"):
        stopped = RankView(Beat(3, 4, activity), 10.0, is_stopped=True)
        final = watch([WAITING, stopped, WAITING], seconds=46)[-1]
        assert final is not None
        assert (final.rank, final.is_final) == (1, True)


def test_ranks_that_are_all_stopped_are_left_alone() -> None:
    stopped = replace(WAITING, is_stopped=True)
    assert watch([stopped, stopped], seconds=600)[-1] is None


def test_a_rank_that_advances_is_not_named() -> None:
    detector = StallDetector(name_after_s=30, end_after_s=45)
    for now in range(0, 600, CHECK_EVERY_S):
        beat = Beat(now // 20, now // 20, "step")
        assert detector.observe([RankView(beat, 0.0), WAITING], now) is None


def test_a_beat_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "rank-1.beat"
    assert read_beat(path) == Beat(0, 0, "apart")
    writer, seen = BeatWriter(path), list[tuple[int, int, Activity]]()

    def note() -> None:
        beat = read_beat(path)
        seen.append((beat.count, beat.step, beat.activity))

    writer.begin_step(6)
    note()
    with writer.waiting():
        note()
    note()
    assert seen == [(1, 6, "step"), (2, 6, "waiting"), (3, 6, "step")]


def test_a_single_rank_writes_no_beat(tmp_path: Path) -> None:
    BeatWriter().begin_step(1)
    assert list(tmp_path.iterdir()) == []
