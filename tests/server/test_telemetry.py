"""Output of trainers: stored exactly once, in order, as log, metrics and status."""

import asyncio
import json
from typing import Any

from tests.support import attempts
from tests.support.server import TestServer


def step(number: int, **values: float) -> str:
    event = {
        "n": number,
        "t": 1_700_000_000_000 + number,
        "ev": "step",
        "step": number,
        "epoch": number / 10,
    }
    return json.dumps(
        event | {"totalSteps": 400, "secondsLeft": 9.5, "values": {"loss": 1 / number} | values}
    )


async def get(server: TestServer, rest: str, **query: Any) -> Any:
    return (await (await server.api()).get(server.path(f"runs/r1{rest}"), params=query)).json()


async def test_lines_count_once_no_matter_how_often_they_are_sent(server: TestServer) -> None:
    attempt = await attempts.start(server)
    first = [step(1), step(2)]
    assert (await attempt.ship(*first, offset=0)).json()["offset"] == sum(
        len(line) + 1 for line in first
    )
    stands = attempt.offsets["events"]
    for offset in (0, 5, stands + 10):  # a repeat, a half repeat, a gap
        assert (await attempt.ship(*first, offset=offset)).json() == {"offset": stands}
    assert (await attempt.ship(step(3), offset=stands)).status_code == 200
    points = await get(server, "/metrics")
    assert [point["step"] for point in points["items"]] == [1, 2, 3]
    await attempt.event("warning", message="slow disk")
    lines = (await get(server, "/logs"))["items"]
    assert [(line["number"], line["text"]) for line in lines] == [(1, "warning: slow disk")]


async def test_each_stream_has_its_own_offset(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.ship("out", stream="stdout")
    await attempt.ship("err", stream="stderr")
    await attempt.event("phase", phase="Training", message="one thread")
    lines = (await get(server, "/logs"))["items"]
    assert [(line["stream"], line["text"]) for line in lines] == [
        ("stdout", "out"),
        ("stderr", "err"),
        ("events", "Training: one thread"),
    ]
    assert [line["text"] for line in (await get(server, "/logs", block="stderr"))["items"]] == [
        "err"
    ]
    assert (await get(server, "/logs", block="vi-model"))["code"] == "InvalidQuery"


async def test_events_drive_progress_reason_message_and_plan(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.event("plan", plan={"steps": 400, "microBatch": 8})
    await attempt.event("phase", phase="Training", message="")
    await attempt.ship(step(12))
    assert await attempts.read_condition(server) == ("Running", "Training", "step 12 of 400")
    run = await get(server, "")
    assert run["status"]["plan"] == {"steps": 400, "microBatch": 8}
    assert run["status"]["progress"] == {
        "step": 12,
        "totalSteps": 400,
        "epoch": 1.2,
        "loss": 1 / 12,
        "metricName": None,
        "metric": None,
        "baseline": None,
        "secondsLeft": 9.5,
    }
    await attempt.event("phase", phase="Evaluating", message="")
    assert await attempts.read_condition(server) == ("Running", "Evaluating", "step 12 of 400")
    values = {"validation/loss": 0.4, "validation/exactMatch": 0.9}
    await attempt.event(
        "evaluation", step=12, epoch=1, metricName="exactMatch", values=values, previews=[]
    )
    progress = (await get(server, ""))["status"]["progress"]
    assert (progress["metricName"], progress["metric"], progress["loss"]) == (
        "exactMatch",
        0.9,
        1 / 12,
    )
    points = (await get(server, "/metrics"))["items"]
    assert [point["values"] for point in points] == [{"loss": 1 / 12}, values]
    assert len((await get(server, ""))["status"]["conditions"]) == 2  # reasons change in place


async def test_the_baseline_of_step_0_stays_next_to_later_values(server: TestServer) -> None:
    attempt = await attempts.start(server)
    for number, values in (
        (0, {"validation/anls": 0.1, "baseline/anls": 0.4, "baseline/bleu": 0.2}),
        (9, {"validation/anls": 0.7}),
    ):
        await attempt.event("evaluation", step=number, metricName="anls", values=values)
        progress = (await get(server, ""))["status"]["progress"]
        assert (progress["metric"], progress["baseline"]) == (values["validation/anls"], 0.4)
    points = (await get(server, "/metrics"))["items"]
    assert [point["step"] for point in points] == [0, 9]
    series = (await get(server, "/metrics:series", keys="baseline/anls"))["items"][0]
    assert (series["total"], series["lastStep"]) == (1, 0)


async def test_invalid_events_are_stored_as_text(server: TestServer) -> None:
    attempt = await attempts.start(server)
    nonsense = [
        "not json",
        "[]",
        '{"no": "event"}',
        '{"ev": "dance"}',
        '{"ev": "step", "step": "three", "values": {"loss": NaN, "x": "y", "b": true}}',
        '{"ev": "step", "step": 1e999, "t": 99999999999999999999, "values": {"loss": Infinity}}',
        '{"ev": "plan", "plan": {"n": 123456789012345678901234567890}}',
        '{"ev": "phase", "phase": "Dancing"}',
        '{"ev": "warning", "message": "\\ud800"}',
        "\x00" + "x" * 100_000,
        "[" * 50_000,
    ]
    assert (await attempt.ship(*nonsense)).status_code == 200
    lines = (await get(server, "/logs"))["items"]
    assert len(lines) == len(nonsense)
    assert lines[4]["text"] == "step 0: not finite numbers, left out: loss, x, b"
    assert max(len(line["text"]) for line in lines) <= 16 * 1024
    assert (await get(server, "/metrics"))["items"] == []
    assert (await attempts.read_condition(server))[0] == "Running"


async def test_keys_that_a_trainer_prints_are_masked(server: TestServer) -> None:
    attempt = await attempts.start(server)
    secrets = [
        server.key,
        attempt.assignment["token"],
        "hf_" + "a" * 34,
        "AKIA" + "B" * 16,
        "ghp_" + "c" * 36,
    ]
    await attempt.ship(*(f"login with {secret} ok" for secret in secrets), stream="stderr")
    texts = [line["text"] for line in (await get(server, "/logs"))["items"]]
    assert texts == ["login with [secret] ok"] * len(secrets)


async def test_logs_and_metrics_are_read_in_pages(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.ship(*(step(number) for number in range(1, 8)))
    await attempt.ship(*(f"line {number}" for number in range(1, 8)), stream="stdout")
    seen: list[int] = []
    since = 0
    while (page := await get(server, "/logs", since=since, limit=3))["items"]:
        seen += [line["number"] for line in page["items"]]
        since = page["next"]
        assert not page["ended"]
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert page["next"] == 7
    until = (await get(server, "/logs", since=2, until=4))["items"]
    assert [line["number"] for line in until] == [3, 4]
    points = await get(server, "/metrics", since=5, limit=1)
    assert ([point["step"] for point in points["items"]], points["next"]) == ([6], 6)
    await attempt.finish(64)
    assert not (await get(server, "/logs", limit=6))["ended"]
    # A full page knows whether there is another.
    assert (await get(server, "/logs", limit=7))[
        "ended"
    ]  # a full page reports whether there is another
    for name, value in (
        ("since", "x"),
        ("since", "-1"),
        ("limit", "0"),
        ("limit", "99999"),
        ("wait", "long"),
    ):
        assert (await get(server, "/logs", **{name: value}))["code"] == "InvalidQuery", (
            name,
            value,
        )


async def test_a_follower_is_woken_by_the_next_line_and_by_the_end(server: TestServer) -> None:
    attempt = await attempts.start(server)

    async def follow(since: int) -> asyncio.Task[Any]:
        task = asyncio.create_task(get(server, "/logs", since=since, wait=30))
        while not server.services.notifier._events:
            await asyncio.sleep(0)
        return task

    following = await follow(0)
    await attempt.ship("first words", stream="stdout")
    async with asyncio.timeout(5):
        page = await following
    assert ([line["text"] for line in page["items"]], page["ended"]) == (["first words"], False)
    following = await follow(page["next"])
    await attempt.finish(64)
    async with asyncio.timeout(5):
        page = await following
    assert (page["items"], page["next"], page["ended"]) == ([], 1, True)
