"""The page that starts a run."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PageOf, Site
from tests.server.datasets import make_vqa_files


def open_form(page_of: PageOf, site: Site, query: str = "") -> Page:
    page = page_of(site, f"/ui/runs/new{query}")
    expect(page.locator("#verdict")).to_contain_text("No problems")
    return page


def test_a_run_starts_with_the_settings_of_the_form(page_of: PageOf, site: Site) -> None:
    page = open_form(page_of, site)
    page.get_by_label("Dataset", exact=True).select_option("digits-both")
    page.get_by_label("Name of the run").fill('"Quoted" & <b>')
    page.get_by_label("Epochs", exact=True).fill("2")
    page.get_by_text("All settings").click()
    page.get_by_label("Search settings").fill("label smoothing")
    page.get_by_label("Label smoothing", exact=True).fill("0.1")
    expect(page.get_by_text("All settings (1 changed)")).to_be_visible()
    expect(page.locator("#plan-rows")).to_contain_text("digits-both")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(re.compile(r"/ui/runs/[0-9a-f]{32}$"))
    with site.client() as client:
        flow = client.runs.get(page.url.rpartition("/")[2]).spec.flow
    assert flow.name == '"Quoted" & <b>'
    settings = {block.block: block.settings for block in flow.blocks}
    assert settings["vi-dataset"]["datasetId"] == "digits-both"
    numbers = settings["vi-model"]["hyperparameters"]
    assert (numbers["epochs"], numbers["loss"]) == (2, {"labelSmoothing": 0.1})


def test_problems_are_shown_at_their_fields(page_of: PageOf, site: Site) -> None:
    page = open_form(page_of, site)
    epochs = page.get_by_label("Epochs", exact=True)
    epochs.fill("0")
    problem = page.locator("#field-model-hyperparameters-epochs-problem")
    expect(problem).to_contain_text("0")
    expect(problem).not_to_contain_text("/blocks")
    expect(epochs).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()
    page.get_by_label("Base model").select_option("other")
    page.get_by_label("Hub id or checkpoint").fill("run:none/best")
    expect(page.locator("#model-problem")).to_contain_text("does not exist")
    page.get_by_role("button", name="Reset Epochs").click()
    expect(problem).to_be_empty()
    page.get_by_label("Base model").select_option("")
    expect(page.get_by_role("button", name="Start run")).to_be_enabled()


def test_what_is_typed_before_the_form_is_complete_counts(page_of: PageOf, site: Site) -> None:
    page = page_of(site)
    held: list[Route] = []
    page.route("**/flowSchemas/v1", lambda route: held.append(route))
    with page.expect_request("**/flowSchemas/v1"):
        page.goto(f"{site.endpoint}/ui/runs/new")
    page.get_by_label("Name of the run").fill("early")
    page.get_by_label("Dataset", exact=True).select_option("digits-both")
    held[0].continue_()
    expect(page.locator("#plan-rows")).to_contain_text("digits-both")
    expect(page.locator("#as-python")).to_contain_text("early")


def test_the_same_is_offered_as_python_and_as_a_command(page_of: PageOf, site: Site) -> None:
    page = open_form(page_of, site)
    page.get_by_label("Name of the run").fill("it's mine")
    page.get_by_label("Learning rate", exact=True).fill("0.001")
    code = page.locator("#as-python").text_content() or ""
    names: dict[str, object] = {}
    source = code.partition("flow=")[2].partition("\n)\nrun = client.runs.wait")[0].rstrip(",\n")
    exec(f"flow = {source}", names)  # noqa: S102 - the code that the page shows
    settings = {"hyperparameters": {"learningRate": 0.001}}
    assert names["flow"] == {
        "name": "it's mine",
        "schema": "v1",
        "blocks": [{"block": "vi-model", "settings": settings}],
    }
    command = page.locator("#as-command").text_content() or ""
    assert r"--set 'name=it'\''s mine'" in command
    assert "--set vi-model.hyperparameters.learningRate=0.001" in command


def test_a_run_can_be_repeated_with_changes(page_of: PageOf, site: Site) -> None:
    settings = {"hyperparameters": {"epochs": 5}}
    flow = {"name": "Earlier", "blocks": [{"block": "vi-model", "settings": settings}]}
    with site.client() as client:
        run = client.runs.create(flow=flow)
    page = open_form(page_of, site, f"?from={run.run_id}&dataset=digits-grounding")
    expect(page.get_by_label("Name of the run")).to_have_value("Earlier")
    expect(page.get_by_label("Epochs", exact=True)).to_have_value("5")
    expect(page.get_by_label("Dataset", exact=True)).to_have_value("digits-grounding")
    expect(page.locator("#plan-rows")).to_contain_text("digits-grounding")


def test_the_form_has_every_setting_of_the_schema(page_of: PageOf, site: Site) -> None:
    page = open_form(page_of, site)
    schema = json.loads(
        page.request.get(f"{site.endpoint}/workspaces/{site.org}/flowSchemas/v1").text()
    )
    names = set(schema["$defs"]["Hyperparameters"]["properties"]) - {
        "schedule",
        "optimizer",
        "loss",
    }
    shown = page.evaluate(
        "() => [...document.querySelectorAll('.field > :is(input, select, textarea)')]"
        ".map((field) => field.id)"
    )
    assert len(shown) > 60
    assert {f"field-model-hyperparameters-{name}" for name in names} <= set(shown)


def test_a_viewer_sees_the_form_and_cannot_start(page_of: PageOf, site: Site) -> None:
    with site.client() as client:
        key = client.keys.create("reader", "viewer").secret_key
    page = page_of(site, "/ui/enter?next=/ui/runs/new", is_signed_in=False)
    page.get_by_label("Secret key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("A viewer's key only reads")).to_be_visible()
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()


def test_the_form_and_the_run_say_what_the_tiny_model_sees_of_own_images(
    page_of: PageOf, site: Site, tmp_path: Path
) -> None:
    for name, content in make_vqa_files(3).items():
        path = tmp_path / "shelves" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with site.client() as client:
        dataset_id = client.datasets.import_folder(tmp_path / "shelves", progress=False).dataset_id
    page = open_form(page_of, site)
    expect(page.locator("#findings")).to_be_empty()
    page.get_by_label("Dataset", exact=True).select_option(dataset_id)
    expect(page.locator("#findings")).to_contain_text("tiny: images become 32 x 32 pixels")
    expect(page.locator("#findings")).to_contain_text("runyard models add")
    expect(page.locator("#plan-rows")).to_contain_text("Images32 x 32")
    page.get_by_role("button", name="Start run").click()
    head = page.locator("#run-head")
    expect(head).to_contain_text("tiny: images become 32 x 32 pixels")
    head.get_by_role("link", name="Change it…").click()
    expect(page.locator("#verdict")).to_contain_text("No problems")
    expect(page.get_by_label("Dataset", exact=True)).to_have_value(dataset_id)
