"""Contents of the terminal views: the curve, one run, all runs, and their keys."""

import math
import threading

import pytest

from runyard.cli.live.curve import draw_curve
from runyard.cli.live.feed import Feed, RunsState, RunState, choose_metric
from runyard.cli.live.run_view import RunView
from runyard.cli.live.runs_view import RunsView
from vi.api.resources.runs.responses import LogLine, Run, RunAttempt, RunProgress, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition


def make_run(run_id: str = "r-1", *, kind: str = "Running", machine: str = "box") -> Run:
    condition = ResourceCondition(condition=ConditionKind(kind), reason="Training")
    progress = RunProgress(
        step=300, total_steps=1000, loss=0.5, metric_name="iou", metric=0.71, seconds_left=200.0
    )
    return Run(
        run_id=run_id,
        status=RunStatus(
            conditions=[condition],
            progress=progress,
            attempts=[RunAttempt(attempt=1, machine=machine)],
        ),
    )


def make_state(run: Run, *, lines: int = 100, metric: str = "loss") -> RunState:
    log = [
        LogLine(number=number, time=0, attempt=1, stream="stdout", text=f"line {number}\x1b[2J")
        for number in range(1, lines + 1)
    ]
    return RunState(
        run=run,
        metric=metric,
        curve=[(float(step), 1 / step) for step in range(1, 301)],
        metrics=["loss", "validation/iou"],
        lines=log,
        usage={"cpuPercent": 123.4, "memoryBytes": 3 << 30, "acceleratorPercent/0": 80.0},
    )


def make_view(killed: list[str] | None = None, selected: list[str] | None = None) -> RunView:
    kill = [] if killed is None else killed
    select = [] if selected is None else selected
    return RunView("r-1", kill=kill.append, select=select.append)


def render(view: RunView | RunsView, state: RunState | RunsState | None, height: int = 30) -> str:
    lines = view.build_lines(state, problem="", width=100, height=height)  # type: ignore[arg-type]
    assert len(lines) == height
    assert all(line.text.isprintable() for line in lines)
    return "\n".join(line.text for line in lines)


def test_a_curve_has_its_scale_and_fills_the_size() -> None:
    points = [(float(step), math.sin(step / 50)) for step in range(500)]
    lines = draw_curve(points, width=60, height=8)
    assert len(lines) == 8
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("  0.9999 │") or lines[0].lstrip().startswith("1 │")
    assert lines[-1].lstrip().startswith("-1 │")


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_single_high_point_stays_visible_among_many(is_plain: bool) -> None:
    points = [(float(step), 0.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 1.0)
    lines = draw_curve(points, width=50, height=6, is_plain=is_plain)
    assert all(len(line.rstrip()) > 8 for line in lines)  # a line from the bottom to the top


def test_a_curve_without_values_or_with_one_value_is_drawn() -> None:
    assert draw_curve([], width=50, height=3) == ["no values yet", "", ""]
    assert draw_curve([(1, math.nan)], width=50, height=3)[0] == "no values yet"
    one = draw_curve([(1, 2)], width=50, height=3)
    assert "2 │" in one[0] and any(character >= "\u2801" for character in "".join(one))


def test_a_plain_curve_needs_no_unicode() -> None:
    assert "".join(draw_curve([(0, 0), (1, 1)], width=40, height=5, is_plain=True)).isascii()


def test_a_run_shows_progress_time_left_curve_and_the_end_of_the_log() -> None:
    shown = render(make_view(), make_state(make_run()))
    for words in (
        "CPU 123 %",
        "memory 3.0 GiB",
        "GPU 0 80 %",
        "● Running",
        "Training",
        "step 300/1,000",
        "30%",
        "3m 20s left",
        "iou 0.71",
    ):
        assert words in shown
    assert "loss  0.003333  step 300" in shown
    assert "line 100" in shown and "line 50\n" not in shown
    assert "k kill" in shown.splitlines()[-1]


@pytest.mark.parametrize("height", [1, 4, 8, 12, 60])
def test_a_run_fits_into_every_height(height: int) -> None:
    shown = render(make_view(), make_state(make_run()), height=height)
    assert "q leave" in shown.splitlines()[-1]


def test_the_next_metric_is_read_by_a_key() -> None:
    selected: list[str] = []
    view, state = make_view(selected=selected), make_state(make_run())
    assert "loss  " in render(view, state)
    for _ in range(3):
        view.press_key("m", state)
    assert selected == ["validation/iou", "loss", "validation/iou"]
    assert "reading validation/iou" in render(view, state)
    shown = render(view, make_state(make_run(), metric="validation/iou"))
    assert "validation/iou  0.003333" in shown
    make_view().press_key("m", None)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["learningRate", "loss"], "loss"),
        (["learningRate", "training/loss"], "training/loss"),
        (["system/cpuPercent", "iou"], "iou"),
        (["system/cpuPercent"], "system/cpuPercent"),
        ([], None),
    ],
)
def test_the_first_metric_is_the_loss_if_there_is_one(names: list[str], first: str | None) -> None:
    assert choose_metric(names) == first


def test_a_run_is_killed_only_after_yes() -> None:
    killed: list[str] = []
    view, state = make_view(killed), make_state(make_run())
    view.press_key("k", state)
    assert "kill run r-1?" in render(view, state).splitlines()[-1]
    view.press_key("n", state)
    assert killed == [] and "not killed" in render(view, state)
    view.press_key("k", state)
    view.press_key("q", state)  # any key but y is no
    assert killed == [] and not view.is_left
    view.press_key("k", state)
    view.press_key("y", state)
    assert killed == ["r-1"] and "kill requested" in render(view, state)
    view.press_key("q", state)
    assert view.is_left


def test_a_run_that_has_ended_is_not_killed() -> None:
    view, state = make_view(), make_state(make_run(kind="Succeeded"))
    view.press_key("k", state)
    assert "the run has ended" in render(view, state)


def test_before_the_first_reading_the_views_say_so() -> None:
    assert "reading" in render(make_view(), None)
    assert "reading" in render(RunsView(kill=print), None)


def test_all_runs_are_rows_with_the_runs_of_each_machine() -> None:
    runs = [make_run("a"), make_run("b"), make_run("c", machine="gpu-1")]
    runs.append(make_run("d", kind="Pending"))
    usage = {name: {"cpuPercent": 75.0, "memoryBytes": 1536.0} for name in "ab"}
    shown = render(RunsView(kill=print), RunsState(runs=runs, usage=usage))
    assert "3 running   1 waiting" in shown
    assert "box: 2 runs   CPU 150 %   memory 3.0 KiB" in shown
    assert "gpu-1: 1 run\n" in shown
    assert "300/1,000 30%" in shown
    assert "runyard runs create" in render(RunsView(kill=print), RunsState(runs=()))


def test_the_cursor_stays_on_its_run_when_others_end() -> None:
    view = RunsView(kill=print)
    state = RunsState(runs=tuple(make_run(name) for name in "abcd"))
    for key in ("down", "j", "down", "up"):
        view.press_key(key, state)
    later = RunsState(runs=tuple(make_run(name) for name in "bcd"))
    lines = view.build_lines(later, problem="", width=100, height=20)
    assert [line.text.split()[2] for line in lines if line.style == "reverse"] == ["c"]
    view.press_key("enter", later)
    assert (view.opened, view.is_left) == ("c", True)


def test_many_runs_scroll_with_the_cursor() -> None:
    view = RunsView(kill=print)
    state = RunsState(runs=tuple(make_run(f"run-{number:03}") for number in range(200)))
    view.press_key("G", state)
    shown = render(view, state, height=20)
    assert "run-199" in shown and "run-000" not in shown


def test_a_run_in_the_list_is_killed_only_after_yes() -> None:
    killed: list[str] = []
    view, state = RunsView(kill=killed.append), RunsState(runs=(make_run("a"),))
    view.press_key("x", state)
    view.press_key("\n", state)
    assert killed == []
    view.press_key("x", state)
    view.press_key("y", state)
    assert killed == ["a"]


def test_a_feed_reports_an_unavailable_server_and_reads_again() -> None:
    import vi

    answers: list[Exception | int] = [vi.ViNetworkError("no response"), 1, KeyError("bug")]
    has_waited = threading.Event()

    def read() -> int:
        answer = answers.pop(0)
        if isinstance(answer, KeyError):
            assert has_waited.wait(30)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Feed(read, interval_s=0.001) as feed:
        assert feed.wait() == 1
        has_waited.set()
        feed._thread.join(5)
        assert isinstance(feed.failure, KeyError)
        with pytest.raises(KeyError):
            feed.wait()
