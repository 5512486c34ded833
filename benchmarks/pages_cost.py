"""Measure what the pages cost: time to open them, processor time while they are open, responses.

    python benchmarks/pages_cost.py [--runs 100000] [--rounds 7] [--seconds 3] [--only G3]

A real server with many runs in its store, and Chromium; a run reports steps meanwhile, as often as
a real one. Everything is measured in turn in each round, and the medians are printed with the
targets and the load of the machine before and after. Processor time is that of the server's
process, less what it uses without a page, right before each measurement.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.browser.conftest import ARGUMENTS, CHROMIUM, Site
from tests.support.crowded import create_instance
from tests.support.fake_trainer import FakeTrainer, claim_run

VIEWPORT: Any = {"width": 1440, "height": 900}
TIMEOUT_MS = 60_000
METRICS = ("loss", "learningRate", "gradNorm", "samplesPerSecond")
SETTLE_MS = 2000
REPORT_EVERY_S, STEPS_AT_ONCE = 1, 10
REQUESTS = 20  # of each page in each round
LIVE = "() => document.querySelector('#live-text').textContent === 'live'"
SHOWN_MS = """() => Math.max(
  performance.getEntriesByName("live-ready")[0].startTime,
  performance.getEntriesByType("navigation")[0].loadEventEnd,
)"""
CLICK = """(name) => new Promise((resolve) => {
  const button = [...document.querySelectorAll("button")].find((one) => one.textContent === name);
  const begun = performance.now();
  button.click();
  requestAnimationFrame(() => setTimeout(() => {
    resolve(document.querySelector("dialog[open]") ? performance.now() - begun : NaN);
  }));
})"""
Results = defaultdict[str, list[float]]
# What is measured, its unit, its target, and how many values make the result: the median or p95.
TARGETS = {
    "G1 Runs, cold": ("ms", 800),
    "G1 Runs, warm": ("ms", 400),
    "G1 Run, cold": ("ms", 800),
    "G1 Run, warm": ("ms", 400),
    "G1 Start a run, cold": ("ms", 800),
    "G1 Start a run, warm": ("ms", 400),
    "G3 server, Runs open": ("% of a core", 0.15),
    "G3 server, Run open": ("% of a core", 0.35),
    "G3 server, ten Run pages": ("% of a core", 4),
    "G3 server, ten tabs of a browser": ("% of a core", 4),
    "G3 Run open, received": ("KiB/s", 5),
    "G4 Runs, p95": ("ms", 300),
    "G4 Runs, filtered, p95": ("ms", 300),
    "G4 Runs, by metric, p95": ("ms", 300),
    "G4 Run, p95": ("ms", 300),
    "G4 Run, head, p95": ("ms", 300),
    "G5 click to dialog, Run": ("ms", 100),
    "G5 click to dialog, Runs": ("ms", 100),
    "G8 outage shown": ("ms", 2000),
    "G8 recovery": ("ms", 2000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="of each processor measurement")
    parser.add_argument("--only", default="", help="the budgets to measure, such as G1,G5")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if not CHROMIUM:
        raise SystemExit("this needs Chromium. try: apt-get install chromium")
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        site = stack.enter_context(serve(folder / "data", arguments.runs))
        training = stack.enter_context(train(site))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        stack.callback(browser.close)
        measurement = Measurement(site, training, browser, arguments.seconds)
        results = measurement.measure(arguments.rounds, arguments.only)
    load = f"{before:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores"
    print_results(results, arguments, load)


@contextmanager
def serve(data_dir: Path, runs: int) -> Iterator[Site]:
    create_instance(data_dir, runs)
    site = Site(data_dir, {**os.environ, "RUNYARD_DATA_DIR": str(data_dir)})
    site.start()
    yield site
    site.stop()


@contextmanager
def train(site: Site) -> Iterator[FakeTrainer]:
    """Report steps of a run."""
    with site.client() as client:
        run_id = client.runs.create({"name": "trains"}).run_id
    trainer = claim_run(site.endpoint, site.data_dir)
    while trainer.run_id != run_id:
        trainer.close()
        trainer = claim_run(site.endpoint, site.data_dir)
    is_over = threading.Event()

    def report() -> None:
        step = 0
        while not is_over.wait(REPORT_EVERY_S):
            steps = [
                {
                    "ev": "step", "step": number, "totalSteps": 100_000, "epoch": number / 1000,
                    "secondsLeft": 60.0,
                    "values": dict.fromkeys(METRICS, 1 / number),
                }
                for number in range(step + 1, step + 1 + STEPS_AT_ONCE)
            ]  # fmt: skip
            try:
                trainer.report_many(steps)
            except httpx2.TransportError:
                continue  # the server is restarted meanwhile
            step += STEPS_AT_ONCE

    trainer.report("phase", phase="Training", message="")
    thread = threading.Thread(target=report)
    thread.start()
    yield trainer
    is_over.set()
    thread.join()
    trainer.close()


class Measurement:
    """All measurements, and what they have found."""

    def __init__(self, site: Site, training: FakeTrainer, browser: Browser, seconds: float) -> None:
        self.site, self.browser, self.seconds = site, browser, seconds
        self.paths = {
            "Runs": "/ui/runs",
            "Run": f"/ui/runs/{training.run_id}",
            "Start a run": "/ui/runs/new",
        }
        self.results: Results = defaultdict(list)

    def measure(self, rounds: int, only: str) -> Results:
        budgets: dict[str, Callable[[], None]] = {
            "G1": self.measure_opening,
            "G3": self.measure_processor,
            "G4": self.measure_responses,
            "G5": self.measure_clicks,
            "G8": self.measure_outage,
        }
        steps = [step for name, step in budgets.items() if not only or name in only.split(",")]
        for number in range(rounds + 1):
            for step in steps if number % 2 else reversed(steps):
                step()
            if not number:  # the first round fills caches
                self.results.clear()
        return self.results

    @contextmanager
    def open(self, *paths: str, are_tabs: bool = False) -> Iterator[list[Page]]:
        """Open pages, each without anything in its cache, or as tabs of one browser."""
        with ExitStack() as stack:
            pages: list[Page] = []
            for path in paths:
                if not (pages and are_tabs):
                    context = self.browser.new_context(viewport=VIEWPORT)
                    stack.callback(context.close)
                    self.sign_in(context)
                page = context.new_page()
                self.show(page, path)
                pages.append(page)
            yield pages

    def sign_in(self, context: BrowserContext) -> None:
        context.set_default_timeout(TIMEOUT_MS)
        context.request.post(
            f"{self.site.endpoint}/ui/sessions",
            data={"key": self.site.key},
            headers={"origin": self.site.endpoint},
        )

    def show(self, page: Page, path: str) -> None:
        page.goto(f"{self.site.endpoint}{path}")
        page.wait_for_function(LIVE)

    def measure_opening(self) -> None:
        for name, path in self.paths.items():
            with self.open(path) as (page,):
                self.results[f"G1 {name}, cold"].append(page.evaluate(SHOWN_MS))
                self.show(page, path)
                self.results[f"G1 {name}, warm"].append(page.evaluate(SHOWN_MS))

    def measure_processor(self) -> None:
        run = self.paths["Run"]
        for name, paths, are_tabs in (
            ("Runs open", [self.paths["Runs"]], False),
            ("Run open", [run], False),
            ("ten Run pages", [run] * 10, False),
            ("ten tabs of a browser", [run] * 10, True),
        ):
            base = self.watch_server()
            with self.open(*paths, are_tabs=are_tabs) as pages:
                pages[0].wait_for_timeout(SETTLE_MS)
                received = 0
                session = pages[0].context.new_cdp_session(pages[0])

                def receive(event: dict[str, Any]) -> None:
                    nonlocal received
                    received += int(event["encodedDataLength"])

                session.on("Network.loadingFinished", receive)
                session.send("Network.enable")
                used = self.watch_server(pages[0])
                self.results[f"G3 server, {name}"].append(used - base)
                if name == "Run open":
                    rate = received / 1024 / self.seconds
                    self.results["G3 Run open, received"].append(rate)

    def watch_server(self, page: Page | None = None) -> float:
        """Return which percentage of a core the server uses."""
        before, begun = self.read_processor_s(), time.perf_counter()
        if page is None:
            time.sleep(self.seconds)
        else:
            page.wait_for_timeout(self.seconds * 1000)
        return 100 * (self.read_processor_s() - before) / (time.perf_counter() - begun)

    def read_processor_s(self) -> float:
        """Return the processor time that the server's process has used, all threads together."""
        assert self.site.process is not None
        return time.clock_gettime((~self.site.process.pid << 3) | 2)  # as clock_getcpuclockid(3)

    def measure_responses(self) -> None:
        runs, run = self.paths["Runs"], self.paths["Run"]
        paths = {
            "Runs": runs,
            "Runs, filtered": f"{runs}?q=condition:Failed+owner%3Dkim+lora",
            "Runs, by metric": f"{runs}?sort=-metric.validation/iou",
            "Run": run,
            "Run, head": f"{run}/head",
        }
        headers = {"authorization": f"Bearer {self.site.key}"}
        with httpx2.Client(base_url=self.site.endpoint, headers=headers, trust_env=False) as http:
            for _ in range(REQUESTS):
                for name, path in paths.items():
                    begun = time.perf_counter()
                    http.get(path).raise_for_status()
                    took_ms = (time.perf_counter() - begun) * 1000
                    self.results[f"G4 {name}, p95"].append(took_ms)

    def measure_clicks(self) -> None:
        with self.open(self.paths["Run"], self.paths["Runs"]) as (run, runs):
            self.results["G5 click to dialog, Run"].append(run.evaluate(CLICK, "Kill…"))
            runs.locator("#all-rows").check()
            self.results["G5 click to dialog, Runs"].append(runs.evaluate(CLICK, "Kill…"))

    def measure_outage(self) -> None:
        with self.open(self.paths["Runs"]) as (page,):
            begun = time.perf_counter()
            port = self.site.stop()
            page.wait_for_function(LIVE.replace("===", "!=="))
            self.results["G8 outage shown"].append((time.perf_counter() - begun) * 1000)
            self.site.start(port)
            begun = time.perf_counter()
            page.wait_for_function(LIVE)
            self.results["G8 recovery"].append((time.perf_counter() - begun) * 1000)


def summarize(name: str, values: list[float]) -> float:
    if name.endswith("p95"):
        return statistics.quantiles(values, n=20)[-1]
    return statistics.median(values)


def print_results(results: Results, arguments: argparse.Namespace, load: str) -> None:
    found = {name: summarize(name, results[name]) for name in TARGETS if results[name]}
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "load": load, "measured": found}))
        return
    print(f"{arguments.runs:,} runs, {arguments.rounds} rounds; load {load}\n")
    print("| measured | value | target | unit | met |\n|---|---|---|---|---|")
    for name, value in found.items():
        unit, target = TARGETS[name]
        met = "yes" if value <= target else "no"
        print(f"| {name} | {value:.3g} | {target:g} | {unit} | {met} |")


if __name__ == "__main__":
    main()
