"""What the page Runs shows: words, filters, addresses, and the same as Python or command."""

import inspect
import shlex
from typing import Any

import pytest

from runyard.cli.resources.runs import runs as runs_command
from runyard.server.pages.runs import rows as views
from runyard.server.pages.runs.actions import Selection, write_tag_snippet
from runyard.server.pages.runs.rows import ListState
from runyard.server.services.runs.filters import parse_filter
from vi.api.resources.flows.responses import FlowBlock, FlowSpec
from vi.api.resources.runs._sync import Runs
from vi.api.resources.runs.responses import Run, RunMetadata, RunProgress, RunSpec, RunStatus
from vi.api.responses import ConditionKind, ResourceCondition

NOW_MS = 1_800_000_000_000


def make_run(
    condition: ConditionKind = ConditionKind.RUNNING,
    reason: str = "Training",
    message: str | None = None,
    *,
    progress: RunProgress | None = None,
    **attributes: str,
) -> Run:
    flow = FlowSpec(
        name="shelf",
        blocks=[
            FlowBlock(
                block="vi-dataset", settings={"datasetId": "d1", "datasetVersion": "0123456789ab"}
            )
        ],
        settings={"flow": {"id": "f1", "generation": 7}},
    )
    state = ResourceCondition(
        condition=condition, last_transition_time=NOW_MS - 60_000, reason=reason, message=message
    )
    return Run(
        run_id="r1",
        spec=RunSpec(flow=flow),
        status=RunStatus(conditions=[state], progress=progress),
        metadata=RunMetadata(time_created=NOW_MS - 660_000, attributes=attributes),
    )


def test_a_running_run_shows_progress_time_left_and_phase() -> None:
    progress = RunProgress(step=1620, total_steps=2000, loss=0.214, seconds_left=240)
    row = views.build_row(make_run(reason="Saving", progress=progress), now_ms=NOW_MS)
    assert (row.kind, row.has_bar, row.percent) == ("running", True, 81)
    assert (row.line, row.note) == ("81 % · 4 min left", "Saving · step 1,620 of 2,000")
    assert (row.loss, row.took, row.started.text) == ("0.214", "11 min", "11 min ago")
    assert (row.flow, row.flow_version) == ("shelf", "7")
    assert (row.dataset, row.dataset_version) == ("d1", "01234567")


def test_a_failure_shows_what_its_message_suggests_to_do() -> None:
    message = "out of memory: 27.1 of 24.0 GiB; try: a smaller micro-batch."
    progress = RunProgress(step=40, total_steps=400)
    run = make_run(ConditionKind.FAILED, "OutOfMemory", message, progress=progress)
    row = views.build_row(run, now_ms=NOW_MS)
    assert (row.line, row.note) == ("Out of memory at step 40 of 400", "→ a smaller micro-batch")
    assert (row.note_title, row.is_problem, row.has_bar) == (message, True, False)
    assert row.took == "10 min"  # until it ended


@pytest.mark.parametrize(
    ("condition", "reason", "line", "note"),
    [
        (ConditionKind.FAILED, "Diverged", "Diverged", "→ lower the learning rate"),
        (ConditionKind.ERROR, "WorkerLost", "Worker lost", "→ resume it from the newest"),
        (ConditionKind.PENDING, "WaitingForMachine", "Waiting for machine", "→ start a"),
        (ConditionKind.PENDING, "Queued", "Queued", "2nd in line"),
        (ConditionKind.SUCCEEDED, "EarlyStopped", "", "Early stopped"),
        (ConditionKind.CANCELLED, "KilledByUser", "Killed", ""),
    ],
)
def test_each_state_says_why_and_what_next(
    condition: ConditionKind, reason: str, line: str, note: str
) -> None:
    message = "2nd in line" if reason == "Queued" else "worker m1 is gone"
    found = views.describe_progress(make_run(condition, reason, message))
    assert found[0] == line
    assert found[1].startswith(note)


def test_the_best_value_counts_and_not_the_last() -> None:
    progress = RunProgress(step=5, total_steps=9, metric=0.3, metric_name="iou")
    row = views.build_row(
        make_run(progress=progress), now_ms=NOW_MS, summary=views.Summary(best=0.71)
    )
    assert (row.metric, row.metric_name) == ("0.71", "iou")


def test_the_plan_says_which_metric_decides_and_in_which_direction() -> None:
    run = make_run(progress=RunProgress(metric=1, metric_name="validationloss"))
    assert views.find_key_metric(run) == ("validationloss", True)
    run.status.plan = {"metric": {"value": "iou"}, "mode": {"value": "max"}}
    assert views.find_key_metric(run) == ("iou", False)


def test_a_curve_is_drawn_with_whole_numbers_and_skips_what_is_not_finite() -> None:
    assert views.draw_spark([3.0, float("nan"), 1.0, 2.0]) == "M0 1l46 18l46 -9"
    assert views.draw_spark([1.0]) == ""
    assert views.draw_spark([2.0, 2.0]) == "M0 1l92 0"


@pytest.mark.parametrize(
    "value", ["kim", "two words", 'a "quoted" one', "a:b", "-x", "", "ü=1", "back\\slash", "<b>"]
)
def test_a_tag_becomes_a_term_that_finds_it(value: str) -> None:
    filter = parse_filter(views.add_term("condition:Failed", views.format_tag("owner", value)))
    found = filter.terms[-1]
    assert (found.field, found.key, found.value) == ("attribute", "owner", value)


def test_a_chip_replaces_the_condition_of_the_filter() -> None:
    q = 'owner=kim condition:Failed "condition:no field"'
    assert views.replace_condition(q, "Error") == ('condition:Error owner=kim "condition:no field"')
    assert views.replace_condition(q, "") == 'owner=kim "condition:no field"'
    assert views.find_condition(q) == "Failed"
    assert views.find_condition("condition:Failed,Error") == ""
    assert views.find_condition("condition!=Failed") == ""


def test_every_chip_says_how_many_runs_it_shows() -> None:
    state = ListState(q="condition:Failed owner=kim", p="token", columns="loss")
    chips = views.build_chips(state, {"Failed": 3, "Pending": 1200})
    assert [(chip.name, chip.count) for chip in chips[:2]] == [
        ("All", "1,203"),
        ("Pending", "1,200"),
    ]
    assert [chip.name for chip in chips if chip.is_current] == ["Failed"]
    assert chips[1].url == "/ui/runs?q=condition%3APending%20owner%3Dkim&columns=loss"


def test_headings_sort_down_first_and_then_up() -> None:
    def get_url(sort: str, name: str) -> tuple[str, str]:
        headings = views.build_headings(ListState(sort=sort), "validation/iou")
        found = next(heading for heading in headings if heading.name == name)
        return found.sort_url, found.direction

    assert get_url("", "created") == ("/ui/runs?sort=created", "descending")
    assert get_url("created", "created") == ("/ui/runs", "ascending")
    assert get_url("", "name") == ("/ui/runs?sort=name", "")
    assert get_url("name", "name") == ("/ui/runs?sort=-name", "ascending")
    assert get_url("", "metric") == ("/ui/runs?sort=-metric.validation%2Fiou", "")
    assert get_url("", "tags") == ("", "")


def test_columns_are_chosen_by_the_address() -> None:
    assert ListState().list_columns() == tuple(views.COLUMNS)
    assert ListState(columns="tags,loss,unknown").list_columns() == ("loss", "tags")
    assert ListState(columns=views.NO_COLUMNS).list_columns() == ()


HOSTILE = 'it\'s "$(rm)" ; owner=kim -x'


@pytest.mark.parametrize(
    "snippet",
    [
        views.write_start_snippet(),
        views.write_list_snippet(ListState()),
        views.write_list_snippet(ListState(q=HOSTILE, sort="-created")),
        views.write_action_snippet("kill", ["r1"], None),
        views.write_action_snippet("kill", ["r1", "r2"], None, ["grace_s=5"], grace="5"),
        views.write_action_snippet("kill", [], HOSTILE),
        views.write_action_snippet("delete", [], ""),
        write_tag_snippet(Selection(("r1", "r2"), "", False), {HOSTILE: HOSTILE}),
        write_tag_snippet(Selection((), HOSTILE, True), {HOSTILE: None}),
    ],
    ids=lambda snippet: snippet.command.split("--")[0],
)
def test_the_sdk_and_the_command_line_take_what_the_page_shows(snippet: views.Snippet) -> None:
    name, arguments, keywords = eval(snippet.python, {"client": Recorder()})  # noqa: S307
    method = getattr(Runs, name)
    inspect.signature(method).bind(None, *arguments, **keywords)
    command, group, verb, *given = shlex.split(snippet.command)
    assert (command, group, verb) == ("runyard", "runs", name)
    runs_command.commands[verb].make_context(verb, given)
    if HOSTILE in str(keywords):
        assert any(HOSTILE in word for word in given)


class Recorder:
    """Returns the method, the arguments and the keyword arguments of a call."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __getattr__(self, name: str) -> "Recorder":
        return Recorder(name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.name, arguments, keywords


def test_snippets_have_real_ids() -> None:
    by_ids = views.write_action_snippet("kill", ["r1", "r2"], None, ["grace_s=5"], grace="5")
    assert by_ids.python == 'client.runs.kill(["r1", "r2"], grace_s=5)'
    assert by_ids.command == "runyard runs kill r1 r2 --grace 5"


def test_a_wrong_term_is_marked_where_it_is() -> None:
    problem = views.mark_problem("owner=kim condition:Fialed x", "no", 11, "condition:Fialed")
    assert (problem.head, problem.wrong, problem.tail) == ("owner=kim ", "condition:Fialed", " x")
    assert views.mark_problem("ab", "no", 99, "x").head == "ab"
