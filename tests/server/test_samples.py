"""Sample predictions: every evaluation's arrive once, are read in order, and leave with the run."""

import hashlib
import io
import json
from functools import partial
from typing import Any

import httpx2
import pytest
from PIL import Image

from runyard import limits
from runyard.store import runs as run_rows
from tests.server.datasets import Data, jsonl, vqa_row
from tests.support import attempts
from tests.support.server import TestServer


def make_png(color: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def evaluation(step: int, samples: int, *, total: int = 500) -> str:
    line = {"kind": "evaluation", "step": step, "time": 1, "total": total, "samples": samples}
    return json.dumps(line)


def sample(step: int, index: int, score: float | None = 0.5, **more: Any) -> str:
    line: dict[str, Any] = {
        "kind": "sample",
        "step": step,
        "index": index,
        "score": score,
        "image": {"width": 32, "height": 32},
        "question": "Where?",
        "truth": {"text": "here", "boxes": [{"box": [0, 0, 0.5, 1], "phrase": "it"}]},
        "predicted": {"text": "there", "boxes": []},
        "raw": "there",
        "parse": "not JSON",
        "scores": {} if score is None else {"iou": score},
    }
    return json.dumps(line | more)


async def get(server: TestServer, rest: str = "", **query: Any) -> Any:
    client = await server.api()
    return (await client.get(server.path(f"runs/r1/samples{rest}"), params=query)).json()


async def get_image(server: TestServer, index: int, **query: Any) -> httpx2.Response:
    client = await server.api()
    return await client.get(server.path(f"runs/r1/samples/{index}/image"), params=query)


async def test_samples_of_each_evaluation_are_read_worst_first(server: TestServer) -> None:
    attempt = await attempts.start(server)
    assert await get(server) == {
        "items": [],
        "nextPage": None,
        "prevPage": None,
        "evaluations": [],
        "step": None,
        "total": None,
    }
    for step in (10, 20):
        lines = [sample(step, index, score) for index, score in enumerate((0.9, 0.1, None, 0.5))]
        await attempt.ship(evaluation(step, 4), *lines, stream="samples")
    page = await get(server)
    assert [item["index"] for item in page["items"]] == [1, 3, 0, 2]
    assert (page["evaluations"], page["step"], page["total"]) == ([10, 20], 20, 500)
    item = page["items"][0]
    assert (item["truth"]["boxes"], item["scores"], item["parse"]) == (
        [{"box": [0.0, 0.0, 0.5, 1.0], "phrase": "it"}],
        {"iou": 0.1},
        "not JSON",
    )
    assert item["image"]["href"] == server.path("runs/r1/samples/1/image")
    page = await get(server, evaluation=10, orderBy="index", s=3)
    assert [(item["step"], item["index"]) for item in page["items"]] == [(10, 0), (10, 1), (10, 2)]
    query = {"evaluation": 10, "orderBy": "index", "s": 3, "p": page["nextPage"]}
    page = await get(server, **query)
    assert ([item["index"] for item in page["items"]], page["nextPage"]) == ([3], None)
    assert (await get(server, **(query | {"evaluation": 20})))["code"] == "InvalidPageToken"
    history = await get(server, index=3)
    assert [(item["step"], item["index"]) for item in history["items"]] == [(10, 3), (20, 3)]
    missing = await get(server, evaluation=15)
    assert (missing["code"], "10, 20" in missing["detail"]) == ("NotFound", True)
    for query in ({"evaluation": "first"}, {"orderBy": "name"}, {"index": "x"}):
        assert (await get(server, **query))["code"] == "InvalidQuery", query


async def test_samples_count_once_however_they_are_sent(server: TestServer) -> None:
    attempt = await attempts.start(server)
    lines = [evaluation(10, 3), *(sample(10, index) for index in range(3))]
    await attempt.ship(*lines[:2], stream="samples")
    middle = attempt.offsets["samples"]
    await attempt.ship(*lines[2:], stream="samples")
    end = attempt.offsets["samples"]
    for offset in (0, middle, end + 5):
        answer = await attempt.ship(*lines[2:], stream="samples", offset=offset)
        assert answer.json() == {"offset": end}
    assert [item["index"] for item in (await get(server))["items"]] == [0, 1, 2]
    # A later attempt evaluates the step again: its samples replace those before, all of them.
    await attempt.ship(evaluation(10, 1), sample(10, 7), stream="samples")
    assert [item["index"] for item in (await get(server))["items"]] == [7]


async def test_lines_that_are_no_samples_are_reported_in_the_log(server: TestServer) -> None:
    attempt = await attempts.start(server)
    broken = [
        "no json",
        '{"kind": "dance"}',
        sample(10, -1),
        sample(10, 1, parse=7),
        sample(10, 2, question="\ud800"),
        json.dumps({"kind": "image", "index": 1, "png": b"no image".hex()}),
        "[" * 50_000,
    ]
    answer = await attempt.ship(evaluation(10, 9), sample(10, 0), *broken, stream="samples")
    assert answer.status_code == 200
    assert [item["index"] for item in (await get(server))["items"]] == [0]
    client = await server.api()
    page = (await client.get(server.path("runs/r1/logs"), params={"level": "warning"})).json()
    assert len(page["items"]) == len(broken)
    assert "a line of samples cannot be read" in page["items"][0]["text"]


async def test_samples_beyond_the_limit_of_a_run_are_left_out_and_reported(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SAMPLES", limits.Limit(600, "bytes", "samples"))
    attempt = await attempts.start(server)
    for step in (10, 20, 30):
        await attempt.ship(evaluation(step, 2), sample(step, 0), sample(step, 1), stream="samples")
    assert (await get(server))["evaluations"] == [10]
    client = await server.api()
    log = (await client.get(server.path("runs/r1/logs"))).json()["items"]
    assert [line["text"].partition(" are left")[0] for line in log] == [
        "warning: the 2 sample predictions of step 20",
        "warning: the 2 sample predictions of step 30",
    ]


async def test_the_image_of_a_builtin_sample_is_the_one_the_trainer_sent(
    server: TestServer,
) -> None:
    attempt = await attempts.start(server)
    small, large = make_png(), make_png((200, 0, 0), (400, 200))
    lines = [
        json.dumps({"kind": "image", "index": index, "png": png.hex()})
        for index, png in enumerate((small, large, small))
    ]
    await attempt.ship(evaluation(10, 2), *lines, sample(10, 0), sample(10, 1), stream="samples")
    await attempt.ship(
        json.dumps({"kind": "image", "index": 0, "png": large.hex()}), stream="samples"
    )
    answer = await get_image(server, 0)
    assert (answer.content, answer.headers["content-type"]) == (small, "image/png")
    assert "immutable" in answer.headers["cache-control"]
    assert (await get_image(server, 0, size=160)).content == small
    thumbnail = await get_image(server, 1, size=160)
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (160, 80)
    client = await server.api()
    again = await client.get(
        server.path("runs/r1/samples/1/image?size=160"),
        headers={"if-none-match": thumbnail.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    assert (await get_image(server, 9)).status_code == 404
    assert (await get_image(server, 1, size=161)).json()["code"] == "InvalidQuery"


async def test_the_image_of_an_uploaded_sample_is_that_of_the_dataset(server: TestServer) -> None:
    noise = Image.effect_noise((900, 600), 90).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=95)
    photo = buffer.getvalue()
    data = Data(server, await server.api())
    rows = jsonl(vqa_row(1, "photo.jpg", side=900))
    rows = rows.replace(b'"height": 450', b'"height": 600')
    await data.import_files(await data.make(), {"photo.jpg": photo, "labels.jsonl": rows})
    attempt = await attempts.start(server)
    image = {
        "width": 900,
        "height": 600,
        "sha256": hashlib.sha256(photo).hexdigest(),
        "filename": "photo.jpg",
    }
    await attempt.ship(evaluation(10, 1), sample(10, 4, image=image), stream="samples")
    whole = await get_image(server, 4)
    assert (whole.content, whole.headers["content-type"]) == (photo, "image/jpeg")
    for size in (160, 320):
        answer = await get_image(server, 4, size=size)
        assert answer.headers["content-type"] == "image/webp"
        assert len(answer.content) <= 30 << 10
        assert max(Image.open(io.BytesIO(answer.content)).size) == size
    image["sha256"] = "0" * 64
    await attempt.ship(evaluation(20, 1), sample(20, 5, image=image), stream="samples")
    answer = await get_image(server, 5)
    assert (answer.status_code, "deleted" in answer.json()["detail"]) == (404, True)


async def test_samples_leave_with_the_run(server: TestServer) -> None:
    attempt = await attempts.start(server)
    image = json.dumps({"kind": "image", "index": 0, "png": make_png().hex()})
    await attempt.ship(evaluation(10, 1), image, sample(10, 0), stream="samples")
    await attempt.finish(64)
    count = partial(run_rows.count_rows, org=server.org, run_id="r1")
    assert {"evaluations", "samples", "sample_images"} <= set(server.services.store.read(count))
    assert (await (await server.api()).delete(server.path("runs/r1"))).status_code == 204
    assert server.services.store.read(count) == {}
