"""The page *Run* in a browser: curves, log, predictions, timeline, and what can be done to a run.

A fake trainer reports what a test needs; the last test trains for real and kills the training.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

import vi
from tests.browser.conftest import Console, PageOf, Site, find_violations
from tests.support.fake_trainer import FakeTrainer, claim_run
from tests.support.waiting import eventually

SPIKE_STEP, SPIKE = 777, 42.0
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
TABS = ("", "/predictions", "/log", "/timeline", "/flow", "/files")
FLOW: dict[str, Any] = {
    "name": "shelf",
    "schema": "v1",
    "blocks": [
        {"block": "vi-dataset", "settings": {"datasetId": "digits-grounding"}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {"epochs": 4, "batchSize": 32, "microBatchSize": 8},
                "onOutOfMemory": "fail",
            },
        },
    ],
}
PLAN = {
    name: {"value": value, "reason": "because"}
    for name, value in (
        ("metric", "iou"),
        ("microBatchSize", 8),
        ("learningRate", 0.01),
        ("dataset", "digits-grounding"),
        ("datasetVersion", "12ab34cd"),
        ("seed", 7),
        ("versions", {"torch": "2.13"}),
    )
}
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "'-alert(1)-'",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<svg/onload=alert(1)>",
    "</textarea><iframe src=//example.com>",
    "\u202egnp.exe & é 漢字 👍 &lt;b&gt;",
)


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[vi.Client]:
    with site.client() as client:
        yield client


class Trainers:
    """Runs that a test creates and trains."""

    def __init__(self, site: Site, client: vi.Client) -> None:
        self.site, self.client = site, client
        self._trainers: list[FakeTrainer] = []

    def start(self, name: str = "shelf", **attributes: str) -> FakeTrainer:
        """Create a run, claim it, and report its plan."""
        run_id = self.client.runs.create({**FLOW, "name": name}, metadata=attributes).run_id
        while not self._trainers or self._trainers[-1].run_id != run_id:  # other tests' runs wait
            self._trainers.append(claim_run(self.site.endpoint, self.site.data_dir))
        trainer = self._trainers[-1]
        trainer.report("phase", phase="Training", message="")
        trainer.report("plan", plan=PLAN)
        return trainer

    def end(self) -> None:
        self.client.runs.delete([trainer.run_id for trainer in self._trainers])
        for trainer in self._trainers:
            trainer.close()


@pytest.fixture(scope="module")
def trainers(site: Site, client: vi.Client) -> Iterator[Trainers]:
    """The runs of all tests; they are deleted when no page shows one any more."""
    trainers = Trainers(site, client)
    yield trainers
    trainers.end()


def report_steps(trainer: FakeTrainer, first: int, last: int, *, total: int = 2000) -> None:
    """Report steps with a falling loss, and one spike."""
    trainer.report_many(
        [
            {
                "ev": "step",
                "step": step,
                "epoch": step / 500,
                "totalSteps": total,
                "secondsLeft": float(total - step),
                "t": 1_796_000_000_000 + 1000 * step,
                "values": {
                    "loss": SPIKE if step == SPIKE_STEP else 5 / (1 + step / 200),
                    "learningRate": step / total,
                    "gradNorm": 1.0 + step % 7,
                    "samplesPerSecond": 400.0,
                },
            }
            for step in range(first, last + 1)
        ]
    )


def report_evaluation(trainer: FakeTrainer, step: int, *texts: str) -> None:
    """Report an evaluation, and samples with one box each."""
    texts = texts or ("two", "three", "four")
    trainer.report(
        "evaluation", step=step, epoch=step / 500, metricName="iou",
        values={"validation/iou": step / 2000, "validation/loss": 0.5},
    )  # fmt: skip
    image = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(image, "PNG")
    png = image.getvalue().hex()
    lines: list[dict[str, Any]] = [
        {"kind": "evaluation", "step": step, "time": 5, "total": len(texts), "samples": len(texts)}
    ]
    lines += [{"kind": "image", "index": index, "png": png} for index in range(len(texts))]
    lines += [
        {
            "kind": "sample",
            "step": step,
            "index": index,
            "image": {"width": 64, "height": 64},
            "question": text,
            "truth": {"text": text, "boxes": [{"box": [0.1, 0.1, 0.5, 0.5], "phrase": text}]},
            "predicted": {"text": text, "boxes": [{"box": [0.2, 0.1, 0.6, 0.5], "phrase": text}]},
            "scores": {"iou": round(0.1 * index + step / 10_000, 4)},
            "score": round(0.1 * index + step / 10_000, 4),
            "parse": "ok",
            "raw": f"raw {text}",
        }
        for index, text in enumerate(texts)
    ]
    trainer.write("samples", *map(json.dumps, lines))


def open_run(page_of: PageOf, trainer: FakeTrainer, trainers: Trainers, path: str = "") -> Page:
    page = page_of(trainers.site, f"/ui/runs/{trainer.run_id}{path}")
    expect(page.locator("#live-text")).to_have_text("live")
    return page


IS_DRAWN = """() => {
  const canvas = document.querySelector(".sample > :first-child").shadowRoot.firstChild;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value) => value > 0);
}"""
CURVE = """(key) => {
  for (const chart of document.querySelectorAll("ry-chart")) {
    const curve = chart.curves.find((one) => one.key === key);
    if (curve) {
      const { bucketSteps, step, epoch, min, max, last } = curve.series;
      const columns = [step, epoch, min, max, last, curve.smoothed];
      return { bucketSteps, columns: columns.map((one) => [...one]) };
    }
  }
  return null;
}"""


def read_curve(page: Page, key: str, *, last_step: int) -> dict[str, Any]:
    """Return the buckets of a curve, once it has come to a step."""

    def is_there() -> bool:
        found = page.evaluate(CURVE, key)
        return found is not None and found["columns"][0][-1] == last_step

    eventually(is_there, timeout_s=10, what=f"{key} reaches step {last_step}")
    curve: dict[str, Any] = page.evaluate(CURVE, key)
    return curve


def test_a_live_curve_equals_the_reloaded_one_and_a_zoom_shows_single_steps(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start()
    page = open_run(page_of, trainer, trainers)
    expect(page.locator("figure").first).to_contain_text("No points yet.")
    report_steps(trainer, 1, 300)
    assert read_curve(page, "loss", last_step=300)["bucketSteps"] == 1
    for first in range(301, 1300, 333):
        report_steps(trainer, first, first + 332)
        live = read_curve(page, "loss", last_step=first + 332)
    expect(page.locator("#run-head")).to_contain_text("1,299 / 2,000")
    expect(page.locator("#run-head")).to_contain_text("Time left")
    page.reload()
    assert read_curve(page, "loss", last_step=1299) == live
    assert live["bucketSteps"] == 4
    assert SPIKE in live["columns"][3]

    # The cursor of one chart is that of all.
    plots = page.locator("ry-chart .u-over")
    box = plots.first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    legends = page.locator("ry-chart .legend")
    at = legends.first.get_attribute("data-at")
    assert at is not None and re.fullmatch(r"step \d+", at)
    expect(legends.nth(3)).to_have_attribute("data-at", at)

    # Dragging fetches single steps; the spike is among them. Back shows the whole run.
    address = page.url
    left = box["x"] + box["width"] * (SPIKE_STEP - 40) / 1299
    page.mouse.move(left, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(left + box["width"] * 100 / 1299, box["y"] + 60, steps=3)
    page.mouse.up()
    page.wait_for_url("**from=*")
    eventually(
        lambda: page.evaluate(CURVE, "loss")["bucketSteps"] == 1, timeout_s=10, what="finer buckets"
    )
    zoomed = page.evaluate(CURVE, "loss")["columns"]
    assert SPIKE in zoomed[4]
    assert len(zoomed[0]) < 200
    page.reload()
    eventually(
        lambda: (page.evaluate(CURVE, "loss") or {}).get("columns") == zoomed,
        timeout_s=10,
        what="the address shows the same zoom",
    )
    page.get_by_role("button", name="Reset zoom").click()
    assert page.url == address
    assert read_curve(page, "loss", last_step=1299) == live

    page.get_by_label("Smooth").fill("0.9")
    assert "smooth=0.9" in page.url
    expect(legends.first).to_contain_text("(raw")
    page.locator("select[name=y]").select_option("log")
    page.locator("select[name=x]").select_option("epoch")
    assert page.evaluate("() => document.querySelector('ry-chart').plot.data[0].at(-1)") < 3
    expect(page.locator("ry-chart .stage").first).to_have_attribute(
        "aria-label", re.compile(r"Loss: loss from 4\.9.* to .*, highest 42, up to step 1299")
    )
    page.locator("ry-chart .stage").first.press("ArrowLeft")
    expect(legends.first).to_have_attribute("data-at", re.compile(r"epoch 2\.\d+"))
    page.get_by_text("Values as a table").first.click()
    expect(page.locator(".chart-table table").first.locator("tr")).to_have_count(13)
    page.locator("ry-chart .stage").first.press("l")
    page.wait_for_url(f"**/{trainer.run_id}/log**")


def test_the_stream_brings_new_points_and_the_curve_equals_the_reloaded_one(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start()
    report_steps(trainer, 1, 300)
    page = open_run(page_of, trainer, trainers)
    read_curve(page, "loss", last_step=300)
    report_steps(trainer, 301, 310)  # after a gap or not: from here on nothing is missing
    read_curve(page, "loss", last_step=310)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    report_steps(trainer, 311, 330)
    read_curve(page, "loss", last_step=330)
    report_steps(trainer, 331, 350)
    live = read_curve(page, "loss", last_step=350)
    assert not any("metrics:series" in url for url in asked)
    page.reload()
    assert read_curve(page, "loss", last_step=350) == live

    # Larger buckets are fetched once; their last one grows, and others follow it.
    report_steps(trainer, 351, 421)
    assert read_curve(page, "loss", last_step=421)["bucketSteps"] == 2
    asked.clear()
    report_steps(trainer, 422, 452)
    live = read_curve(page, "loss", last_step=452)
    assert not any("metrics:series" in url for url in asked)
    page.reload()
    assert read_curve(page, "loss", last_step=452) == live


def test_only_charts_in_view_are_fetched(page_of: PageOf, trainers: Trainers) -> None:
    trainer = trainers.start()
    report_steps(trainer, 1, 20)
    asked: list[str] = []
    page = page_of(trainers.site, "/ui/runs", viewport={"width": 1440, "height": 420})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}")
    read_curve(page, "loss", last_step=20)
    assert any("metrics:series" in url and "loss" in url for url in asked)
    assert not any("gradNorm" in url for url in asked)
    with page.expect_request(lambda request: "gradNorm" in request.url):
        page.locator("figure").nth(3).scroll_into_view_if_needed()


def test_the_log_follows_until_one_scrolls_and_finds_what_is_searched(
    page_of: PageOf, trainers: Trainers, console: Console
) -> None:
    console.expect("status of 400")  # an expression that is none
    trainer = trainers.start()
    lines = [f"line {number} {'needle' if number % 400 == 7 else ''}" for number in range(1, 2001)]
    trainer.write("stdout", *lines, "\x1b[31mred\x1b[0m plain", *HOSTILE)
    page = open_run(page_of, trainer, trainers, "/log")
    box, follow = page.locator(".lines"), page.get_by_label("follow")
    rows = page.locator(".line")
    expect(rows.last).to_contain_text(HOSTILE[-1])
    expect(page.locator(".ansi-1")).to_have_text("red")
    trainer.write("stdout", *[f"more {number}" for number in range(1, 401)])
    expect(rows.last).to_contain_text("more 400")
    expect(rows.last).to_be_in_viewport()
    assert rows.count() <= 300
    # Sizes that change scroll the box, too, and a reader who did nothing still follows.
    box.evaluate("(box) => { box.scrollTop -= 400; }")
    trainer.write("stdout", "after a change of size")
    expect(rows.last).to_contain_text("after a change of size")
    expect(rows.last).to_be_in_viewport()
    expect(follow).to_be_checked()

    box.hover()
    page.mouse.wheel(0, -400)
    expect(follow).not_to_be_checked()
    assert "follow=0" in page.url
    top = box.evaluate("(box) => box.scrollTop")
    trainer.write("stdout", "much later")
    newest = page.get_by_role("button", name="Newest lines")
    expect(newest).to_be_visible()
    assert abs(box.evaluate("(box) => box.scrollTop") - top) < 2
    newest.click()
    expect(rows.last).to_contain_text("much later")
    expect(follow).to_be_checked()

    search = page.get_by_label("Search the whole log")
    search.fill("NEEDLE")
    matches = page.locator(".matches")
    expect(matches).to_have_text("5 of 5")
    expect(page.locator(".line[aria-current]")).to_contain_text("line 1607 needle")
    search.press("Enter")
    expect(matches).to_have_text("1 of 5")
    expect(page.locator(".line[aria-current]")).to_be_in_viewport()
    page.get_by_role("button", name="Previous match").click()
    expect(matches).to_have_text("5 of 5")
    page.get_by_label("match case").check()
    expect(matches).to_have_text("no match")
    page.get_by_label("regular expression").check()
    search.fill("line (8|9)07 n")
    expect(matches).to_have_text("1 of 1")
    search.fill("(")
    expect(matches).to_contain_text("regular expression")

    number = page.locator(".line", has_text="line 807 needle").locator("a")
    number.click()
    assert re.search(r"#L\d+$", page.url)
    page.reload()
    expect(page.locator(".line[aria-current]")).to_contain_text("line 807")
    expect(page.locator(".line[aria-current]")).to_be_in_viewport()
    assert page.locator("img, iframe, svg", has=page.locator("[onerror], [onload]")).count() == 0


def test_a_metric_is_drawn_from_step_0_with_its_baseline(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start()
    trainer.report("plan", plan={"metric": {"value": "iou", "reason": "flow"}})
    baseline = {"baseline/iou": 0.41, "baseline/map": 0.2}
    for step, values in ((0, baseline), (100, {}), (200, {})):
        values = {"validation/iou": step / 400} | values
        trainer.report("evaluation", step=step, epoch=step / 500, metricName="iou", values=values)
    page = open_run(page_of, trainer, trainers)
    expect(page.locator("#run-head")).to_contain_text("iou, baseline 0.41")
    curves = [
        read_curve(page, key, last_step=200)["columns"]
        for key in ("validation/iou", "baseline/iou")
    ]
    assert [(steps, last) for steps, *_, last in curves] == [
        ([0, 100, 200], pytest.approx([0, 0.25, 0.5])),
        ([0, 200], pytest.approx([0.41, 0.41])),
    ]
    legend = page.locator("figure", has_text="Metrics").locator(".legend")
    expect(legend).to_contain_text("baseline iou")
    expect(legend).not_to_contain_text("map")


def test_predictions_are_shown_worst_first_and_by_keys(page_of: PageOf, trainers: Trainers) -> None:
    trainer = trainers.start()
    page = open_run(page_of, trainer, trainers, "/predictions")
    expect(page.locator("#predictions")).to_contain_text("No evaluation yet.")
    report_evaluation(trainer, 100)
    tiles = page.locator("[data-tile]")
    expect(tiles).to_have_count(3)
    report_evaluation(trainer, 200)
    expect(page.locator("[data-evaluation]")).to_have_count(2)
    expect(page.locator("output")).to_have_text("step 100")
    page.locator("[data-evaluation]").last.click()
    expect(page.locator("output")).to_have_text("step 200")
    expect(tiles.first).to_have_attribute("aria-current", "true")
    expect(tiles.first).to_contain_text("0.02")
    expect(page.locator("output")).to_have_text("step 200")
    page.locator("main").press("ArrowRight")
    expect(tiles.nth(1)).to_have_attribute("aria-current", "true")
    expect(page.locator(".answers")).to_contain_text("three")
    page.locator("main").press("ArrowDown")
    expect(page.locator("output")).to_have_text("step 100")
    expect(page.locator(".answers")).to_contain_text("three")
    expect(page.locator(".history a")).to_have_count(2)
    assert "evaluation=100" in page.url and "index=1" in page.url
    page.locator("#evaluation").fill("1")
    expect(page.locator("output")).to_have_text("step 200")
    page.locator("main").press("t")
    expect(page.get_by_label("true", exact=True)).not_to_be_checked()
    expect(page.locator("ry-picture")).to_have_attribute("show", "y")
    assert page.evaluate(IS_DRAWN)
    expect(page.locator(".evaluations")).to_be_in_viewport()


def test_a_killed_run_becomes_cancelled_and_shows_that_nothing_is_left(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start()
    page = open_run(page_of, trainer, trainers)
    report_steps(trainer, 1, 30)
    trainer.save("step-30", step=30)
    head = page.locator("#run-head")
    expect(page.locator("#checkpoints")).to_contain_text("step-30")
    page.get_by_role("button", name="Rename the run").click()
    page.get_by_role("textbox", name="Name").fill("shelf <b>2</b>")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(head.locator("h1")).to_have_text("shelf <b>2</b>")
    page.get_by_role("button", name="+ tag").click()
    page.get_by_label("One per line").fill("owner=kim\nstage = 2")
    page.get_by_role("button", name="Save").click()
    expect(head.locator(".tag")).to_have_text(["owner=kim", "stage=2"])

    page.get_by_role("button", name="Kill…").click()
    dialog = page.locator("#kill")
    expect(dialog).to_contain_text("saves a checkpoint and stops")
    expect(dialog).to_contain_text("Checkpoints that exist are kept.")
    dialog.get_by_text("as Python").click()
    expect(dialog).to_contain_text(f'client.runs.kill("{trainer.run_id}")')
    expect(dialog).to_contain_text(f"runyard runs kill {trainer.run_id}")
    dialog.get_by_role("button", name="Kill it").click()
    expect(dialog).to_be_hidden()
    expect(head).to_contain_text("waiting for processes to exit")
    expect(page.get_by_role("button", name="Kill…")).to_have_count(0)
    trainer.finish(75, outcome="Stopped", reason="Stopped", message="stopped")
    expect(head.locator(".badge")).to_contain_text("Cancelled")
    expect(head).to_contain_text("No process of this run is left.")
    page.goto(page.url + "/timeline")
    expect(page.locator(".entries")).to_contain_text("Kill by key")
    expect(page.locator(".entries")).to_contain_text("Attempt 1 ended on here, exit code 75")

    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete it").click()
    receipt = page.locator(".receipt")
    expect(receipt).to_contain_text("shelf <b>2</b>")
    expect(receipt).to_contain_text("Metric points30")
    expect(receipt).to_contain_text("no row, no file and no process of it is left")


def test_a_run_that_is_deleted_elsewhere_says_so(page_of: PageOf, trainers: Trainers) -> None:
    trainer = trainers.start()
    page = open_run(page_of, trainer, trainers)
    trainers.client.runs.delete(trainer.run_id)
    expect(page.locator("#run-head")).to_contain_text("This run was deleted")
    expect(page.locator("#run-head")).to_contain_text("Its processes are being ended")
    trainer.finish(75)
    expect(page.locator("#removal")).to_contain_text("no process of it is left")


def test_a_failed_run_offers_the_fix_and_shows_its_difference(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = trainers.start(owner="kim")
    report_steps(trainer, 1, 40)
    trainer.save("step-40", step=40)
    trainer.finish(
        64, outcome="Failed", reason="OutOfMemory",
        message="out of memory: 27.1 GiB of 24.0; try: a smaller model",
    )  # fmt: skip
    page = open_run(page_of, trainer, trainers)
    banner = page.locator(".banner")
    expect(banner).to_contain_text("Out of memory: the machine has too little memory for it")
    expect(banner).to_contain_text("at step 40 of 2,000, attempt 1 on here")
    expect(page.locator("#checkpoints")).to_contain_text("step-40 best")
    banner.get_by_role("link", name="Run again with micro-batch 4…").click()
    preview = page.locator("#preview")
    expect(preview.locator("tbody tr")).to_have_text(["vi-model.hyperparameters.microBatchSize84"])
    page.get_by_role("textbox", name="Epochs").fill("0")
    expect(preview.locator(".problem")).to_contain_text("epochs")
    expect(preview.get_by_role("button", name="Start run")).to_be_disabled()
    page.get_by_role("textbox", name="Epochs").fill("9")
    expect(preview.locator("tbody tr")).to_have_count(2)
    preview.get_by_text("as Python").click()
    expect(preview).to_contain_text("--set vi-model.hyperparameters.epochs=9")
    page.get_by_role("textbox", name="Name").fill("shelf, fits")
    preview.get_by_role("button", name="Start run").click()
    expect(page.locator("h1")).to_have_text("shelf, fits")
    started = trainers.client.runs.get(urlsplit(page.url).path.rpartition("/")[2])
    settings = started.spec.flow.blocks[1].settings["hyperparameters"]
    assert (settings["epochs"], settings["microBatchSize"]) == (9, 4)
    assert started.metadata.attributes == {"owner": "kim"}

    page.goto(f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}")
    trainers.client.runs.delete(started.run_id)
    page.get_by_role("link", name="Resume…").click()
    expect(page.get_by_label("Checkpoint")).to_have_value("latest")
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("h1")).to_have_text("shelf resumed")
    resumed = trainers.client.runs.get(urlsplit(page.url).path.rpartition("/")[2])
    assert resumed.spec.resume_from is not None
    assert resumed.spec.resume_from.checkpoint == "step-40"
    page.goto(f"{trainers.site.endpoint}/ui/runs")
    trainers.client.runs.delete(resumed.run_id)


def fill_run(trainers: Trainers, *texts: str) -> FakeTrainer:
    """Return a run with something to show on every tab."""
    name = texts[0] if texts else "shelf"
    trainer = trainers.start(name, owner=(texts or ("kim",))[-1])
    report_steps(trainer, 1, 60)
    report_evaluation(trainer, 30, *texts)
    report_evaluation(trainer, 60, *texts)
    trainer.save("step-60", step=60, file=texts[0][:40].replace("/", "_") if texts else "a")
    trainer.report("warning", message=texts[1] if texts else "slow")
    trainer.write("stdout", *(texts or ("training",)))
    trainer.write(
        "system", json.dumps({"t": 1_796_000_000_000, "values": {"system/cpuPercent": 50.0}})
    )
    return trainer


def test_hostile_texts_stay_texts(page_of: PageOf, trainers: Trainers) -> None:
    trainer = fill_run(trainers, *HOSTILE)
    asked: list[str] = []
    page = open_run(page_of, trainer, trainers)
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(f"dialog {dialog.message}"))
    base = f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}"
    for tab in (*TABS, "/start?how=branch"):
        page.goto(base + tab)
        expect(page.locator("h1")).to_contain_text("Branch" if "start" in tab else HOSTILE[0])
        odd = "() => document.querySelectorAll('iframe, main script, [onerror], [onload]').length"
        assert page.evaluate(odd) == 0, tab
    page.goto(f"{base}/predictions")
    for tile in range(3):
        page.locator("[data-tile]").nth(tile).click()
        expect(page.locator(".answers")).to_contain_text(HOSTILE[tile])
    trainer.finish(64, outcome="Failed", reason="TrainerError", message=HOSTILE[0])
    expect(page.locator(".banner")).to_contain_text(HOSTILE[0])
    assert [url for url in asked if not url.startswith(trainers.site.endpoint)] == []


def test_no_tab_has_an_accessibility_violation_or_scrolls_sideways(
    page_of: PageOf, trainers: Trainers
) -> None:
    trainer = fill_run(trainers)
    page = page_of(trainers.site, reduced_motion="reduce")
    base = f"{trainers.site.endpoint}/ui/runs/{trainer.run_id}"
    for index, tab in enumerate((*TABS, "/start?how=branch")):
        page.goto(base + tab)
        expect(page.locator("h1")).to_be_visible()
        page.evaluate("() => document.querySelectorAll('details').forEach((it) => it.open = true)")
        for width in (360, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            overflow = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, (tab, width)
            # Layouts and colors do not depend on each other: the overview has all combinations.
            for theme in THEMES if not tab else (THEMES[(index + width) % 2],):
                if width != 768 or not tab:
                    page.emulate_media(color_scheme=theme)
                    assert find_violations(page) == [], (tab, width, theme)
    page.goto(base)
    for name in ("Kill…", "Delete…", "Rename the run", "Edit tags"):
        page.get_by_role("button", name=name).click()
        assert find_violations(page) == [], name
        page.keyboard.press("Escape")
