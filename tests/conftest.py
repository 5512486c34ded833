"""Shared instance for tests: ``runyard up`` over a fresh data folder, on a free port.

Training takes most of the time, so there is one full training of the empty flow for all tests: its
example starts with the instance, in the background, and ``finished_run`` waits for it; tests
that need it are put last. Under xdist everything that uses the instance goes to one worker, so that
there is one instance, one training, and a fixed order: with one slot, a test
with a long run knows which runs wait behind it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

import vi
from tests.support.instance import EndRun, Instance, LongRuns, end_run, name_variables
from tests.support.postgresql import PostgreSqlServer
from tests.support.waiting import Eventually, eventually
from vi.api.resources.runs.responses import Run

# A suite started in the background ignores Ctrl-C, and one started by nohup ignores the end of its
# terminal. Programs inherit that, and those that the tests start and interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Only these may use the instance; see OneInstanceScheduling.
USE_THE_INSTANCE = (
    "tests/contract/",
    "tests/e2e/",
    "tests/test_examples.py",
    "tests/test_howtos.py::test_a_reader_who_follows_the_page_succeeds",
    "tests/cli/test_commands.py",
    "tests/cli/test_datasets.py",
    "tests/cli/test_export.py",
    "tests/cli/test_formats.py",
)
# These make models of every family; in one process each is made once.
FAMILIES = tuple(
    f"tests/trainer/test_{name}.py"
    for name in ("reference_step", "families", "features", "image_resolution", "packing")
)
# Started first, in this order: a long module at the end would keep a single core busy.
LONGEST = (
    *FAMILIES,
    "tests/trainer/",
    "tests/chaos/",
    "tests/sim/",
    "tests/server/",
    "tests/supervisor/",
    "tests/store/",
    "tests/cli/",
    "tests/controller/",
    "tests/test_vi_package.py",
    "tests/blobs/",
)
# Left out by default, like tests with the mark slow.
SLOW = (
    "tests/e2e/test_assets_sync.py",
    "tests/e2e/test_datasets_sync.py",
    "tests/e2e/test_https.py",
    # Real training in a browser, and stores with many runs.
    "tests/browser/test_first_run.py",
    "tests/browser/test_budgets.py",
    "tests/browser/test_https.py",
    # Ten seconds and more each, of behavior that quicker tests cover in part.
    "tests/browser/test_run_page.py::test_no_tab_has_an_accessibility_violation",
    "tests/browser/test_frame.py::test_a_page_has_no_accessibility_violation",
    "tests/browser/test_runs_page.py::test_no_accessibility_rule_is_violated",
    "tests/chaos/test_replays.py::test_repeating_a_create",
    "tests/cli/test_up.py::test_the_shutdown_reports_saved_runs",
    "tests/datasets/test_defects.py::test_every_defect_is_reported",
    "tests/server/test_access.py::test_no_spelling_of_a_path",
    "tests/server/test_availability.py",
    "tests/server/test_imports_killed.py",
    "tests/sim/test_simulation.py::test_every_invariant_holds_under_all_faults",
    "tests/test_examples.py",
    "tests/test_howtos.py::test_a_reader_who",
    "tests/trainer/test_export.py::test_plain_transformers_and_peft",
    "tests/trainer/test_train.py::test_plain_transformers_in_a_new_process",
    "tests/trainer/test_training_with_ranks.py::test_a_run_resumes_on_any",
)
REPOSITORY = Path(__file__).parent.parent
LEFT_OUT = pytest.StashKey[int]()
GARBAGE_THRESHOLDS = (20_000, 20, 20)
START_TIMEOUT_S = 60
TRAIN_TIMEOUT_S = 240
END_TIMEOUT_S = 30


class OneInstanceScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Assign tests of the instance to one worker, and those of each module, with its fixtures.

    ``--dist loadgroup`` is made for this, but reads a private attribute that the newest pytest no
    longer has.
    """

    def _split_scope(self, nodeid: str) -> str:
        return find_scope(nodeid)


def find_scope(nodeid: str) -> str:
    """Return the name of the group of tests that one worker runs in order."""
    if nodeid.startswith(USE_THE_INSTANCE):
        return "instance"
    if nodeid.startswith("tests/browser/"):
        return "browser"
    if nodeid.startswith(FAMILIES):
        return "families"
    return nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneInstanceScheduling:
    config.option.loadscopereorder = False  # the order is that of pytest_collection_modifyitems
    return OneInstanceScheduling(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark slow tests, and check that tests with the instance are listed."""
    fixtures = getattr(item, "fixturenames", ())
    if "instance" in fixtures:
        assert item.nodeid.startswith(USE_THE_INSTANCE), (
            f"{item.nodeid} uses the instance; add it to USE_THE_INSTANCE"
        )
        item.add_marker(pytest.mark.e2e)
    if "finished_run" in fixtures:
        item.add_marker(pytest.mark.train)
    if item.nodeid.startswith(SLOW):
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, and order the rest: the instance and the longest first, and tests of
    the finished training after others of the instance, while it trains.
    """
    is_chosen = config.option.markexpr or any("::" in argument for argument in config.args)
    slow = [item for item in items if item.get_closest_marker("slow") and not is_chosen]
    if slow:
        config.hook.pytest_deselected(items=slow)
        left_out = set(slow)
        items[:] = [item for item in items if item not in left_out]
    config.stash[LEFT_OUT] = len(slow)

    def place(item: pytest.Item) -> tuple[bool, bool, int, bool]:
        scope = find_scope(item.nodeid)
        rank = next(
            (rank for rank, name in enumerate(LONGEST) if item.nodeid.startswith(name)),
            len(LONGEST),
        )
        needs_training = "finished_run" in getattr(item, "fixturenames", ())
        return scope != "instance", scope != "browser", rank, needs_training

    items.sort(key=place)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report the number of tests left out to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):  # a worker of xdist; each has collected the same
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were left out, and what runs them."""
    if count := terminalreporter.config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} slow tests were left out; make test-slow runs them")


def pytest_collection_finish() -> None:
    """Exclude everything imported so far from garbage collection.

    Scanning torch again and again takes time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Start ``runyard up``; end it with all its processes after the last test."""
    data_dir = tmp_path_factory.mktemp("instance") / "data"
    home = tmp_path_factory.mktemp("home")
    # A killed test session closes our end of the pipe, and the instance ends with it.
    command = [sys.executable, "-P", "-m", "runyard.cli", "up", "--port", "0", "--end-with-stdin"]
    environ = {
        **os.environ,
        "HOME": str(home),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_GRACE_S": "5",
        "RUNYARD_SLOTS": "1",
        # A second test process has the other core; two threads would wait for each other.
        "RUNYARD_THREADS": "1",
    }
    log, training_output = home / "up.log", home / "quick_training.log"
    with ExitStack() as ends:
        ends.callback(_kill_what_is_left, data_dir)
        output = ends.enter_context(open(log, "wb"))
        up = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
        ends.enter_context(up)
        ends.callback(_end, up)
        credentials = _credentials(data_dir, up, log)
        output = ends.enter_context(open(training_output, "wb"))
        training = subprocess.Popen(
            [sys.executable, REPOSITORY / "examples" / "quick_training.py"],
            env={**environ, **name_variables(credentials)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        ends.enter_context(training)
        ends.callback(training.kill)
        running = _with_first_run(data_dir, credentials, training, training_output)
        ends.callback(_kill_open_runs, running)
        yield running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSqlServer]:
    """A real PostgreSQL; up in about a second."""
    server = PostgreSqlServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of async tests and fixtures."""
    return "asyncio"


@pytest.fixture
def memory_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Serialize tests in which the kernel kills for lack of memory: it counts kills per machine.

    A test that gets SIGKILL while another runs out of memory would be taken for one that did.
    """
    folder = tmp_path_factory.getbasetemp()
    is_shared = "PYTEST_XDIST_WORKER" in os.environ
    with FileLock((folder.parent if is_shared else folder) / "memory-kills.lock"):
        yield


@pytest.fixture(scope="session")
def client(instance: Instance) -> Iterator[vi.Client]:
    """Return the SDK's client of the instance."""
    with instance.client() as ours:
        yield ours


@pytest.fixture(scope="session")
def finished_run(instance: Instance, client: vi.Client) -> Run:
    """Return the succeeded run of the empty flow."""
    return client.runs.wait(instance.trained_run_id, timeout=TRAIN_TIMEOUT_S, show_progress=False)


@pytest.fixture(scope="session")
def quick_training(instance: Instance, finished_run: Run) -> str:
    """Return the final output of ``examples/quick_training.py``."""
    code = instance.training.wait(END_TIMEOUT_S)
    printed = instance.training_output.read_text()
    assert code == 0, printed
    return printed


@pytest.fixture(scope="module")
def long_runs(client: vi.Client, finished_run: Run) -> Iterator[LongRuns]:
    """Return runs that stay running or pending as long as a module's tests need them."""
    runs = LongRuns(client)
    yield runs
    runs.end()


@pytest.fixture(scope="session", name="end_run")
def _end_run() -> EndRun:
    """Kill a run and wait until it has ended."""
    return end_run


@pytest.fixture(scope="session", name="eventually")
def _eventually() -> Eventually:
    """Return the polling function: ``eventually(look, timeout_s=..., what=...)``."""
    return eventually


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


def _credentials(data_dir: Path, up: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Return the credentials of the instance as soon as it reports that it is up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Runyard is up" not in log.read_text():
        assert up.poll() is None, f"runyard up ended with {up.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, (
            f"runyard up is not up after {START_TIMEOUT_S} s:\n{log.read_text()}"
        )
        time.sleep(0.1)
    credentials: dict[str, str] = json.loads((data_dir / "credentials.json").read_text())
    return credentials


def _with_first_run(
    data_dir: Path, credentials: dict[str, str], training: subprocess.Popen[bytes], output: Path
) -> Instance:
    """Return the instance once the example has created its run."""
    instance = Instance(
        data_dir=data_dir,
        endpoint=credentials["endpoint"],
        secret_key=credentials["secret_key"],
        organization_id=credentials["organization_id"],
        trained_run_id="",
        training=training,
        training_output=output,
    )

    with instance.client() as ours:

        def first_run() -> str | None:
            assert training.poll() is None, output.read_text()
            runs = ours.runs.list().items
            return runs[0].run_id if runs else None

        run_id = eventually(
            first_run, timeout_s=START_TIMEOUT_S, what="examples/quick_training.py creates a run"
        )
    return replace(instance, trained_run_id=run_id)


def _kill_open_runs(instance: Instance) -> None:
    with instance.client() as client:
        for run in list(client.runs.list(pagination={"page_size": 1000}).all_items()):
            if run.condition is None or not run.condition.is_final:
                end_run(client, run.run_id)


def _end(up: subprocess.Popen[bytes]) -> None:
    up.send_signal(signal.SIGTERM)
    try:
        up.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        up.kill()
        raise


def _kill_what_is_left(data_dir: Path) -> None:
    """Supervisors and trainers outlive the server by design; stop those of a failed test.

    Only processes with the data folder of this session in their environment are stopped.
    """
    mark = f"RUNYARD_DATA_DIR={data_dir}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                os.kill(int(entry.name), signal.SIGKILL)
