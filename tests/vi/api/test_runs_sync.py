# Generated from test_runs_async.py by scripts/unasync: change that file, then run the script.
"""``client.runs``: the requests of each call, and their results."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import vi
from vi.api.resources.flows.responses import FlowBlock, FlowSpec
from vi.api.resources.runs._sync import Runs
from vi.api.resources.runs.responses import ResumeFrom, Run, RunSpec
from vi.api.responses import ConditionKind, DeletedResource
from vi.api.types import PaginationParams

RunDocument = Callable[..., dict[str, Any]]


@pytest.fixture
def client(server: Any, clock: Any, key: str) -> Iterator[vi.Client]:
    with vi.Client(key, "lab", transport=server.transport) as client:
        client._http.sleep = clock.sleep
        client._http.random = lambda: 0.5
        client.runs = Runs(client._http, "lab", clock=clock)
        yield client


def test_each_request_has_the_key_and_the_organization(
    client: vi.Client, server: Any, key: str, run_document: RunDocument
) -> None:
    server.answers(run_document("Running"))
    client.runs.get("r-1")
    headers = server.requests[0].headers
    assert (headers["authorization"], headers["organization-id"]) == (f"Bearer {key}", "lab")


def test_get_returns_the_run(client: vi.Client, server: Any, run_document: RunDocument) -> None:
    server.answers(run_document("Pending", "Running"))
    run = client.runs.get("r-1")
    assert server.asked == ["GET /workspaces/lab/runs/r-1"]
    assert (run.run_id, run.organization_id, run.condition) == ("r-1", "lab", ConditionKind.RUNNING)


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "a b", "ü", "a" * 256, "a?b", "a\n", None, 7])
def test_an_invalid_id_is_never_sent(client: vi.Client, server: Any, run_id: Any) -> None:
    for method in (
        client.runs.get,
        client.runs.kill,
        client.runs.delete,
        client.runs.wait,
        client.runs.metrics,
    ):
        with pytest.raises(vi.ViInvalidParameterError, match="run_id is"):
            method(run_id)
    with pytest.raises(vi.ViInvalidParameterError, match="run_id is"):
        client.runs.logs(run_id)
    assert server.asked == []


def test_a_run_made_by_flow_id_lets_the_server_freeze_the_flow(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending"))
    client.runs.create(
        "flow_abc123", training_project="project_1", metadata={"experiment": "baseline"}
    )
    assert server.body() == {
        "spec": {"flowId": "flow_abc123", "trainingProject": "project_1"},
        "metadata": {"attributes": {"experiment": "baseline"}},
    }
    method, path = server.asked[0].split()
    assert method == "PUT"
    assert uuid.UUID(path.removeprefix("/workspaces/lab/runs/")).version == 4


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("r-0", {"runId": "r-0"}),
        (("r-0", "epoch-2"), {"runId": "r-0", "checkpoint": "epoch-2"}),
        (("r-0", "best"), {"runId": "r-0", "checkpoint": "best"}),
    ],
)
def test_a_resumed_run_names_its_origin(
    client: vi.Client, server: Any, run_document: RunDocument, given: Any, sent: dict[str, str]
) -> None:
    answer = run_document("Pending")
    answer["spec"]["resumeFrom"] = {"runId": "r-0", "checkpoint": "epoch-2", "step": 12, "epoch": 2}
    server.answers(answer)
    run = client.runs.create({}, resume_from=given)
    assert server.body() == {"spec": {"flow": {}, "resumeFrom": sent}}
    assert run.spec.resume_from == ResumeFrom(run_id="r-0", checkpoint="epoch-2", step=12, epoch=2)


def test_a_flow_that_is_a_dict_is_sent_unchanged(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    flow = {
        "name": "Quick Training",
        "schema": "v1",
        "blocks": [],
        "settings": {"a_b": 1},
        "tolerations": {},
    }
    server.answers(run_document("Pending"))
    client.runs.start(flow=flow)
    assert server.body() == {"spec": {"flow": flow}}


def test_a_flow_spec_is_sent_completely_in_camel_case(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending"))
    client.runs.create(FlowSpec(blocks=[FlowBlock(block="vi-model")], training_project="p"))
    assert server.body()["spec"]["flow"] == {
        "name": "Untitled",
        "schema": "v1",
        "blocks": [{"block": "vi-model", "settings": {}, "style": {}}],
        "settings": {},
        "tolerations": {},
        "trainingProject": "p",
    }


def test_a_repeated_creation_is_the_same_run(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.breaks()
    server.answers(status=503)
    server.answers(run_document("Pending"))
    client.runs.create(flow={})
    assert len({request.url.path for request in server.requests}) == 1
    assert len({request.content for request in server.requests}) == 1


def test_a_callers_own_id_is_used(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending", run_id="mine"))
    client.runs.create(flow={}, run_id="mine")
    assert server.asked == ["PUT /workspaces/lab/runs/mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow": "a/b"}, "flow is 'a/b'"),
        ({"flow": 7}, "flow is 7"),
        ({"flow": {}, "run_id": "a/b"}, "run_id is 'a/b'"),
        ({"flow": {}, "metadata": {"version": 1}}, r"metadata\['version'\] is 1"),
        ({"flow": {}, "metadata": {"gone": None}}, r"metadata\['gone'\] is None"),
        ({"flow": {}, "metadata": "x"}, "metadata is 'x'"),
        ({"flow": {}, "resume_from": "a/b"}, "resume_from is 'a/b'"),
        ({"flow": {}, "resume_from": ("r-1", "../x")}, r"resume_from\[1\] is '../x'"),
        ({"flow": {}, "resume_from": ("r-1",)}, "expected: a run id"),
        ({"flow": {}, "resume_from": 7}, "resume_from is 7"),
    ],
)
def test_a_wrong_argument_of_create_is_rejected_before_anything_is_sent(
    client: vi.Client, server: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(vi.ViInvalidParameterError, match=message):
        client.runs.create(**arguments)
    assert server.asked == []


@pytest.mark.parametrize(
    ("spec", "sent"),
    [
        ({"training_project": "p"}, {"trainingProject": "p"}),
        ({"trainingProject": "p"}, {"trainingProject": "p"}),
        ({"killed_at": 5}, {"killedAt": 5}),
        (RunSpec(training_project="p"), {"trainingProject": "p"}),
        (
            {"flow": {"training_project": "p", "settings": {"a_b": 1}}},
            {"flow": {"trainingProject": "p", "settings": {"a_b": 1}}},
        ),
    ],
)
def test_update_takes_both_spellings_and_sends_only_what_is_given(
    client: vi.Client, server: Any, run_document: RunDocument, spec: Any, sent: dict[str, Any]
) -> None:
    server.answers(run_document("Pending"))
    client.runs.update(run_id="r-1", spec=spec)
    assert server.asked == ["PATCH /workspaces/lab/runs/r-1"]
    assert server.body() == {"spec": sent}


def test_update_can_remove_an_attribute(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending"))
    server.answers(run_document("Pending"))
    client.runs.update("r-1", metadata={"notes": "better", "old": None}, if_match="e1")
    client.runs.update("r-1")
    assert server.body(0) == {"metadata": {"attributes": {"notes": "better", "old": None}}}
    assert server.requests[0].headers["if-match"] == "e1"
    assert server.body(1) == {}
    assert "if-match" not in server.requests[1].headers


def test_kill_sends_the_request_time_and_returns_the_run(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Running"))
    run = client.runs.kill(run_id="r-1")
    assert isinstance(run, Run)
    assert server.asked == ["PATCH /workspaces/lab/runs/r-1"]
    assert set(server.body()["spec"]) == {"killedAt"}
    assert isinstance(server.body()["spec"]["killedAt"], int)


def test_kill_sends_the_given_grace_period(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Running"))
    client.runs.kill(run_id="r-1", grace_s=2.5)
    assert server.body()["spec"]["graceSeconds"] == 2.5


@pytest.mark.parametrize("verb", ["kill", "delete"])
def test_many_runs_are_one_request_with_an_outcome_each(
    client: vi.Client, server: Any, verb: str
) -> None:
    done = {"runId": "r-1", "outcome": "Killed", "condition": "Cancelled"}
    refused = {
        "runId": "r-2",
        "outcome": "Refused",
        "code": "NotFound",
        "message": "run 'r-2' was not found",
    }
    server.breaks()  # a repeat does no harm, so the request is sent again after a lost response
    server.answers({"items": [done, refused], "more": False})
    outcomes = getattr(client.runs, verb)(["r-1", "r-2"])
    assert server.asked == [f"POST /workspaces/lab/runs:{verb}"] * 2
    assert server.body() == {"ids": ["r-1", "r-2"]}
    assert [item.run_id for item in outcomes.items] == ["r-1", "r-2"]
    assert (outcomes.run_ids, [item.code for item in outcomes.refused]) == (["r-1"], ["NotFound"])


def test_runs_of_a_filter_are_named_as_the_list_names_them(client: vi.Client, server: Any) -> None:
    filters = {
        "condition": ConditionKind.PENDING,
        "flow": "f-1",
        "training_project": "p-1",
        "attribute": {"sweep": "3"},
        "created_after": 5,
        "created_before": datetime(2026, 1, 1, tzinfo=UTC),
    }
    server.answers({"items": [], "more": True})
    outcomes = client.runs.kill(filter=filters, grace_s=2.5, dry_run=True)
    assert outcomes.more
    assert server.body() == {
        "filter": {
            "condition": "Pending",
            "flow": "f-1",
            "trainingProject": "p-1",
            "attributes": {"sweep": "3"},
            "createdAfter": 5,
            "createdBefore": 1767225600000,
        },
        "graceSeconds": 2.5,
        "dryRun": True,
    }
    server.answers({"items": []})
    client.runs.delete(filter="all")
    assert server.body() == {"filter": {"all": True}}
    server.answers({"items": []})
    client.runs.delete("r-1", dry_run=True)
    assert server.body() == {"ids": ["r-1"], "dryRun": True}


def test_a_filter_is_not_sent_again_when_its_answer_is_lost(client: vi.Client, server: Any) -> None:
    server.breaks()
    with pytest.raises(vi.ViNetworkError):
        client.runs.delete(filter={"flow": "f-1"})
    assert len(server.asked) == 1


def test_a_field_that_is_given_twice_is_not_sent(client: vi.Client, server: Any) -> None:
    for spec in (
        {"training_project": "a", "trainingProject": "b"},
        {"flow": {"a_b": 1, "a__b": 2}},
    ):
        with pytest.raises(vi.ViInvalidParameterError, match="twice, in two spellings"):
            client.runs.update("r-1", spec)
    assert server.asked == []


NO_SELECTION: list[dict[str, Any]] = [
    {},
    {"run_id": []},
    {"run_id": ["a", "../b"]},
    {"run_id": ["a"] * 1001},
    {"run_id": {"a": 1}},
    {"run_id": b"abc"},
    {"run_id": "a", "filter": {"flow": "f"}},
    {"filter": {}},
    {"filter": " "},
    {"run_id": "a", "filter": "flow:f"},
    {"filter": {"flow": None}},
    {"filter": {"flows": "f"}},
    {"filter": {"flow": 3}},
    {"filter": {"attribute": {"a": 1}}},
    {"filter": {"created_after": "yesterday"}},
]


@pytest.mark.parametrize("arguments", NO_SELECTION, ids=repr)
def test_a_selection_without_runs_is_never_sent(
    client: vi.Client, server: Any, arguments: dict[str, Any]
) -> None:
    for call in (client.runs.kill, client.runs.delete):
        with pytest.raises(vi.ViInvalidParameterError):
            call(**arguments)
    assert server.asked == []


def test_delete_returns_the_deleted_id(client: vi.Client, server: Any) -> None:
    server.answers()
    assert client.runs.delete(run_id="r-1") == DeletedResource(id="r-1")


def test_delete_of_a_missing_run_raises(client: vi.Client, server: Any) -> None:
    server.answers({"message": "run r-1 not found", "code": "RunNotFound"}, status=404)
    with pytest.raises(vi.ViNotFoundError, match="run r-1 not found"):
        client.runs.delete("r-1")


def test_list_sends_every_filter(client: vi.Client, server: Any) -> None:
    server.answers({"items": []})
    client.runs.list(
        PaginationParams(page_size=50, page_token="t/1"),
        condition=ConditionKind.RUNNING,
        flow="f-1",
        training_project="p-1",
        attribute={"experiment": "baseline", "who": "a:b"},
        created_after=datetime(2026, 1, 1, tzinfo=UTC),
        created_before=1767229200000,
    )
    assert dict(server.requests[0].url.params.multi_items()) == {
        "p": "t/1",
        "s": "50",
        "condition": "Running",
        "flow": "f-1",
        "trainingProject": "p-1",
        "attribute": "who:a:b",
        "createdAfter": "1767225600000",
        "createdBefore": "1767229200000",
    }
    assert server.requests[0].url.params.get_list("attribute") == ["experiment:baseline", "who:a:b"]


def test_a_filter_text_and_an_order_are_sent_with_every_page(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers({"items": [run_document(run_id="r-1")], "nextPage": "t1"})
    server.answers({"items": [run_document(run_id="r-2")]})
    page = client.runs.list(filter='metric.iou>0.6 "a b"', order_by="-metric.iou")
    assert [run.run_id for run in page.all_items()] == ["r-1", "r-2"]
    for request in server.requests:
        sent = dict(request.url.params)
        assert (sent["filter"], sent["orderBy"]) == ('metric.iou>0.6 "a b"', "-metric.iou")
    with pytest.raises(vi.ViInvalidParameterError, match="filter is 5"):
        client.runs.list(filter=5)  # type: ignore[arg-type]


def test_count_returns_the_number_of_each_condition(client: vi.Client, server: Any) -> None:
    server.answers({"total": 3, "conditions": {"Failed": 3}, "more": True})
    found = client.runs.count(filter="owner=kim")
    assert (found.total, found.conditions, found.more) == (3, {"Failed": 3}, True)
    assert server.asked == ["GET /workspaces/lab/runs:count?filter=owner%3Dkim"]
    server.answers({"total": 0, "conditions": {}})
    assert (client.runs.count()).total == 0


def test_tag_sends_attributes_to_set_and_to_remove(client: vi.Client, server: Any) -> None:
    server.answers({"items": [{"runId": "r-1", "outcome": "Tagged"}]})
    outcomes = client.runs.tag("r-1", {"owner": "kim", "old": None})
    assert (server.asked, outcomes.run_ids) == (["POST /workspaces/lab/runs:tag"], ["r-1"])
    assert server.body() == {"ids": ["r-1"], "set": {"owner": "kim", "old": None}}
    server.answers({"items": []})
    client.runs.tag(filter="sweep=3", set={"a": "b"}, dry_run=True)
    assert server.body() == {"filter": "sweep=3", "set": {"a": "b"}, "dryRun": True}
    for tags in (None, {}, {"a": 1}, "a=b"):
        with pytest.raises(vi.ViInvalidParameterError):
            client.runs.tag("r-1", tags)  # type: ignore[arg-type]


def test_a_run_is_named_when_created_and_renamed(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    for _ in range(4):
        server.answers(run_document())
    client.runs.create("f-1", name="first", metadata={"a": "b"})
    assert server.body()["metadata"] == {"attributes": {"a": "b"}, "name": "first"}
    client.runs.create("f-1", name="")
    assert "metadata" not in server.body()
    client.runs.update("r-1", name="second")
    assert server.body() == {"metadata": {"name": "second"}}
    client.runs.update("r-1", name="")
    assert server.body() == {"metadata": {"name": None}}


def test_a_run_of_a_server_without_names_has_that_of_its_flow(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    document = run_document()
    document["spec"]["flow"] = {"name": "Quick"}
    document["metadata"].pop("name", None)
    server.answers(document)
    assert (client.runs.get("r-1")).name == "Quick"


def test_filters_are_sent_with_every_page(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers({"items": [run_document(run_id="r-1")], "nextPage": "t1"})
    server.answers({"items": [run_document(run_id="r-2")]})
    found = [run.run_id for run in client.runs(condition="Failed")]
    assert found == ["r-1", "r-2"]
    assert server.asked[1] == "GET /workspaces/lab/runs?p=t1&s=100&condition=Failed"


def test_the_resource_itself_yields_every_run(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers({"items": [run_document(run_id="r-1")], "nextPage": "t1"})
    server.answers({"items": [run_document(run_id="r-2")], "nextPage": None})
    assert [run.run_id for run in client.runs] == ["r-1", "r-2"]


def test_wait_returns_a_run_that_succeeded_and_reports_each_change(
    client: vi.Client, server: Any, run_document: RunDocument, clock: Any
) -> None:
    for conditions in (
        ["Pending"],
        ["Pending"],
        ["Pending", "Running"],
        ["Pending", "Running", "Succeeded"],
    ):
        server.answers(run_document(*conditions))
    seen: list[ConditionKind | None] = []
    run = client.runs.wait("r-1", on_update=lambda run: seen.append(run.condition))
    assert run.condition is ConditionKind.SUCCEEDED
    assert seen == [ConditionKind.PENDING, ConditionKind.RUNNING, ConditionKind.SUCCEEDED]
    assert clock.slept == pytest.approx([0.1, 0.15, 0.225])


FINDINGS = [
    {"code": "TinyImages", "message": "tiny: images become 32 x 32 pixels"},
    {
        "code": "NothingLearned",
        "message": "nothing was learned: 0.1",
        "suggestions": [{"text": "train longer", "setting": "settings.seed", "value": 3}],
    },
]


def test_findings_are_warnings_when_a_run_is_created_and_when_it_has_ended(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Pending", findings=FINDINGS[:1]))
    with pytest.warns(UserWarning, match="tiny: images become 32 x 32") as warned:
        client.runs.create(flow={})
    assert [warning.filename for warning in warned] == [__file__]
    server.answers(run_document("Succeeded", findings=FINDINGS))
    with pytest.warns(UserWarning) as warned:
        run = client.runs.wait("r-1")
    assert [str(warning.message) for warning in warned] == [
        "nothing was learned: 0.1; try: train longer (--set settings.seed=3)"
    ]
    assert [finding.code for finding in run.status.findings] == ["TinyImages", "NothingLearned"]


@pytest.mark.parametrize("name", ["Failed", "Error", "Cancelled"])
def test_wait_raises_when_the_run_ends_otherwise(
    client: vi.Client, server: Any, run_document: RunDocument, name: str
) -> None:
    last = {
        "condition": name,
        "status": "Reached",
        "reason": "OutOfMemory",
        "message": "needs 9 GiB",
    }
    server.answers(run_document("Running", last))
    with pytest.raises(
        vi.ViRunFailedError, match=rf"ended in {name} \(OutOfMemory\): needs 9 GiB"
    ) as raised:
        client.runs.wait("r-1")
    assert raised.value.condition is ConditionKind(name)
    assert raised.value.reason == "OutOfMemory"
    assert raised.value.run is not None
    assert raised.value.run.run_id == "r-1"


def test_wait_distinguishes_a_deleted_run_from_an_unknown_one(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Running"))
    server.answers({"message": "run r-1 not found"}, status=404)
    with pytest.raises(vi.ViRunVanishedError, match="deleted during the wait"):
        client.runs.wait("r-1")
    server.answers({"message": "run r-2 not found"}, status=404)
    with pytest.raises(vi.ViNotFoundError) as raised:
        client.runs.wait("r-2")
    assert type(raised.value) is vi.ViNotFoundError


def test_wait_ends_with_its_timeout(
    client: vi.Client, server: Any, run_document: RunDocument, clock: Any
) -> None:
    for _ in range(4):
        server.answers(run_document("Running"))
    with pytest.raises(vi.ViTimeoutError, match=r"did not end within 25 s; it is Running"):
        client.runs.wait("r-1", timeout=25, poll_interval=10)
    assert clock.slept == [10, 10, 5]


def test_wait_survives_a_server_outage(
    client: vi.Client, server: Any, run_document: RunDocument
) -> None:
    server.answers(run_document("Running"))
    for _ in range(30):
        server.refuses_connections()
    server.answers(status=503)
    server.answers(run_document("Running", "Succeeded"))
    assert (client.runs.wait("r-1")).condition is ConditionKind.SUCCEEDED


def test_wait_gives_up_on_a_long_server_outage(
    client: vi.Client, server: Any, run_document: RunDocument, clock: Any
) -> None:
    server.answers(run_document("Running"))
    for _ in range(200):
        server.refuses_connections()
    with pytest.raises(vi.ViNetworkError):
        client.runs.wait("r-1")
    assert clock.now_s - 1000 == pytest.approx(120, abs=2)


def test_wait_respects_its_timeout_during_a_server_outage(
    client: vi.Client, server: Any, run_document: RunDocument, clock: Any
) -> None:
    server.answers(run_document("Running"))
    for _ in range(200):
        server.refuses_connections()
    with pytest.raises(vi.ViTimeoutError, match="did not end within 5 s"):
        client.runs.wait("r-1", timeout=5)
    assert clock.now_s - 1000 <= 6


def log_line(number: int) -> dict[str, Any]:
    return {"number": number, "time": 1, "attempt": 1, "stream": "stdout", "text": f"line {number}"}


def test_logs_yield_every_line_there_is(client: vi.Client, server: Any) -> None:
    server.answers({"items": [log_line(0), log_line(1)], "next": 2, "ended": False})
    server.answers({"items": [], "next": 2, "ended": False})
    assert [line.text for line in client.runs.logs("r-1")] == ["line 0", "line 1"]
    assert server.asked == [
        "GET /workspaces/lab/runs/r-1/logs?since=0",
        "GET /workspaces/lab/runs/r-1/logs?since=2",
    ]


def test_followed_logs_continue_until_the_run_ends(client: vi.Client, server: Any) -> None:
    server.answers({"items": [log_line(0)], "next": 1, "ended": False})
    server.answers({"items": [], "next": 1, "ended": False})
    server.refuses_connections()
    server.answers({"items": [log_line(1)], "next": 2, "ended": True})
    server.answers({"items": [], "next": 2, "ended": True})
    assert [line.number for line in client.runs.logs("r-1", follow=True)] == [0, 1]
    assert all("wait=15" in target for target in server.asked)


def test_logs_that_are_not_followed_do_not_wait_during_a_server_outage(
    client: vi.Client, server: Any, clock: Any
) -> None:
    for _ in range(4):
        server.refuses_connections()
    with pytest.raises(vi.ViNetworkError):
        list(client.runs.logs("r-1"))
    assert clock.slept == [0.5, 1, 2]


def test_logs_stop_at_the_limit(client: vi.Client, server: Any) -> None:
    server.answers({"items": [log_line(5), log_line(6)], "next": 7})
    server.answers({"items": [log_line(7)], "next": 8})
    found = [line.number for line in client.runs.logs("r-1", since=5, limit=3, stream="stdout")]
    assert found == [5, 6, 7]
    assert [dict(request.url.params) for request in server.requests] == [
        {"since": "5", "limit": "3", "block": "stdout"},
        {"since": "7", "limit": "1", "block": "stdout"},
    ]


def test_logs_that_do_not_advance_raise(client: vi.Client, server: Any) -> None:
    server.answers({"items": [log_line(0)], "next": 0})
    with pytest.raises(vi.PaginationError):
        list(client.runs.logs("r-1"))


def test_metrics_are_one_list_over_all_pages(client: vi.Client, server: Any) -> None:
    points = [
        {"step": n, "epoch": 0.5, "time": 1, "attempt": 1, "values": {"train/loss": 2.0 / (n + 1)}}
        for n in (0, 1)
    ]
    server.answers({"items": points[:1], "next": 1})
    server.answers({"items": points[1:], "next": 2})
    server.answers({"items": [], "next": 2})
    found = client.runs.metrics("r-1")
    assert [(point.step, point.values) for point in found] == [
        (0, {"train/loss": 2.0}),
        (1, {"train/loss": 1.0}),
    ]


def test_a_resource_keeps_its_client_alive(
    server: Any, key: str, run_document: RunDocument
) -> None:
    runs = vi.Client(key, "lab", transport=server.transport).runs
    server.answers(run_document("Running"))
    assert (runs.get("r-1")).run_id == "r-1"


def test_a_closed_client_is_closed(client: vi.Client) -> None:
    assert not client.is_closed
    client.close()
    assert client.is_closed
    with pytest.raises(vi.ViOperationError, match="closed"):
        client.runs.get("r-1")
