"""What a new user does first: ``runyard up``, its link, and a run from the form."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

import vi
from tests.support.terminal import open_terminal
from tests.support.waiting import eventually

UP_TIMEOUT_S, END_TIMEOUT_S = 60, 30
REAL_TIMEOUT_MS = 120_000
LINK = re.compile(r"(http://\S+/ui/enter\S*#\S+)\s")


@dataclass(frozen=True)
class FreshInstance:
    """An instance that has just started, and the link that it printed."""

    data_dir: Path
    link: str

    @property
    def endpoint(self) -> str:
        return self.link.partition("/ui/")[0]

    def client(self) -> vi.Client:
        document: dict[str, Any] = json.loads((self.data_dir / "credentials.json").read_text())
        return vi.Client(
            secret_key=document["secret_key"],
            organization_id=document["organization_id"],
            endpoint=f"{self.endpoint}/",
        )


@contextmanager
def start_instance(folder: Path, **environ: str) -> Iterator[FreshInstance]:
    """Run ``runyard up`` in a terminal, as a user does, and end it with Ctrl-C."""
    data_dir = folder / "data"
    settings = {
        "HOME": str(folder),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_PORT": "0",
        "RUNYARD_GRACE_S": "5",
        "RUNYARD_THREADS": "1",
        **environ,
    }
    with open_terminal("up", environ=settings, columns=240) as terminal:
        terminal.expect("Runyard is up", "Open the pages", timeout_s=UP_TIMEOUT_S)
        while (found := LINK.search(terminal.text)) is None:
            terminal.expect("\n", timeout_s=END_TIMEOUT_S)
        try:
            yield FreshInstance(data_dir, found[1])
        finally:
            terminal.press("\x03")
            terminal.finish(timeout_s=END_TIMEOUT_S)


def fill_form(page: Page, name: str, *, epochs: int, samples: int, dataset: str = "") -> None:
    """Choose a name, a dataset, epochs and the number of samples, and wait for the check."""
    page.get_by_label("Name of the run").fill(name)  # kept, although the form is not yet complete
    expect(page.locator("#verdict")).to_contain_text("No problems")
    if dataset:
        page.get_by_label("Dataset", exact=True).select_option(dataset)
    page.get_by_label("Epochs", exact=True).fill(str(epochs))
    page.get_by_text("All settings").click()
    page.get_by_label("Search settings").fill("max samples")
    page.locator("#field-dataset-maxSamples").fill(str(samples))
    expect(page.locator("#plan-rows")).to_contain_text(f"{epochs:,}")
    expect(page.get_by_role("button", name="Start run")).to_be_enabled()


CURVE = """(key) => {
  for (const chart of document.querySelectorAll("ry-chart")) {
    const curve = chart.curves?.find((one) => one.key === key);
    if (curve) return [...curve.series.step];
  }
  return [];
}"""


def wait_for_curve(page: Page, key: str, *, points: int) -> list[float]:
    """Return the steps of a curve once the chart holds so many points."""
    eventually(
        lambda: len(page.evaluate(CURVE, key)) >= points,
        timeout_s=REAL_TIMEOUT_MS / 1000,
        what=f"the chart of {key} holds {points} points",
    )
    steps: list[float] = page.evaluate(CURVE, key)
    return steps
