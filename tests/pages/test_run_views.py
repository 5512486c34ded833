"""What the page of a run says: causes and fixes, time left, timeline, flow, and another run."""

import json
from typing import Any

import pytest

from runyard.server.pages.forms import Form
from runyard.server.pages.run import causes, head, overview, predictions, start, timeline
from runyard.server.pages.run.flow import build_flow, flatten, format_yaml
from runyard.server.pages.run.head import Recent, Step
from runyard.server.services.runs.conditions import MEANINGS
from runyard.server.services.runs.telemetry.samples import SamplePage
from vi.api.resources.events.responses import Event
from vi.api.resources.flows.responses import FlowBlock, FlowCheck, FlowSpec
from vi.api.resources.models.responses import Model, ModelSpec
from vi.api.resources.runs.responses import (
    Run,
    RunAttempt,
    RunMetadata,
    RunProgress,
    RunSpec,
    RunStatus,
    Sample,
    SampleAnswer,
    SampleBox,
    SampleImage,
)
from vi.api.responses import (
    ConditionKind,
    ResourceCondition,
    ResourceMetadata,
    RunFinding,
    RunSuggestion,
)

CREATED = 1_796_031_593_000
BASE = "/ui/runs/run-1"


def make_run(kind: str, reason: str, message: str = "", **changes: Any) -> Run:
    settings = {"hyperparameters": {"epochs": 4, "microBatchSize": 8}}
    history = [
        ResourceCondition(condition=ConditionKind.PENDING, last_transition_time=CREATED),
        ResourceCondition(
            condition=ConditionKind(kind),
            last_transition_time=CREATED + 60_000,
            reason=reason,
            message=message,
        ),
    ]
    attempt = RunAttempt(
        attempt=1,
        machine="vm",
        time_started=CREATED + 1000,
        time_ended=CREATED + 60_000,
        exit_code=1,
        cause="exit code 1",
        micro_batch_size=8,
    )
    return Run(
        organization_id="org",
        run_id="run-1",
        spec=RunSpec(
            flow=FlowSpec(name="shelf", blocks=[FlowBlock(block="vi-model", settings=settings)])
        ),
        status=RunStatus(
            conditions=history,
            progress=RunProgress(step=40, total_steps=2000),
            attempts=[attempt],
            **changes,
        ),
        metadata=RunMetadata(name="shelf", time_created=CREATED, attributes={"owner": "kim"}),
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(kind.value, reason) for kind, reasons in MEANINGS.items() for reason in reasons],
)
def test_every_reason_that_needs_attention_has_words_and_a_next_step(
    kind: str, reason: str
) -> None:
    run = make_run(kind, reason, "something happened")
    banner = causes.explain_run(run, base=BASE, has_checkpoint=False)
    if reason in ("Completed", "EarlyStopped") or (
        kind == "Running" and reason not in ("Stopping", "WaitingForDisk")
    ):
        assert banner is None
        return
    assert banner is not None
    assert banner.text == "something happened"
    assert MEANINGS[ConditionKind(kind)][reason] in banner.title
    if ConditionKind(kind).is_final:
        assert banner.links and "step 40 of 2,000" in banner.place
        assert banner.proofs[-1] == "No process of this run is left."


def test_a_run_out_of_memory_offers_half_of_its_micro_batch() -> None:
    run = make_run("Failed", "OutOfMemory", "out of memory: 27.1 GiB of 24.0; try: a smaller model")
    banner = causes.explain_run(run, base=BASE, has_checkpoint=True)
    assert banner is not None
    assert (banner.text, banner.advice) == (
        "out of memory: 27.1 GiB of 24.0",
        "Try: a smaller model.",
    )
    assert banner.links[0].text == "Run again with micro-batch 4…"
    assert banner.links[0].href == f"{BASE}/start?how=again&set=microBatchSize%3D4"
    assert [link.text for link in banner.links[1:]] == ["Log at the end"]
    draft = start.build_draft(run, "again", ["microBatchSize=4"])
    assert [
        (row.path, row.before, row.after)
        for row in start.list_differences(start.encode_flow(run), draft.flow)
    ] == [("vi-model.hyperparameters.microBatchSize", "8", "4")]


def test_the_proof_of_a_kill_waits_for_the_last_process() -> None:
    run = make_run("Cancelled", "KilledByUser")
    run.status.attempts[0].time_ended = None
    banner = causes.explain_run(run, base=BASE, has_checkpoint=False)
    assert banner is not None
    assert banner.proofs == ["Attempt 1 on vm has not ended."]


def test_time_left_is_measured_after_ten_steps_and_has_a_spread() -> None:
    steps = [Step(number=i, time_ms=1000 * i) for i in range(10)]
    assert head.estimate_time_left(steps, 100) is None
    steps = [Step(number=i, time_ms=1000 * i) for i in range(60)]
    assert head.estimate_time_left(steps, 159) == pytest.approx((100.0, 0.0))
    uneven = [Step(number=i, time_ms=1000 * i + 200 * (i % 2)) for i in range(60)]
    estimate = head.estimate_time_left(uneven, 159)
    assert estimate is not None
    assert estimate[0] == pytest.approx(100, rel=0.02)
    assert 2 < estimate[1] < 20


def test_facts_say_measuring_until_the_time_left_is_known() -> None:
    run = make_run("Running", "Training")
    recent = Recent(samples_per_second=412.0, memory_bytes=2**30)
    shown = head.build_head(run, now_ms=CREATED + 90_000, recent=recent, has_checkpoint=False)
    facts = {fact.label: fact.value for fact in shown.facts}
    assert facts["Step"] == "40 / 2,000"
    assert facts["Time left"] == "measuring"
    assert facts["Samples/s"] == "412"
    assert facts["Memory"] == "1.0 GiB"
    assert shown.may_kill
    assert "saves a checkpoint" not in shown.kill_effect  # its attempt has ended
    run.status.attempts[0].time_ended = None
    shown = head.build_head(run, now_ms=CREATED + 90_000, recent=recent, has_checkpoint=True)
    assert "saves a checkpoint and stops" in shown.kill_effect
    assert "it is killed first" in shown.delete_effect
    assert [(tag.key, tag.value) for tag in shown.tags] == [("owner", "kim")]


def test_bars_of_the_timeline_cover_the_time_from_creation_to_the_end() -> None:
    run = make_run("Failed", "TrainerError")
    model = Model(
        model_id="epoch-1",
        spec=ModelSpec(step=20, is_best=True),
        metadata=ResourceMetadata(time_created=CREATED + 30_000),
    )
    view = timeline.build_timeline(
        run,
        models=[model],
        events=[],
        evaluations=[(20, CREATED + 29_000)],
        base=BASE,
        now_ms=CREATED + 10**7,
    )
    lanes = {lane.name: lane for lane in view.lanes}
    conditions = lanes["Condition"].bars
    assert [bar.left for bar in conditions] == ["0.000%", "99.600%"]
    assert [bar.text for bar in conditions] == ["Pending", ""]  # the last one has no room
    assert conditions[-1].title.startswith("Failed")
    assert lanes["Checkpoints"].marks[0].left == "49.600%" or lanes["Checkpoints"].marks[0].left
    assert lanes["Evaluations"].marks[0].href == f"{BASE}/predictions?evaluation=20"
    times = [entry.time_ms for entry in view.entries]
    assert times == sorted(times)
    assert {entry.what for entry in view.entries} >= {"Attempt 1 started", "Checkpoint epoch-1"}


def test_the_timeline_keeps_checkpoints_that_were_deleted() -> None:
    run = make_run("Running", "Training")
    model = Model(
        model_id="step-40",
        spec=ModelSpec(step=40, is_best=True),
        metadata=ResourceMetadata(time_created=CREATED + 39_000),
    )
    events = [
        Event(
            time=CREATED + step * 1000,
            what="checkpoint",
            details={"checkpoint": f"step-{step}", "step": step, "metrics": {}},
        )
        for step in (20, 40)
    ]
    view = timeline.build_timeline(
        run, models=[model], events=events, evaluations=[], base=BASE, now_ms=CREATED + 50_000
    )
    found = [(each.what, each.detail) for each in view.entries if each.style == "checkpoint"]
    assert found == [
        ("Checkpoint step-20", "step 20, deleted since"),
        ("Checkpoint step-40", "step 40, best"),
    ]
    [lane] = [lane for lane in view.lanes if lane.name == "Checkpoints"]
    assert [mark.style for mark in lane.marks] == ["deleted", "best"]


def test_yaml_of_a_flow_reads_back_as_the_same_data() -> None:
    yaml = pytest.importorskip("yaml")
    data = {
        "name": "yes",
        "quoted": "a: b # c\n- d",
        "numbers": [1, -2.5, 1e-05, True, None],
        "nested": [{"a": {}, "b": [], "c": [[1], [{"d": "e"}]]}],
        "0": {"x": {"y": "z"}},
        "null": "~",
    }
    assert yaml.safe_load(format_yaml(data)) == {**data}


def test_the_flow_tab_separates_plan_and_environment() -> None:
    run = make_run(
        "Running",
        "Training",
        plan={
            "batchSize": {"value": 32, "reason": "samples per step"},
            "memory": {"value": 2**30, "reason": "estimated"},
            "versions": {"value": {"torch": "2.13"}, "reason": "installed"},
        },
    )
    tab = build_flow(run)
    assert [(row.name, row.value) for row in tab.plan] == [
        ("batchSize", "32"),
        ("memory", "1.0 GiB"),
    ]
    assert [(row.name, row.value) for row in tab.environment] == [("torch", "2.13")]
    assert tab.blocks[0].settings == [
        ("hyperparameters.epochs", "4"),
        ("hyperparameters.microBatchSize", "8"),
    ]
    assert flatten({"a": {"b": 1, "c": {}}}) == {"a.b": 1, "a.c": {}}


def test_fields_of_the_form_change_only_what_differs_from_the_original() -> None:
    run = make_run("Succeeded", "Completed")
    values = start.read_values(start.encode_flow(run))
    assert (values["epochs"], values["microBatchSize"], values["rank"]) == ("4", "8", "")
    fields = [*(values | {"epochs": "", "learningRate": "0.002", "seed": "x"}).items()]
    draft = start.parse_draft(run, Form([*fields, ("tags", "a=b\n\nc"), ("name", " next ")]))
    assert draft.flow["blocks"][0]["settings"]["hyperparameters"] == {
        "microBatchSize": 8,
        "learningRate": 0.002,
    }
    assert [problem.message for problem in draft.problems] == ["Seed is 'x'; it must be a number."]
    assert (draft.name, draft.tags) == ("next", {"a": "b", "c": ""})


@pytest.mark.parametrize(
    "flow", ["[]", "{", "1", '{"blocks": 3}', '{"blocks": [1, {"block": []}]}']
)
def test_a_flow_that_is_no_flow_is_a_problem_and_no_error(flow: str) -> None:
    run = make_run("Succeeded", "Completed")
    draft = start.parse_draft(run, Form([("flow", flow), ("epochs", "9")]))
    preview = start.build_preview(run, draft, base=BASE, check=FlowCheck())
    assert preview.command


def test_the_same_start_is_shown_in_python_and_as_a_command() -> None:
    run = make_run("Succeeded", "Completed")
    draft = start.build_draft(run, "resume", ["epochs=9"])
    preview = start.build_preview(run, draft, base=BASE, check=FlowCheck())
    assert 'resume_from=("run-1", "latest")' in preview.python
    compile(preview.python, "shown", "exec")
    assert "--set vi-model.hyperparameters.epochs=9" in preview.command
    assert "--resume-from run-1/latest" in preview.command


def test_the_main_metric_comes_first_in_charts_and_checkpoints() -> None:
    run = make_run("Running", "Training", plan={"metric": {"value": "iou", "reason": ""}})
    charts = overview.list_charts(run)
    assert charts[1].keys == "validation/iou baseline/iou validation/*"
    model = Model(
        model_id="epoch-1",
        spec=ModelSpec(
            step=20, evaluation_metrics={"validation/loss": 0.2, "validation/iou": 0.71}
        ),
        metadata=ResourceMetadata(time_created=CREATED),
    )
    shown = overview.build_checkpoints(
        run, [model], evaluations=[(20, CREATED)], saved=7, base=BASE, now_ms=CREATED
    )
    assert shown.rows[0].metrics == [("iou", "0.71"), ("loss", "0.2")]
    assert shown.marks == "c20 e20"
    assert shown.policy == "The newest 3 and the best are kept: 1 of 7."


@pytest.mark.parametrize("smooth", ["x", "-1", "9", "1e9", "0.5;", ""])
def test_settings_of_charts_that_do_not_exist_are_the_defaults(smooth: str) -> None:
    settings = overview.parse_settings("colour", smooth, "sin", is_zoomed=False)
    assert (settings.x, settings.smooth, settings.y) == ("step", "0.6", "lin")


def test_only_finite_numbers_are_taken_from_a_form() -> None:
    flow = json.loads("{}")
    for text in ("NaN", "Infinity", "true", '"4"', "[1]", "1 2"):
        assert len(start.apply_values(flow, {"epochs": text})) == 1


def test_a_sample_has_its_boxes_and_its_score_in_each_evaluation() -> None:
    samples = [
        Sample(
            index=3,
            step=step,
            image=SampleImage(width=64, height=32, href="/image"),
            question="how many?",
            truth=SampleAnswer(text="two", boxes=[SampleBox(box=(0.1, 0.2, 0.5, 1.0), phrase="a")]),
            predicted=SampleAnswer(text="one"),
            scores={"iou": score},
            parse="ok",
            score=score,
        )
        for step, score in ((10, 0.2), (20, 0.6))
    ]
    page = SamplePage(
        items=samples[1:], next_page=None, prev_page=None, evaluations=[10, 20], step=20, total=400
    )
    view = predictions.build_predictions(
        page, shown=samples[1], history=samples, order="score", base=BASE, empty=""
    )
    assert view.tiles[0].truth == [("10.00", "20.00", "40.00", "80.00")]
    assert (view.position, view.count) == (1, "1 of 400 samples")
    assert view.sample is not None and view.sample.is_right
    assert [(past.step, past.score) for past in view.sample.history] == [(10, "0.2"), (20, "0.6")]
    assert view.evaluations[0].href == f"{BASE}/predictions?evaluation=10&orderBy=score&index=3"


def test_a_finding_of_a_run_has_words_and_links_to_what_to_change() -> None:
    rate = "vi-model.hyperparameters.learningRate"
    finding = RunFinding(
        code="NothingLearned",
        message="nothing was learned: 0.1",
        suggestions=[
            RunSuggestion(text="add a model", setting="vi-model.architecture.weights", value="a"),
            RunSuggestion(text="lower the rate", setting=rate, value=0.001),
            RunSuggestion(text="freeze nothing", setting="vi-model.training.freeze", value=[]),
        ],
    )
    run = make_run("Succeeded", "Completed", findings=[finding])
    [note] = causes.describe_findings(run, base=BASE)
    assert (note.title, note.text) == ("Nothing was learned", "nothing was learned: 0.1.")
    assert [each.href for each in note.suggestions] == [
        "/ui/runs/new?from=run-1",
        f"{BASE}/start?how=again&set=learningRate%3D0.001",
        "",
    ]
    assert note.suggestions[2].setting == "vi-model.training.freeze=[]"
    draft = start.build_draft(run, "again", ["learningRate=0.001"])
    [difference] = start.list_differences(start.encode_flow(run), draft.flow)
    assert (difference.path, difference.after) == (rate, "0.001")
