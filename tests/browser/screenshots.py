"""Write the images of docs/tour.md and README.md: ``make screenshots``.

The way is that of test_first_run.py, on an instance with a few runs. It takes some minutes, since
everything shown was really trained; the default suite does not collect it.
"""

import io
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

import vi
from tests.browser.conftest import PAGE_TIMEOUT_MS, Console
from tests.support.first_run import (
    REAL_TIMEOUT_MS,
    FreshInstance,
    fill_form,
    start_instance,
    wait_for_curve,
)

FOLDER = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES, COLORS = 150 << 10, 256
DESKTOP: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 360, "height": 740}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
TRAIN_TIMEOUT_S = 600
# What to train to, so that some boxes fit and others do not; a slow machine is not waited for.
IOU, LONGEST_S = 0.3, 300


def build_flow(dataset: str, model: dict[str, Any], **settings: Any) -> dict[str, Any]:
    blocks = [
        {"block": "vi-dataset", "settings": {"datasetId": dataset, "maxSamples": 300}},
        {"block": "vi-model", "settings": {"hyperparameters": model}},
    ]
    return {"name": dataset, "blocks": blocks, "settings": settings}


def create_runs(client: vi.Client) -> None:
    """Create runs that end in several ways, and wait for them."""
    run_ids = [
        client.runs.create(flow, name=name, metadata=tags).run_id
        for name, flow, tags in (
            ("baseline", build_flow("digits", {"epochs": 8}), {"owner": "kim"}),
            (
                "learning rate 3e-4",
                build_flow("digits", {"epochs": 8, "learningRate": 3e-4}),
                {"owner": "lee", "sweep": "rate"},
            ),
            (
                "batch size 8",
                build_flow("digits", {"epochs": 6, "batchSize": 8}),
                {"owner": "lee", "sweep": "batch"},
            ),
            (
                "learning rate 10",
                build_flow("digits", {"epochs": 8, "learningRate": 10}),
                {"owner": "kim"},
            ),
        )
    ]
    for run_id in run_ids:
        with suppress(vi.ViRunFailedError):  # the last one diverges
            client.runs.wait(run_id, timeout=TRAIN_TIMEOUT_S, show_progress=False)


def write_image(page: Page, name: str) -> None:
    """Write what the page shows; an image that would be too large gets fewer colors."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(600)  # charts, fonts and transitions
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = FOLDER / f"{name}.png"
    image.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        image.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size} bytes"


def read_metric(client: vi.Client, run_id: str) -> float:
    progress = client.runs.get(run_id).status.progress
    return 0.0 if progress is None else progress.metric or 0.0


def write_both_themes(page: Page, name: str) -> None:
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        write_image(page, f"{name}-{theme}")
    page.emulate_media(color_scheme="light")


@pytest.fixture(scope="module")
def fresh_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshInstance]:
    with start_instance(tmp_path_factory.mktemp("shots"), RUNYARD_SLOTS="2") as instance:
        yield instance


def test_the_images_show_what_a_new_user_does(
    chromium: Browser, console: Console, fresh_instance: FreshInstance
) -> None:
    context = chromium.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(PAGE_TIMEOUT_MS)
    page = context.new_page()
    console.watch(page)
    page.goto(fresh_instance.link)
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    write_image(page, "pages-first")
    with fresh_instance.client() as client:
        show_run(page, client)
    context.close()


def show_run(page: Page, client: vi.Client) -> None:
    """Start a run from the form, and show it until its receipt."""
    page.get_by_role("link", name="New run").first.click()
    fill_form(page, "boxes on a canvas", epochs=400, samples=1500, dataset="digits-grounding")
    page.get_by_text("All settings").click()
    page.mouse.wheel(0, -5000)
    write_image(page, "pages-start")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(re.compile(r"/ui/runs/[0-9a-f]{32}$"))
    wait_for_curve(page, "loss", points=3)
    address, run_id = page.url, page.url.rpartition("/")[2]
    client.runs.update(run_id, metadata={"owner": "kim"})
    deadline = time.monotonic() + LONGEST_S
    create_runs(client)
    while time.monotonic() < deadline and read_metric(client, run_id) < IOU:
        time.sleep(2)
    page.goto(f"{address}/predictions")
    evaluations = page.locator("[data-evaluation]")
    evaluations.last.click()
    page.locator("[data-tile]").nth(3).click()
    page.evaluate("() => scrollTo(0, 320)")
    write_image(page, "pages-predictions")
    page.goto(address)
    expect(page.locator("ry-chart .u-over").first).to_be_visible()
    write_both_themes(page, "pages-run")
    page.goto(f"{address}/timeline")
    write_image(page, "pages-timeline")
    runs = address.rpartition("/")[0]
    client.runs.create({"name": "digits"}, name="built-in defaults", metadata={"owner": "lee"})
    client.runs.create({"name": "digits"}, name="built-in defaults", metadata={"owner": "zoe"})
    page.goto(runs)
    write_both_themes(page, "pages-runs")
    page.set_viewport_size(PHONE)
    write_image(page, "pages-runs-phone")
    page.goto(address)
    write_image(page, "pages-run-phone")
    page.set_viewport_size(DESKTOP)
    page.get_by_role("button", name="Kill…").click()
    write_image(page, "pages-kill")
    page.get_by_role("button", name="Kill it").click()
    expect(page.locator("#run-head .badge")).to_contain_text("Cancelled", timeout=REAL_TIMEOUT_MS)
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator(".receipt")).to_contain_text("no row, no file and no process of it is left")
    write_image(page, "pages-receipt")
    client.runs.kill([run.run_id for run in client.runs.list().items])
